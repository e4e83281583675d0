"""20 Newsgroups, "bydate" split, as the sparse word counts that Section 5 trains on.

Source: J. Rennie's `20news-bydate-matlab.tgz`, http://qwone.com/~jason/20Newsgroups/. Its `train.data` and `test.data`
hold one line `document word count` per non-zero, 1-based. The vocabulary is cut to the 10,000 words that occur in most
training documents; 498 words tie at the last document frequency (14), and ties go to the smaller word index.

Nothing is ever extracted to disk, and no dense table of documents by words is built.
"""

import hashlib
import io
import os
import socket
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse

from data import DataError, write_aside

URL = "http://qwone.com/~jason/20Newsgroups/20news-bydate-matlab.tgz"
ARCHIVE = "20news-bydate-matlab.tgz"
ENVIRONMENT_VARIABLE = "NEWSGROUPS_ARCHIVE"
INNER = "20news-bydate/matlab/"
SHA256 = {
    "train.data": "dc3bf23fa28511494ee406bd3baa6565ad156c0d48e56bc9aea247c4dd0b81be",
    "test.data": "2e739450e07c6201ae4eff90bb26cd69d26c45243bd923a29fc2caaae3a4c34a",
}
ALL_WORDS = 61_188
VOCABULARY = 10_000
SPLITS = ("train", "test")
LARGEST_MEMBER = 64 << 20  # bytes; the largest file of the true archive has 17 MB


@dataclass(frozen=True)
class Corpus:
    """Word counts of a train/test split.

    train, test: CSR, float32, shapes (documents, words), indices sorted within a row.
    train_labels, test_labels: int64, shape (documents,), index into `groups`. Never used in training.
    words: one string a column. groups: one string a class. name: what reports call this corpus.
    """

    name: str
    train: scipy.sparse.csr_array
    test: scipy.sparse.csr_array
    train_labels: np.ndarray
    test_labels: np.ndarray
    words: list[str]
    groups: list[str]


def load(archive: Path | None = None, folder: Path = Path(__file__).parent) -> Corpus:
    """The corpus, from the parsed cache in `folder` if there is one, else from the archive, which is cached.

    archive: where the .tgz lies. None looks at the environment variable NEWSGROUPS_ARCHIVE, then in `folder`,
        and then downloads it there.
    Raises DataError, one line, if the archive cannot be had or any part of it is not as it should be.
    """
    named = archive or os.environ.get(ENVIRONMENT_VARIABLE)
    if named and not Path(named).is_file():
        raise DataError(f"no 20 Newsgroups archive at {named}; it can be had from {URL}")
    cache = folder / f"20news-bydate-{VOCABULARY}.npz"
    if cache.is_file():
        try:
            return _read_cache(cache)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            print(f"{cache} cannot be read ({error}); parsing the archive again")
    corpus = parse_archive(Path(named) if named else _archive(folder))
    try:
        _write_cache(cache, corpus)
    except OSError as error:  # a read-only installation costs a second at the next start, nothing else
        print(f"the parsed corpus is not cached: {error}")
    return corpus


