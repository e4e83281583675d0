"""figures/sweep.py: which cells run, what they leave, and how it goes on."""

import csv
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from toy import corpus as any_corpus
from toy import main, option_error, options_of, the_one_line

import hashing
from data import newsgroups
from figures import reference, section5
from figures import sweep as sweep_script
from figures.cli import RunError
from figures.runner import ClusterOptions, Task

NAMED = replace(any_corpus(), name=newsgroups.NAME)  # so that the report's numbers stand beside it
ARGUMENTS = (
    "--bits",
    8,
    "--encoders",
    "e1",
    "e3",
    "--epochs",
    2,
    "--fine-epochs",
    0,
    "--device",
    "cpu",
    "--jobs",
    2,
)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Cells are trained in this process, on the toy corpus; returns the list of the cells trained
    so far."""
    names = []

    def run_tasks(
        tasks: Sequence[Task], options: ClusterOptions, ended: Callable
    ) -> dict[str, str]:
        failed = {}
        for task in tasks:
            names.append(task.name)
            cell = options_of(shlex.join(task.command))
            assert cell.out == task.folder
            if cell.bits == 16:
                failed[task.name] = "exit code 1: hashing.py: the disk is full"
            else:
                hashing.train(cell, NAMED)
            ended(task.name, failed.get(task.name))
        return failed

    monkeypatch.setattr(newsgroups, "load", lambda archive: NAMED)
    monkeypatch.setattr(sweep_script, "run_tasks", run_tasks)
    return names


def sweep(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
    figures = folder / "figures"
    paths = (
        "--results",
        figures / "results" / "hashing",
        "--tables",
        figures,
        "--out",
        folder / "runs",
    )
    return main(sweep_script, *ARGUMENTS, "--decoder-layers", 0, *arguments, *paths)


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
    for name, report in (("table2", reference.TABLE2), ("table3", reference.TABLE3)):
        rows = list(csv.DictReader((tmp_path / "figures" / f"{name}.csv").open()))
        assert len(rows) == 48
        for row in rows:
            cell = row["encoder"], int(row["b"]), int(row["d"])
            assert row["report"] == str(report.get(cell, "-"))
            assert (row["ours"] == "not run") == (cell not in (("e1", 8, 0), ("e3", 8, 0)))
        assert rows[0]["epochs"] == "2"
        text = (tmp_path / "figures" / f"{name}.md").read_text()
        assert text.count("not run") == 46
        assert f"{report['e1', 8, 0]} / {rows[0]['ours']} (2)" in text
        assert newsgroups.NAME in text
        latex = (tmp_path / "figures" / f"{name}.tex").read_text()
        assert latex.count("not run") == 46
    for name in ("table2", "table3", "retrieval", "hashing_cells"):
        assert not re.search(r"(?<!\\)[_%#]", (tmp_path / "figures" / f"{name}.tex").read_text())
    metrics = json.loads((tmp_path / "figures/results/hashing/e3_b8_d0.json").read_text())[
        "metrics"
    ]
    rows = list(csv.DictReader((tmp_path / "figures" / "retrieval.csv").open()))
    assert rows[0]["e3"] == f"{100 * metrics['precision_at_100']:.1f}"
    assert (len(rows), rows[1]["e3"]) == (12, "not run")
    assert [row["AMMI, published"] for row in rows[::3]] == ["-", "55.18", "59.56", "63.98"]
    cells = list(csv.DictReader((tmp_path / "figures" / "hashing_cells.csv").open()))
    assert [(row["cell"], row["min, counts fed"] == "-") for row in cells] == [
        ("e1_b8_d0", True),
        ("e3_b8_d0", False),
    ]


def test_a_failed_cell_is_told_and_the_others_are_kept(tmp_path: Path, runs: list[str]) -> None:
    line = the_one_line(sweep(tmp_path, "--bits", 16, 8, "--encoders", "e1"))
    assert "1 of 2 cells failed: e1_b16_d0 (exit code 1: hashing.py: the disk is full)" in line
    assert (tmp_path / "figures" / "results" / "hashing" / "e1_b8_d0.json").is_file()


def test_cells_are_commands_of_hashing() -> None:
    options = sweep_script.Options(
        held_out=(0.1,), encoder_lr=0.1, patience=30, archive=Path("a b"), seeds=(2,)
    )
    grid = sweep_script.cells(options)
    for name, cell in grid.items():
        read = options_of(shlex.join(sweep_script.command(cell)))
        expected = {key: value for key, value in cell.items() if value is not None}
        assert {key: getattr(read, key) for key in expected} == expected
        assert name == f"{read.encoder}_b{read.bits}_d{read.decoder_layers}_seed2_heldout0.1_lr0.1"
    with pytest.raises(ValueError, match="--encoders must name one or more, each once"):
        sweep_script.Options(encoders=("e1", "e1"))
    assert "--bits" in option_error(main(sweep_script, "--bits", 0))


def test_the_grid_is_the_reports_and_e4() -> None:
    grid = sweep_script.cells(sweep_script.Options())
    names = {(cell["encoder"], cell["bits"], cell["decoder_layers"]) for cell in grid.values()}
    assert len(grid) == len(names) == 48
    assert (
        {cell for cell in names if cell[0] != "e4"}
        == set(reference.TABLE3)
        == set(reference.TABLE2)
    )
    read = [options_of(shlex.join(sweep_script.command(cell))) for cell in grid.values()]
    assert {
        (cell.epochs, cell.fine_epochs, cell.lr, cell.batch_size, cell.seed) for cell in read
    } == {(1000, 500, 1e-3, 256, 1)}
    assert {cell.encoder for cell in read if cell.test_counts} == {"e2", "e3"}


def test_a_cell_is_trained_by_epochs_or_by_patience(tmp_path: Path) -> None:
    options = hashing.Options(bits=3, epochs=30, fine_epochs=0, device="cpu", out=tmp_path)
    result = hashing.train(options, NAMED)
    (cell,) = sweep_script.cells(
        sweep_script.Options(
            bits=(3,), encoders=("e1",), decoder_layers=(0,), epochs=30, fine_epochs=0
        )
    ).values()
    path = tmp_path / "result.json"

    def is_trained(**changes: int) -> bool:
        return sweep_script.is_trained(path, cell | changes, newsgroups.NAME)

    assert is_trained()
    assert not is_trained(epochs=31)
    assert not is_trained(epochs=20, fine_epochs=10)
    waited = 30 - result["metrics"]["test_min_epoch"]
    assert is_trained(epochs=99, patience=max(1, waited)) == (waited > 0)
    assert not is_trained(epochs=99, patience=waited + 1)
    assert not sweep_script.is_trained(tmp_path / "none.json", cell, newsgroups.NAME)
    with pytest.raises(RunError, match="--seed 1, not 2"):
        is_trained(seed=2)
    with pytest.raises(RunError, match="not on another"):
        sweep_script.is_trained(path, cell, "another")
    path.write_text("{")
    with pytest.raises(RunError, match="is no result"):
        is_trained()


def test_cells_of_another_protocol_stay_out_of_tables_2_and_3(
    tmp_path: Path, runs: list[str]
) -> None:
    assert sweep(tmp_path).returncode == 0
    results = tmp_path / "figures" / "results" / "hashing"
    usual = json.loads((results / "e1_b8_d0.json").read_text())
    for i, (key, value) in enumerate(
        (
            ("prior", "autoregressive"),
            ("batch_size", 7),
            ("word_dropout", 0.1),
            ("seed", 2),
            ("held_out", 0.1),
        )
    ):
        other = usual | {
            "config": usual["config"] | {key: value},
            "metrics": usual["metrics"] | {"test_min": 1.0},
        }
        (results / f"e1_b8_d0_z{i}.json").write_text(json.dumps(other))
    section5.write_tables(section5.read_cells(results), tmp_path)
    rows = list(csv.DictReader((tmp_path / "table3.csv").open()))
    assert rows[0]["ours"] == f"{usual['metrics']['test_min']:.1f}"
    assert "1.0" not in {row["ours"] for row in rows}
    assert len(list(csv.DictReader((tmp_path / "hashing_cells.csv").open()))) == 7


def test_table_3_has_held_out_choice_and_another_rate_beside_the_minimum(
    tmp_path: Path, runs: list[str]
) -> None:
    assert sweep(tmp_path, "--held-out", 0, 0.1).returncode == 0
    results = tmp_path / "figures" / "results" / "hashing"
    metrics = json.loads((results / "e3_b8_d0_heldout0.1.json").read_text())["metrics"]
    header, _, first, *others = (tmp_path / "figures" / "table3.md").read_text().splitlines()[2:]
    assert header.endswith("| e4 | chosen |")
    assert first.endswith(f", e3 {metrics['test_selected']:.1f} ({metrics['selected_epoch']}) |")
    assert all(row.endswith("| not run |") for row in others)
    assert "chosen" not in (tmp_path / "figures" / "table2.md").read_text()
    assert sweep(tmp_path, "--encoder-lr", 0.1).returncode == 0
    metrics = json.loads((results / "e3_b8_d0_lr0.1.json").read_text())["metrics"]
    header, _, first, *_ = (tmp_path / "figures" / "table3.md").read_text().splitlines()[2:]
    assert header.endswith("| chosen | rate 0.1 |")
    assert first.endswith(f", e3 {metrics['test_min']:.1f} (2) |")
