"""Figures and Table 1 of Section 4, each drawn from the result JSON of its script alone."""

import base64
import statistics
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import SymmetricalLogLocator

from data import faces, write_aside
from figures import reference, style
from figures.evidence import EVIDENCE
from figures.run import half_width, print_closing, print_table


def report_dcgan(result: dict, folder: Path) -> None:
    """Draw the curves of the GAN, and print what it selected beside the released code's."""
    style.curves(result["history"], "losses in nats per image", folder)
    config, metrics = result["config"], result["metrics"]
    rows = [
        ("epoch selected", reference.DCGAN_EPOCH, metrics["selected_epoch"]),
        (f"its {result['space']}", None, metrics["frechet_selected"]),
        (f"that of the last epoch, {metrics['epochs']}", None, metrics["frechet_last"]),
        ("images", reference.CELEBA_IMAGES, result["images"]),
        ("ngf, ndf", "64, 64", f"{config['ngf']}, {config['ndf']}"),
    ]
    print_table(("ground truth of Section 4", "released code", "ours"), rows, digits=2)
    print_closing(result)


# What a Fréchet distance of Section 4 compares, by its name in the results.
DISTANCES = {
    "means": "x* and decoded",
    "noise_on_one_side": "x* and decoded + noise",
    "noise_alone": "x* and x* + noise",
    "floor": "x* and other x*",
    "prior": "x* and g(z) of other z",
}


STAGES = {  # of a folder of results, by name: where it stands in Table 1, and how figures call it
    "encoder_report": ("frozen", "report", "encoder alone"),
    "elbo_report": ("frozen, ELBO", "report", "encoder alone, by the ELBO"),
    "joint_report": ("joint", "report", "joint"),
    "joint_report_sigma": ("joint, sigma learned", "report", "joint, sigma learned"),
    "encoder_released": ("frozen", "released", "encoder alone, released code's protocol"),
    "joint_released": ("joint", "released", "joint, released code's protocol"),
}


def fid_name(result: dict) -> str:
    dims = result["config"]["fid_dims"]
    return f"FID, {dims} dimensions" if dims else "no FID"


def report_training(result: dict, folder: Path, stage: str) -> None:
    """Draw one training, and print it beside the report's numbers; stage: a row of Table 1."""
    draw_section4({f"{result['config']['protocol']} protocol": result}, folder, "training")
    metrics, config = result["metrics"], result["config"]
    report = reference.TABLE1.get(stage, {})
    batch = metrics.get("batch_statistics")
    rows = [("ELBO", None if batch else report.get("elbo"), metrics["elbo"])]
    if batch:
        rows.append(("each batch normalised by itself", report.get("elbo"), batch["elbo"]))
    rows += [
        ("data term", None, metrics["data"]),
        ("KL", None, metrics["kl"]),
        ("log p(x) of the truth, Laplace", None, metrics["laplace"]["evidence"]),
        ("what the best factorized Gaussian loses", None, metrics["laplace"]["factorization"]),
        ("sigma of the decoder", reference.SIGMA, metrics["sigma"]),
    ]
    for space, of_space in metrics["frechet"].items():
        name = fid_name(result) if space == "inception" else "Fréchet, discriminator"
        for key, label in DISTANCES.items():
            if key in of_space:
                published = "means" if stage == "frozen" else "noise_on_one_side"
                fid = report.get("fid") if (space, key) == ("inception", published) else None
                rows.append((f"{name}: {label}", fid, of_space[key]))
    if config["fid_dims"] and "inception" not in metrics["frechet"]:
        rows.append(("FID", report.get("fid"), "no weights"))
    rows.append(("iterations", reference.SECTION4_ITERATIONS, metrics["iterations"]))
    rows.append(("images a side", reference.SECTION4_FID_IMAGES, config["fid_images"]))
    print_table((f"Section 4: {stage} ({config['protocol']})", "report", "ours"), rows, digits=3)
    print_closing(result)


