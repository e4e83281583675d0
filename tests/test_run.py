"""Files written aside, environment, tables."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from toy import main, script

import disarm
from data import write_aside
from figures.run import RunError, environment, pick_device, table, write_json


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
    with pytest.raises(RunError, match="abacus"):
        pick_device("abacus")
    assert environment(torch.device("cpu"))["torch"] == torch.__version__.partition("+")[0]


def test_table_aligns() -> None:
    lines = table(("what", "paper", "ours"), [("a", None, 1.25), ("long name", -3.37, 2)], digits=2).splitlines()
    assert lines[1:] == [
        "what       paper  ours",
        "----------------------",
        "a              -  1.25",
        "long name  -3.37     2",
    ]


@pytest.mark.parametrize(
    "name", ["mixture.py", "disarm.py", "hashing.py", "dcgan.py", "celeba_encoder.py", "celeba_joint.py"]
)
def test_help_explains_every_option(name: str) -> None:
    done = script(name, "--help") if name == "mixture.py" else main(importlib.import_module(name[:-3]), "--help")
    assert done.returncode == 0
    for option in ("--out", "--seed", "--device"):
        assert option in done.stdout


def test_disarm_script_draws_its_figure(tmp_path: Path) -> None:
    small = ("--documents", 2, "--samples", 50, "--scales", 1, 4, "--bits", 2, 4, "--at-bits", 4, "--vocabulary", 20)
    done = main(disarm, *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert all(value > 0 for panel in metrics.values() for values in panel.values() for value in values)
    assert (tmp_path / "estimator_variance.png").stat().st_size > 5000
    assert (tmp_path / "estimator_variance.pdf").stat().st_size > 5000
