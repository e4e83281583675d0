"""Files written aside, environment, tables."""

import contextlib
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import scipy.stats
import torch
from toy import ROOT, good, main, options_of, posix, python, ran, the_one_line

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from data import aside, write_aside
from figures import cli, make, run
from figures.cli import Run, RunError, Terminated
from figures.run import (
    claim,
    environment,
    half_width,
    interval,
    keep,
    pick_device,
    reading,
    release,
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
    assert json.loads((tmp_path / "x.json").read_bytes())["elbo"] == 0.1 + 0.2


def test_device() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("abacus", "meta"):  # the second exists and cannot compute
        with pytest.raises(RunError, match=f"no device '{name}' here"):
            pick_device(name)
    assert environment(torch.device("cpu"))["torch"] == torch.__version__.partition("+")[0]


def test_what_cannot_be_read_or_used_is_one_line_of_our_own(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(RunError, match="no checkpoint at"), reading(path, "checkpoint"):
        pass
    for content in (b"", b"text", b"PK" + bytes(100)):
        path.write_bytes(content)
        with pytest.raises(RunError) as error, reading(path, "checkpoint"):
            pass
        # Never a library's advice on loading it otherwise.
        assert str(error.value) == f"{path} is no checkpoint"
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


def test_numbers_that_are_not_finite_are_named() -> None:
    run.check_finite({"loss": None, "elbo": 1.0}, "in epoch 1")
    with pytest.raises(FloatingPointError, match="the elbo is -inf in epoch 2"):
        run.check_finite({"loss": 0.0, "elbo": -math.inf}, "in epoch 2")


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
    with pytest.raises(RunError, match="documents toy, not another"):
        keep(path, again, {"resume"}, run, documents="another")


def test_interval_is_students() -> None:
    values = [1.0, 2.0, 4.0]
    place = {"loc": scipy.stats.tmean(values), "scale": scipy.stats.sem(values)}
    low, high = scipy.stats.t.interval(0.95, 2, **place)
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
    done = good(module, *([] if default else [run[0]]), "--help")
    text = " ".join(re.sub(r"[^\x00-\x7f]", " ", done.stdout).split())
    for field in dataclasses.fields(run[2]):
        name = field.name.replace("_", "-")
        if "Suppress" in str(field.type):  # what another run decides, no option
            assert f"--{name} " not in text
            continue
        option = rf"--(no-)?{name} .*?[a-z]{{3}}" if name != "query" else "words to search for"
        assert re.search(option, text), name
    if default:
        assert "uv run" in done.stdout  # examples, of the docstring


def test_commands_of_docstrings_findings_and_readme_are_good_options() -> None:
    pages = ROOT / "README.md", ROOT / "tests/README.md", *(ROOT / "figures").glob("*/README.md")
    texts = [module.__doc__ for module in SCRIPTS]
    texts += [path.read_text(encoding="utf-8") for path in pages]
    named: set[str] = set()
    for text in texts:
        text = re.sub(r"-\n", "-", text).replace("\\\n", "")
        blocks = re.findall(r"^    uv run ([\w/]+\.py.*)$", text, re.M)
        inline = re.findall(r"`(?:uv run )?([\w/]+\.py(?: [^`]*)?)`", text)
        bare = (re.sub(r"(#|  +).*", "", command, flags=re.S) for command in blocks)
        named |= {" ".join(command.split()) for command in bare}
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
    streams = {"stdout": write, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, **streams, check=False, timeout=120)
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_the_variance_of_estimators_is_drawn(tmp_path: Path) -> None:
    small = "--documents 2 --samples 50 --scales 1 4 --bits 2 4"
    metrics = ran(hashing, "variance", small, out=tmp_path)["metrics"]
    series = [values for panel in metrics.values() for values in panel.values()]
    assert min(map(min, series)) > 0
    assert (tmp_path / "estimator_variance.png").stat().st_size > 5000


def test_files_aside_are_of_one_writer_and_do_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "big.npy"
    with aside(path) as first, aside(path) as second:
        assert first.name != second.name
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first"  # renamed last
    left, live = tmp_path / ".big.npy.x.part", tmp_path / ".big.npy.y.part"
    for part in (left, live):
        part.write_bytes(b"of a killed process")
    os.utime(left, (0, 0))
    write_aside(path, b"third")
    assert {p.name for p in tmp_path.iterdir()} == {"big.npy", live.name}
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_folder_is_of_one_process_until_that_ends(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
    code += "from figures.run import claim; claim(Path(sys.argv[1])); print('mine', flush=True)\n"
    other = subprocess.Popen(
        [sys.executable, "-c", code + "input()", tmp_path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "mine\n"
    line = the_one_line(main(mixture, "--out", tmp_path))
    assert f"in use by process {other.pid} on " in line
    other.kill()
    other.wait()
    (tmp_path / ".model.pt.x.part").touch()
    claim(tmp_path)  # a killed process keeps nothing, and what it wrote in part goes
    claim(tmp_path)
    release()
    assert list(tmp_path.iterdir()) == []


def test_the_commit_is_of_this_project_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy without its history inside another repository, and a file's name in Latin-1."""
    git = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    subprocess.run([*git, "config", "core.quotepath", "false"], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(run, "ROOT", tmp_path / "copy")
    assert run._commit() is None
    monkeypatch.setattr(run, "ROOT", tmp_path)
    assert re.fullmatch("[0-9a-f]{10}", run._commit())
    with contextlib.suppress(OSError):  # where names are always Unicode
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9"))).touch()
        assert re.fullmatch("[0-9a-f]{10}[+]", run._commit())


def test_an_option_of_a_list_wants_values() -> None:
    assert "--law-variances needs values" in the_one_line(main(mixture, "--law-variances"))


def test_no_standard_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclasses.dataclass(frozen=True)
    class Nothing:
        pass

    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "argv", ["nothing.py"])
    cli.main("", ("run", lambda options: print("unheard"), Nothing(), ""))


@pytest.mark.parametrize("module", ["style", "section3", "section4", "section5", "page"])
def test_figures_are_files_in_a_notebook_too(module: str) -> None:
    """Whatever is imported first: this is what a script inherits there."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import figures.{module}; "
    code += "from matplotlib import pyplot; print(pyplot.get_backend())"
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    assert python(code, env=environment).stdout.strip().lower() == "agg"


@posix
def test_sigterm_waits_for_a_training_to_save() -> None:
    def train() -> None:
        with run.saving_at_sigterm() as told:
            assert not told()
            os.kill(os.getpid(), signal.SIGTERM)
            while not told():
                pass
            saved.append("all of it")

    saved: list[str] = []
    with pytest.raises(Terminated):
        train()
    assert saved == ["all of it"]
