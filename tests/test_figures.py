"""What is committed: every figure redraws from its result, and the README says what the results hold."""

import json
import re
from pathlib import Path

import pytest
from toy import ROOT

from figures import make

RESULTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "figures" / "results").rglob("*.json")}
README = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_how_they_were_made(name: str) -> None:
    result = RESULTS[name]
    assert {"config", "metrics", "environment", "seconds", "history"} <= result.keys()
    assert {"torch", "numpy", "device", "threads", "commit"} <= result["environment"].keys()
    assert "seed" in result["config"]
    assert result["seconds"] > 0


def test_committed_figures_redraw_and_each_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").symlink_to(ROOT / "figures" / "results")
    monkeypatch.setattr(make, "HERE", tmp_path)
    make.main()
    drawn = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert drawn == {path.name for path in (ROOT / "figures").iterdir() if path.suffix not in (".py", "")}
    for path in tmp_path.iterdir():
        if path.suffix in (".md", ".csv", ".tex"):
            assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), path.name
    for image in re.findall(r"\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / image).is_file()


def test_readme_numbers_are_those_of_the_results() -> None:
    text, code = RESULTS["mixture"]["metrics"], RESULTS["mixture_released"]["metrics"]
    hashing, variance = RESULTS["hashing_e1_64_0"], RESULTS["disarm"]["metrics"]["scale"]
    lost = code["truth"]["evidence"] - code["joint"]["evidence"]
    gaps = [m["oracle"]["kl"] for m in code["assignments"].values()]
    said = [
        f"{text['frozen']['elbo']:.3f} -> {text['joint']['elbo']:.3f}",
        f"{code['frozen']['elbo']:.3f} -> {code['joint']['elbo']:.3f}",
        f"leaves {code['oracle']['kl']:.5f} nats; the trained network leaves {code['frozen']['kl']:.5f}",
        f"raises the ELBO by {code['joint']['elbo'] - code['frozen']['elbo']:.3f} nats",
        f"| {lost:.4f} |",
        f"grows from {code['frozen']['kl_true']:.3f} to {code['joint']['kl_true']:.3f}",
        "two centres move by {:.2f} and {:.2f}".format(*sorted(code["joint"]["drift"])[:1:-1]),
        f"(ELBO {code['oracle_joint']['elbo']:.4f})",
        f"to {gaps[1]:.3f}. The other two ways ({gaps[0]:.3f}, {gaps[2]:.3f})",
        f"ends at ELBO {text['joint']['elbo']:.3f} with KL {text['joint']['kl_true']:.2f}",
        f"centre {max(text['joint']['drift']):.2f} away",
        f"minimum of **{hashing['metrics']['test_min']:.1f}** after {hashing['metrics']['test_min_epoch']} epochs",
        "their minima at {:.1f} and {:.1f}".format(
            *(RESULTS[f"hashing_e1_64_0_seed{seed}"]["metrics"]["test_min"] for seed in (2, 3))
        ),
        f"{hashing['history']['test'][59]:.1f} on the test set after 60 epochs",
        f"{hashing['metrics']['test_min_per_document']:.1f} at its minimum",
        f"{hashing['metrics']['train_final']:.1f} ({hashing['metrics']['epochs']:,} epochs)",
        f"{variance['arm'][-1]:.1f} / {variance['disarm'][-1]:.1f} nats²",
    ]
    for number in said:
        assert number in README, number
