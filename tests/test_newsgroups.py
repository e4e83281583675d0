"""The corpus reader: small archives, good and hostile, and the real one where it is at hand."""

import hashlib
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from toy import ROOT, python

from data import DataError, newsgroups

TRAIN = b"1 1 2\n1 3 1\n2 2 5\n2 3 1\n3 5 7\n"
TEST = b"1 5 1\n2 1 1\n"
FILES = {
    "train.data": TRAIN,
    "test.data": TEST,
    "train.label": b"1\n2\n2\n",
    "test.label": b"2\n1\n",
    "train.map": b"alt.one 1\nalt.two 2\n",
    "vocabulary.txt": b"apple\nbear\ncat\ndog\nelk\n",
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.delenv(newsgroups.ENVIRONMENT_VARIABLE, raising=False)
    # Nothing listens on the discard port.
    monkeypatch.setattr(newsgroups, "PAGE", "http://127.0.0.1:9/")
    if "real" not in request.keywords:
        monkeypatch.setattr(newsgroups, "ALL_WORDS", 5)
        monkeypatch.setattr(newsgroups, "VOCABULARY", 3)


INNER = "20news-bydate/matlab/"


def pack(
    path: Path, extra: tuple[tarfile.TarInfo, ...] = (), inner: str = INNER, **changed: bytes | None
) -> Path:
    """A .tgz with FILES, some changed (None: left out); underscores stand for dots."""
    files = FILES | {name.replace("_", "."): text for name, text in changed.items()}
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            if text is not None:
                member = tarfile.TarInfo(inner + name)
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text))
        for member in extra:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def read(path: Path) -> newsgroups.Corpus:
    return newsgroups.parse_archive(path, sha256={})


