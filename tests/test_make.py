"""figures/make.py: steps kept, resumed and failed; drawing from what is there; the page."""

import base64
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from toy import ROOT, SCRIPT, main, options_of, the_one_line

import hashing
from figures import findings, make, runner, steps
from figures.cli import RunError
from figures.run import as_config, release
from figures.steps import Step

STEPS = (
    Step(3, "first", "script.py first --out {self}", 1),
    Step(4, "part/second", "script.py fails hangs --from {first}/model.pt --out {self}", 1),
    Step(4, "third", "script.py third --from {part/second} --out {self}", 1),
    Step(5, "fourth", "script.py fourth --out {self}", 1, resume=False),
)
QUICK = make.Options()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setattr(runner, "IMPORTED", ())  # which the toy does not need
    monkeypatch.setattr(make, "STEPS", {"quick": STEPS})
    return tmp_path


def runs(out: Path) -> dict[str, int]:
    paths = {step.name: out / "steps" / step.name / "runs" for step in STEPS}
    there = {name: path.read_bytes() if path.exists() else b"" for name, path in paths.items()}
    return {name: len(text.splitlines()) for name, text in there.items()}


@pytest.mark.parametrize("jobs", [1, 2])
def test_steps_run_in_order_go_on_after_a_failure_and_are_kept(house: Path, jobs: int) -> None:
    options = make.Options(jobs=jobs)
    (house / "mood").write_text("fail")
    failed = make.run_steps(STEPS, house / "out", options)
    assert failed.keys() == {"part/second", "third"}
    assert failed["part/second"].startswith("exit code 3")
    assert failed["third"] == "goes on from part/second"
    assert runs(house / "out") == {"first": 1, "part/second": 1, "third": 0, "fourth": 1}
    (house / "mood").unlink()
    assert make.run_steps(STEPS, house / "out", options) == {}
    assert runs(house / "out") == {"first": 1, "part/second": 2, "third": 1, "fourth": 1}
    found = (house / "out/results").rglob("*.json")
    results = {path.relative_to(house / "out/results").as_posix() for path in found}
    assert results == {step.result for step in STEPS}
    said = (house / "out/steps/part/second/runs").read_text(encoding="utf-8").split()
    assert said[-1] == "--resume"
    assert said[3] == str(house / "out/steps/first/model.pt")
    assert "--resume" not in (house / "out/steps/fourth/runs").read_text(encoding="utf-8")
    with pytest.raises(RunError, match="a run of --preset quick"):
        make.run_steps(STEPS, house / "out", make.Options(preset="report"))


def test_a_step_whose_command_has_changed_is_run_again_with_those_that_go_on_from_it(
    house: Path,
) -> None:
    make.run_steps(STEPS, house / "out", QUICK)
    changed = Step(3, "first", "script.py other --out {self}", 1)
    (house / "mood").write_text("fail")
    failed = make.run_steps([changed, *STEPS[1:]], house / "out", QUICK)
    assert failed == {"part/second": "exit code 3", "third": "goes on from part/second"}
    result = json.loads((house / "out/results/section3/first.json").read_bytes())
    assert result["made_by"] == "other"
    assert not (house / "out/results/section4/part/second.json").exists()  # of the old first
    assert runs(house / "out") == {"first": 1, "part/second": 1, "third": 0, "fourth": 1}
    assert len(list((house / "out/steps").glob("first until *"))) == 1
    (house / "mood").unlink()
    assert make.run_steps([changed, *STEPS[1:]], house / "out", QUICK) == {}
    assert runs(house / "out") == {"first": 1, "part/second": 2, "third": 1, "fourth": 1}


def test_a_run_that_was_moved_is_still_finished(house: Path) -> None:
    make.run_steps(STEPS, house / "out", QUICK)
    release()
    (house / "out").rename(house / "elsewhere")
    assert make.run_steps(STEPS, house / "elsewhere", QUICK) == {}
    assert runs(house / "elsewhere") == {"first": 1, "part/second": 1, "third": 1, "fourth": 1}


def test_a_script_that_leaves_no_result_has_failed(house: Path) -> None:
    (house / "script.py").write_text("")
    assert make.run_steps(STEPS[:1], house / "out", QUICK) == {"first": "it left no result"}


def test_render_draws_what_a_folder_has_under_its_heading(house: Path) -> None:
    make.run_steps(STEPS, house / "out", QUICK)
    there = ROOT / "figures/results/section5"
    shutil.copy(there / "disarm.json", house / "out/results/section5")
    shutil.copytree(there / "hashing", house / "out/results/section5/hashing")
    done = main(make, "--render", "--out", house / "out")
    assert done.returncode == 1
    assert "section3/figure1, section4/dcgan_grid" in the_one_line(done)
    assert "estimator_variance" not in the_one_line(done)
    text = (house / "out/index.html").read_text(encoding="utf-8")
    assert "<table>" in text
    assert "Not run" in text
    assert text.count("not the report's protocol") == 1
    assert text.count("data:image/png;base64,") == text.count("<img") > 1
    assert "http" not in text  # self-contained
    assert "<summary>table3</summary>" in text
    for linked in re.findall(r'<a href="([^"#]+(?:png|table3.md))"', text):
        assert (house / "out" / linked).exists()


