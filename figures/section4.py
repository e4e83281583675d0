"""Figures and Table 1 of Section 4, each drawn from the result JSON of its script alone."""

import statistics
from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import SymmetricalLogLocator

from data import faces
from figures import reference, style
from figures.run import half_width, print_closing, print_table


def draw_dcgan(result: dict, folder: Path) -> None:
    """Losses of the GAN, and the Fréchet distance to held-out images that selects the epoch."""
    history, selected = result["history"], result["metrics"]["selected_epoch"]
    epochs = range(1, len(history["frechet"]) + 1)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1))
    for i, key in enumerate(("discriminator_loss", "generator_loss")):
        look = style.look(i, marker=None)
        axes[0].plot(epochs, history[key], label=key.replace("_", "'s "), **look)
    axes[0].set(xlabel="epoch", ylabel="loss (nats per image)")
    for axis, letter in zip(axes, "ab", strict=True):
        axis.set_title(f"({letter})", loc="left")
    axes[0].legend()
    axes[1].plot(epochs, history["frechet"], color=style.COLOURS[0])
    look = {"color": style.COLOURS[1], "marker": "o", "linestyle": "none"}
    distance = history["frechet"][selected - 1]
    axes[1].plot(selected, distance, label=f"selected: epoch {selected}", **look)
    label = f"{result['space']}\nto held-out real images"
    axes[1].set(xlabel="epoch", ylabel=label, ylim=(0, None))
    axes[1].legend()
    style.save(figure, folder, "dcgan_curves")


def report_dcgan(result: dict, folder: Path) -> None:
    """Draw the curves of the GAN, and print what it selected beside the released code's."""
    draw_dcgan(result, folder)
    config, metrics = result["config"], result["metrics"]
    rows = [
        ("epoch selected", reference.DCGAN_EPOCH, metrics["selected_epoch"]),
        (f"  {result['space']}", None, metrics["frechet_selected"]),
        (f"  at the last epoch, {metrics['epochs']}", None, metrics["frechet_last"]),
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
    "truth_to_real": "x* and real images",
    "prior_to_real": "g(z) and real images",
}


STAGES = {  # of a folder of results, by name: where it stands in Table 1, and how figures call it
    "encoder_report": ("frozen", "report", "encoder alone"),
    "elbo_report": ("frozen, ELBO", "report", "encoder alone, by the ELBO"),
    "joint_report": ("joint", "report", "joint"),
    "joint_report_sigma": ("joint, sigma learned", "report", "joint, sigma learned"),
    "encoder_released": ("frozen", "released", "encoder alone, released code's protocol"),
    "joint_released": ("joint", "released", "joint, released code's protocol"),
}
ROWS = {"truth": "$x^* = g^*(z)$", "noisy": "$x = x^* + \\sigma\\epsilon$"}


def fid_name(result: dict) -> str:
    dims = result["config"]["fid_dims"]
    return f"FID, {dims} dimensions" if dims else "no FID"


def report_training(result: dict, folder: Path, stage: str) -> None:
    """Draw one training, and print what was measured beside the report's numbers; stage: a row of
    Table 1.
    """
    draw_section4({f"{result['config']['protocol']} protocol": result}, folder, "training")
    metrics, config = result["metrics"], result["config"]
    report = reference.TABLE1.get(stage, {})
    batch = metrics.get("batch_statistics")
    rows = [
        ("ELBO", None if batch else report.get("elbo"), metrics["elbo"]),
        *(
            [("  each batch normalised by itself", report.get("elbo"), batch["elbo"])]
            if batch
            else []
        ),
        ("  data term", None, metrics["data"]),
        ("  KL", None, metrics["kl"]),
        *((f"bound of log p(x), k = {k}", None, value) for k, value in metrics["bounds"].items()),
        ("log p(x) of the truth, Laplace", None, metrics["laplace"]["evidence"]),
        ("  less, best factorized Gaussian", None, metrics["laplace"]["factorization"]),
        ("sigma of the decoder", reference.SIGMA, metrics["sigma"]),
    ]
    for space, of_space in metrics["frechet"].items():
        name = fid_name(result) if space == "inception" else "Fréchet, discriminator"
        for key, label in DISTANCES.items():
            if key in of_space:
                shown = "no real images" if of_space[key] is None else of_space[key]
                compared = space == "inception" and key == (
                    "means" if stage == "frozen" else "noise_on_one_side"
                )
                rows.append((f"{name}: {label}", report.get("fid") if compared else None, shown))
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
EVIDENCE = {  # what celeba_joint.py tracks on held-out images, nats
    "evidence": "log p(x) under the decoder",
    "evidence_change": "its change since the start",
    "evidence_half_width": "half width of the change's 95% interval",
    "gap_factorized": "gap of the best factorized Gaussian",
    "gap_full": "gap of the best Gaussian",
    "gap_encoder": "gap of the encoder",
    "effective_samples": "smallest effective sample size of 100",
    "off_diagonal": "share of J'J off its diagonal",
}


