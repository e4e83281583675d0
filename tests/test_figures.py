"""What is committed: every figure, table, page and number redraws from its results."""

import contextlib
import dataclasses
import fnmatch
import json
import re
from pathlib import Path

import pytest
from toy import ROOT

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from figures import findings, law, like, page, section5, style
from figures.cli import RunError
from figures.run import write_json

RESULTS = findings.read(ROOT / "figures" / "results")


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_how_they_were_made(name: str) -> None:
    result = RESULTS[name]
    assert {"config", "metrics", "environment", "seconds", "history"} <= result.keys()
    assert {"torch", "numpy", "device", "threads", "commit"} <= result["environment"].keys()
    assert "seed" in result["config"]
    assert result["seconds"] > 0
    assert result["config"].get("protocol") in (None, "report", "released")


def options_of_today(path: Path) -> set[str]:
    """The options of the one script that a result is of, which takes them by `--like`."""
    taken = []
    for script in (mixture, dcgan, celeba_encoder, celeba_joint, hashing):
        with contextlib.suppress(RunError):
            taken.append(like.options_of(path, script.RUNS)[0])
    (options,) = taken
    return {field.name for field in dataclasses.fields(options)}


def test_committed_figures_redraw_and_each_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From results as scripts write them today: options that are no more are left out."""
    monkeypatch.setitem(style.plt.rcParams, "savefig.dpi", 20)  # fast
    for path in (ROOT / "figures" / "results").rglob("*.json"):
        result, options = json.loads(path.read_bytes()), options_of_today(path)
        config = result["config"].items()  # of those that are no more, one stands in a table
        result["config"] = {k: v for k, v in config if k in options or (k == "patience" and v)}
        write_json(tmp_path / path.relative_to(ROOT / "figures"), result)
    assert page.draw(tmp_path) == []
    page.write_pages(tmp_path, RESULTS, "report")
    readme = tmp_path / "README"
    readme.write_bytes((ROOT / "README.md").read_bytes())
    page.write_readme(RESULTS, readme)
    assert readme.read_bytes() == (ROOT / "README.md").read_bytes()
    readme.unlink()

    def files(folder: Path) -> set[str]:
        names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
        return {n for n in names if n.endswith((".md", ".csv", ".png")) and "results/" not in n}

    assert files(tmp_path) == files(ROOT / "figures")
    for name in files(tmp_path):
        if not name.endswith(".png"):
            assert (tmp_path / name).read_bytes() == (ROOT / "figures" / name).read_bytes(), name


@pytest.mark.parametrize(
    "page",
    [*("README.md", "tests/README.md"), *(f"figures/{name}/README.md" for name in page.SECTIONS)],
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^):]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_what_is_said_without_a_number() -> None:
    values = findings.values(RESULTS)
    m = values["m"]
    report = [m[f"celeba/{n}_report"]["frechet"]["inception"] for n in ("encoder", "joint")]
    fid, joint = report
    released = [m[f"celeba/{n}_released"]["frechet"]["inception"] for n in ("encoder", "joint")]
    assert fid["floor"] < joint["prior"]  # "own samples get worse, re-decodings better"
    assert joint["means"] < fid["means"]
    assert released[0]["means"] < released[1]["means"]  # "re-decodings get worse"
    rise = joint["noise_on_one_side"] - fid["means"]
    assert rise < 2 * (fid["noise_alone"] - fid["means"])  # "mostly noise"
    assert min(values["readings"]("e3")["frequencies_off"]) > 0  # "tested as trained, better"
    assert min(values["readings"]("e2")["frequencies_off"]) > 5  # "is neither"
    assert max(map(abs, values["readings"]("e3")["counts_off"])) < 3
    # The README's numbers outside its markers.
    assert [round(f(values["readings"]("e3")["frequencies_off"])) for f in (min, max)] == [1, 62]
    assert [round(f(values["gaps"]("e1_frozen", 2))) for f in (min, max)] == [56, 96]
    assert [round(f(values["lost_at"]("e1_joint", 2))) for f in (min, max)] == [17, 25]
    assert [round(values[key], 2) for key in ("family", "regression_gap")] == [0.03, 0.16]
    assert len(values["readings"]("e3")["counts_off"]) == 7
    assert round(max(values["from_regression"]), 2) == 0.75
    grid = section5.of_the_report({n.removeprefix("hashing/"): r for n, r in RESULTS.items()})
    assert min(result["metrics"]["epochs"] for result in grid.values()) == 62
    free = values["lengths"][0][1]
    assert [cell.partition(" ")[0] for cell in free[3:]] == ["0.0000"]  # "pay nothing"


def test_what_is_said_of_section_3() -> None:
    cases = {
        (case["value"], case["of"][-6:]): case
        for case in findings.values(RESULTS)["laws"].values()
        if case["section"] == 3
    }
    for (variance, opposite), case in cases.items():
        share = law.cost(case) / law.narrowing(case)
        assert variance != 0.35 or share == pytest.approx(0.5, abs=0.03)  # "half is paid"
        if opposite == "(1,-1)":  # "local optima, of lower ELBO"
            best = cases[variance, "(-1,0)"]
            assert case["evidence"][-1] - case["gap"][-1] < best["evidence"][-1] - best["gap"][-1]


def test_what_is_said_of_encoders_in_the_plane() -> None:
    costs = {
        encoder: law.cost(RESULTS[f"law/plane3_factorized_{encoder}_0.6_seed0"]["metrics"])
        for encoder in ("own", "encoder16", "encoder4", "encoder0")
    }
    # "costs what the family costs".
    assert costs["encoder16"] == pytest.approx(costs["own"], rel=0.02)
    assert costs["encoder4"] == pytest.approx(4 / 3 * costs["own"], rel=0.05)
    assert costs["encoder0"] > 3 * costs["own"]


def test_the_family_costs_no_more_than_the_gap_narrows() -> None:
    """The bound, of every arm on faces and photographs; and an interval over seeds above zero."""
    arms = findings.values(RESULTS)["arms"]
    assert len(arms) == 5
    for arm in arms.values():
        assert 0 < arm["share"] < 1
    assert arms["drawn faces, GAN trained less"]["holds"]
    assert arms["sigma 1"]["cost"].startswith("1.4")  # "once 1.4", in the README
    assert abs(arms["drawn faces, GAN trained less"]["late"]) < 0.1


PARTS = ("mixture_released", "celeba/joint_report", "celeba/*_report", "inference/*_long_seed0")
PARTS += (
    "inference/factorized",
    "exact_d1",
    "exact_*",
    "hashing/*_b64_*",
    "hashing/*_arm*",
    "law/*",
)


@pytest.mark.parametrize("pattern", PARTS)
def test_a_part_of_the_results_is_drawn(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(style.plt.rcParams, "savefig.dpi", 20)  # fast
    names = fnmatch.filter(RESULTS, pattern)
    assert names
    for name in names:
        write_json(tmp_path / "results" / f"{name}.json", RESULTS[name])
    assert page.draw(tmp_path)  # what is missing
    for preset in ("report", "quick"):
        assert page.write(tmp_path, preset).stat().st_size > 1000


def test_every_result_alone_has_its_pages() -> None:
    for name, result in RESULTS.items():
        for section in page.SECTIONS:
            assert page.fill(f"{section}/README.md.j2", {name: result}, "report")


def test_what_is_no_result_is_named_or_passed_over(tmp_path: Path) -> None:
    (tmp_path / "section3").mkdir()
    name = "section3/mixture.json"
    whole = (ROOT / "figures/results" / name).read_bytes()
    (tmp_path / name).write_bytes(whole)
    (tmp_path / "section3/._mixture.json").write_bytes(b"\0macOS")
    assert set(findings.read(tmp_path)) == {"mixture"}
    for broken in (whole[:1000], b"[]", b"{}"):
        (tmp_path / name).write_bytes(broken)
        with pytest.raises(RunError, match=r"section3/mixture\.json is no result"):
            findings.read(tmp_path)