INFERENCE = {  # kinds of it in celeba_joint.py, and how figures call them
    "encoder": "encoder",
    "factorized": "best factorized",
    "full": "best full Gaussian",
}


def report_evidence(result: dict) -> None:
    """Print what was tracked of the evidence, at the start and at the end."""
    history, config = result["history"], result["config"]
    rows = [(key.replace("_", " "), history[key][0], history[key][-1]) for key in EVIDENCE]
    title = f"Section 4: joint training, {kind(result)}, sigma {config['sigma']:g}"
    print_table((title, "start", "end"), rows, digits=3)
    print_closing(result)


def kind(result: dict) -> str:
    """Whose ELBO it maximised: the encoder's, or that of each image's best Gaussian of a family."""
    weight = result["config"]["weight"]
    return "encoder" if weight is None else "factorized" if weight else "full"


def own_gap(result: dict) -> list[float]:
    """How far below log p(x) the ELBO of this run's kind of inference is, along the training."""
    return result["history"][f"gap_{kind(result)}"]


def lost(result: dict) -> tuple[float, float]:
    """By how much log p(x) of held-out images fell, and its 95% interval's half width, nats."""
    changes = result["metrics"]["evidence_changes"]
    return -statistics.mean(changes), half_width(changes)


def control(result: dict, results: Mapping[str, dict]) -> dict | None:
    """The run with full Gaussians that is otherwise alike."""
    same = ("sigma", "seed", "iterations", "lr", "schedule", "batch_size", "evidence_images")
    for other in results.values():
        alike = all(other["config"][key] == result["config"][key] for key in same)
        if alike and kind(other) == "full" and other["data"] == result["data"]:
            return None if other is result else other
    return None


def beyond_full(result: dict, results: Mapping[str, dict]) -> tuple[float, float] | None:
    """What was lost beyond the run with full Gaussians, paired by image, and its half width."""
    if (other := control(result, results)) is None:
        return None
    pairs = [r["metrics"]["evidence_changes"] for r in (other, result)]
    differences = [a - b for a, b in zip(*pairs, strict=True)]
    return statistics.mean(differences), half_width(differences)


def inference_name(result: dict) -> str:
    """How its posteriors are found, and what an encoder was fitted by before."""
    if kind(result) != "encoder" or "encoder_fitted_by" not in (metrics := result["metrics"]):
        return kind(result)
    return f"encoder: {metrics['encoder_fitted_by']}, {metrics['encoder_iterations']:,}"


def last_quarter(result: dict) -> float:
    """Change of log p(x) since three quarters of the training, or the last point but one."""
    steps, change = (result["history"][key] for key in ("iteration", "evidence_change"))
    first = min(i for i, step in enumerate(steps) if step >= 0.75 * steps[-1])
    return change[-1] - change[min(first, len(steps) - 2)]


