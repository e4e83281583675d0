"""macOS and Windows, simulated: what they lack, refuse and cannot show."""

import os
import time
from pathlib import Path

import pytest
import torch
from toy import ROOT, python, the_one_line

from data import write_aside
from figures import runner
from figures.run import environment


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
def test_a_terminal_that_lacks_characters_is_no_error(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.argv = ['dcgan.py', *sys.argv[1:]]\n"
    )
    code += "from figures import cli; print('nothing')\n"
    code += "def main(options): print('Fréchet ─ ✓'); raise cli.RunError('✓')\n"
    code += "from dataclasses import dataclass\n@dataclass\nclass Options:\n    a: int = 1\n"
    code += "cli.main('✓', ('run', main, Options(), '✓'))"
    helped, done = python(code, "--help", encoding=encoding), python(code, encoding=encoding)
    assert helped.returncode == 0, helped.stderr
    assert done.returncode == 1
    assert the_one_line(done).endswith(": ?")


def test_a_file_that_another_program_has_open_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Windows refuses to rename onto it."""
    path, refusals, waited, rename = tmp_path / "result.json", [3], [], Path.replace

    def replace(self: Path, target: Path) -> Path:
        if refusals[0]:
            refusals[0] -= 1
            raise PermissionError(13, "Access is denied", str(target))
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(time, "sleep", waited.append)
    write_aside(path, b"new")
    assert path.read_bytes() == b"new"
    assert len(waited) == 3
    refusals[0] = 99
    with pytest.raises(PermissionError):
        write_aside(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [left.name for left in tmp_path.iterdir()] == ["result.json"]


def test_a_machine_that_tells_less_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither /proc nor sched_getaffinity, as on macOS and Windows."""
    read, cores = Path.read_text, os.cpu_count()

    def read_text(self: Path, *arguments: object, **options: object) -> str:
        if self.as_posix().startswith("/proc"):
            raise FileNotFoundError(self)
        return read(self, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert environment(torch.device("cpu"))["processor"]
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert runner.cores() == cores
