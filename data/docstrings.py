"""A corpus for machines without a download: the docstrings of numpy and scipy.

One document is the docstring of a function, class or module with 30 words or more; the same text
twice counts once. Its group is the subpackage, such as `scipy.stats`. The sources are parsed, never
imported or run. The corpus depends on what is installed; its name says which versions.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import warnings
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from data import Corpus, DataError, texts, write_aside

LIBRARIES = ("numpy", "scipy")
SHORTEST = 30  # words in a document
Docstring = tuple[str, str]  # qualified name and text
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def load(folder: Path = Path(__file__).parent) -> Corpus:
    """The corpus of the installed sources, which are read once for each of their versions.

    Raises DataError if there are no sources to read.
    """
    name = f"docstrings ({', '.join(f'{library} {version(library)}' for library in LIBRARIES)})"
    path = folder / f"docstrings-{hashlib.sha256(name.encode()).hexdigest()[:12]}.jsonl"
    try:
        documents = list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError):  # not there, or damaged
        bar = tqdm(sources(), desc="docstrings", unit="file")
        documents = distinct([document for file in bar for document in docstrings(file)])
        with contextlib.suppress(OSError):  # a read-only installation: seconds at the next start
            write_aside(path, "".join(json.dumps(d) + "\n" for d in documents).encode())
    return texts.corpus_of(documents, name)


def sources() -> list[tuple[Path, str]]:
    """Source files, each with the dotted name of its module."""
    files = []
    for library in LIBRARIES:
        # Of a top-level name: looks it up, imports nothing.
        spec = importlib.util.find_spec(library)
        for root in (spec.submodule_search_locations if spec else None) or []:
            for path in sorted(Path(root).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                if "tests" not in parts:
                    files.append((path, ".".join([library, *parts]).removesuffix(".__init__")))
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

    def visit(node: ast.Module | Definition, name: str) -> None:
        text = ast.get_docstring(node, clean=False)
        if text and len(texts.words_of(text)) >= SHORTEST:
            documents.append((name, text))
        for child in node.body:
            if isinstance(child, Definition):
                visit(child, f"{name}.{child.name}")

    visit(tree, module)
    return documents


def distinct(documents: list[Docstring]) -> list[texts.Document]:
    """Name, group and text of all, without those whose text is that of an earlier one, by name."""
    first: dict[str, texts.Document] = {}
    for title, text in sorted(documents):
        first.setdefault(text, (title, ".".join(title.split(".")[:2]), text))
    if not first:
        raise DataError("no docstrings found: are the libraries installed without their sources?")
    return list(first.values())
