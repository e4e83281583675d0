"""`hashing.py sweep`: which cells run, what they leave, and how it goes on."""

import csv
import functools
import io
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from toy import HASHING, main, the_one_line
from toy import corpus as any_corpus

import hashing
from data import newsgroups
from figures import published, section5

NAMED = replace(any_corpus(), name=newsgroups.NAME)  # so that the published numbers stand beside it
ARGUMENTS = ("--bits", 8, "--encoders", "e1", "e3", "--epochs", 2, "--fine-epochs", 0, "--device", "cpu", "--jobs", 2)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells are trained in this process, on the toy corpus; returns the list of the cells trained so far."""
    names = []

    def train(command: list[str], stdout: io.BufferedWriter) -> int:
        options = tyro.cli(hashing.Options, args=command[2:], config=(tyro.conf.FlagCreatePairsOff,))
        names.append(options.out.name)
        if options.bits == 16:
            stdout.write(b"hashing.py: the disk is full\n\n")
            return 1
        if options.bits == 32:
            return -9
        hashing.train(options, NAMED)
        return 0

    class Child:
        def __init__(self, command: list[str], stdout: io.BufferedWriter, **_: object):
            self.work = functools.partial(train, command, stdout)

        def wait(self) -> int:
            return self.work()

    monkeypatch.setattr(hashing.newsgroups, "load", lambda archive: NAMED)
    monkeypatch.setattr(hashing.subprocess, "Popen", Child)
    return names


def sweep(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    figures = folder / "figures"
    paths = ("--results", figures / "results" / "hashing", "--tables", figures, "--out", folder / "runs")
    return main(hashing, "sweep", *ARGUMENTS, "--decoder-layers", 0, *arguments, *paths)


def test_cells_are_run_once_and_go_on(tmp_path: Path, runs: list[str]) -> None:
    done = sweep(tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(runs) == ["e1_b8_d0", "e3_b8_d0"]
    results = tmp_path / "figures" / "results" / "hashing"
    result = json.loads((results / "e3_b8_d0.json").read_text())
    assert result["metrics"]["epochs"] == 2
    assert len(result["history"]["test_counts"]) == 2
    sweep(tmp_path)
    assert len(runs) == 2
    (results / "e1_b8_d0.json").unlink()
    sweep(tmp_path)
    assert runs[2:] == ["e1_b8_d0"]
    before = result["history"]["train"]
    sweep(tmp_path, "--epochs", 3)
    assert len(runs) == 5
    after = json.loads((results / "e3_b8_d0.json").read_text())["history"]["train"]
    assert (len(after), after[:2]) == (3, before)
    assert "was trained with --batch-size 7, not 256" in the_one_line(_other(results, tmp_path))


def _other(results: Path, folder: Path) -> subprocess.CompletedProcess:
    path = results / "e1_b8_d0.json"
    result = json.loads(path.read_text())
    result["config"]["batch_size"] = 7
    path.write_text(json.dumps(result))
    return sweep(folder)


def test_tables_stand_beside_the_published_numbers(tmp_path: Path, runs: list[str]) -> None:
    assert sweep(tmp_path).returncode == 0
    for name, paper in (("table2", published.TABLE2), ("table3", published.TABLE3)):
        rows = list(csv.DictReader((tmp_path / "figures" / f"{name}.csv").open()))
        assert len(rows) == 48
        for row in rows:
            cell = row["encoder"], int(row["b"]), int(row["d"])
            assert row["report"] == str(paper.get(cell, "-"))
            assert (row["ours"] == "not run") == (cell not in (("e1", 8, 0), ("e3", 8, 0)))
        assert rows[0]["epochs"] == "2"
        text = (tmp_path / "figures" / f"{name}.md").read_text()
        assert text.count("not run") == 46
        assert f"{paper['e1', 8, 0]} / {rows[0]['ours']} (2)" in text
        assert newsgroups.NAME in text
        latex = (tmp_path / "figures" / f"{name}.tex").read_text()
        assert latex.count("not run") == 46
    for name in ("table2", "table3", "retrieval", "hashing_cells"):
        assert not re.search(r"(?<!\\)[_%#]", (tmp_path / "figures" / f"{name}.tex").read_text())
    metrics = json.loads((tmp_path / "figures/results/hashing/e3_b8_d0.json").read_text())["metrics"]
    rows = list(csv.DictReader((tmp_path / "figures" / "retrieval.csv").open()))
    assert rows[0]["e3"] == f"{100 * metrics['precision_at_100']:.1f}"
    assert (len(rows), rows[1]["e3"]) == (12, "not run")
    assert [row["AMMI, published"] for row in rows[::3]] == ["-", "55.18", "59.56", "63.98"]
    cells = list(csv.DictReader((tmp_path / "figures" / "hashing_cells.csv").open()))
    assert [(row["cell"], row["min, counts fed"] == "-") for row in cells] == [("e1_b8_d0", True), ("e3_b8_d0", False)]


def test_a_failed_cell_is_told_and_the_others_are_kept(tmp_path: Path, runs: list[str]) -> None:
    (tmp_path / "runs" / "e1_b16_d0").mkdir(parents=True)
    (tmp_path / "runs" / "e1_b16_d0" / "log.txt").write_text("what an earlier run said\n")
    line = the_one_line(sweep(tmp_path, "--bits", 16, 32, 8, "--encoders", "e1", "--jobs", 1))
    assert "2 of 3 cells failed: e1_b16_d0 (exit code 1: hashing.py: the disk is full)" in line
    assert "e1_b32_d0 (exit code -9: it said nothing)" in line
    assert (tmp_path / "figures" / "results" / "hashing" / "e1_b8_d0.json").is_file()


def test_a_killed_sweep_takes_its_cells_along(tmp_path: Path) -> None:
    """A cell that trained on alone would meet the one that the next sweep starts in the same folder."""
    cell = tmp_path / "cell.py"
    cell.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[sys.argv.index('--out') + 1], 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    program = HASHING.replace("newsgroups.load", f"hashing.__file__ = {str(cell)!r}\nnewsgroups.load", 1)
    paths = ("--results", tmp_path / "results", "--tables", tmp_path, "--out", tmp_path)
    command = [sys.executable, "-c", program, "sweep", *ARGUMENTS, *paths]
    child = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(pids := [*tmp_path.glob("*/pid")]) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.2)  # until what is in the files is whole
    child.terminate()
    _, err = child.communicate(timeout=30)
    assert child.returncode == 143, err
    assert "terminated" in err
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_arguments_give_back_the_options() -> None:
    options = hashing.Options(
        encoder="e3", bits=8, held_out=0.1, resume=True, test_counts=True, patience=30, lr=2e-3, archive=Path("a b")
    )
    read = tyro.cli(hashing.Options, args=hashing.as_arguments(options), config=(tyro.conf.FlagCreatePairsOff,))
    assert read == options
    assert hashing.as_arguments(hashing.Options()) == []


def test_the_grid_is_the_reports_and_e4() -> None:
    cells = hashing.SweepOptions().cells()
    names = {(cell.encoder, cell.bits, cell.decoder_layers) for cell in cells}
    assert len(cells) == len(names) == 48
    assert {cell for cell in names if cell[0] != "e4"} == set(published.TABLE3) == set(published.TABLE2)
    assert {(cell.epochs, cell.fine_epochs, cell.lr, cell.batch_size, cell.seed) for cell in cells} == {
        (1000, 500, 1e-3, 256, 1)
    }


def test_a_cell_is_done_by_epochs_or_by_patience(tmp_path: Path) -> None:
    options = hashing.Options(bits=3, epochs=30, fine_epochs=0, batch_size=16, lr=0.05, device="cpu", out=tmp_path)
    result = hashing.train(options, NAMED)
    path = tmp_path / "result.json"
    assert hashing.done(path, options, newsgroups.NAME)
    assert not hashing.done(path, replace(options, epochs=31), newsgroups.NAME)
    assert not hashing.done(path, replace(options, epochs=20, fine_epochs=10), newsgroups.NAME)
    waited = 30 - result["metrics"]["test_min_epoch"]
    assert hashing.done(path, replace(options, epochs=99, patience=max(1, waited)), newsgroups.NAME) == (waited > 0)
    assert not hashing.done(path, replace(options, epochs=99, patience=waited + 1), newsgroups.NAME)
    assert not hashing.done(tmp_path / "none.json", options, newsgroups.NAME)
    with pytest.raises(hashing.RunError, match="not on another"):
        hashing.done(path, options, "another")
    path.write_text("{")
    with pytest.raises(hashing.RunError, match="is no result"):
        hashing.done(path, options, newsgroups.NAME)


def test_cells_of_another_protocol_stay_out_of_tables_2_and_3(tmp_path: Path, runs: list[str]) -> None:
    assert sweep(tmp_path).returncode == 0
    results = tmp_path / "figures" / "results" / "hashing"
    usual = json.loads((results / "e1_b8_d0.json").read_text())
    for i, (key, value) in enumerate(
        (("prior", "autoregressive"), ("batch_size", 7), ("word_dropout", 0.1), ("seed", 2), ("held_out", 0.1))
    ):
        other = usual | {"config": usual["config"] | {key: value}, "metrics": usual["metrics"] | {"test_min": 1.0}}
        (results / f"e1_b8_d0_z{i}.json").write_text(json.dumps(other))
    section5.write_tables(section5.read_cells(results), tmp_path)
    rows = list(csv.DictReader((tmp_path / "table3.csv").open()))
    assert rows[0]["ours"] == f"{usual['metrics']['test_min']:.1f}"
    assert "1.0" not in {row["ours"] for row in rows}
    assert len(list(csv.DictReader((tmp_path / "hashing_cells.csv").open()))) == 7


def test_table_3_has_held_out_choice_and_another_rate_beside_the_minimum(tmp_path: Path, runs: list[str]) -> None:
    assert sweep(tmp_path, "--held-out", 0, 0.1).returncode == 0
    results = tmp_path / "figures" / "results" / "hashing"
    metrics = json.loads((results / "e3_b8_d0_heldout0.1.json").read_text())["metrics"]
    header, _, first, *others = (tmp_path / "figures" / "table3.md").read_text().splitlines()[2:]
    assert header.endswith("| e4 | e1, chosen | e3, chosen |")
    assert first.endswith(f"| {metrics['test_selected']:.1f} ({metrics['selected_epoch']}) |")
    assert all(row.endswith("| not run | not run |") for row in others)
    assert "chosen" not in (tmp_path / "figures" / "table2.md").read_text()
    assert sweep(tmp_path, "--encoder-lr", 0.1).returncode == 0
    metrics = json.loads((results / "e3_b8_d0_lr0.1.json").read_text())["metrics"]
    header, _, first, *_ = (tmp_path / "figures" / "table3.md").read_text().splitlines()[2:]
    assert header.endswith("| e3, chosen | e1, rate 0.1 | e3, rate 0.1 |")
    assert first.endswith(f"| {metrics['test_min']:.1f} (2) |")