def report_evidence(result: dict) -> None:
    """Print what was tracked of the evidence, at the start and at the end."""
    history, config = result["history"], result["config"]
    rows = [(label, history[key][0], history[key][-1]) for key, label in EVIDENCE.items()]
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
    """How much more was lost than by the run with full Gaussians, paired by image, and its half
    width.
    """
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
    """By how much log p(x) changed since three quarters of the training, or since the last point
    but one.
    """
    steps, change = (result["history"][key] for key in ("iteration", "evidence_change"))
    first = min(i for i, step in enumerate(steps) if step >= 0.75 * steps[-1])
    return change[-1] - change[min(first, len(steps) - 2)]


def draw_inference(results: dict[str, dict], folder: Path) -> None:
    """Joint training with an encoder, and with the best Gaussians of two families in its place."""
    kinds = {name: results[name] for name in INFERENCE if name in results}
    figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.4), width_ratios=(1, 1, 1.05))
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
    usual = next(iter(kinds.values()))["config"]["sigma"]
    for name, label in INFERENCE.items():
        look = looks[name] | {"linestyle": "none"}
        for result in (result for result in results.values() if kind(result) == name):
            point, (value, error) = own_gap(result)[0], lost(result)
            face = None if result["data"] == faces.NAME else "white"
            axes[1].errorbar(point, value, error, markerfacecolor=face, **look)
            if (sigma := result["config"]["sigma"]) != usual:
                # Clear of the other points.
                offset = (-5, 5) if name == "factorized" and sigma < usual else (0, -10)
                place = {"xytext": offset, "textcoords": "offset points", "fontsize": 7}
                axes[1].annotate(f"$\\sigma$ {sigma:g}", (point, value), **place)
        axes[1].plot([], [], label=label, **look)
    if any(result["data"] != faces.NAME for result in results.values()):
        hollow = {"marker": "o", "color": "gray", "markerfacecolor": "white", "linestyle": "none"}
        axes[1].plot([], [], label="photographs", **hollow)
    axes[1].set_xscale("symlog", linthresh=1)
    axes[1].xaxis.get_major_locator().set_params(numticks=4)  # labels apart over six decades, too
    # Room for labels below points.
    axes[1].set(xlim=(0, None), ylim=(-0.08 * axes[1].get_ylim()[1], None))
    for ticks in (axes[0].yaxis, axes[1].xaxis):
        ticks.set_major_formatter("{x:,g}")
    axes[1].set(xlabel="gap at the start (nats)", ylabel="log p(x) lost (nats per image)")
    axes[1].set_title("(b) what joint training costs")
    axes[1].legend(fontsize=7)
    first = next(iter(kinds.values()))["strips"]
    rows = {label: first[kind] for kind, label in ROWS.items()}
    rows |= {INFERENCE[kind]: result["strips"]["decoded"] for kind, result in kinds.items()}
    axes[2].set_title("(c) images, and re-decoded")
    axes[2].axis("off")
    for i, (label, strip) in enumerate(rows.items()):
        row = axes[2].inset_axes((0.2, 1 - (i + 1) / len(rows), 0.8, 0.95 / len(rows)))
        style.picture(row, strip)
        row.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=7)
    style.save(figure, folder, "inference")


