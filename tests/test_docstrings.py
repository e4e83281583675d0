"""The corpus of docstrings: what is read, what is left out, and that nothing is run."""

from pathlib import Path

import pytest

from data import DataError, docstrings, texts

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
        *("pkg.a", "pkg.a.A", "pkg.a.A.method.inner", "pkg.a.A.other")
    ]
    path.write_text("def broken(:\n")
    assert docstrings.docstrings((path, "pkg.a")) == []
    path.write_bytes(b"\x00\xff")
    assert docstrings.docstrings((path, "pkg.a")) == []
    assert docstrings.docstrings((tmp_path / "none.py", "none")) == []


def test_documents_are_distinct() -> None:
    documents = [(f"numpy.part{i % 3}.f{i}", f"{LONG} number times {i}") for i in range(26)]
    copy = ("numpy.a.copy", documents[0][1])
    found = docstrings.distinct([*documents, copy, ("scipy.f", f"{LONG} alone")])
    titles = [title for title, _, _ in found]
    assert "numpy.a.copy" in titles  # sorts before the other, and stays
    assert "numpy.part0.f0" not in titles
    assert len(titles) == 27
    corpus = texts.corpus_of(found, "name")
    assert corpus.groups == ["numpy.a", "numpy.part0", "numpy.part1", "numpy.part2", "scipy.f"]
    first = {corpus.words[i] for i in corpus.train[[0]].indices}
    assert first > {word.lower() for word in LONG.split()}
    with pytest.raises(DataError, match="no docstrings"):
        docstrings.distinct([])


def test_sources_are_the_installed_libraries() -> None:
    modules = {module for _, module in docstrings.sources()}
    assert {"numpy", "numpy.linalg", "scipy.stats", "scipy.optimize._linprog"} <= modules
    assert not any(".tests." in module for module in modules)


def test_load_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [file for file in docstrings.sources() if file[1].startswith("scipy.stats")]
    monkeypatch.setattr(docstrings, "sources", lambda: few)
    corpus = docstrings.load(tmp_path)
    assert corpus.name.startswith("docstrings (numpy ")
    assert corpus.groups == ["scipy.stats"]
    monkeypatch.setattr(docstrings, "sources", lambda: pytest.fail("not from the cache"))
    again = docstrings.load(tmp_path)
    assert again.train_titles == corpus.train_titles
    assert (again.test != corpus.test).nnz == 0
    (path,) = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(docstrings, "sources", lambda: few)  # what is damaged is read anew
    assert docstrings.load(tmp_path).train_titles == corpus.train_titles
