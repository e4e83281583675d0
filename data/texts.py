"""Own documents: a folder of .txt files, or a .csv or .jsonl file with a column `text`.

Sub-folders, or a column `group`, are the groups. What lies in `train/` and `test/` is the split;
without these, a quarter of the documents, by a hash of their names, is the test set, of every
run the same. Words are counted as the search does, lower case, letters and digits of any script;
the 10,000 that occur in most training documents are kept.

scikit-learn's CountVectorizer would do the counting, but takes words of two letters or more, where
queries have words of any length, and is a large dependency for ten lines.
"""

import csv
import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import scipy.sparse

from data import SPLITS, Corpus, DataError, frequent_words

VOCABULARY = 10_000
LARGEST = 64 << 20  # bytes of a document
Document = tuple[str, str, str]  # name, group, text


def words_of(text: str) -> list[str]:
    """Lower-case words, of letters and digits of any script."""
    return re.findall(r"[^\W_]+", text.lower())


def load(path: Path) -> Corpus:
    """The corpus of a folder, a .csv or a .jsonl file. Files that are no UTF-8 are read with
    replacements, and counted on the terminal.

    Raises DataError, one line: nothing there, no document, a binary or too large file, no word in
    two documents, a split without documents.
    """
    if not path.exists():
        raise DataError(f"no corpus {str(path)!r}: newsgroups, docstrings, folder, .csv or .jsonl")
    return corpus_of(_files(path) if path.is_dir() else _rows(path), path.name, digest=True)


def corpus_of(documents: Iterable[Document], name: str, digest: bool = False) -> Corpus:
    """The corpus, called `name`, of documents, of which one at a time is in memory. digest: number
    of documents and digest of their texts join the name. Raises DataError as `load` does.
    """
    index: dict[str, int] = {}
    titles, groups, said = [], [], hashlib.sha256()
    # Of all non-zeros: 8 bytes each. Of documents: where theirs end.
    columns, values, ends = array("i"), array("f"), array("q", [0])
    for document in documents:
        said.update(repr(document).encode("utf-8", "replace"))
        titles.append(document[0])
        groups.append(document[1])
        for word, count in Counter(words_of(document[2])).items():
            columns.append(index.setdefault(word, len(index)))
            values.append(count)
        ends.append(len(columns))
    if len(titles) < 2:
        raise DataError(f"{name}: {len(titles)} documents, and at least two are needed")
    name += f" ({len(titles):,} documents, {said.hexdigest()[:12]})" if digest else ""
    vocabulary = sorted(index)
    rank = np.empty(len(index), np.int32)  # in the order of the alphabet
    rank[[index[word] for word in vocabulary]] = np.arange(len(index), dtype=np.int32)
    of_rows = np.array(ends, np.int32 if len(columns) < 2**31 else np.int64)
    parts = np.asarray(values), rank[np.asarray(columns)], of_rows
    counts = scipy.sparse.csr_array(parts, (len(titles), len(index)))
    test = _is_test(titles)
    rows = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    for split, chosen in rows.items():
        if not len(chosen):
            raise DataError(f"{name}: no {split} documents; name folders train/ and test/")
    tables = {split: counts[chosen] for split, chosen in rows.items()}
    del counts, parts, of_rows, columns, values  # the largest, and needed no more
    occurring = np.bincount(tables["train"].indices, minlength=len(index))
    if occurring.max(initial=0) < 2:
        raise DataError(f"{name}: no word stands in two training documents")
    kept = frequent_words(tables["train"], min(VOCABULARY, int((occurring > 0).sum())))
    splits = [tables[split][:, kept] for split in SPLITS]
    for split in splits:
        split.sort_indices()
    names = sorted(set(groups))
    number = {group: i for i, group in enumerate(names)}
    labels = np.fromiter((number[group] for group in groups), np.int64, len(groups))
    return Corpus(
        name,
        *splits,
        *(labels[rows[split]] for split in SPLITS),
        *([titles[i] for i in rows[split]] for split in SPLITS),
        words=[vocabulary[i] for i in kept],
        groups=names,
    )


def _is_test(titles: list[str]) -> np.ndarray:
    tops = {title.partition("/")[0] for title in titles}
    if tops.issuperset(SPLITS):
        if outside := sorted(tops.difference(SPLITS)):
            raise DataError(f"{outside[0]} is beside train/ and test/: move it into one of them")
        return np.array([title.startswith("test/") for title in titles])
    digests = (hashlib.sha256(title.encode("utf-8", "replace")).digest() for title in titles)
    return np.array([digest[0] % 4 == 0 for digest in digests])


def _files(folder: Path) -> Iterator[Document]:
    replaced = 0
    for path in sorted(folder.rglob("*.txt")):
        place = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        if path.stat().st_size > LARGEST:
            raise DataError(f"{path}: {path.stat().st_size:,} bytes are no document")
        data = path.read_bytes()
        if b"\0" in data:
            raise DataError(f"{path} is a binary file, not a text")
        text = data.decode("utf-8", "replace")
        replaced += "\N{REPLACEMENT CHARACTER}" in text
        parts = place.parts[1:] if place.parts[0] in SPLITS else place.parts
        yield place.as_posix(), parts[0] if len(parts) > 1 else "all", text
    if replaced:
        print(f"{folder}: {replaced} file(s) are no UTF-8: what is none was replaced")


def _rows(path: Path) -> Iterator[Document]:
    csv.field_size_limit(LARGEST)
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = filter(str.strip, file)
        table = path.suffix.lower() == ".csv"
        rows = csv.DictReader(file) if table else map(json.loads, lines)
        try:
            for number, row in enumerate(rows, start=1):
                yield f"{path.name}:{number}", str(row.get("group") or "all"), str(row["text"])
        except (ValueError, KeyError, AttributeError, TypeError, csv.Error) as error:
            raise DataError(f"{path}: no .csv or .jsonl with a column text: {error!r}") from error


def best_line(path: Path, query: list[str]) -> str:
    """Of a document, the line that has most words of the query."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = set(query)

    def shared(line: str) -> int:
        return len(set(words_of(line)) & wanted)

    return " ".join(max(lines, key=shared, default="").split())[:80]