def write_inference(results: dict[str, dict], folder: Path) -> None:
    """evidence.md and .tex: what each run of joint training lost of log p(x)."""
    header = ("data", "inference", "sigma", "seed", "iterations x batch", "gap, start", "gap, end")
    header += ("log p(x) lost", "beyond full, paired", "J'J off diagonal", "Fréchet, own samples")
    header += ("last quarter", "effective samples", "hours x threads")
    rows = []

    def place(result: dict) -> tuple:
        config = result["config"]
        place = list(INFERENCE).index(kind(result))
        first = (result["data"] != faces.NAME, -config["sigma"], -place)
        return (*first, -own_gap(result)[0], config["seed"])

    ordered = sorted(results.values(), key=place)
    for result in ordered:
        config, history, gap = result["config"], result["history"], own_gap(result)
        losses, steps = (lost(result), beyond_full(result, results)), history["iteration"]
        ends = [
            f"{history[key][0]:.3f} to {history[key][-1]:.3f}"
            for key in ("off_diagonal", "prior_discriminator")
        ]
        cells = [result["data"], inference_name(result), f"{config['sigma']:g}", config["seed"]]
        cells += [f"{steps[-1]:,} x {config['batch_size']}", f"{gap[0]:,.2f}", f"{gap[-1]:,.2f}"]
        cells += ["-" if pair is None else "{:,.2f} ± {:.2f}".format(*pair) for pair in losses]
        cells += [*ends, f"{last_quarter(result):+.2f}"]
        cells += [f"{history['effective_samples'][-1]:.0f}"]
        cells += [f"{result['seconds'] / 3600:.2f} x {result['environment']['threads']}"]
        rows.append(cells)
    some = ordered[0]
    caption = (
        f"Joint training from the ground truth (nz = {some['ground_truth']['width']['nz']}) with "
        "an encoder, or with the best factorized or full Gaussian of each image in its place; an "
        "encoder was fitted before by log q(z given x), or after that by the ELBO for so many "
        "iterations. Every seed has a ground truth of its own. Nats per image: gap of that kind "
        f"of inference below log p(x); log p(x) lost, on {some['config']['evidence_images']} "
        "held-out images, with its 95% interval over images, in all and beyond what the full "
        "Gaussians lose, paired by image; share of J'J, by squares, off the diagonal; Fréchet "
        "distance of x* and the decoder's own samples in the discriminator's features, not an "
        "FID; change of log p(x) in the last quarter, since the first point tracked in it; "
        "effective sample size of 100, of the image that has least; hours of the training steps, "
        "without what is tracked."
    )
    style.write_table(folder / "evidence", caption, header, rows)


def draw_section4(results: dict[str, dict], folder: Path, name: str = "section4") -> None:
    """ELBO and Fréchet distances along trainings, by label: the section's claim at a glance."""
    some = next(iter(results.values()))
    # FID if any of the results has it, else the distance in the discriminator's features.
    has_fid = any("frechet_inception" in result["history"] for result in results.values())
    space = "inception" if has_fid else "discriminator"
    distance = fid_name(some) if has_fid else "Fréchet distance in the\ndiscriminator's features"
    panels = {
        "elbo": "ELBO (nats per image)",
        f"frechet_{space}": f"{distance}:\nre-decodings",
        f"prior_{space}": f"{distance}:\nown samples",
    }
    panels = {
        key: title
        for key, title in panels.items()
        if any(key in r["history"] for r in results.values())
    }
    priors = [
        r["history"][f"prior_{space}"][0]
        for r in results.values()
        if f"prior_{space}" in r["history"]
    ]
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
                place = {"transform": axis.get_yaxis_transform(), "ha": "right", "va": "top"}
                axis.text(0.98, priors[0], "two sets of $x^*$", fontsize=8, **place)
            axis.set_ylim(0, None)
    values = [value for result in results.values() for value in result["history"]["elbo"]]
    if min(values) < -10_000 < max(values):  # the first steps gain by far the most
        axes[0].set_yscale("symlog", linthresh=10_000)
        axes[0].yaxis.set_major_locator(
            SymmetricalLogLocator(base=10, linthresh=10_000, subs=(1, 3))
        )
        axes[0].yaxis.set_major_formatter("{x:,g}")
    handles, labels = axes[0].get_legend_handles_labels()
    title = f"{some['data']}, {some['config']['track_images']:,} images per point"
    figure.legend(
        handles, labels, loc="outside lower center", ncols=2, title=title, title_fontsize=8
    )
    style.save(figure, folder, name)


def draw_rows(results: dict[str, dict], folder: Path) -> None:
    """Rows of generated images: x*, x, and for each decoder g(z'), z' ~ q(z given x), and that with
    its noise.
    """
    first = results["encoder_report"]["strips"]
    rows = {label: first[kind] for kind, label in ROWS.items()}
    for name in ("encoder_report", "elbo_report", "joint_report", "joint_report_sigma"):
        if name in results:
            label = STAGES[name][2].replace("sigma", "$\\sigma$").replace(", ", ",\n")
            rows[f"{label}:\n$g(z')$"] = results[name]["strips"]["decoded"]
            rows[f"{label}:\n$g(z')$ + noise"] = results[name]["strips"]["sampled"]
    figure, axes = plt.subplots(len(rows), 1, figsize=(6.1, 0.68 * len(rows)))
    for axis, (label, strip) in zip(axes, rows.items(), strict=True):
        style.picture(axis, strip)
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.set_layout_engine("constrained", w_pad=0.1)
    style.save(figure, folder, "celeba_rows")


