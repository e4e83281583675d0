"""Own documents: a folder of .txt files, or a .csv or .jsonl file with a column `text`.

Sub-folders, or a column `group`, are the groups. What lies in `train/` and `test/` is the split;
without these, a quarter of the documents, by a hash of their names, is the test set, so that
training and search agree on it. Words are counted as the search does, lower case, letters and
digits of any script; the 10,000 that occur in most training documents are kept.

scikit-learn's CountVectorizer would do the counting, but takes words of two letters or more, where
queries have words of any length, and is a large dependency for ten lines.
"""

import csv
import hashlib
import json
import re
from collections.abc import Iterator
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
        raise DataError(f"no corpus {str(path)!r}: newsgroups, docstrings, a folder of .txt files")
    documents = list(_files(path) if path.is_dir() else _rows(path))
    digest = hashlib.sha256(repr(documents).encode("utf-8", "replace")).hexdigest()[:12]
    return corpus_of(documents, f"{path.name} ({len(documents):,} documents, {digest})")


def corpus_of(documents: list[Document], name: str) -> Corpus:
    """The corpus, called `name`, of documents. Raises DataError as `load` does."""
    if len(documents) < 2:
        raise DataError(f"{name}: at least two documents are needed")
    tokens = [words_of(text) for _, _, text in documents]
    index = {word: i for i, word in enumerate(sorted(set().union(*tokens)))}
    column = np.fromiter((index[word] for words in tokens for word in words), np.int32)
    row = np.repeat(np.arange(len(tokens), dtype=np.int32), [len(words) for words in tokens])
    shape = (len(tokens), len(index))
    counts = scipy.sparse.coo_array((np.ones(len(row), np.float32), (row, column)), shape).tocsr()
    counts.sort_indices()
    titles = [title for title, _, _ in documents]
    test = _is_test(titles)
    rows = {"train": np.flatnonzero(~test), "test": np.flatnonzero(test)}
    for split, chosen in rows.items():
        if not len(chosen):
            raise DataError(f"{name}: no {split} documents; name folders train/ and test/")
    occurring = np.bincount(counts[rows["train"]].indices, minlength=len(index))
    if occurring.max(initial=0) < 2:
        raise DataError(f"{name}: no word stands in two training documents")
    columns = frequent_words(counts[rows["train"]], min(VOCABULARY, int((occurring > 0).sum())))
    groups = sorted({group for _, group, _ in documents})
    labels = np.array([groups.index(group) for _, group, _ in documents], np.int64)
    vocabulary = list(index)
    return Corpus(
        name=name,
        **{split: counts[rows[split]][:, columns] for split in SPLITS},
        **{f"{split}_labels": labels[rows[split]] for split in SPLITS},
        **{f"{split}_titles": [titles[i] for i in rows[split]] for split in SPLITS},
        words=[vocabulary[i] for i in columns],
        groups=groups,
    )


def _is_test(titles: list[str]) -> np.ndarray:
    if {title.partition("/")[0] for title in titles} == set(SPLITS):
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
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)
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