def draw_inference(results: dict[str, dict], folder: Path) -> None:
    """Joint training with an encoder, and with the best Gaussians of two families in its place."""
    kinds = {name: results[name] for name in INFERENCE if name in results}
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4))
    looks = {name: style.look(i, linestyle="-") for i, name in enumerate(INFERENCE)}
    for name, result in kinds.items():
        history, look = result["history"], looks[name] | {"markersize": 3}
        change = history["evidence_change"]
        bound = [a - b for a, b in zip(change, own_gap(result), strict=True)]
        axes[0].plot(history["iteration"], change, **look)
        axes[0].plot(history["iteration"], bound, **look | {"linestyle": ":"})
    axes[0].set_yscale("symlog", linthresh=1)
    axes[0].yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=(1, 3)))
    axes[0].set(xlabel="iteration", ylabel="nats per image, less the truth's log p(x)")
    axes[0].set_title("(a) log p(x), and ELBO (dotted)")
    for name, label in INFERENCE.items():
        look = looks[name] | {"linestyle": "none"}
        for result in (result for result in results.values() if kind(result) == name):
            point, (value, error) = own_gap(result)[0], lost(result)
            face = None if result["data"] == faces.NAME else "white"
            axes[1].errorbar(point, value, error, markerfacecolor=face, **look)
        axes[1].plot([], [], label=label, **look)
    if any(result["data"] != faces.NAME for result in results.values()):
        hollow = {"marker": "o", "color": "gray", "markerfacecolor": "white", "linestyle": "none"}
        axes[1].plot([], [], label="photographs", **hollow)
    axes[1].set_xscale("symlog", linthresh=1)
    axes[1].xaxis.get_major_locator().set_params(numticks=4)  # labels apart over six decades, too
    axes[1].set_xlim(0, None)
    for ticks in (axes[0].yaxis, axes[1].xaxis):
        ticks.set_major_formatter("{x:,g}")
    axes[1].set(xlabel="gap at the start (nats)", ylabel="log p(x) lost (nats per image)")
    axes[1].set_title("(b) what joint training costs")
    axes[1].legend(fontsize=7)
    style.save(figure, folder, "inference")


def write_inference(results: dict[str, dict], folder: Path) -> None:
    """evidence.csv: what each run of joint training lost of log p(x), nats per image, with half the
    width of its interval over images, in all and beyond the run with full Gaussians, paired by
    image; effective sample size of 100, of the image that has least; hours of the training steps.
    """
    header = ("run", "data", "inference", "sigma", "seed", "iterations", "batch size", "gap, start")
    header += ("gap, end", "lost", "lost ±", "beyond full", "beyond full ±", "last quarter")
    header += ("effective samples", "hours", "threads")
    rows = []
    for name, result in results.items():
        config, gap = result["config"], own_gap(result)
        numbers: list[float | None] = [gap[0], gap[-1], *lost(result)]
        numbers += [*(beyond_full(result, results) or (None, None)), last_quarter(result)]
        numbers += [result["history"]["effective_samples"][-1], result["seconds"] / 3600]
        row = [name, result["data"], inference_name(result), config["sigma"], config["seed"]]
        row += [result["history"]["iteration"][-1], config["batch_size"]]
        row += [None if number is None else f"{number:.2f}" for number in numbers]
        rows.append([*row, result["environment"]["threads"]])
    style.write_csv(folder / "evidence", header, rows)


def draw_section4(results: dict[str, dict], folder: Path, name: str = "section4") -> None:
    """ELBO and Fréchet distances along trainings, by label: the section's claim at a glance."""
    some = next(iter(results.values()))
    # FID if any of the results has it, else the distance in the discriminator's features.
    histories = [result["history"] for result in results.values()]
    has_fid = any("frechet_inception" in history for history in histories)
    space = "inception" if has_fid else "discriminator"
    distance = fid_name(some) if has_fid else "Fréchet distance in the\ndiscriminator's features"
    panels = {
        "elbo": "ELBO (nats per image)",
        f"frechet_{space}": f"{distance}:\nre-decodings",
        f"prior_{space}": f"{distance}:\nown samples",
    }
    panels = {key: title for key, title in panels.items() if any(key in h for h in histories)}
    priors = [h[f"prior_{space}"][0] for h in histories if f"prior_{space}" in h]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.4 * len(panels), 3.3))
    for axis, letter, (key, title) in zip(axes, "abc", panels.items(), strict=False):
        axis.set_title(f"({letter})", loc="left")
        for i, (label, result) in enumerate(results.items()):
            history = result["history"]
            x, y = (history[k] if key in history else [] for k in ("iteration", key))
            axis.plot(x, y, label=label, **style.look(i))
        axis.set(xlabel="iteration", ylabel=title)
        if key != "elbo":
            if priors:  # before joint training the decoder is g*: its g(z) are a second set of x*
                axis.axhline(priors[0], color=style.REFERENCE, linestyle=":", linewidth=1)
                place = {"xycoords": axis.get_yaxis_transform(), "ha": "right", "va": "top"}
                place |= {"xytext": (0, -3), "textcoords": "offset points", "fontsize": 8}
                axis.annotate("two sets of $x^*$", (0.98, priors[0]), **place)
            axis.set_ylim(0, None)
    values = [value for history in histories for value in history["elbo"]]
    if min(values) < -10_000 < max(values):  # the first steps gain by far the most
        axes[0].set_yscale("symlog", linthresh=10_000)
        ticks = SymmetricalLogLocator(base=10, linthresh=10_000, subs=(1, 3))
        axes[0].yaxis.set_major_locator(ticks)
        axes[0].yaxis.set_major_formatter("{x:,g}")
    title = f"{some['data']}, {some['config']['track_images']:,} images per point"
    look: dict = {"loc": "outside lower center", "title_fontsize": 8}
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, title=title, **look)
    style.save(figure, folder, name)