def draw_grid(result: dict, folder: Path) -> None:
    """Images of the selected generator from fixed noise."""
    figure, axis = plt.subplots(figsize=(6, 6.3))
    style.picture(axis, result["grid"])
    config, metrics = result["config"], result["metrics"]
    axis.set_title(
        f"Generated, not photographs: DCGAN, ngf = {config['ngf']}, {result['images']:,} images "
        f"of {result['data']}, epoch {metrics['selected_epoch']} of {metrics['epochs']}",
        fontsize=8,
    )
    style.save(figure, folder, "dcgan_grid")


def draw_contact_sheet(folder: Path) -> None:
    """The first drawn faces of seed 0."""
    images = faces.draw(96).transpose(0, 2, 3, 1).reshape(6, 16, faces.SIZE, faces.SIZE, 3)
    sheet = images.transpose(0, 2, 1, 3, 4).reshape(6 * faces.SIZE, 16 * faces.SIZE, 3)
    figure, axis = plt.subplots(figsize=(8, 3.05))
    axis.imshow(sheet, interpolation="nearest")
    axis.axis("off")
    style.save(figure, folder, "faces")


def write_table1(dcgan: dict, results: dict[str, dict], folder: Path) -> None:
    """Table 1: ELBO and FID of the report beside ours, in the two protocols; "not run" where that
    is so.
    """
    some = next(iter(results.values()))
    config, width = some["config"], some["ground_truth"]["width"]
    experiments = {
        "frozen": "trained encoder, frozen decoder",
        "frozen, ELBO": "then encoder alone by the ELBO, frozen decoder",
        "joint": "joint training",
        "joint, sigma learned": "joint training, sigma learned",
    }
    there = {place[:2]: results[name] for name, place in STAGES.items() if name in results}
    wide, long = [], []
    for stage, words in experiments.items():
        row: list[object] = [words]
        for quantity in ("elbo", "fid"):
            reported = reference.TABLE1.get(stage, {}).get(quantity, "-")
            row.append(reported)
            for protocol in ("report", "released"):
                ours, iterations = "not run", 0
                if result := there.get((stage, protocol)):
                    ours, iterations = _cell(result, quantity), result["metrics"]["iterations"]
                row.append(ours)
                long.append((words, protocol, quantity, reported, ours, iterations))
        wide.append(row)
    iterations = sorted({result["metrics"]["iterations"] for result in results.values()})
    reduced = (
        width["ngf"] < 64
        or iterations[0] < 1_000_000
        or dcgan["images"] < 0.9 * reference.CELEBA_IMAGES
    )
    caption = (
        f"{'Reduced run, not the full protocol. ' if reduced else ''}ELBO (nats per image) and "
        "FID of x* and its re-decoding. Report: 202,599 images, ngf = ndf = 64, 1,000,000 "
        "iterations each, FID at 2048 dimensions on 200,000 images per side, with noise on the "
        f"joint side only. Ours: {dcgan['images']:,} images of {dcgan['data']}, ngf = "
        f"{width['ngf']}, ndf = {width['ndf']}, {' or '.join(f'{n:,}' for n in iterations)} "
        f"iterations each, {fid_name(some)}, on {config['fid_images']:,} images per side; of "
        "joint training FID with noise on neither side / on the joint side only."
    )
    header = ("experiment", "ELBO: report", "ours, report's text", "ours, released code's protocol")
    header += ("FID: report", *header[2:])
    style.write_table(folder / "table1", caption, header, wide)
    header = ("experiment", "protocol", "quantity", "report", "ours", "iterations")
    style.write_csv(folder / "table1", header, long)


def _cell(result: dict, quantity: str) -> str:
    metrics = result["metrics"]
    if quantity == "elbo":
        return f"{metrics.get('batch_statistics', metrics)['elbo']:.1f}"
    fid = metrics["frechet"].get("inception")
    if fid is None:
        return "no weights" if result["config"]["fid_dims"] else "no FID"
    return f"{fid['means']:.3f}" + (
        f" / {fid['noise_on_one_side']:.3f}" if "noise_on_one_side" in fid else ""
    )
