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
import torch
from toy import ROOT, main, options_of

import celeba_encoder
import celeba_joint
import dcgan
import disarm
import hashing
import mixture
from data import write_aside
from figures import make
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


SCRIPTS = [mixture, disarm, hashing, dcgan, celeba_encoder, celeba_joint, make]
COMMANDS = [(module, command) for module in SCRIPTS for command in ("", *getattr(module, "COMMANDS", {}))]


@pytest.mark.parametrize(("module", "command"), COMMANDS, ids=lambda part: getattr(part, "__name__", part))
def test_help_explains_every_option_in_groups_with_two_examples(module: ModuleType, command: str) -> None:
    options = module.COMMANDS[command][0] if command else module.Options
    names = [field.name.replace("_", "-") for field in dataclasses.fields(options)]
    grouped = " ".join(options.GROUPS.values()).split()
    assert sorted(grouped) == sorted(names)
    done = main(module, *([command] if command else []), "--help")
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"^  (?:--(\S+)|STR \.\.\.)(.*(?:\n   .*)*)", done.stdout.partition("\nexamples:")[0], re.M)
    entries = {name or "query": text for name, text in shown if name != "preset" or module is make}
    assert list(entries) == grouped
    assert all(re.search(r"[a-z]{4}", text.partition("   ")[2]) for text in entries.values())
    assert "None" not in done.stdout
    for title in options.GROUPS:
        assert f"\n{title}:\n" in done.stdout
    for example, _ in options.EXAMPLES:
        assert example in done.stdout


def test_examples_of_help_and_readme_are_good_options() -> None:
    examples = [
        f"{module.__name__.replace('.', '/')}.py {command} {example}"
        for module, command in COMMANDS
        for example, _ in (module.COMMANDS[command][0] if command else module.Options).EXAMPLES
    ]
    readme = (ROOT / "README.md").read_text().replace("\\\n", "")
    named = re.findall(r"^    uv run (.*)$|`(?:uv run )?([\w/]+\.py[^`]*)`", readme, re.M)
    named = [" ".join((block or inline).partition("#")[0].split()) for block, inline in named]
    named = [command for command in named if command != "pytest" and not command.startswith(("data/", "tests/"))]
    assert len(named) > 20
    for command in examples + named:
        assert options_of(command), command


@pytest.mark.parametrize("arguments", ["--help", "--documents 1 --samples 2 --scales 1 --bits 2"])
def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path, arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, ROOT / "disarm.py", *arguments.split(), "--out", tmp_path]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


def test_disarm_script_draws_its_figure(tmp_path: Path) -> None:
    small = ("--documents", 2, "--samples", 50, "--scales", 1, 4, "--bits", 2, 4, "--at-bits", 4, "--vocabulary", 20)
    done = main(disarm, *small, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert all(value > 0 for panel in metrics.values() for values in panel.values() for value in values)
    assert (tmp_path / "estimator_variance.png").stat().st_size > 5000
    assert (tmp_path / "estimator_variance.pdf").stat().st_size > 5000
