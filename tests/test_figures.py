"""What is committed: every figure, table and page redraws from its results, and the README's numbers are theirs."""

import re
from pathlib import Path

import numpy as np
import pytest
from toy import ROOT

from figures import findings, make, reference, run, section4

RESULTS = findings.read(ROOT / "figures" / "results")
README = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())


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
    findings.write_pages(tmp_path)
    drawn = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert drawn == {path.name for path in (ROOT / "figures").iterdir() if path.suffix not in (".py", ".j2", "")}
    for path in tmp_path.iterdir():
        if path.suffix in (".md", ".csv", ".tex"):
            assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("page", ["README.md", "tests/README.md", *(f"figures/{name}" for name in findings.PAGES)])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^):]+)\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_readme_numbers_are_those_of_the_results() -> None:
    values = findings.of_section5(RESULTS)
    lost, reached = values["lost"], values["reached"]
    metrics = {name.rpartition("/")[2]: result["metrics"] for name, result in RESULTS.items()}
    code = metrics["mixture_released"]
    drifts = sorted(code["joint"]["drift"])
    frozen, joint = metrics["encoder_report"], metrics["joint_report"]
    fid, joint_fid = frozen["frechet"]["inception"], joint["frechet"]["inception"]
    released = [metrics[f"{name}_released"]["frechet"]["inception"] for name in ("encoder", "joint")]
    of_e2 = values["readings"]("e2", *findings.LAYERS)
    e2, fed = values["column"]("e2", 1), values["column"]("e2", 1, "test_counts_min")
    worst = {e: max(max(values["lost_at"](f"{e}_joint", layers)) for layers in findings.LAYERS) for e in ("e1", "e3")}
    epochs = sorted(result["metrics"]["epochs"] for name, result in RESULTS.items() if name.startswith("hashing/"))
    fewer = [count for count in epochs if count < 1500]
    assert set(epochs[len(fewer) :]) == {1500}
    of_e3 = values["readings"]("e3", *findings.LAYERS)
    of_e3_64 = values["readings"]("e3", *findings.LAYERS, bits=(64,))
    e3 = {key: ", ".join(f"{value:g}" for value in np.round(numbers, 1)) for key, numbers in of_e3_64.items()}
    section4_says = findings.of_section4(RESULTS)
    pulls, costs = (run.interval(section4_says["over"](name)) for name in ("factorized", "encoder_1000"))
    starts = [section4_says["starts"]([f"encoder_1000{seed}"])[0] for seed in findings.SEEDS]
    said = [
        f"ELBO {reference.MIXTURE_REPORT['frozen.elbo']} to {reference.MIXTURE_REPORT['joint.elbo']} |",
        f"{code['frozen']['elbo']:.3f} to {code['joint']['elbo']:.3f}; evidence falls",
        f"{code['oracle']['kl']:.5f} of {code['frozen']['kl']:.5f} nats",
        f"ELBO {reference.TABLE1['frozen']['elbo']:,.0f} to {reference.TABLE1['joint']['elbo']:,.0f} |",
        f"{frozen['elbo']:,.0f} to {joint['elbo']:,.0f}; own samples' FID {fid['floor']:.3f} to "
        f"{joint_fid['prior']:.3f}",
        f"{reference.TABLE1['frozen']['fid']} to {reference.TABLE1['joint']['fid']} | {fid['means']:.3f} to "
        f"{joint_fid['means']:.3f}; released protocol {released[0]['means']:.3f} to {released[1]['means']:.3f}",
        f"{reference.TABLE3['e1', 64, 0]} to {reference.TABLE3['e1', 8, 0]} at d = 0 | all twelve within "
        f"{values['e1_misfit']:.1f}",
        f"by {values['arm_gain']}, three seeds",
        f"by {min(values['behind'])} to {max(values['behind'])} nats",
        f"e4 within {values['e4_less_e1']:.1f} of e1",
        f"{e3['report']} at b = 64, d = {e3['layers']} | fed counts {e3['counts']}; frequencies {e3['frequencies']} | "
        f"report: fed counts fit all {len(of_e3['bits'])} cells of 1,500 epochs, seed 1",
        f"{min(values['published']('e2', 1))} to {max(values['published']('e2', 1))} at d = 1",
        f"{min(e2):.1f} to {max(e2):.1f}; fed counts {min(fed):.1f} to {max(fed):.1f} | report: probably fed counts "
        f"({sum(miss <= 5 for miss in np.abs(of_e2['counts_off']))} of {len(of_e2['bits'])} such)",
        f"e1 up to {worst['e1']:.1f}; by regression, {max(values['from_regression']):.2f}",
        f"raises the ELBO by {code['joint']['elbo'] - code['frozen']['elbo']:.3f} nats, lowers the evidence of the "
        f"decoder by {code['truth']['evidence'] - code['joint']['evidence']:.3f}, and moves two centres by "
        f"{drifts[3]:.2f} and {drifts[2]:.2f}.",
        f"| {pulls}; an encoder {costs}, three seeds |",
        f"Gaussian costs {pulls} nats more of log p(x)",
        f"encoders that start {min(starts):.0f} to {max(starts):.0f} nats below log p(x), {costs} more.",
        f"up to {worst['e1']:.1f} nats of train likelihood with counts and {worst['e3']:.1f} with frequencies",
        f"at most {values['family']:.2f} nats, and from e1 fitted by regression joint training loses at most "
        f"{max(values['from_regression']):.2f}:",
        f"ends at {min(values['best']['test_selected']):.1f} to {max(values['best']['test_selected']):.1f} "
        f"(report: {reference.TABLE3['e1', 64, 0]})",
        f"{RESULTS['celeba/dcgan']['images']:,} of {reference.CELEBA_IMAGES:,} photographs",
        f"{joint['iterations']:,} of {reference.SECTION4_ITERATIONS:,} iterations",
        f"Section 5 uses {fewer[0]} to {fewer[-1]} of the report's 1,500 epochs, "
        f"but for {len(epochs) - len(fewer)} runs",
    ]
    for sentence in said:
        assert sentence in README, sentence
    # What is said without a number.
    assert joint_fid["noise_on_one_side"] - fid["means"] < 2 * (fid["noise_alone"] - fid["means"])
    assert RESULTS["celeba/elbo_report"]["metrics"]["iterations"] * 2 == joint["iterations"]  # "ran half as long"
    assert reached("exact_d2", "likelihood_on") > reached("exact_d2", "e1_joint")
    costly = {
        (gap > 7.9, lost(run, f"{stage}joint") > 1)
        for run in (name for name in RESULTS if name.startswith("exact_"))
        for encoder in RESULTS[run]["config"]["encoders"]
        for stage, before in ((f"{encoder}_", "frozen"), (f"{encoder}_regressed_", "regressed"))
        if f"{stage}joint" in metrics[run]
        for gap in [metrics[run][f"{encoder}_{before}"]["train"]["gap"]]
    }
    assert costly == {(True, True), (False, False)}  # "losses above a nat come with gaps of 8 nats and more"
    richer, e1 = lost("exact_richer_d1", "a1_joint"), lost("exact_d1", "e1_joint")
    assert abs(richer - e1) < e1 / 10  # "a richer family does not help"
    assert len(values["above_without_codes"]) == 5
    places = zip(of_e3["bits"], of_e3["layers"], strict=True)
    told = {(values["explained"](RESULTS[f"hashing/e3_b{b}_d{d}"]), b) for b, d in places}
    assert {word for word, _ in told} == {"counts", "either"}  # "fed counts fit all"
    assert {b for word, b in told if word == "counts"} == {32, 64}  # "b = 32, 64 tell the two apart"
    assert {b for word, b in told if word == "either"} == {8, 16}
    off = sorted(zip(np.abs(of_e2["counts_off"]), of_e2["bits"], of_e2["layers"], strict=True))
    assert [place for _, *place in off[-2:]] == [[16, 0], [64, 0]]
    assert values["explained"](RESULTS["hashing/e2_b16_d0_seed2"]) == "counts"  # "probably"


def test_stages_have_results_of_their_names() -> None:
    assert {f"celeba/{name}" for name in section4.STAGES} <= RESULTS.keys()