def _archive(folder: Path) -> Path:
    path = folder / ARCHIVE
    if path.is_file():
        return path
    import torch.hub  # here, since reading the corpus needs no torch and torch costs 500 MB

    print(f"downloading {URL}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        torch.hub.download_url_to_file(URL, str(path))  # to a temporary name beside it, then renamed
    except OSError as error:
        raise DataError(
            f"no 20 Newsgroups archive and no download ({getattr(error, 'reason', error)}): "
            f"get {URL} and put it in {folder}, or name it with --archive or {ENVIRONMENT_VARIABLE}"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def parse_archive(path: Path, sha256: dict[str, str] = SHA256) -> Corpus:
    """Read the archive in memory, check it, and cut the vocabulary.

    sha256: the digests that the count files must have.
    Raises DataError for an archive that is truncated, holds links or paths leading out of it, or differs in content;
    a malformed count file is named with its line.
    """
    files = _members(path)

    def text(name: str) -> bytes:
        if name not in files:
            raise DataError(f"{path}: no file {INNER}{name} in the archive")
        return files[name]

    groups = [line.split()[0] for line in text("train.map").decode("latin-1").splitlines()]
    labels = {split: _labels(text(f"{split}.label"), f"{path}: {split}.label", len(groups)) for split in SPLITS}
    counts = {
        split: parse_counts(text(f"{split}.data"), f"{path}: {split}.data", len(labels[split]), ALL_WORDS)
        for split in SPLITS
    }
    for name, expected in sha256.items():
        found = hashlib.sha256(text(name)).hexdigest()
        if found != expected:
            raise DataError(f"{path}: {name} has sha256 {found}, not {expected}: not the canonical corpus")
    if "vocabulary.txt" in files:
        words = files["vocabulary.txt"].decode("latin-1").split()
    elif (beside := path.with_name("vocabulary.txt")).is_file():
        words = beside.read_text("latin-1").split()
    else:  # without the list, training works and words go by their number
        words = [f"word{i}" for i in range(1, ALL_WORDS + 1)]
    if len(words) != ALL_WORDS:
        raise DataError(f"{path}: vocabulary.txt has {len(words)} words, not {ALL_WORDS}")
    kept = frequent_words(counts["train"], VOCABULARY)
    return Corpus(
        name="20 Newsgroups (bydate)",
        train=counts["train"][:, kept],
        test=counts["test"][:, kept],
        train_labels=labels["train"],
        test_labels=labels["test"],
        words=[words[i] for i in kept],
        groups=groups,
    )


def _members(path: Path) -> dict[str, bytes]:
    """The archive's regular files below INNER, by name."""
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.name.startswith("/") or ".." in Path(member.name).parts:
                    raise DataError(f"{path}: refusing an archive with the path {member.name!r}")
                if not (member.isfile() or member.isdir()):
                    raise DataError(f"{path}: refusing an archive with a link or device, {member.name!r}")
                if member.size > LARGEST_MEMBER:
                    raise DataError(f"{path}: {member.name!r} claims {member.size} bytes")
                if member.isfile() and member.name.startswith(INNER):
                    files[member.name.removeprefix(INNER)] = archive.extractfile(member).read()
            while archive.fileobj.read(1 << 20):  # to the end, where gzip checks its sum
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: truncated or corrupted, not a whole .tgz archive ({error})") from error
    return files


def _labels(text: bytes, name: str, groups: int) -> np.ndarray:
    labels = _integers(text, name, 1).ravel()
    if (wrong := np.flatnonzero((labels < 1) | (labels > groups))).size:
        raise DataError(f"{name}, line {wrong[0] + 1}: label {labels[wrong[0]]} is not in 1..{groups}")
    return labels - 1


def parse_counts(text: bytes, name: str, documents: int, words: int) -> scipy.sparse.csr_array:
    """Lines `document word count`, 1-based, as a CSR table of shape (documents, words), float32.

    Raises DataError naming `name` and the line: a wrong number of columns, a count below 1, an index out of range.
    """
    table = _integers(text, name, 3)
    for column, (what, most) in enumerate((("document", documents), ("word", words), ("count", 2**24))):
        wrong = np.flatnonzero((table[:, column] < 1) | (table[:, column] > most))
        if wrong.size:
            raise DataError(f"{name}, line {wrong[0] + 1}: {what} {table[wrong[0], column]} is not in 1..{most}")
    document, word, count = table.T
    csr = scipy.sparse.coo_array(
        (count.astype(np.float32), ((document - 1).astype(np.int32), (word - 1).astype(np.int32))),
        shape=(documents, words),
    ).tocsr()
    csr.sort_indices()
    return csr


def _integers(text: bytes, name: str, columns: int) -> np.ndarray:
    """A table of integers with exactly `columns` columns in every line; int64, shape (lines, columns)."""
    if not text.strip():
        raise DataError(f"{name}: no lines")
    try:
        table = np.loadtxt(io.BytesIO(text), dtype=np.int64, comments=None, ndmin=2)
        if table.shape[1] == columns and table.shape[0] == text.count(b"\n") + (not text.endswith(b"\n")):
            return table
    except (ValueError, OverflowError):
        pass
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if len(fields) != columns:
            raise DataError(f"{name}, line {number}: {len(fields)} columns, not {columns}")
        try:
            [np.int64(int(field)) for field in fields]
        except (ValueError, OverflowError) as error:
            raise DataError(f"{name}, line {number}: not integers: {line[:60].decode('latin-1')!r}") from error
    raise DataError(f"{name}: not a table of {columns} integer columns")


def frequent_words(counts: scipy.sparse.csr_array, size: int) -> np.ndarray:
    """The `size` columns with the highest document frequency, ties to the smaller index; ascending."""
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.sort(np.argsort(-frequency, kind="stable")[:size])


def _write_cache(path: Path, corpus: Corpus) -> None:
    arrays = {}
    for split in SPLITS:
        counts = getattr(corpus, split)
        arrays |= {f"{split}_{part}": getattr(counts, part) for part in ("data", "indices", "indptr")}
        arrays[f"{split}_labels"] = getattr(corpus, f"{split}_labels")
    for part in ("words", "groups"):
        arrays[part] = np.array(getattr(corpus, part))
    buffer = io.BytesIO()
    np.savez(buffer, name=np.array(corpus.name), **arrays)
    write_aside(path, buffer.getbuffer())


def _read_cache(path: Path) -> Corpus:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        words = arrays["words"].tolist()

        def counts(split: str) -> scipy.sparse.csr_array:
            parts = [arrays[f"{split}_{part}"] for part in ("data", "indices", "indptr")]
            return scipy.sparse.csr_array(tuple(parts), shape=(len(parts[2]) - 1, len(words)))

        return Corpus(
            name=str(arrays["name"]),
            train=counts("train"),
            test=counts("test"),
            train_labels=arrays["train_labels"],
            test_labels=arrays["test_labels"],
            words=words,
            groups=arrays["groups"].tolist(),
        )
