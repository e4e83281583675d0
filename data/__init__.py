"""Data sources, one module each. Downloads and caches lie beside the modules, ignored by git."""

import contextlib
import os
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import scipy.sparse

SPLITS = ("train", "test")


class DataError(ValueError):
    """A data set is missing or not what it should be; the message is one line of what to do."""


STALE = 600  # seconds after its last change that a file aside is of a writer that is gone


@contextlib.contextmanager
def aside(path: Path) -> Generator[BinaryIO]:
    """A file to write in, which at the end takes the place of `path`: that is the old file or the
    new one, never a part.

    The file's name until then is that of no other process, here or on another host. What killed
    processes have left of the same `path` is removed. Windows does not rename onto a file that
    another program has open, such as a virus scanner: it is tried for 5 s.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()
    number, name = tempfile.mkstemp(".part", f".{path.name}.", path.parent)
    written = Path(name)
    try:
        with os.fdopen(number, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        written.chmod(0o666 & ~mask)  # as of any new file; mkstemp's is for its owner only
        for wait in (0.1, 0.4, 1.5, 3, 0):
            try:
                written.replace(path)
                return
            except PermissionError:
                if not wait:
                    raise
                time.sleep(wait)
    except BaseException:
        written.unlink(missing_ok=True)
        raise


def write_aside(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file, as `aside` does."""
    with aside(path) as file:
        file.write(data)


@dataclass(frozen=True)
class Corpus:
    """Word counts of a train/test split. Fields are given by position where corpora are read.

    train, test: CSR, float32, shapes (documents, words), indices sorted within a row.
    train_labels, test_labels: int64, shape (documents,), index into `groups`. Never used in
    training.
    train_titles, test_titles: one string per document; in 20 Newsgroups split and number, as in its
    files.
    words: one string per column. groups: one string per class. name: what reports call this corpus.
    """

    name: str
    train: scipy.sparse.csr_array
    test: scipy.sparse.csr_array
    train_labels: np.ndarray
    test_labels: np.ndarray
    train_titles: list[str]
    test_titles: list[str]
    words: list[str]
    groups: list[str]


def frequent_words(counts: scipy.sparse.csr_array, size: int) -> np.ndarray:
    """The `size` columns of highest document frequency, ties to the smaller index; ascending."""
    frequency = np.bincount(counts.indices, minlength=counts.shape[1])
    return np.sort(np.argsort(-frequency, kind="stable")[:size])
