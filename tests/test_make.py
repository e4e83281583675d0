"""figures/make.py: steps kept, resumed and failed; drawing from what is there."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy import ROOT, main, options_of, the_one_line

import hashing
from figures import make, section5, style
from figures.run import RunError

# A script as make.py runs them: it counts its runs, and does what the folder's file `mood` says.
SCRIPT = """
import json, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
with (out / "runs").open("a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
mood = Path(__file__).with_name("mood")
mood = mood.read_text() if mood.exists() else ""
if mood == "hang" and "hangs" in sys.argv:
    (out / "hanging").touch()
    time.sleep(60)
if mood == "fail" and "fails" in sys.argv:
    sys.exit(3)
(out / "result.json").write_text(json.dumps({"made_by": sys.argv[1]}))
"""
STEPS = (
    make.Step("first", "script.py first --out {self}", 1),
    make.Step("part/second", "script.py fails hangs --from {first}/model.pt --out {self}", 1, needs=("first",)),
    make.Step("third", "script.py third --from {part/second} --out {self}", 1, needs=("part/second",)),
    make.Step("fourth", "script.py fourth --out {self}", 1, resume=False),
)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(make, "HERE", tmp_path / "figures")
    monkeypatch.setattr(make, "STEPS", {"quick": STEPS})
    return tmp_path


def runs(out: Path) -> dict[str, int]:
    paths = {step.name: out / "steps" / step.name / "runs" for step in STEPS}
    return {name: len(path.read_text().splitlines()) if path.exists() else 0 for name, path in paths.items()}


def test_steps_run_in_order_go_on_after_a_failure_and_are_kept(house: Path) -> None:
    (house / "mood").write_text("fail")
    failed = make.run_steps(STEPS, house / "out", "quick")
    assert failed == {"part/second": "exit code 3", "third": "goes on from part/second"}
    assert runs(house / "out") == {"first": 1, "part/second": 1, "third": 0, "fourth": 1}
    (house / "mood").unlink()
    assert make.run_steps(STEPS, house / "out", "quick") == {}
    assert runs(house / "out") == {"first": 1, "part/second": 2, "third": 1, "fourth": 1}
    assert {path.relative_to(house / "out/results").as_posix() for path in (house / "out/results").rglob("*.json")} == {
        f"{step.name}.json" for step in STEPS
    }
    said = (house / "out/steps/part/second/runs").read_text().split()
    assert said[-1] == "--resume"
    assert said[3] == str(house / "out/steps/first/model.pt")
    assert "--resume" not in (house / "out/steps/fourth/runs").read_text()
    record = json.loads((house / "out/steps.json").read_text())
    assert record["preset"] == "quick"
    assert list(record["steps"]) == ["first", "part/second", "fourth", "third"]
    assert all(step["seconds"] > 0 and step["done"] for step in record["steps"].values())
    with pytest.raises(RunError, match="of --preset quick"):
        make.run_steps(STEPS, house / "out", "paper")


def test_a_step_whose_command_has_changed_is_run_again_with_those_that_go_on_from_it(house: Path) -> None:
    make.run_steps(STEPS, house / "out", "quick")
    changed = make.Step("first", "script.py other --out {self}", 1)
    (house / "mood").write_text("fail")
    failed = make.run_steps([changed, *STEPS[1:]], house / "out", "quick")
    assert failed == {"part/second": "exit code 3", "third": "goes on from part/second"}
    assert json.loads((house / "out/results/first.json").read_text()) == {"made_by": "other"}
    assert not (house / "out/results/part/second.json").exists()  # of the old first
    assert runs(house / "out") == {"first": 1, "part/second": 1, "third": 1, "fourth": 1}
    assert len(list((house / "out/steps").glob("first until *"))) == 1
    (house / "mood").unlink()
    assert make.run_steps([changed, *STEPS[1:]], house / "out", "quick") == {}
    assert runs(house / "out") == {"first": 1, "part/second": 2, "third": 1, "fourth": 1}


def test_a_script_that_leaves_no_result_has_failed(house: Path) -> None:
    (house / "script.py").write_text("")
    assert make.run_steps(STEPS[:1], house / "out", "quick") == {"first": "it left no result"}


def test_render_draws_what_a_folder_has_under_its_heading(house: Path) -> None:
    make.run_steps(STEPS, house / "out", "quick")
    shutil.copy(ROOT / "figures/results/disarm.json", house / "out/results")
    hashing = house / "out/results/hashing"
    shutil.copytree(ROOT / "figures/results/hashing", hashing)
    done = main(make, "--render", "--out", house / "out")
    assert done.returncode == 1
    assert "no results for figure1, mixture_gap" in the_one_line(done)
    assert "estimator_variance" not in the_one_line(done)
    assert (house / "out/table3.md").read_text().startswith("Quick run")


def test_command_line_says_what_failed_and_what_is_not_drawn(house: Path) -> None:
    (house / "mood").write_text("fail")
    done = main(make, "--out", house / "out")
    assert done.returncode == 1
    line = the_one_line(done)
    assert "2 of 4 steps failed: part/second (exit code 3); third (goes on from part/second)" in line
    assert "not drawn: figure1" in line
    assert (house / "out/faces.png").exists()
    dry = main(make, "--out", house / "other", "--dry-run")
    assert dry.returncode == 0
    assert "4 steps" in dry.stdout
    assert not (house / "other").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_step_goes_on(house: Path, stop: signal.Signals) -> None:
    (house / "mood").write_text("hang")
    program = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
sys.argv = ["make.py", "--out", {str(house / "out")!r}]
from test_make import STEPS
from figures import make
make.HERE, make.STEPS = Path({str(house / "figures")!r}), {{"quick": STEPS}}
make.cli(make.Options, make.main, "test")
"""
    command = [sys.executable, "-c", program]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=house
    )
    waiting = house / "out/steps/part/second/hanging"
    deadline = time.monotonic() + 60
    while not waiting.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if stop == signal.SIGINT:
        os.killpg(child.pid, stop)  # as the terminal does
    else:
        child.terminate()
    out, err = child.communicate(timeout=30)  # less than the script would sleep
    assert child.returncode == 128 + stop, err
    assert "the same command goes on from there" in out
    (house / "mood").unlink()
    assert make.run_steps(STEPS, house / "out", "quick") == {}
    assert runs(house / "out") == {"first": 1, "part/second": 2, "third": 1, "fourth": 1}


