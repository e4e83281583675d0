"""Figures of Section 3, each drawn from mixture.py's result.json alone."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb

from figures import reference, style
from figures.run import print_closing, print_table

CODE_WORDS = ("00", "01", "10", "11")
CURVES = {
    "elbo": "ELBO",
    "evidence": "log p(x)",
    "kl": "KL to posterior",
    "kl_true": "KL to true posterior",
}


def draw_figure1(result: dict, folder: Path) -> None:
    """Figure 1 (a-c) of the report, and (d) the consistent VAE: points and regions by the arg max
    of the posterior.
    """
    panels, metrics = result["panels"], result["metrics"]
    titles = {
        "truth": "(a) true posterior",
        "frozen": "(b) factorized encoder,\ntrue decoder frozen",
        "joint": "(c) factorized encoder,\ntrained jointly",
        "consistent_joint": "(d) consistent VAE,\ntrained jointly",
    }
    x = np.array(panels["x"])
    shade = ListedColormap([_lighter(colour) for colour in style.COLOURS[:4]])
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
    axes[0].plot([], [], "o", label="learned centre", **look)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6)
    style.save(figure, folder, "figure1")


def _above(axis: Axes, x: float, text: str) -> None:
    place: Any = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "bottom"}
    axis.text(x, 1.0, text, fontsize=8, **place)


def _lighter(colour: str) -> tuple[float, ...]:
    return tuple(0.25 * np.array(to_rgb(colour)) + 0.75)


def _networks(result: dict) -> list[dict]:
    """Measurements of the networks trained at each variance, in the order of these."""
    metrics = result["metrics"]
    own = {"variance": result["config"]["variance"]} | metrics
    return sorted([*metrics["networks"], own], key=lambda network: network["variance"])


def draw_gap(result: dict, folder: Path) -> None:
    """The gap between log evidence and ELBO against the components' variance: oracle, and trained
    networks.
    """
    metrics = result["metrics"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1))
    gaps = metrics["variances"]
    variances = [gap["variance"] for gap in gaps]
    networks = _networks(result)
    trained = [network["variance"] for network in networks]
    look = [style.look(0), *(style.look(i, linestyle="none") for i in (1, 2))]
    kls = [gap["kl"] for gap in gaps]
    axes[0].plot(variances, kls, label="oracle: best factorized q", **look[0])
    series = {
        "network, decoder frozen": ("frozen", "kl"),
        "network, joint: KL to true posterior": ("joint", "kl_true"),
    }
    for i, (label, (stage, key)) in enumerate(series.items(), start=1):
        values = [network[stage][key] for network in networks]
        axes[0].plot(trained, values, label=label, **look[i])
    axes[0].set(xscale="log", xlabel="variance of each component", ylabel="KL (nats per point)")
    axes[0].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.05, 0.93), handlelength=1.5)
    evidence = [gap["evidence"] for gap in gaps]
    axes[1].plot(variances, evidence, label="log p(x), true decoder", **look[0])
    elbo = [network["frozen"]["elbo"] for network in networks]
    axes[1].plot(trained, elbo, label="ELBO, network, decoder frozen", **look[1])
    reported = reference.MIXTURE_REPORT["frozen.elbo"]
    line = {"color": style.REFERENCE, "linestyle": "-.", "linewidth": 1}
    axes[1].axhline(reported, label=f"report, decoder frozen: {reported:g}", **line)
    axes[1].set(xscale="log", xlabel="variance of each component", ylabel="nats per point")
    axes[1].legend(fontsize=8)
    for axis, letter in zip(axes, "ab", strict=True):
        axis.set_title(f"({letter})", loc="left", pad=16)
        for value, text in ((0.01, "report's text"), (1.0, "report's numbers")):
            axis.axvline(value, color="0.7", linewidth=0.8, zorder=0)
            _above(axis, value, text)
    style.save(figure, folder, "mixture_gap")


def draw_curves(result: dict, folder: Path) -> None:
    """ELBO and log evidence, and the KLs, against the step: encoder alone, then both."""
    history, metrics = result["history"], result["metrics"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1))
    steps = result["config"]["steps"]
    for i, (prefix, model) in enumerate((("", "factorized"), ("consistent_", "consistent"))):
        frozen, joint = history[f"{prefix}frozen"], history[f"{prefix}joint"]
        x = [*frozen["step"], *(steps + step for step in joint["step"])]
        for axis, keys in zip(axes, (("elbo", "evidence"), ("kl", "kl_true")), strict=True):
            for j, key in enumerate(keys):
                look = style.look(2 * i + j, marker=None)
                axis.plot(x, [*frozen[key], *joint[key]], label=f"{model}: {CURVES[key]}", **look)
    evidence = metrics["truth"]["evidence"]
    axes[0].set(ylabel="nats per point", ylim=(evidence - 0.08, evidence + 0.07))
    settled = [
        value
        for stage in history.values()
        for key in ("kl", "kl_true")
        for value in stage[key][10:]
    ]
    axes[1].set(ylabel="KL (nats per point)", ylim=(0, 1.5 * max(settled, default=1)))
    for axis, letter in zip(axes, "ab", strict=True):
        axis.set_title(f"({letter})", loc="left")
        axis.axvline(steps, color="0.7", linewidth=0.8)
        _above(axis, steps, "decoder frozen | joint")
        axis.set_xlabel("step")
    axes[0].legend(fontsize=8, loc="upper right")
    axes[1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.08, 1.0))
    style.save(figure, folder, "mixture_curves")


def report_mixture(result: dict, folder: Path) -> None:
    """Draw the figures, and print the stages beside the report's numbers, then assignments and
    variances.
    """
    for draw in (draw_figure1, draw_gap, draw_curves):
        draw(result, folder)
    metrics = result["metrics"]
    stages = ("truth", "frozen", "oracle", "joint", "oracle_joint", "consistent_frozen")
    rows = []
    for stage in (*stages, "consistent_joint", "maximum_likelihood"):
        measured = metrics[stage] | {"drift": max(metrics[stage]["drift"])}
        for quantity in ("evidence",) if stage == "truth" else (*CURVES, "drift"):
            key = f"{stage}.{quantity}"
            label = f"{stage.replace('_', ' ')}: {CURVES.get(quantity, 'farthest centre')}"
            published = reference.MIXTURE_REPORT.get(key), reference.MIXTURE_RELEASED_CODE.get(key)
            rows.append((label, *published, measured[quantity]))
    print_table(("nats per point", "report", "released code", "ours"), rows)
    quantities = (("oracle", "kl"), ("frozen", "kl"), ("oracle_joint", "elbo"), ("joint", "elbo"))
    rows = [
        (name, *(of[stage][key] for stage, key in quantities))
        for name, of in metrics["assignments"].items()
    ]
    print_table(("assignment", "oracle gap", "frozen gap", "best joint ELBO", "joint ELBO"), rows)
    rows = [
        (f"{gap['variance']:g}", gap["evidence"], gap["elbo"], f"{gap['kl']:.1e}")
        for gap in metrics["variances"]
    ]
    print_table(("variance (oracle)", "log p(x)", "ELBO", "gap"), rows)
    quantities = (("frozen", "evidence"), ("frozen", "elbo"), ("frozen", "kl"))
    quantities += (("joint", "elbo"), ("joint", "kl_true"))
    rows = [
        (f"{network['variance']:g}", *(network[stage][key] for stage, key in quantities))
        for network in _networks(result)
    ]
    header = ("variance (network)", "log p(x)", "frozen ELBO", "gap", "joint ELBO", "KL to truth")
    print_table(header, rows)
    print_closing(result)
