"""Files written aside, environment, tables."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import scipy.stats
import torch
from toy import ROOT, main, options_of

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from data import write_aside
from figures import make
from figures.cli import Run, RunError
from figures.run import (
    environment,
    half_width,
    interval,
    keep,
    pick_device,
    print_table,
    reading,
    save_torch,
    write_json,
)


def test_write_aside_replaces_or_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_aside(path, b"one")
    write_aside(path, b"two")
    assert path.read_bytes() == b"two"

    def fail(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_aside(path, b"three")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"elbo": float("nan")})
    assert not (tmp_path / "x.json").exists()
    write_json(tmp_path / "x.json", {"elbo": 0.1 + 0.2})
    assert json.loads((tmp_path / "x.json").read_text())["elbo"] == 0.1 + 0.2


def test_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("abacus", "meta"):  # the second exists and cannot compute
        with pytest.raises(RunError, match=f"no device '{name}' here"):
            pick_device(name)
    assert environment(torch.device("cpu"))["torch"] == torch.__version__.partition("+")[0]


def test_table_aligns(capsys: pytest.CaptureFixture) -> None:
    print_table(("what", "report", "ours"), [("a", None, 1.25), ("long name", -3.37, 2)], digits=2)
    assert capsys.readouterr().out.splitlines()[1:] == [
        "what       report  ours",
        "-----------------------",
        "a               -  1.25",
        "long name   -3.37     2",
    ]


def test_what_cannot_be_read_or_used_is_one_line_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(RunError, match="no checkpoint at"), reading(path, "checkpoint"):
        pass
    for content in (b"", b"text", b"PK" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(RunError) as error, reading(path, "checkpoint"):
            pass
        assert (
            str(error.value) == f"{path} is no checkpoint"
        )  # never a library's advice on loading it otherwise
    save_torch(path, {"a": 1})
    with reading(path, "checkpoint") as state:
        assert state == {"a": 1}
    with pytest.raises(RunError, match="is no checkpoint"), reading(path, "checkpoint") as state:
        state["b"]
    with pytest.raises(RunError, match="is of another run"), reading(path, "checkpoint"):
        raise RunError("is of another run")


@dataclasses.dataclass(frozen=True)
class Kept:
    out: Path
    lr: float = 0.1
    resume: bool = False


def test_a_stage_is_kept_and_taken_with_resume_only(tmp_path: Path) -> None:
    calls = []

    def run() -> dict:
        calls.append(1)
        return {"value": 3.0}

    path, options = tmp_path / "stage.pt", Kept(tmp_path)
    first = keep(path, options, {"resume"}, run, documents="toy")
    assert first["seconds"] >= 0
    with pytest.raises(RunError, match="already holds a run"):
        keep(path, options, {"resume"}, run, documents="toy")
    again = dataclasses.replace(options, resume=True)
    assert keep(path, again, {"resume"}, run, documents="toy") == first
    assert len(calls) == 1
    with pytest.raises(RunError, match=r"--lr 0\.1, not 0\.2"):
        keep(path, dataclasses.replace(again, lr=0.2), {"resume"}, run, documents="toy")
    with pytest.raises(RunError, match="trained on toy, not on another"):
        keep(path, again, {"resume"}, run, documents="another")


def test_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=scipy.stats.tmean(values), scale=scipy.stats.sem(values)
    )
    assert 7 / 3 - half_width(values) == pytest.approx(low)
    assert interval(values, 2) == f"2.33 ± {high - 7 / 3:.2f}"


SCRIPTS = [mixture, hashing, dcgan, celeba_encoder, celeba_joint, make]


@pytest.mark.parametrize(
    ("module", "run"),
    [(module, run) for module in SCRIPTS for run in module.RUNS],
    ids=lambda part: str(part)[:20],
)
def test_help_explains_every_option(module: ModuleType, run: Run) -> None:
    default = run[0] == module.RUNS[0][0]
    done = main(module, *([] if default else [run[0]]), "--help")
    assert done.returncode == 0, done.stderr
    text = " ".join(re.sub(r"[^\x00-\x7f]", " ", done.stdout).split())
    for field in dataclasses.fields(run[2]):
        name = field.name.replace("_", "-")
        assert re.search(
            rf"--(no-)?{name} .*?[a-z]{{3}}" if name != "query" else "words to search for", text
        ), name
    if default:
        assert "uv run" in done.stdout  # examples, of the docstring


def test_commands_of_docstrings_findings_and_readme_are_good_options() -> None:
    texts = [module.__doc__ for module in SCRIPTS]
    texts += [(ROOT / name).read_text() for name in ("README.md", "tests/README.md")]
    texts += [path.read_text() for path in (ROOT / "figures").glob("*/README.md")]
    named: set[str] = set()
    for text in texts:
        text = re.sub(r"-\n", "-", text).replace("\\\n", "")
        blocks = re.findall(r"^    uv run ([\w/]+\.py.*)$", text, re.M)
        inline = re.findall(r"`(?:uv run )?([\w/]+\.py(?: [^`]*)?)`", text)
        named |= {
            " ".join(re.sub(r"(#|  +).*", "", command, flags=re.S).split()) for command in blocks
        }
        named |= {" ".join(command.split()) for command in inline}
    scripts = {f"{module.__name__.replace('.', '/')}.py" for module in SCRIPTS}
    named = {command for command in named if command.split()[0] in scripts}
    assert len(named) > 25
    for command in sorted(named):
        assert options_of(command), command


@pytest.mark.parametrize("arguments", ["--help", "--documents 1 --samples 2 --scales 1"])
def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path, arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [
        sys.executable,
        ROOT / "hashing.py",
        "variance",
        *arguments.split(),
        "--out",
        tmp_path,
    ]
    done = subprocess.run(
        command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120
    )
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_the_variance_of_estimators_is_drawn(tmp_path: Path) -> None:
    small = (
        "--documents",
        2,
        "--samples",
        50,
        "--scales",
        1,
        4,
        "--bits",
        2,
        4,
        "--at-bits",
        4,
        "--vocabulary",
        20,
    )
    done = main(hashing, "variance", *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert all(
        value > 0 for panel in metrics.values() for values in panel.values() for value in values
    )
    assert (tmp_path / "estimator_variance.png").stat().st_size > 5000
