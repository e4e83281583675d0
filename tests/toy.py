"""A small corpus and ways to run the scripts as a user does, for the tests."""

import importlib
import io
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import scipy.sparse
import tyro

from data import Corpus
from figures.run import cli

ROOT = Path(__file__).parent.parent
# Runs hashing.py's command line on the toy corpus: what follows `-c` is a program of its own, arguments come after.
HASHING = """
import sys; sys.path[:0] = [{tests!r}, {root!r}]; sys.argv[0] = "hashing.py"
import hashing, toy
from data import newsgroups
newsgroups.load = lambda archive: toy.corpus()
hashing.cli(hashing.Options, hashing.main, "toy", hashing.PRESETS, **hashing.COMMANDS)
""".format(tests=str(ROOT / "tests"), root=str(ROOT))


def corpus(train: int = 50, test: int = 21, words: int = 30, seed: int = 0) -> Corpus:
    """Documents from two topics; some are empty, some words never occur."""
    rng = np.random.default_rng(seed)
    topics = rng.dirichlet(np.full(words - 2, 0.3), size=2)

    def split(documents: int) -> tuple[scipy.sparse.csr_array, np.ndarray]:
        labels = rng.integers(2, size=documents)
        counts = np.zeros((documents, words), np.float32)
        for i, label in enumerate(labels):
            counts[i, :-2] = rng.multinomial(rng.integers(0, 40), topics[label])
        counts[0] = 0
        return scipy.sparse.csr_array(counts), labels

    (train_counts, train_labels), (test_counts, test_labels) = split(train), split(test)
    names = [f"word{i}" for i in range(words)]
    titles = [[f"document {i}" for i in range(n)] for n in (train, test)]
    return Corpus("toy", train_counts, test_counts, train_labels, test_labels, *titles, names, ["a", "b"])


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run a program given as text; never raises for a bad exit code."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def script(name: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, **options)


def main(module: ModuleType, *arguments: object) -> subprocess.CompletedProcess:
    """The script's command line in this process, which spares the start of an interpreter with torch."""
    argv = [module.__file__, *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            presets, commands = getattr(module, "PRESETS", None), getattr(module, "COMMANDS", {})
            cli(module.Options, module.main, module.__doc__.splitlines()[0], presets, **commands)
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def options_of(command: str) -> object:
    """The options of a command line such as `dcgan.py --preset quick`, read as the script does, not run."""
    name, *arguments = shlex.split(command)
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    options, default = module.Options, tyro.MISSING_NONPROP
    if arguments and arguments[0] in getattr(module, "COMMANDS", {}):
        options = module.COMMANDS[arguments.pop(0)][0]
    elif arguments[:1] == ["--preset"] and hasattr(module, "PRESETS"):
        default, arguments = module.PRESETS[arguments[1]][0], arguments[2:]
    return tyro.cli(options, args=arguments, default=default, config=(tyro.conf.FlagCreatePairsOff,))


def the_one_line(done: subprocess.CompletedProcess) -> str:
    """The error of a failed run, which must be the last line on stderr, with no traceback before it."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    said = [bool(re.match(r"[\w/]+\.py( \w+)?: ", line)) for line in lines]
    assert sum(said) == 1, done.stderr
    assert said[-1]
    return lines[-1]
