"""The corpus of docstrings: what is read, what is left out, and that nothing is run."""

from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from data import DataError, docstrings

LONG = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(35))
SOURCE = f'''"""{LONG} module"""
raise RuntimeError("this file was run")
class A:
    """{LONG} class"""
    def method(self):
        """Too short."""
        def inner():
            """{LONG} inner"""
    async def other(self):
        """{LONG} class"""
'''


def test_docstrings_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    found = docstrings.docstrings((path, "pkg.a"))
    assert [name for name, _ in found] == [
        "pkg.a",
        "pkg.a.A",
        "pkg.a.A.method.inner",
        "pkg.a.A.other",
    ]
    path.write_text("def broken(:\n")
    assert docstrings.docstrings((path, "pkg.a")) == []
    path.write_bytes(b"\x00\xff")
    assert docstrings.docstrings((path, "pkg.a")) == []
    assert docstrings.docstrings((tmp_path / "none.py", "none")) == []


def test_build() -> None:
    documents = [
        (f"numpy.part{i % 3}.f{i}", f"{LONG} number{chr(97 + i)} times {i}") for i in range(26)
    ]
    corpus = docstrings.build(
        [*documents, ("json.copy", documents[0][1]), ("json.f", f"{LONG} alone")], "name"
    )
    titles = corpus.train_titles + corpus.test_titles
    assert "json.copy" in titles  # sorts before the numpy ones, and stays; its copy goes
    assert "numpy.part0.f0" not in titles
    assert len(titles) == 27  # 26 letters and one
    assert corpus.groups == ["json", "numpy.part0", "numpy.part1", "numpy.part2"]
    for split in ("train", "test"):
        counts = getattr(corpus, split)
        labels = [corpus.groups[i] for i in getattr(corpus, f"{split}_labels")]
        assert all(
            t.startswith(g) for t, g in zip(getattr(corpus, f"{split}_titles"), labels, strict=True)
        )
        assert counts.dtype == np.float32
        assert counts.shape[1] == len(corpus.words)
    first = corpus.train[[0]]
    assert {corpus.words[i] for i in first.indices} > set(LONG.split())
    assert set(first.data) == {1.0}
    with pytest.raises(DataError, match="no docstrings"):
        docstrings.build([], "name")


def test_sources_are_the_installed_libraries() -> None:
    files = docstrings.sources()
    modules = {module for _, module in files}
    assert {
        "json.decoder",
        "numpy.linalg",
        "scipy.stats",
        "matplotlib.axes",
        "torch.nn.modules.linear",
    } <= modules
    assert not any(".tests." in module or module.startswith("site-packages") for module in modules)


def test_load_reads_in_parallel_and_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [
        file
        for file in docstrings.sources()
        if file[1].startswith(("json", "scipy.stats", "argparse"))
    ]
    monkeypatch.setattr(docstrings, "sources", lambda: few)
    corpus = docstrings.load(tmp_path)
    assert corpus.name.startswith("docstrings (Python ")
    assert {"json", "scipy.stats"} <= set(corpus.groups)
    assert any(title.startswith("scipy.stats") for title in corpus.test_titles)
    monkeypatch.setattr(docstrings, "read", lambda files: pytest.fail("not from the cache"))
    again = docstrings.load(tmp_path)
    assert again.train_titles == corpus.train_titles
    assert (again.test != corpus.test).nnz == 0


@pytest.mark.parametrize("error", [BrokenProcessPool, BrokenPipeError])
def test_a_killed_reader_is_one_line(monkeypatch: pytest.MonkeyPatch, error: type) -> None:
    def killed(*_: object, **__: object) -> None:
        raise error("a process died")

    monkeypatch.setattr(docstrings.ProcessPoolExecutor, "map", killed)
    with pytest.raises(DataError, match="was killed"):
        docstrings.read([])
