"""What is committed: every figure redraws from its result, and the README says what the results hold."""

import json
import re
import statistics
from pathlib import Path

import pytest
import scipy.stats
from toy import ROOT

from figures import make, published, section4

RESULTS = {path.stem: json.loads(path.read_text()) for path in (ROOT / "figures" / "results").rglob("*.json")}
README = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())


@pytest.mark.parametrize("name", RESULTS)
def test_results_say_how_they_were_made(name: str) -> None:
    result = RESULTS[name]
    assert {"config", "metrics", "environment", "seconds", "history"} <= result.keys()
    assert {"torch", "numpy", "device", "threads", "commit"} <= result["environment"].keys()
    assert "seed" in result["config"]
    assert result["seconds"] > 0


def test_committed_figures_redraw_and_each_is_committed(tmp_path: Path) -> None:
    (tmp_path / "results").symlink_to(ROOT / "figures" / "results")
    assert make.render(tmp_path) == []
    drawn = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert drawn == {path.name for path in (ROOT / "figures").iterdir() if path.suffix not in (".py", "")}
    for path in tmp_path.iterdir():
        if path.suffix in (".md", ".csv", ".tex"):
            assert path.read_bytes() == (ROOT / "figures" / path.name).read_bytes(), path.name
    for image in re.findall(r"\]\((figures/[^)]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / image).exists()


def test_readme_numbers_are_those_of_the_results() -> None:
    text, code = RESULTS["mixture"]["metrics"], RESULTS["mixture_released"]["metrics"]
    variance = RESULTS["disarm"]["metrics"]["scale"]
    gaps = [m["oracle"]["kl"] for m in code["assignments"].values()]
    first, diagonal, _ = (m["joint"]["elbo"] for m in code["assignments"].values())
    said = [
        f"{text['frozen']['elbo']:.3f} -> {text['joint']['elbo']:.3f}",
        f"{code['frozen']['elbo']:.3f} -> {code['joint']['elbo']:.3f}",
        f"leaves {code['oracle']['kl']:.5f} nats; the trained network leaves {code['frozen']['kl']:.5f}",
        f"raises the ELBO by {code['joint']['elbo'] - code['frozen']['elbo']:.3f} nats",
        f"of the gap of {code['frozen']['kl']:.5f} nats the factorization makes {code['oracle']['kl']:.5f}",
        f"the evidence falls from {code['truth']['evidence']:.3f} to {code['joint']['evidence']:.3f}",
        f"grows from {code['frozen']['kl_true']:.3f} to {code['joint']['kl_true']:.3f}",
        "two centres move by {:.2f} and {:.2f}".format(*sorted(code["joint"]["drift"])[:1:-1]),
        f"(ELBO {code['oracle_joint']['elbo']:.4f})",
        f"to {gaps[1]:.3f}. The other two ways ({gaps[0]:.3f}, {gaps[2]:.3f})",
        f"ELBO {first:.4f}; the network finds it from those two, and ends at {diagonal:.4f} from",
        f"*positive*, +{code['variances'][0]['elbo']:.2f};",
        f"ends at ELBO {text['joint']['elbo']:.3f} with KL {text['joint']['kl_true']:.2f}",
        f"centre {max(text['joint']['drift']):.2f} away",
        f"{variance['arm'][-1]:.1f} / {variance['disarm'][-1]:.1f} nats²",
    ]
    for number in said:
        assert number in README, number


def test_readme_numbers_of_section_4_are_those_of_the_results() -> None:
    names = ("dcgan", "encoder_paper", "elbo_paper", "joint_paper", "joint_paper_sigma", "quick_encoder", "quick_joint")
    dcgan, frozen, elbo, joint, sigma, quick, quick_joint = (RESULTS[name]["metrics"] for name in names)
    fid = {name: RESULTS[name]["metrics"]["frechet"]["inception"] for name in section4.STAGES if name in RESULTS}
    published_runs = (RESULTS[name]["metrics"] for name in ("encoder_published", "joint_published"))
    code_frozen, code_joint = (metrics["batch_statistics"] for metrics in published_runs)
    quick_distance, quick_joint_distance = (m["frechet"]["discriminator"] for m in (quick, quick_joint))
    laplace = frozen["laplace"]
    histories = {name: RESULTS[name]["history"] for name in ("elbo_paper", "joint_paper")}
    along = {name: dict(zip(h["iteration"], h["elbo"], strict=True)) for name, h in histories.items()}
    said = [
        f"{RESULTS['dcgan']['images']:,} of CelebA's 202,599 images",
        f"{dcgan['epochs']} epochs, of which FID to the held-out images takes number {dcgan['selected_epoch']}",
        f"{frozen['iterations']:,} + {joint['iterations']:,} iterations",
        f"From {frozen['elbo']:,.0f} to {joint['elbo']:,.0f} nats",
        f"goes from {fid['encoder_paper']['floor']:.3f}, what two sets of g* have, "
        f"to {fid['joint_paper']['prior']:.3f}",
        f"from {fid['encoder_paper']['truth_to_real']:.2f} to {fid['joint_paper']['prior_to_real']:.2f}",
        f"ours goes from {fid['encoder_paper']['means']:.3f} to {fid['joint_paper']['means']:.3f}",
        f"Then ours is {fid['joint_paper']['noise_on_one_side']:.3f}",
        f"x* with noise has {fid['encoder_paper']['noise_alone']:.3f}",
        f"is {laplace['evidence']:,.0f} nats, and the best factorized Gaussian loses {laplace['factorization']:.0f} of",
        f"loses {laplace['evidence'] - frozen['elbo']:,.0f}",
        f"is at {along['elbo_paper'][2500]:,.0f} after 2,500 iterations and reaches {elbo['elbo']:,.0f} in "
        f"{elbo['iterations']:,}",
        f"joint training is at {along['joint_paper'][5000]:,.0f} by then",
        f"re-decodings at FID {fid['elbo_paper']['means']:.3f}",
        f"between {min(frozen['variance']):.2f} and {max(frozen['variance']):.2f}; after joint training between "
        f"{min(joint['variance']):.2f} and {max(joint['variance']):.2f}",
        f"means as far as {max(map(abs, joint['mean'])):.2f} from zero",
        f"ELBO {frozen['elbo']:.1f} -> {joint['elbo']:.1f}; FID (768, another scale) of re-decodings "
        f"{fid['encoder_paper']['means']:.3f} -> {fid['joint_paper']['means']:.3f}, of the decoder's own samples "
        f"{fid['encoder_paper']['floor']:.3f} -> {fid['joint_paper']['prior']:.3f}",
        f"that noise {fid['encoder_paper']['noise_alone']:.3f}, joint row "
        f"{fid['joint_paper']['noise_on_one_side']:.3f} |",
        f"{laplace['evidence'] - frozen['elbo']:,.0f} nats below log p(x), of which factorization costs "
        f"{laplace['factorization']:.0f}",
        f"{fid['encoder_paper']['truth_to_real']:.2f} / {fid['encoder_published']['truth_to_real']:.2f}",
        f"with the code's protocol {code_frozen['elbo']:.1f} -> {code_joint['elbo']:.1f}, "
        f"{fid['encoder_published']['means']:.3f} -> {fid['joint_published']['means']:.3f}, "
        f"{fid['encoder_published']['floor']:.3f} -> {fid['joint_published']['prior']:.3f} |",
        f"by itself, rises from {code_frozen['elbo']:,.0f} to {code_joint['elbo']:,.0f}",
        f"(in evaluation mode from {RESULTS['encoder_published']['metrics']['elbo']:,.0f} to "
        f"{RESULTS['joint_published']['metrics']['elbo']:,.0f})",
        f"{fid['encoder_published']['means']:.3f} to {fid['joint_published']['means']:.3f} with means on both sides, "
        f"to {fid['joint_published']['noise_on_one_side']:.3f} with the noise on one, which alone makes "
        f"{fid['encoder_published']['noise_alone']:.3f}; of the decoder's own samples, from "
        f"{fid['encoder_published']['floor']:.3f} to {fid['joint_published']['prior']:.3f}",
        f"goes from 0.05 to {sigma['sigma']:.3f}, the ELBO to {sigma['elbo']:,.0f}, and the FID of the decoder's own "
        f"samples to {fid['joint_paper_sigma']['prior']:.3f} instead of {fid['joint_paper']['prior']:.3f}",
        f"rises from {quick['elbo']:,.0f} to {quick_joint['elbo']:,.0f}",
        f"goes from {quick_distance['floor']:.3f} to {quick_joint_distance['prior']:.3f}",
        f"re-decodings, from {quick_distance['means']:.3f} to {quick_joint_distance['means']:.3f}",
    ]
    for number in said:
        assert number in README, number


def test_readme_numbers_of_section_5_are_those_of_the_results() -> None:
    metrics = {name: result["metrics"] for name, result in RESULTS.items()}
    exact = metrics["exact_d0"]
    train = {name: stage["train"] for name, stage in exact.items()}

    def test(*names: str) -> list[str]:
        """Minimum of the test loss over the first 300 epochs."""
        return [f"{min(RESULTS[name]['history']['test'][:300]):.1f}" for name in names]

    def reached(name: str, stage: str, split: str = "train") -> float:
        return metrics[name][stage][split]["log_likelihood"]

    def less_e1(encoder: str, bits: int) -> str:
        """Difference of the minima over 200 epochs, d = 0: mean over three seeds, and 95% interval."""
        seeds = ("", "_seed2", "_seed3")
        here, e1 = ([RESULTS[f"{e}_b{bits}_d0{s}"]["history"]["test"][:200] for s in seeds] for e in (encoder, "e1"))
        differences = [min(a) - min(b) for a, b in zip(here, e1, strict=True)]
        interval = scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(differences)
        return f"{statistics.mean(differences):.1f} ± {interval:.1f}"

    def training(stage: str) -> list[float]:
        return RESULTS["exact_d0"]["history"][stage]["train_log_likelihood"]

    names = ("exact_d0", "exact_d1", "exact_d2")
    again = ("exact_seed2_d0", "exact_seed2_d1", "exact_seed2_d2")

    def lost(stage: str, names: tuple[str, ...] = names) -> list[float]:
        """By d, against likelihood training for as long."""
        return [reached(name, "likelihood_on") - reached(name, stage) for name in names]

    losses = {encoder: lost(f"{encoder}_joint") for encoder in ("e1", "e3", "e4")}
    regressed = lost("e1_regressed_joint")
    once_more = lost("e1_regressed_joint", ("exact_long_again",))
    joint_again, regressed_again = lost("e1_joint", again), lost("e1_regressed_joint", again)
    below_again = [reached(name, "likelihood") - reached(name, "e1_scratch") for name in again]
    below, below_test = (
        [reached(name, "likelihood", split) - reached(name, "e1_scratch", split) for name in names]
        for split in ("train", "test")
    )

    best = [metrics[f"best_seed{seed}"] for seed in (1, 2, 3)]
    selected, refined = ([f"{m[key]:.1f}" for m in best] for key in ("test_selected", "test_refined"))
    all_bits = (8, 16, 32, 64)
    places = [(bits, layers) for bits in all_bits for layers in (0, 1, 2)]
    grid = [f"b{bits}_d{layers}" for bits, layers in places]
    e1_misfits = [
        abs(metrics[f"e1_b{bits}_d{layers}"]["test_min"] - published.TABLE3["e1", bits, layers])
        for bits, layers in places
    ]
    e1, e4, tuned = (
        [min(RESULTS[f"{encoder}_{cell}{end}"]["history"]["test"][:300]) for cell in grid]
        for encoder, end in (("e1", ""), ("e4", ""), ("e3", "_lr0.1"))
    )
    e4_less_e1 = [abs(one - other) for one, other in zip(e4, e1, strict=True)]
    tuned_less_e1 = [one - other for one, other in zip(tuned, e1, strict=True)]
    behind = [published.TABLE3["e3", *place] - published.TABLE3["e1", *place] for place in places]
    e2 = {layers: [f"e2_b{bits}_d{layers}" for bits in all_bits] for layers in (0, 1, 2)}
    fed = {layers: [metrics[name]["test_counts_min"] for name in names] for layers, names in e2.items()}
    fed_said = {layers: [f"{value:.1f}" for value in values] for layers, values in fed.items()}
    report = {layers: [published.TABLE3[("e2", bits, layers)] for bits in all_bits] for layers in e2}
    held = [(metrics[f"e1_{cell}_heldout0.1"], metrics[f"e1_{cell}"]) for cell in grid]
    same = [chosen["test_selected"] - chosen["test_min"] for chosen, _ in held]
    all_documents = [chosen["test_selected"] - full["test_min"] for chosen, full in held]
    seeds = ("", "_seed2", "_seed3")
    disarm, arm, reinforce = ([f"e1_b64_d0{name}{seed}" for seed in seeds] for name in ("", "_arm", "_reinforce"))
    gained = [metrics[a]["test_min"] - metrics[b]["test_min"] for a, b in zip(arm, disarm, strict=True)]
    gained = f"{statistics.mean(gained):.1f} ± {scipy.stats.t.ppf(0.975, 2) * scipy.stats.sem(gained):.1f}"
    cells = [RESULTS[path.stem]["history"] for path in (ROOT / "figures/results/hashing").glob("*.json")]
    batched = [min(zip(h["test"], h["test_per_document"], strict=True)) for h in cells]
    batched = [of_batches - of_documents for of_batches, of_documents in batched]
    proper = {layers: [metrics[name]["test_min"] for name in names] for layers, names in e2.items()}
    gains, misfits = (
        [there - here for layers in e2 for there, here in zip(report[layers], values[layers], strict=True)][1:]
        for values in (proper, fed)  # all but b = 8, d = 0
    )
    untrained = RESULTS["e2_b64_d2"]["history"]["test_counts"]
    above = [key for key, loss in published.TABLE3.items() if loss > 467.1 and key[0] != "e1"]
    assert sorted(above) == [("e2", 64, 1), ("e2", 64, 2), ("e3", 32, 2), ("e3", 64, 1), ("e3", 64, 2)]
    # "losses above a nat come with gaps of 8 nats and more": of all joint training
    costly = {
        (gap > 7.9, reached(run, "likelihood_on") - reached(run, f"{stage}joint") > 1)
        for run in (*names, *again, "exact_long", "exact_long_again")
        for encoder in RESULTS[run]["config"]["encoders"]
        for stage, before in ((f"{encoder}_", "frozen"), (f"{encoder}_regressed_", "regressed"))
        if f"{stage}joint" in metrics[run]
        for gap in [metrics[run][f"{encoder}_{before}"]["train"]["gap"]]
    }
    assert costly == {(True, True), (False, False)}
    parts = {
        path.stem: RESULTS[path.stem]["history"]["held_out"] for path in (ROOT / "figures/results/parts").iterdir()
    }
    lowest = parts["full"].index(min(parts["full"]))
    costs = [min(parts[name]) - min(parts["full"]) for name in ("dropout", "decay", "average", "prior", "rate")]
    said = [
        "within {:.1f} nats of e1 (b = 8: {} and {} for d = 1, 2; b = 64: {} and {})".format(
            max(
                abs(metrics[f"e4_b{b}_d{d}"]["test_min"] - metrics[f"e1_b{b}_d{d}"]["test_min"])
                for b in all_bits
                for d in (1, 2)
            ),
            *test("e4_b8_d1", "e4_b8_d2", "e4_b64_d1", "e4_b64_d2"),
        ),
        "it reaches, at d = 0, 1, 2, {}, {} and {} at b = 8 (e1 {}, {} and {} in at most 300 epochs) and {}, {} and {} "
        "at b = 64 ({}, {} and {}).".format(
            *test(
                *(
                    f"{e}_b{b}_d{d}{end}"
                    for b in (8, 64)
                    for e, end in (("e3", "_lr0.1"), ("e1", ""))
                    for d in (0, 1, 2)
                )
            )
        ),
        f"encoder within {max(tuned_less_e1):.1f}, where the report has {min(behind)} to {max(behind)}.",
        "not help e1 at b = 64: {} and {} with 0.003 and 0.01 (d = 0), {} with 0.01 (d = 1)".format(
            *test("e1_b64_d0_lr0.003", "e1_b64_d0_lr0.01", "e1_b64_d1_lr0.01")
        ),
        "b = 64 reaches {} in 200)".format(*test("e2_b64_d0_lr0.01")),
        "at d = 0 fed counts has {:.1f}, {:.1f}, {:.1f} and {:.1f}, the report {}, {}, {} and {}.".format(
            *(metrics[f"e3_b{bits}_d0"]["test_counts_min"] for bits in all_bits),
            *(published.TABLE3["e3", bits, 0] for bits in all_bits),
        ),
        "counts {} and {}; frequencies {:.1f} and {:.1f} so far, with a rate a hundred times as large for their "
        "encoder {} and {}; in the scale of counts {} and {} |".format(
            *test("e1_b64_d0", "e1_b64_d1"),
            *(metrics[name]["test_min"] for name in ("e3_b64_d0", "e3_b64_d1")),
            *test("e3_b64_d0_lr0.1", "e3_b64_d1_lr0.1", "e4_b64_d0", "e4_b64_d1"),
        ),
        "e4 less e1 is {} (95%) at b = 8 and {} at b = 16, e3 less e1 {} and {}.".format(
            *(less_e1(encoder, bits) for encoder in ("e4", "e3") for bits in (8, 16))
        ),
        "e2 reaches {}, {}, {} and {} with frequencies, fed counts {}, {}, {} and {}; the report has {}, {}, {} and "
        "{}. At d = 0".format(*test(*e2[2]), *fed_said[2], *report[2]),
        "reaches {}, {} and {} in 300 epochs, {:.0f}, {:.0f} and {:.0f} nats below the report".format(
            *test(*e2[0][1:]), *gains[:3]
        ),
        "fed counts, {}, {} and {}, still falling, the report {}, {} and {}.".format(*fed_said[0][1:], *report[0][1:]),
        "At b = 8 it is {} and {}, still falling too, the report {}".format(
            *test(e2[0][0]), fed_said[0][0], report[0][0]
        ),
        "e2, d = 1, b = 8 to 64: {} | with frequencies {}; fed counts {} |".format(
            *(", ".join(map(str, values)) for values in (report[1], test(*e2[1]), fed_said[1]))
        ),
        f"eleven of its twelve cells are within {max(map(abs, misfits)):.1f} nats of ours fed counts, and "
        f"{min(gains):.0f} to {max(gains):.0f} above ours with frequencies",
        "at d = 1 e2 reaches {}, {}, {} and {} with frequencies, {}, {}, {} and {} fed counts, and in the report "
        "{}, {}, {} and {}.".format(*test(*e2[1]), *fed_said[1], *report[1]),
        f"The {fed_said[2][3]} (b = 64, d = 2) is of epoch {untrained.index(min(untrained)) + 1}, before a code is in "
        f"use; from epoch 10 on it is {min(untrained[9:]):.1f} and more",
        "it is at {}, {} and {}, e1 at {}, {} and {};".format(
            *test("e4_b8_d0", "e4_b16_d0", "e4_b64_d0", "e1_b8_d0", "e1_b16_d0", "e1_b64_d0")
        ),
        f"ends {losses['e1'][0]:.2f} nats of train likelihood below",
        f"e4, and {losses['e3'][0]:.1f} for e3",
        f"leaves {train['e1_frozen']['factorization']:.2f} nats, as the posterior is all but certain (entropy "
        f"{train['e1_frozen']['posterior_entropy']:.2f} nats)",
        "epochs more gain {:.1f} and {:.1f} nats (d = 1, 2)".format(
            *(reached(name, "likelihood_on") - reached(name, "likelihood") for name in names[1:])
        ),
        "e1 ends {:.1f} and {:.1f} below, e4 {:.1f} and {:.1f}, e3 {:.1f} and {:.1f};".format(
            *(loss for encoder in ("e1", "e4", "e3") for loss in losses[encoder][1:])
        ),
        *(
            f"the best factorized posterior found leaves {metrics[name]['e1_frozen']['train']['factorization']:.2f}."
            for name in ("exact_d1", "exact_d2")
        ),
        f"leave e1 {metrics['exact_long']['e1_frozen']['train']['gap']:.1f} nats below the likelihood",
        f"leaves {metrics['exact_d2']['e1_regressed']['train']['gap']:.2f}, and from there joint training ends only "
        f"{regressed[2]:.2f} below ({regressed[1]:.2f} at d = 1, {regressed[0]:.2f} at d = 0)",
        "({:.1f} instead of {:.1f}), and the three are {:.1f}, {:.2f} and {:.2f}.".format(
            *(reached(name, "likelihood") for name in ("exact_long_again", "exact_long")),
            *(metrics["exact_long_again"][f"e1_{stage}"]["train"]["gap"] for stage in ("frozen", "regressed")),
            *once_more,
        ),
        "from {:.1f} (d = 2) to {:.1f} by likelihood and to {:.1f} with e1".format(
            *(reached("exact_d2", stage, "test") for stage in ("likelihood", "likelihood_on", "e1_joint"))
        ),
        "the regression's encoder leaves {:.1f}, {:.1f} and {:.1f} (d = 0, 1, 2)".format(
            *(metrics[name]["e1_regressed"]["test"]["gap"] for name in names)
        ),
        "gaps of {:.2f}, {:.1f} (e4), {:.1f} (e1) and {:.1f} nats (e3) at the start cost {:.1f}, {:.1f}, {:.1f} and "
        "{:.1f};".format(
            *(
                metrics["exact_d2"][start]["train"]["gap"]
                for start in ("e1_regressed", "e4_frozen", "e1_frozen", "e3_frozen")
            ),
            *(regressed[2], losses["e4"][2], losses["e1"][2], losses["e3"][2]),
        ),
        "ends {:.1f}, {:.1f} and {:.1f} nats of train likelihood below likelihood".format(*below),
        "by the exact gradient {:.1f}, {:.1f} and {:.1f};".format(
            *(reached(name, "likelihood") - reached(name, "e1_scratch_exact") for name in names)
        ),
        "likelihood training itself ends between {:.1f} and {:.1f} in three runs".format(
            *(reached(name, "likelihood") for name in ("exact_seed2_d2", "exact_long_again"))
        ),
        f"{below_test[0]:.1f} below at d = 0, but {-below_test[1]:.1f} and {-below_test[2]:.1f} above at d = 1 and 2",
        "ends at {:.1f}, {:.1f} with the exact gradient".format(
            *(exact[f"e1_{stage}"]["train"]["log_likelihood"] for stage in ("scratch", "scratch_exact"))
        ),
        f"has {train['e1_joint']['log_likelihood']:.1f} and a bound as tight (a gap of "
        f"{train['e1_joint']['gap']:.2f} against {train['e1_scratch']['gap']:.2f})",
        "for as long: e1 {:.2f}, {:.1f}, {:.1f} nats; e1 first fitted by regression {:.2f}, {:.2f}, {:.2f}; e3 {:.1f}, "
        "{:.1f}, {:.1f} (seed 2, e1: {:.2f}, {:.1f}, {:.1f}; {:.2f}, {:.2f}, {:.2f}) |".format(
            *losses["e1"], *regressed, *losses["e3"], *joint_again, *regressed_again
        ),
        "by {:.2f}, {:.1f} and {:.1f} nats with counts (e1; d = 0, 1, 2; second seed {:.2f}, {:.1f} and {:.1f}) and by "
        "{:.1f}, {:.1f} and {:.1f} with".format(*losses["e1"], *joint_again, *losses["e3"]),
        "all codes summed over, {:.1f} and {:.1f} nats a train document below maximum likelihood training of as many "
        "epochs (d = 0, 1; with a second seed {:.1f} and {:.1f}).".format(*below[:2], *below_again[:2]),
        "an ELBO at most {:.2f} nats below the log-likelihood, and e1 fitted to the exact posterior by regression at "
        "most {:.2f}.".format(
            *(
                max(metrics[name][f"e1_{stage}"]["train"][part] for name in (*names, *again, "exact_long_again"))
                for stage, part in (("frozen", "factorization"), ("regressed", "gap"))
            )
        ),
        f"ends between {max(regressed + regressed_again + once_more):.2f} nats below and "
        f"{-min(regressed + regressed_again):.2f} above likelihood training;",
        f"all twelve cells of [Table 3](figures/table3.md) are within {max(e1_misfits):.1f} nats of it",
        f"(e4) come within {max(e4_less_e1):.1f} nats of counts in all twelve cells",
        "still gains {:.1f} nats in its last 20 epochs at d = 0, likelihood {:.1f}".format(
            *(series[-1] - series[-21] for series in (training("e1_scratch"), training("likelihood")))
        ),
        "is {:.1f} nats (root mean square, mean length) under maximum likelihood, {:.1f} after joint training with e1 "
        "({:.1f} with e3), {:.1f} from scratch ({:.1f} with the exact gradient)".format(
            *(
                exact[stage]["normaliser"]["rms"]
                for stage in ("likelihood", "e1_joint", "e3_joint", "e1_scratch", "e1_scratch_exact")
            )
        ),
        "with a second seed, {:.1f}, {:.1f} and {:.1f} ({:.1f}).".format(
            *(
                metrics["exact_seed2_d0"][stage]["normaliser"]["rms"]
                for stage in ("likelihood", "e1_joint", "e1_scratch", "e1_scratch_exact")
            )
        ),
        "use {:.0f} and {:.0f} codes, that of likelihood {:.0f}".format(
            *(exact[stage]["normaliser"]["codes_used"] for stage in ("e1_scratch", "e1_scratch_exact", "likelihood"))
        ),
        "DisARM reaches {}, {} and {}, REINFORCE with a leave-one-out baseline {}, {} and {}, all before epoch "
        "{}".format(
            *test(*disarm, *reinforce), 1 + max(metrics[name]["test_min_epoch"] for name in (*disarm, *reinforce))
        ),
        "ARM {:.1f}, {:.1f} and {:.1f} in 400 epochs, at epochs {}, {} and {}.".format(
            *(metrics[name][key] for key in ("test_min", "test_min_epoch") for name in arm)
        ),
        f"{len(list((ROOT / 'figures' / 'results' / 'hashing').glob('*.json')))} cells so far",
        "{}, {} and {} (seeds 1 to 3".format(
            *test("hashing_e1_64_0", "hashing_e1_64_0_seed2", "hashing_e1_64_0_seed3")
        ),
        "at {} and {} (seeds 1 and 2) as long as the logits were not rounded, and at {} and {} since".format(
            *test("e1_b64_d0", "e1_b64_d0_seed2", "rounding_seed1", "rounding_seed2")
        ),
        "ends at {}, {} and {}".format(*selected),
        f"epoch {lowest + 1}, where the test loss is {RESULTS['full']['history']['test'][lowest]:.1f}; by the held-out "
        f"tenth alone, leaving one part out costs from {min(costs):.1f} nats (the hidden words) to {max(costs):.1f} (",
        "at {}, {} and {} with each".format(*refined),
        "{:.1f}, {:.1f} and {:.1f} with DisARM, {:.1f}, {:.1f} and {:.1f} with ARM".format(
            *(metrics[name]["test_min"] for name in (*disarm, *arm))
        ),
        f"holds: {gained} (95%)",
        f"better than ARM there, by {gained} nats",
        f"{min(batched):.1f} to {max(batched):.1f} nats lower",
        f"is {min(same):.1f} to {max(same):.1f} above the smallest of the same run, and between "
        f"{-min(all_documents):.1f} below and {max(all_documents):.1f} above the smallest with all documents in "
        "training: "
        f"at b = 64, d = 0, {metrics['e1_b64_d0']['test_min']:.1f} becomes "
        f"{metrics['e1_b64_d0_heldout0.1']['test_selected']:.1f}.",
        f"a precision@100 of {metrics['e1_b64_d0']['precision_at_100']:.3f} (e1, d = 0) or "
        f"{best[0]['precision_at_100']:.3f} (",
        f"notes {published.RETRIEVAL_AMMI[64] / 100:.2f}, with",
    ]
    for number in said:
        assert number in README, number
