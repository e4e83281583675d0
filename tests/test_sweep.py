"""`hashing.py sweep`: which cells run, what they leave, and how it goes on."""

import csv
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from toy import corpus, main, the_one_line

import hashing
from figures import published

ARGUMENTS = ("--bits", 8, "--encoders", "e1", "e3", "--epochs", 2, "--fine-epochs", 0, "--device", "cpu", "--jobs", 2)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells are trained in this process, on the toy corpus; returns the list of the cells trained so far."""
    names = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        options = tyro.cli(hashing.Options, args=command[2:], config=(tyro.conf.FlagCreatePairsOff,))
        names.append(options.out.name)
        if options.bits == 16:
            return subprocess.CompletedProcess(command, 1)
        hashing.train(options, corpus())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(hashing.newsgroups, "load", lambda archive: corpus())
    monkeypatch.setattr(hashing.subprocess, "run", run)
    return names


def sweep(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    paths = ("--results", folder / "figures" / "results" / "hashing", "--out", folder / "runs")
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
    assert "was trained with batch_size" in the_one_line(_other(results, tmp_path))


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
        assert "toy" in text
        latex = (tmp_path / "figures" / f"{name}.tex").read_text()
        assert latex.count("not run") == 46
    for name in ("table2", "table3", "hashing_cells"):
        assert not re.search(r"(?<!\\)[_%#]", (tmp_path / "figures" / f"{name}.tex").read_text())
    cells = list(csv.DictReader((tmp_path / "figures" / "hashing_cells.csv").open()))
    assert [(row["cell"], row["min, counts fed"] == "-") for row in cells] == [("e1_b8_d0", True), ("e3_b8_d0", False)]


def test_a_failed_cell_is_told_and_the_others_are_kept(tmp_path: Path, runs: list[str]) -> None:
    (tmp_path / "runs" / "e1_b16_d0").mkdir(parents=True)
    (tmp_path / "runs" / "e1_b16_d0" / "log.txt").write_text("hashing.py: the disk is full\n")
    done = sweep(tmp_path, "--bits", 16, 8, "--encoders", "e1")
    assert "1 of 2 cells failed: e1_b16_d0 (hashing.py: the disk is full)" in the_one_line(done)
    assert (tmp_path / "figures" / "results" / "hashing" / "e1_b8_d0.json").is_file()


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
    result = hashing.train(options, corpus())
    path = tmp_path / "result.json"
    assert hashing.done(path, options)
    assert not hashing.done(path, replace(options, epochs=31))
    waited = 30 - result["metrics"]["test_min_epoch"]
    assert hashing.done(path, replace(options, epochs=99, patience=max(1, waited))) == (waited > 0)
    assert not hashing.done(path, replace(options, epochs=99, patience=waited + 1))
    assert not hashing.done(tmp_path / "none.json", options)
    path.write_text("{")
    with pytest.raises(hashing.RunError, match="is no result"):
        hashing.done(path, options)
