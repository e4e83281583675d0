"""What is committed: every figure, table and page redraws from its results, and the README's
numbers are theirs."""

import re
from pathlib import Path

import pytest
from toy import ROOT

from figures import findings, law, make, section4

RESULTS = findings.read(ROOT / "figures" / "results")


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_how_they_were_made(name: str) -> None:
    result = RESULTS[name]
    assert {"config", "metrics", "environment", "seconds", "history"} <= result.keys()
    assert {"torch", "numpy", "device", "threads", "commit"} <= result["environment"].keys()
    assert "seed" in result["config"]
    assert result["seconds"] > 0
    assert result["config"].get("protocol") in (None, "report", "released")


def test_committed_figures_redraw_and_each_is_committed(tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(ROOT / "figures" / "results")
    assert make.render(tmp_path) == []
    readme = tmp_path / "README.md"
    readme.write_bytes((ROOT / "README.md").read_bytes())
    findings.write_pages(tmp_path, readme)
    assert readme.read_bytes() == (ROOT / "README.md").read_bytes()
    readme.unlink()
    drawn = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert drawn == {
        path.name for path in (ROOT / "figures").iterdir() if path.suffix not in (".py", ".j2", "")
    }
    for path in tmp_path.iterdir():
        if path.suffix in (".md", ".csv", ".tex"):
            assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    "page", ["README.md", "tests/README.md", *(f"figures/{name}" for name in findings.PAGES)]
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^):]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_what_is_said_without_a_number() -> None:
    values = findings.of_section5(RESULTS)
    metrics = {name.rpartition("/")[2]: result["metrics"] for name, result in RESULTS.items()}
    fid, joint_fid = (
        metrics[f"{name}_report"]["frechet"]["inception"] for name in ("encoder", "joint")
    )
    assert joint_fid["noise_on_one_side"] - fid["means"] < 2 * (fid["noise_alone"] - fid["means"])
    halves = [
        RESULTS[f"celeba/{name}_report"]["metrics"]["iterations"] for name in ("elbo", "joint")
    ]
    assert halves[0] * 2 == halves[1]  # "ran half as long"
    of_e3 = values["readings"]("e3", *findings.LAYERS)
    assert min(of_e3["frequencies_off"]) > 0  # "tested as trained, they are better"
    assert (
        min(values["readings"]("e2", *findings.LAYERS)["frequencies_off"]) > 5
    )  # "frequencies are excluded"
    short = [run for run in findings.claims(RESULTS) if "optimisation" in run.note]
    assert {claim.quantity.partition(", ")[2] for claim in short} == {
        "e1, d = 1",
        "e1, d = 2",
        "e3, d = 0",
        "e3, d = 1",
    }


def test_stages_have_results_of_their_names() -> None:
    assert {f"celeba/{name}" for name in section4.STAGES} <= RESULTS.keys()


def test_what_is_said_of_encoders_in_the_plane() -> None:
    costs = {
        encoder: law.cost(RESULTS[f"law/plane3_factorized_{encoder}_0.6_seed0"]["metrics"])
        for encoder in ("own", "encoder16", "encoder4", "encoder0")
    }
    assert costs["encoder16"] == pytest.approx(
        costs["own"], rel=0.02
    )  # "costs what the family costs"
    assert costs["encoder4"] == pytest.approx(4 / 3 * costs["own"], rel=0.05)
    assert costs["encoder0"] > 3 * costs["own"]
