"""A corpus for machines without a download: the docstrings of the installed libraries.

One document is the docstring of a function, class or module with 30 words or more, from the
standard library, numpy, scipy, matplotlib and torch; the same text twice counts once. Its label is
the subpackage (`scipy.stats`; `json` in the standard library). Which quarter of the documents is
the test set follows from a hash of their names. The sources are parsed, in parallel, and never
imported or run.

The corpus depends on what is installed; its name says which versions.
"""

import ast
import hashlib
import importlib.util
import platform
import re
import sysconfig
import warnings
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import scipy.sparse
from tqdm import tqdm

from data import Corpus, DataError, cached, frequent_words

LIBRARIES = ("numpy", "scipy", "matplotlib", "torch")
VOCABULARY = 10_000
SHORTEST = 30  # words in a document
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "_vendor",
    "lib2to3",
    "idlelib",
    "ensurepip",
}
WORD = re.compile(r"[a-z]{2,}")
Docstring = tuple[str, str]  # qualified name and text


def load(folder: Path = Path(__file__).parent) -> Corpus:
    """The corpus, from its cache in `folder` if the same versions made one, else parsed from the
    installed sources.

    Raises DataError if there are no sources to read.
    """
    versions = {"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES}
    name = f"docstrings ({', '.join(f'{key} {value}' for key, value in versions.items())})"
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return cached(folder / f"docstrings-{digest}.npz", lambda: build(read(sources()), name))


def sources() -> list[tuple[Path, str]]:
    """Source files, each with the dotted name of its module."""
    roots = [(Path(sysconfig.get_path("stdlib")), "")]
    for library in LIBRARIES:
        # Of a top-level name: looks it up, imports nothing.
        spec = importlib.util.find_spec(library)
        if spec is not None:
            roots += [(Path(place), library) for place in spec.submodule_search_locations or []]
    files = []
    for root, prefix in roots:
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if SKIPPED.isdisjoint(parts):
                files.append(
                    (
                        path,
                        ".".join([*filter(None, [prefix]), *(p for p in parts if p != "__init__")]),
                    )
                )
    return files


def docstrings(file: tuple[Path, str]) -> list[Docstring]:
    """The docstrings of one source file, SHORTEST words or more; none if it cannot be parsed."""
    path, module = file
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    documents = []

    def visit(
        node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
    ) -> None:
        text = ast.get_docstring(node, clean=False)
        if text and len(WORD.findall(text.lower())) >= SHORTEST:
            documents.append((name, text))
        for child in node.body:
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                visit(child, f"{name}.{child.name}")

    visit(tree, module)
    return documents


def read(files: list[tuple[Path, str]]) -> list[Docstring]:
    """The docstrings of all files, in parallel."""
    try:
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            parts = pool.map(docstrings, files, chunksize=32)
            return [
                item
                for part in tqdm(parts, total=len(files), desc="docstrings", unit="file")
                for item in part
            ]
    except (BrokenProcessPool, BrokenPipeError) as error:
        raise DataError(
            "a process that reads docstrings was killed: is there too little memory?"
        ) from error


def build(documents: list[Docstring], name: str) -> Corpus:
    """Corpus of the documents, without those whose words are those of an earlier one, by name."""
    texts: dict[tuple[str, ...], str] = {}
    for title, text in sorted(documents):
        texts.setdefault(tuple(WORD.findall(text.lower())), title)
    if not texts:
        raise DataError("no docstrings found: are the libraries installed without their sources?")
    titles = list(texts.values())
    words = sorted({word for text in texts for word in text})
    index = {word: i for i, word in enumerate(words)}
    column = np.fromiter((index[word] for text in texts for word in text), np.int32)
    row = np.repeat(np.arange(len(texts), dtype=np.int32), [len(text) for text in texts])
    counts = scipy.sparse.coo_array(
        (np.ones(len(row), np.float32), (row, column)), (len(texts), len(words))
    ).tocsr()
    counts.sort_indices()
    subpackages = [
        ".".join(title.split(".")[: 2 if title.split(".")[0] in LIBRARIES else 1])
        for title in titles
    ]
    groups = sorted(set(subpackages))
    labels = np.searchsorted(groups, subpackages).astype(np.int64)
    test = np.array([hashlib.sha256(title.encode()).digest()[0] % 4 == 0 for title in titles])
    columns = frequent_words(counts[~test], min(VOCABULARY, len(words)))
    return Corpus(
        name=name,
        train=counts[~test][:, columns],
        test=counts[test][:, columns],
        train_labels=labels[~test],
        test_labels=labels[test],
        train_titles=[titles[i] for i in np.flatnonzero(~test)],
        test_titles=[titles[i] for i in np.flatnonzero(test)],
        words=[words[i] for i in columns],
        groups=groups,
    )