def test_text_of_results_is_no_html_and_reads_no_other_files(house: Path) -> None:
    make.run_steps(STEPS, house / "out", QUICK)
    (house / "secret.png").write_bytes(b"secret")
    result = json.loads((ROOT / "figures/results/section5/disarm.json").read_bytes())
    result["environment"]["processor"] = "<script>alert(1)</script> ![s](../secret.png)"
    (house / "out/results/section5/disarm.json").write_text(json.dumps(result))
    cell = json.loads((ROOT / "figures/results/section5/hashing/e1_b8_d0.json").read_bytes())
    cell["corpus"] = "<script>alert(2)</script> ![s](../../secret.png)"
    (house / "out/results/section5/hashing").mkdir()
    (house / "out/results/section5/hashing/e1_b8_d0.json").write_text(json.dumps(cell))
    assert main(make, "--render", "--out", house / "out").returncode == 1
    text = (house / "out/index.html").read_text(encoding="utf-8")
    assert "alert(1)" in text
    assert "alert(2)" in text
    assert "<script" not in text
    assert base64.b64encode(b"secret").decode() not in text


def test_command_line_says_what_failed_and_what_is_not_drawn(house: Path) -> None:
    (house / "mood").write_text("fail")
    done = main(make, "--out", house / "out")
    assert done.returncode == 1
    line = the_one_line(done)
    assert "2 of 4 steps failed: part/second (exit code 3: the disk is full)" in line
    assert "third (goes on from part/second)" in line
    assert "not drawn: law/one_law" in line
    assert (house / "out/index.html").as_uri() in done.stdout
    dry = main(make, "--out", house / "other", "--dry-run")
    assert dry.returncode == 0
    assert "4 steps" in dry.stdout
    assert not (house / "other").exists()


def test_every_step_of_the_presets_is_a_command_that_its_script_takes() -> None:
    for preset in steps.STEPS.values():
        names = [step.name for step in preset]
        assert len(set(names)) == len(names)
        for i, step in enumerate(preset):
            assert set(step.needs) <= set(names[:i])
            read = options_of(shlex.join(make.arguments(step, Path("out"))))
            assert read.out.is_relative_to(Path("out/steps") / step.name)
            assert getattr(read, "resume", False) == step.resume


def test_steps_make_what_is_committed() -> None:
    """The options of all committed results but those of reduced runs (celeba, hashing)."""
    results, found = findings.read(make.HERE / "results"), 0
    places = {"out", "encoder", "ground_truth", "device", "resume", "images", "archive"}
    places |= {"checkpoint_every"}
    for step in steps.STEPS["report"]:
        if step.name in results and not step.name.startswith(("celeba/", "hashing/")):
            made, now = results[step.name]["config"], as_config(options_of(step.command))
            for key in made.keys() & now.keys() - places:
                assert now[key] in (made[key], None), (step.name, key)
            found += 1
    assert found > 60


def test_steps_are_chosen_by_name_with_those_they_go_on_from() -> None:
    names = [step.name for step in make.chosen(STEPS, ["third"])]
    assert names == ["first", "part/second", "third"]
    assert [step.name for step in make.chosen(STEPS, ["f*"])] == ["first", "fourth"]
    with pytest.raises(RunError, match="no step is named 'fifth'"):
        make.chosen(STEPS, ["first", "fifth"])


def test_cells_have_the_options_that_their_names_say() -> None:
    cells = {step.name: step for step in steps.STEPS["report"] if "hashing/" in step.name}
    for name, changes in {
        "e1_b64_d0": {},
        "e3_b8_d2_lr0.1": {"encoder": "e3", "bits": 8, "decoder_layers": 2, "encoder_lr": 0.1},
        "e1_b64_d0_arm_seed3": {"estimator": "arm", "seed": 3},
        "e2_b64_d0_heldout0.1": {"encoder": "e2", "held_out": 0.1},
    }.items():
        command = make.arguments(cells[f"hashing/{name}"], Path("out"))
        read = replace(options_of(shlex.join(command)), resume=False, out=hashing.Options.out)
        counts = {"test_counts": changes.get("encoder") in ("e2", "e3")}
        assert read == replace(hashing.Options(), **changes, **counts), name


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_folder_of_no_preset_is_one_line(house: Path, text: str) -> None:
    (house / "out").mkdir()
    (house / "out/preset.json").write_text(text)
    line = the_one_line(main(make, "--out", house / "out"))
    assert "preset.json does not say which preset" in line
    (house / "out/steps/first").mkdir(parents=True)
    (house / "out/steps/first/step.json").write_text("[]")
    assert runner.record(house / "out/steps/first") == {}
