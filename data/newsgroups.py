"""20 Newsgroups, "bydate" split, as the sparse word counts that Section 5 trains on.

Source: J. Rennie's `20news-bydate-matlab.tgz`, http://qwone.com/~jason/20Newsgroups/. Its
`train.data` and `test.data` hold one line `document word count` per non-zero, 1-based. The
vocabulary is cut to the 10,000 words that occur in most training documents; 498 words tie at the
last document frequency (14), and ties go to the smaller word index.

The words themselves are in `vocabulary.txt`, a file of its own on the same page, which others pack
into the archive. Without it training works, and words go by their number.

Nothing is ever extracted to disk, and no dense table of documents by words is built.
"""

import codecs
import hashlib
import io
import os
import re
import socket
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse

from data import SPLITS, Corpus, DataError, frequent_words

PAGE = "http://qwone.com/~jason/20Newsgroups/"
NAME = "20 Newsgroups (bydate)"
ARCHIVE = "20news-bydate-matlab.tgz"
WORDS = "vocabulary.txt"
ENVIRONMENT_VARIABLE = "NEWSGROUPS_ARCHIVE"
FILES = {"train.data", "test.data", "train.label", "test.label", "train.map", WORDS}
SHA256 = {
    "train.data": "dc3bf23fa28511494ee406bd3baa6565ad156c0d48e56bc9aea247c4dd0b81be",
    "test.data": "2e739450e07c6201ae4eff90bb26cd69d26c45243bd923a29fc2caaae3a4c34a",
    "train.label": "90e46f67c51005c7bb707a61cd4a49bd996bc98c5c2acaaa36fbd22dc179101f",
    "test.label": "5eb0491245caaffb86980dcd7b707e65815ae0a600b214ac99e62fa5a713e6e1",
    "train.map": "5a9320e52d18d67df8997fea5fd1f8ee8c904281edb514ccacaae059a902f9a3",
}
ALL_WORDS = 61_188
VOCABULARY = 10_000
LARGEST_MEMBER = 64 << 20  # bytes; the largest file of the true archive has 17 MB


def load(archive: Path | None = None, folder: Path = Path(__file__).parent) -> Corpus:
    """The corpus, in a second.

    archive: where the .tgz lies, or a folder of what is in it. None looks at the environment
        variable NEWSGROUPS_ARCHIVE, then in `folder`, and then downloads it there. So is the
        list of words, where it is missing.
    Raises DataError, one line, if the archive cannot be had or any part of it is not as it should
    be.
    """
    source = find(archive, folder) or _downloaded(ARCHIVE, folder)
    if not source.exists():
        raise DataError(f"no 20 Newsgroups archive at {source}; it can be had from {PAGE}")
    corpus = parse_archive(source, lists=(source.parent / WORDS, folder / WORDS))
    if not re.fullmatch(r"word\d+", corpus.words[0]):
        return corpus
    try:
        fetched = _downloaded(WORDS, folder)
    except DataError:  # training does without
        print(
            f"no {WORDS}: words go by their number, and none can be searched for; get it from "
            f"{PAGE} into {folder}, and end a finished run again with --resume"
        )
        return corpus
    return parse_archive(source, lists=(fetched,))


def find(archive: Path | None = None, folder: Path = Path(__file__).parent) -> Path | None:
    """Where the archive is or, if `archive` or the environment says so, should be, or None."""
    named = archive or os.environ.get(ENVIRONMENT_VARIABLE)
    path = folder / ARCHIVE
    return Path(named) if named else path if path.is_file() else None


def _downloaded(name: str, folder: Path) -> Path:
    """A file of the corpus's page, fetched into `folder`."""
    path = folder / name
    import torch.hub  # here, since reading the corpus needs no torch and torch costs 500 MB

    print(f"downloading {PAGE}{name}")
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)
    try:
        # To a temporary name beside it, then renamed.
        torch.hub.download_url_to_file(PAGE + name, str(path))
    except OSError as error:
        raise DataError(
            f"no 20 Newsgroups archive and no download ({getattr(error, 'reason', error)}): get "
            f"{PAGE}{name} and put it in {folder}, or name the archive with --archive or "
            f"{ENVIRONMENT_VARIABLE}; or do without it, with --corpus docstrings"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
    return path


def parse_archive(path: Path, sha256: dict | None = None, lists: Sequence[Path] = ()) -> Corpus:
    """Read the archive, or a folder of its files, in memory, compare it with the true one, and cut
    the vocabulary.

    sha256: the digests that the files must have; None: those of SHA256. lists: where the list of
        words may be if the archive has none.
    Raises DataError for an archive that is truncated, or differs in content.
    """
    files = _members(path)
    for name in sorted(FILES - {WORDS}):
        if name not in files:
            raise DataError(f"{path}: no file {name} in the archive")
        digest = hashlib.sha256(files[name]).hexdigest()
        expected = (SHA256 if sha256 is None else sha256).get(name, digest)
        if expected != digest:
            raise DataError(f"{path}: {name} has sha256 {digest}, not {expected}: another corpus")
    map_lines = files["train.map"].decode("latin-1").splitlines()
    groups = [line.split()[0] for line in map_lines if line.strip()]
    labels = {s: np.loadtxt(io.BytesIO(files[f"{s}.label"]), np.int64) - 1 for s in SPLITS}
    counts = {s: parse_counts(files[f"{s}.data"], len(labels[s]), ALL_WORDS) for s in SPLITS}
    beside = (file.read_bytes() for file in lists if file.is_file())
    listed = files[WORDS] if WORDS in files else next(beside, None)
    names = [f"word{i}" for i in range(1, ALL_WORDS + 1)]
    if listed is not None:
        names = listed.removeprefix(codecs.BOM_UTF8).decode("latin-1").split()
    if len(names) != ALL_WORDS:
        raise DataError(f"{path}: {WORDS} has {len(names)} words, not {ALL_WORDS}")
    columns = frequent_words(counts["train"], VOCABULARY)
    titles = {s: [f"{s} {i}" for i in range(1, len(labels[s]) + 1)] for s in SPLITS}
    return Corpus(
        NAME,
        *(counts[split][:, columns] for split in SPLITS),
        *(labels[split] for split in SPLITS),
        *(titles[split] for split in SPLITS),
        words=[names[i] for i in columns],
        groups=groups,
    )


def _members(path: Path) -> dict[str, bytes]:
    """The files of FILES, wherever in the archive or folder they lie, by name."""
    if path.is_dir():
        found = (file for file in sorted(path.rglob("*")) if file.name in FILES)
        return {file.name: file.read_bytes() for file in found}
    files = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if member.size > LARGEST_MEMBER:
                    raise DataError(f"{path}: {member.name!r} claims {member.size} bytes")
                name = Path(member.name).name
                if name in FILES and member.isfile() and (file := archive.extractfile(member)):
                    files[name] = file.read()
            # To the end, where gzip checks its sum.
            while archive.fileobj and archive.fileobj.read(1 << 20):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{path}: truncated or corrupted, no whole .tgz ({error})") from error
    return files


def parse_counts(text: bytes, documents: int, words: int) -> scipy.sparse.csr_array:
    """Lines `document word count`, 1-based, as a CSR table of shape (documents, words), float32."""
    document, word, count = np.loadtxt(io.BytesIO(text), np.int64, unpack=True, ndmin=2)
    places = (document - 1).astype(np.int32), (word - 1).astype(np.int32)
    shape = (documents, words)
    csr = scipy.sparse.coo_array((count.astype(np.float32), places), shape).tocsr()
    csr.sort_indices()
    return csr
