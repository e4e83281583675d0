"""Figures of Section 3, each drawn from mixture.py's result.json alone."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap, to_rgb

from figures import style
from figures.run import print_closing, print_table

# Section 3.2, report: ELBO after training the encoder alone, and after joint training.
REPORT = {"frozen.elbo": -3.37, "joint.elbo": -3.31}
# Section 3, released code, seed 0, 8,000 points, run on two CPU cores in 256 s.
RELEASED_CODE = {
    "truth.evidence": -3.3071,
    "frozen.elbo": -3.3699,
    "frozen.kl_true": 0.0628,
    "joint.elbo": -3.3158,
    "joint.evidence": -3.3131,
    "joint.kl_true": 0.1446,
}
CODE_WORDS = ("00", "01", "10", "11")
CURVES = {
    "elbo": "ELBO",
    "evidence": "log p(x)",
    "kl": "KL to posterior",
    "kl_true": "KL to true posterior",
}


def draw_figure1(result: dict, folder: Path) -> None:
    """Figure 1 (a-c) of the report, (d) the consistent VAE: regions of the posterior's arg max."""
    panels, metrics = result["panels"], result["metrics"]
    titles = {
        "truth": "(a) true posterior",
        "frozen": "(b) independent bits,\ntrue decoder frozen",
        "joint": "(c) independent bits,\ntrained jointly",
        "consistent_joint": "(d) consistent encoder,\ntrained jointly",
    }
    x = np.array(panels["x"])
    shade = ListedColormap(0.25 * np.array([to_rgb(c) for c in style.COLOURS[:4]]) + 0.75)
    figure, axes = plt.subplots(1, 4, figsize=(10, 3.6), sharex=True, sharey=True)
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        panel = panels[name]
        regions = np.array([[int(c) for c in row] for row in panel["regions"]])
        labels = np.array([int(c) for c in panel["points"]])
        look = {"cmap": shade, "vmin": 0, "vmax": 3, "origin": "lower", "aspect": "auto"}
        axis.imshow(regions, extent=panels["extent"], **look)
        for k, code in enumerate(CODE_WORDS):
            if 0 < (regions == k).mean() < 1:  # the shades of some neighbours are one grey
                look = {"colors": "0.25", "linewidths": 0.6, "origin": "lower"}
                here = (regions == k).astype(float)
                axis.contour(here, levels=[0.5], extent=panels["extent"], **look)
            look = style.look(k, linestyle="none")
            axis.plot(*x[labels == k].T, markersize=1.6, alpha=0.55, markeredgewidth=0, **look)
            axis.plot([], [], markersize=5, label=f"z = {code}", **look)
        true, learned = np.array(panels["truth"]["means"]), np.array(panel["means"])
        for k in range(4):
            if name in ("joint", "consistent_joint"):
                axis.plot(*np.stack([true[k], learned[k]]).T, color="black", linewidth=0.9)
                axis.plot(*learned[k], **style.look(k), markersize=10, mec="white", mew=1.2)
        axis.plot(*true.T, "x", color="black", markersize=5, markeredgewidth=1.2)
        evidence, elbo = metrics[name]["evidence"], metrics[name]["elbo"]
        value = f"log p(x) {evidence:.3f}"
        value = value if name == "truth" else f"ELBO {elbo:.3f}, {value}"
        axis.set(title=title, xlabel=f"$x_1$\n{value}", aspect="equal")
        axis.grid(False)
    axes[0].set_ylabel("$x_2$")
    look = {"color": "0.4", "markersize": 8, "mec": "white", "mew": 1.2}
    axes[0].plot([], [], "x", color="black", markeredgewidth=1.2, label="true centre")
    axes[0].plot([], [], "o", label="learned centre, large", **look)
    place = {"loc": "outside lower center", "title": "colour: the most probable z"}
    figure.legend(*axes[0].get_legend_handles_labels(), ncols=6, **place)
    style.save(figure, folder, "figure1")


def report_mixture(result: dict, folder: Path) -> None:
    """Draw Figure 1, and print the stages beside the report's numbers, then the assignments."""
    draw_figure1(result, folder)
    metrics = result["metrics"]
    stages = ("truth", "frozen", "oracle", "joint", "oracle_joint", "consistent_frozen")
    rows = []
    for stage in (*stages, "consistent_joint", "maximum_likelihood"):
        measured = metrics[stage] | {"drift": max(metrics[stage]["drift"])}
        for quantity in ("evidence",) if stage == "truth" else (*CURVES, "drift"):
            key = f"{stage}.{quantity}"
            label = f"{stage.replace('_', ' ')}: {CURVES.get(quantity, 'farthest centre')}"
            rows.append((label, REPORT.get(key), RELEASED_CODE.get(key), measured[quantity]))
    print_table(("nats per point", "report", "released code", "ours"), rows)
    quantities = (("oracle", "kl"), ("frozen", "kl"), ("oracle_joint", "elbo"), ("joint", "elbo"))
    assignments = metrics["assignments"].items()
    rows = [(name, *(of[stage][key] for stage, key in quantities)) for name, of in assignments]
    print_table(("assignment", "oracle gap", "frozen gap", "best joint ELBO", "joint ELBO"), rows)
    print_closing(result)