def test_parses_counts_labels_words_and_groups(tmp_path: Path) -> None:
    corpus = read(pack(tmp_path / "a.tgz"))
    # Document frequencies are 1, 1, 2, 0, 1: word 3 comes first, and the tie of 1, 2 and 5 goes to
    # 1 and 2.
    assert corpus.words == ["apple", "bear", "cat"]
    assert corpus.train.toarray().tolist() == [[2, 0, 1], [0, 5, 1], [0, 0, 0]]
    assert corpus.test.toarray().tolist() == [[0, 0, 0], [1, 0, 0]]
    assert corpus.train_labels.tolist() == [0, 1, 1]
    assert corpus.groups == ["alt.one", "alt.two"]
    assert corpus.train.dtype == np.float32


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"test_data": None}, "no file .*test.data"),
        ({"vocabulary_txt": b"apple\n"}, "1 words, not 5"),
    ],
)
def test_wrong_contents(tmp_path: Path, changed: dict, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read(pack(tmp_path / "a.tgz", **changed))


def test_nothing_of_an_archive_is_written_or_followed(tmp_path: Path) -> None:
    """Paths that lead out of it, a link in the place of a file, and a bomb."""
    out, link = tarfile.TarInfo("../evil"), tarfile.TarInfo(INNER + "train.label")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(DataError, match=r"no file train\.label"):
        read(pack(tmp_path / "a.tgz", (out, link), train_label=None))
    big = tarfile.TarInfo("big")
    big.size = newsgroups.LARGEST_MEMBER + 1
    with pytest.raises(DataError, match="claims"):
        read(pack(tmp_path / "b.tgz", (big,)))
    assert {path.name for path in tmp_path.iterdir()} == {"a.tgz", "b.tgz"}
    assert not (tmp_path.parent / "evil").exists()


@pytest.mark.parametrize("keep", [0, 20, 200, -12])
def test_truncated_or_corrupted_archives(tmp_path: Path, keep: int) -> None:
    path = pack(tmp_path / "a.tgz")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="truncated or corrupted"):
        newsgroups.load(path, tmp_path)
    body = bytearray(pack(path).read_bytes())
    body[len(body) // 2] ^= 0xFF
    path.write_bytes(body)
    with pytest.raises(DataError):
        newsgroups.load(path, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tgz"]


def test_contents_that_differ_from_the_canonical_corpus_are_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "a.tgz")
    with pytest.raises(DataError, match=r"\.data has sha256"):
        newsgroups.parse_archive(path)
    digests = {
        name: hashlib.sha256(FILES[name]).hexdigest() for name in ("train.data", "test.data")
    }
    assert newsgroups.parse_archive(path, digests).words


def test_a_missing_archive_says_where_it_is_to_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=newsgroups.PAGE):
        newsgroups.load(tmp_path / "absent.tgz", tmp_path)
    with pytest.raises(DataError, match=r"no download .*NEWSGROUPS_ARCHIVE.*--corpus docstrings"):
        newsgroups.load(None, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the official page, where the list of words is a file beside the archive."""
    folder = tmp_path / "served"
    folder.mkdir()
    pack(folder / newsgroups.ARCHIVE, vocabulary_txt=None)
    (folder / "vocabulary.txt").write_bytes(FILES["vocabulary.txt"])
    monkeypatch.setattr(newsgroups, "PAGE", folder.as_uri() + "/")
    monkeypatch.setattr(newsgroups, "SHA256", {})
    return folder


def test_archive_and_words_are_downloaded(tmp_path: Path, served: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    assert newsgroups.load(None, folder).words == ["apple", "bear", "cat"]
    assert sorted(p.name for p in folder.iterdir()) == [newsgroups.ARCHIVE, "vocabulary.txt"]
    (folder / "vocabulary.txt").unlink()  # as if its download had failed
    assert newsgroups.load(None, folder).words == ["apple", "bear", "cat"]
    served.rename(tmp_path / "gone")  # nothing is fetched again
    assert newsgroups.load(None, folder).words == ["apple", "bear", "cat"]


def test_without_words_training_works_and_with_them_they_have_names(
    tmp_path: Path, served: Path, capsys: pytest.CaptureFixture
) -> None:
    (served / "vocabulary.txt").rename(tmp_path / "later")
    folder = tmp_path / "data"
    folder.mkdir()
    archive = served / newsgroups.ARCHIVE
    assert newsgroups.load(archive, folder).words == ["word1", "word2", "word3"]
    assert "words go by their number" in capsys.readouterr().out
    assert not list(folder.iterdir())
    (tmp_path / "later").rename(served / "vocabulary.txt")  # beside the archive
    assert newsgroups.load(archive, folder).words == ["apple", "bear", "cat"]
    (served / "vocabulary.txt").rename(folder / "vocabulary.txt")  # or where downloads go
    assert newsgroups.load(archive, folder).words == ["apple", "bear", "cat"]


@pytest.mark.parametrize(
    "inner", ["./20news-bydate/matlab/", "matlab/", "", "20news-bydate/matlab/"]
)
def test_files_packed_anew_by_others_are_read(tmp_path: Path, inner: str) -> None:
    expected = read(pack(tmp_path / "a.tgz"))
    changed = {
        "train_map": FILES["train.map"] + b"\n",
        "vocabulary_txt": b"\xef\xbb\xbf" + FILES["vocabulary.txt"],
    }
    path = pack(tmp_path / "b.tgz", inner=inner, **changed)
    folder = tmp_path / "folder"
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    for source in (path, folder):
        corpus = read(source)
        assert (corpus.words, corpus.groups) == (expected.words, expected.groups)
        assert (corpus.train != expected.train).nnz == 0


@pytest.mark.real
def test_the_real_corpus(archive: Path, tmp_path: Path) -> None:
    start = time.perf_counter()
    corpus = newsgroups.load(archive, tmp_path)
    parsed = time.perf_counter()
    assert corpus.train.shape == (11_269, 10_000)
    assert corpus.test.shape == (7_505, 10_000)
    assert (corpus.train.nnz, corpus.test.nnz) == (1_308_472, 851_376)
    frequency = np.bincount(corpus.train.indices, minlength=10_000)
    assert frequency.min() == 14
    assert len(corpus.groups) == 20
    assert np.bincount(corpus.train_labels).min() > 300
    if archive.with_name("vocabulary.txt").is_file():
        assert {"space", "windows", "god"} <= set(corpus.words)
    assert parsed - start < 10


@pytest.mark.real
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read the peak from")
def test_reading_the_real_corpus_needs_little_memory(archive: Path) -> None:
    done = python(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from data import newsgroups; newsgroups.parse_archive(Path(sys.argv[1]))\n"
        "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])",
        archive,
    )
    # KB; getrusage would count the parent's pages at the fork.
    assert int(done.stdout) < 500_000, done.stderr


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    digests = {name: hashlib.sha256(FILES[name]).hexdigest() for name in ("train.label",)}
    newsgroups.parse_archive(pack(tmp_path / "a.tgz"), sha256=digests)
    swapped = pack(tmp_path / "b.tgz", train_label=b"2\n2\n1\n")
    with pytest.raises(DataError, match=r"train\.label has sha256"):
        newsgroups.parse_archive(swapped, sha256=digests)
    assert set(newsgroups.SHA256) == newsgroups.FILES - {newsgroups.WORDS}
