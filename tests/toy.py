"""A small corpus and ways to run the scripts as a user does, for the tests."""

import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import ModuleType
from unittest import mock

import numpy as np
import pytest
import scipy.sparse
from torch import Tensor

import disarm
from data import Corpus
from figures import cli
from figures.runner import Task

ROOT = Path(__file__).parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="signals, process groups and limits of POSIX")
# A script that counts its runs, and does what a file `mood` beside it says to those that its
# arguments name.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
with (out / "runs").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
mood = Path(__file__).with_name("mood")
mood = mood.read_text(encoding="utf-8") if mood.exists() else ""
if mood == "hang" and "hangs" in sys.argv:
    (out / "pid").write_text(str(os.getpid()))
    (out / "hanging").touch()
    time.sleep(60)
if mood == "fail" and "fails" in sys.argv:
    print("the disk is full", file=sys.stderr)
    sys.exit(3)
result = {"made_by": sys.argv[1], "threads": os.environ["OMP_NUM_THREADS"]}
result |= {"config": {}, "metrics": {}, "history": {}, "seconds": 1}
result["environment"] = dict.fromkeys(("processor", "device", "threads", "torch"), "toy")
(out / "result.json").write_text(json.dumps(result))
"""
# Adam's first step imports torch's compiler, which takes seconds of each process and is not used.
UNCOMPILED = """
import sys, types
import torch
sys.modules["torch._dynamo"] = torch._dynamo = types.SimpleNamespace(
    disable=lambda fn, *_, **__: fn, is_compiling=lambda: False, graph_break=lambda: None
)
"""
# Runs hashing.py's command line on the toy corpus: what follows `-c` is a program of its own,
# arguments come after.
HASHING = (
    UNCOMPILED
    + """
import sys; sys.path[:0] = [{tests!r}, {root!r}]; sys.argv[0] = "hashing.py"
import hashing, toy
from data import newsgroups
newsgroups.load = lambda archive: toy.corpus()
hashing.cli.main("toy", *hashing.RUNS)
""".format(tests=str(ROOT / "tests"), root=str(ROOT))
)


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
    return Corpus(
        "toy", train_counts, test_counts, train_labels, test_labels, *titles, names, ["a", "b"]
    )


def enumeration(f: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """E_q f(z), by a sum over all codes z, differentiable in the logits (..., b)."""
    bits = logits.shape[-1]
    z = disarm.codes(bits, logits).reshape(-1, *(1,) * (logits.dim() - 1), bits)
    z = z.expand(-1, *logits.shape)
    return (disarm.log_bernoulli(z, logits).exp() * f(z)).sum(0)


def task(house: Path, name: str, *words: str, needs: tuple[str, ...] = ()) -> Task:
    folder = house / "out" / name
    return Task(name, (str(house / "script.py"), name, *words, "--out", str(folder)), folder, needs)


def words(*arguments: object) -> list[str]:
    """Arguments of a command line; options may stand in one string, as in a shell."""
    return [
        word
        for argument in map(str, arguments)
        for word in (argument.split() if "--" in argument else [argument])
    ]


def python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    """Run a program given as text; never raises for a bad exit code."""
    command = [sys.executable, "-c", code, *words(*arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, **options
    )


def main(module: ModuleType, *arguments: object) -> subprocess.CompletedProcess:
    """The script's command line in this process, which spares an interpreter with torch."""
    argv = [module.__file__, *words(*arguments)]
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with mock.patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main(module.__doc__, *module.RUNS)
        except SystemExit as stop:
            code = stop.code or 0
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def good(module: ModuleType, *arguments: object) -> subprocess.CompletedProcess:
    """A run of the script that must succeed."""
    done = main(module, *arguments)
    assert done.returncode == 0, done.stderr
    return done


def ran(module: ModuleType, *arguments: object, out: Path) -> dict:
    """The result of a run of the script that must succeed."""
    good(module, *arguments, "--out", out)
    return json.loads((out / "result.json").read_bytes())


@contextmanager
def interrupted(owner: object, name: str, calls: int) -> Iterator[None]:
    """Inside, a function of `owner` works so many times, and is then interrupted as by Ctrl-C."""
    function, count = getattr(owner, name), iter(range(calls))

    def stopping(*arguments: object) -> object:
        if next(count, None) is None:
            raise KeyboardInterrupt
        return function(*arguments)

    with mock.patch.object(owner, name, stopping):
        yield


def options_of(command: str) -> object:
    """The options of a command line such as `dcgan.py quick`, read as the script does, not run."""
    name, *arguments = shlex.split(command)
    module = importlib.import_module(name.removesuffix(".py").replace("/", "."))
    return cli.read_options(None, module.RUNS, name, arguments)


def option_error(done: subprocess.CompletedProcess) -> str:
    """What tyro said of bad options, its frame taken off."""
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return " ".join(re.sub(r"[^\x00-\x7f]|[+|]", " ", done.stderr).split())


def complaint(done: subprocess.CompletedProcess) -> str:
    """What a script said of input that it refused, as bad options or later."""
    return option_error(done) if done.returncode == 2 else the_one_line(done)


def the_one_line(done: subprocess.CompletedProcess) -> str:
    """The error of a failed run, which must be the last line on stderr, without traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.replace("\r", "\n").splitlines() if line.strip()]
    said = [bool(re.match(r"[\w/]+\.py( \w+)?: ", line)) for line in lines]
    assert sum(said) == 1, done.stderr
    assert said[-1]
    return lines[-1]