def test_a_quick_run_says_so_on_everything(tmp_path: Path) -> None:
    with style.headed(make.HEADINGS["quick"]):
        style.write_table(tmp_path / "table", "Caption.", ("a", "b"), [(1, 2)])
        style.write_csv(tmp_path / "table", ("a", "b"), [(1, 2)])
        figure, _ = style.plt.subplots()
        figure.suptitle("title")
        style.save(figure, tmp_path, "figure")
    assert figure.get_suptitle().splitlines() == [make.HEADINGS["quick"], "title"]
    for kind in ("md", "tex", "csv"):
        assert "Quick run" in (tmp_path / f"table.{kind}").read_text()
    style.write_table(tmp_path / "table", "Caption.", ("a", "b"), [(1, 2)])
    assert (tmp_path / "table.md").read_text().startswith("Caption.")


def test_every_step_of_the_presets_is_a_command_that_its_script_takes() -> None:
    for steps in make.STEPS.values():
        names = [step.name for step in steps]
        assert len(set(names)) == len(names)
        for i, step in enumerate(steps):
            assert set(step.needs) <= set(names[:i])
            read = options_of(shlex.join(make.arguments(step, Path("out"))))
            assert read.out.is_relative_to(Path("out/steps") / step.name)
            assert getattr(read, "resume", False) == step.resume


@pytest.mark.parametrize(
    ("seconds", "text"), [(41.6, "42 s"), (200, "3 min 20 s"), (5 * 3600, "5 h"), (32.2 * 24 * 3600, "32 days")]
)
def test_durations(seconds: float, text: str) -> None:
    assert make.duration(seconds) == text


def test_parts_are_runs_of_the_best_preset() -> None:
    read = options_of(f"{make.BEST_HELD_OUT} --out parts")
    assert read == replace(hashing.BEST, refine=0, last=False, held_out=0.1, out=Path("parts"))


def test_parts_are_compared_at_their_lowest_held_out_loss(tmp_path: Path) -> None:
    full, prior = ([5.0, 3.25, 4.0], [9.0, 8.0, 7.0]), ([6.0, 5.0], [3.0, 2.0])
    results = {
        name: {"history": dict(zip(("held_out", "test"), values, strict=True))}
        for name, values in (("prior", prior), ("full", full))
    }
    section5.write_parts(results, tmp_path)
    rows = list(csv.reader((tmp_path / "best_parts.csv").open()))[1:]
    assert rows == [
        ["nothing", "3.2", "-", "2", "3", "8.0"],
        ["autoregressive prior", "5.0", "+1.8", "2", "2", "2.0"],
    ]