def write_grid(result: dict, folder: Path) -> None:
    """dcgan_grid.png: images of the selected generator from fixed noise."""
    write_aside(folder / "dcgan_grid.png", base64.b64decode(result["grid"]))


def write_table1(dcgan: dict, results: dict[str, dict], folder: Path) -> None:
    """Table 1: ELBO and FID of the report beside ours, in both protocols; "not run" where so."""
    some = next(iter(results.values()))
    config, width = some["config"], some["ground_truth"]["width"]
    experiments = {
        "frozen": "trained encoder, frozen decoder",
        "frozen, ELBO": "then encoder alone by the ELBO, frozen decoder",
        "joint": "joint training",
        "joint, sigma learned": "joint training, sigma learned",
    }
    there = {place[:2]: results[name] for name, place in STAGES.items() if name in results}
    rows = []
    measured = {stage for stage, _ in there}
    for stage in filter(measured.__contains__, experiments):
        row: list[object] = [experiments[stage]]
        for quantity in ("elbo", "fid"):
            row.append(reference.TABLE1.get(stage, {}).get(quantity, "-"))
            for protocol in ("report", "released"):
                result = there.get((stage, protocol))
                row.append(_cell(result, quantity) if result else "not run")
        rows.append(row)
    iterations = sorted({result["metrics"]["iterations"] for result in results.values()})
    reduced = width["ngf"] < 64 or iterations[0] < reference.SECTION4_ITERATIONS
    reduced = reduced or dcgan["images"] < 0.9 * reference.CELEBA_IMAGES
    caption = (
        f"{'Reduced run, not the full protocol. ' * reduced}ELBO (nats per image) and "
        "FID of x* and its re-decoding. Report: 202,599 images, ngf = ndf = 64, 1,000,000 "
        "iterations each, FID at 2048 dimensions on 200,000 images per side, with noise on the "
        f"joint side only. Ours: {dcgan['images']:,} images of {dcgan['data']}, ngf = "
        f"{width['ngf']}, ndf = {width['ndf']}, {' or '.join(f'{n:,}' for n in iterations)} "
        f"iterations each, {fid_name(some)}, on {config['fid_images']:,} images per side; of "
        "joint training FID with noise on neither side / on the joint side only."
    )
    header = ("experiment", "ELBO: report", "ours, report's text", "ours, released code's protocol")
    header += ("FID: report", *header[2:])
    style.write_table(folder / "table1", caption, header, rows)


def _cell(result: dict, quantity: str) -> str:
    metrics = result["metrics"]
    if quantity == "elbo":
        return f"{metrics.get('batch_statistics', metrics)['elbo']:.1f}"
    fid = metrics["frechet"].get("inception")
    if fid is None:
        return "no weights" if result["config"]["fid_dims"] else "no FID"
    pair = [fid[key] for key in ("means", "noise_on_one_side") if key in fid]
    return " / ".join(f"{value:.3f}" for value in pair)
