"""Figures of Section 5, each drawn from a result.json alone."""

import itertools
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator, ScalarFormatter

from data import newsgroups
from figures import published, style


def draw_estimator_variance(result: dict, folder: Path) -> None:
    """Total gradient variance against the scale of the logits and against b."""
    config, metrics = result["config"], result["metrics"]
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8))
    panels = (
        ("scale", config["scales"], f"logit scale (b = {config['at_bits']})"),
        ("bits", config["bits"], f"number of bits b (logit scale {config['at_scale']:g})"),
    )
    names = {"arm": "ARM", "reinforce": "REINFORCE-LOO", "disarm": "DisARM"}
    for axis, (panel, x, label) in zip(axes, panels, strict=True):
        for i, (name, text) in enumerate(names.items()):
            look = {"color": style.COLOURS[i], "linestyle": style.LINES[i], "marker": style.MARKERS[i]}
            axis.plot(x, metrics[panel][name], label=text, **look)
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
    axes[0].set_ylabel("total variance of the gradient (nats²)")
    axes[0].legend()
    style.save(figure, folder, "estimator_variance")


def draw_hashing_curves(result: dict, folder: Path) -> None:
    """Train and test relative negative ELBO per epoch; for e1, b = 64, d = 0 with the published minima."""
    config, history = result["config"], result["history"]
    epochs = range(1, len(history["train"]) + 1)
    figure, axis = plt.subplots(figsize=(6, 3.4))
    for i, split in enumerate(("test", "train")):
        axis.plot(epochs, history[split], color=style.COLOURS[i], linestyle=style.LINES[i], label=split)
    lowest = min(history["test"])
    axis.plot(
        history["test"].index(lowest) + 1,
        lowest,
        color=style.COLOURS[0],
        marker="o",
        linestyle="none",
        label=f"test minimum, {lowest:.1f}",
    )
    cell = config["encoder"], config["bits"], config["decoder_layers"]
    lines = [(published.TABLE3.get(cell), "report (DisARM), test minimum", "-.")]
    if cell[::2] == ("e1", 0):
        lines.append((published.HASHING_ORIGINAL.get(config["bits"]), "original paper (ARM), test minimum", ":"))
    if result["corpus"] == newsgroups.NAME:
        for value, label, line in lines:
            if value is not None:
                axis.axhline(value, color=style.REFERENCE, linestyle=line, linewidth=1, label=f"{label}, {value:g}")
    if len(epochs) > config["epochs"]:
        axis.axvline(config["epochs"], color="0.7", linewidth=0.8)
        text = f"then {config['pairs']} pairs a step "
        axis.text(config["epochs"], 0.02, text, transform=axis.get_xaxis_transform(), ha="right", fontsize=8)
    top = sorted(history["test"])[-max(1, len(history["test"]) // 50)]  # the first few epochs would flatten the rest
    axis.set(xlabel="epoch", ylabel="relative negative ELBO\n(nats a document)", ylim=(None, top * 1.01))
    axis.set_title(
        f"{result['corpus']}: {config['encoder']}, b = {config['bits']}, d = {config['decoder_layers']}, "
        f"{config['estimator']}, {len(epochs)} epochs, seed {config['seed']}"
    )
    axis.legend()
    style.save(figure, folder, "hashing_curves")


ENCODERS, BITS, LAYERS = ("e1", "e2", "e3", "e4"), (8, 16, 32, 64), (0, 1, 2)


def _read(results: Path) -> dict[str, dict]:
    """The cells of a sweep by name, in the order of b, d, encoder."""
    cells = {path.stem: json.loads(path.read_text()) for path in results.glob("*.json")}

    def place(name: str) -> tuple:
        config = cells[name]["config"]
        return config["bits"], config["decoder_layers"], config["encoder"], name

    return {name: cells[name] for name in sorted(cells, key=place)}


def write_tables(results: Path, folder: Path) -> None:
    """Tables 2 and 3 beside the report's, and all cells with what else was measured, as Markdown, CSV and LaTeX.

    results: the sweep's folder of one JSON a cell. folder: where table2, table3 and hashing_cells go.
    """
    cells = _read(results)
    grid = {}
    for result in cells.values():
        config = result["config"]
        changed = [config[key] for key in ("encoder_lr", "held_out", "weight_decay", "word_dropout", "average")]
        if (config["estimator"], config["seed"], config["lr"], any(changed)) == ("disarm", 1, 1e-3, False):
            grid[config["encoder"], config["bits"], config["decoder_layers"]] = result
    corpora = ", ".join(sorted({result["corpus"] for result in cells.values()})) or "no cell run"
    for name, title, paper, key in (
        ("table2", "Train negative ELBO, last epoch", published.TABLE2, "train_final"),
        ("table3", "Test negative ELBO, minimum over epochs", published.TABLE3, "test_min"),
    ):
        rows, wide = [], []
        for bits, layers in itertools.product(BITS, LAYERS):
            wide.append([bits, layers])
            for encoder in ENCODERS:
                reported = paper.get((encoder, bits, layers), "-")
                result = grid.get((encoder, bits, layers))
                ours, epochs = "not run", 0
                if result is not None:
                    ours, epochs = f"{result['metrics'][key]:.1f}", result["metrics"]["epochs"]
                rows.append((bits, layers, encoder, reported, ours, epochs))
                wide[-1].append(f"{reported} / {ours}" + (f" ({epochs})" if epochs else ""))
        caption = (
            f"{title}, relative to the documents' entropy, nats a document: report / ours (epochs). "
            f"{corpora}. The report has 1,500 epochs, and no e4."
        )
        style.write_table(folder / name, caption, ("b", "d", *ENCODERS), wide)
        style.write_csv(folder / name, ("b", "d", "encoder", "report", "ours", "epochs"), rows)
    header = ("cell", "test min", "at epoch", "of epochs", "min, counts fed", "held-out choice", "P@100", "s/epoch")
    rows = []
    for name, result in cells.items():
        m, config = result["metrics"], result["config"]
        fed, seconds = m.get("test_counts_min"), result["seconds"] / m["epochs"]
        rows.append(
            (
                *(name, f"{m['test_min']:.1f}", m["test_min_epoch"], m["epochs"]),
                "-" if fed is None else f"{fed:.1f}",
                f"{m['test_selected']:.1f} ({m['selected_epoch']})" if config["held_out"] else "-",
                *(f"{m['precision_at_100']:.3f}", f"{seconds:.2f} x {result['environment']['threads']}"),
            )
        )
    caption = (
        "Every cell trained: minimum of the test negative ELBO over epochs; the same with counts fed to an encoder "
        "made for frequencies; test value at the epoch that held-out documents choose, and that epoch (such "
        "cells train on the other documents only); precision@100 at the chosen epoch; seconds an epoch x threads, "
        f"whatever else the machine was doing. {corpora}."
    )
    style.write_table(folder / "hashing_cells", caption, header, rows)
    style.write_csv(folder / "hashing_cells", header, rows)


def draw_exact(result: dict, folder: Path) -> None:
    """Exact log-likelihood and ELBO through the stages, for each encoder; the train set above, the test set below."""
    config, history = result["config"], result["history"]
    figure, axes = plt.subplots(
        2, len(config["encoders"]), figsize=(2.6 * len(config["encoders"]) + 0.6, 4.6), squeeze=False
    )
    ends = np.cumsum([config["likelihood_epochs"], config["encoder_epochs"], config["joint_epochs"]])
    first, second, last = (range(a + 1, b + 1) for a, b in zip((0, *ends[:-1]), ends, strict=True))
    for column, encoder in zip(axes.T, config["encoders"], strict=True):
        for axis, split in zip(column, ("train", "test"), strict=True):
            likelihood, elbo = f"{split}_log_likelihood", f"{split}_elbo"
            frozen, joint = history[f"{encoder}_frozen"], history[f"{encoder}_joint"]
            solid = {"color": style.COLOURS[0], "linestyle": "-"}
            axis.plot(first, history["likelihood"][likelihood], **solid, label="log-likelihood, exact")
            axis.plot([*second, *last], frozen[likelihood] + joint[likelihood], **solid)
            axis.plot(
                last,
                history["likelihood_on"][likelihood],
                color=style.REFERENCE,
                linestyle=":",
                label="had it gone on alone",
            )
            axis.plot(
                [*second, *last],
                frozen[elbo] + joint[elbo],
                color=style.COLOURS[1],
                linestyle="--",
                label="ELBO, exact",
            )
            axis.fill_between(
                [*second, *last], frozen[elbo] + joint[elbo], frozen[likelihood] + joint[likelihood], color="0.92"
            )
            for end in ends[:2]:
                axis.axvline(end, color="0.7", linewidth=0.8)
            shown = [*history["likelihood"][likelihood][20:], *frozen[elbo][20:], *joint[elbo], *joint[likelihood]]
            span = max(shown) - min(shown)
            axis.set_ylim(
                min(shown) - 0.05 * span, max(max(shown), max(history["likelihood_on"][likelihood])) + 0.1 * span
            )
            axis.set_title(f"{encoder}, {split}")
        column[1].set_xlabel("epoch")
    for axis in axes[:, 0]:
        axis.set_ylabel("relative, nats a document")
    axes[0, 0].legend(loc="lower right", fontsize=7)
    for end, start, text in zip(
        ends, (0, *ends[:-1]), ("decoder:\nlikelihood", "encoder:\nELBO", "both:\nELBO"), strict=True
    ):
        axes[1, 0].text(
            (start + end) / 2, 0.02, text, transform=axes[1, 0].get_xaxis_transform(), ha="center", fontsize=7
        )
    figure.suptitle(
        f"{result['corpus']}, b = {config['bits']}, d = {config['decoder_layers']}, seed {config['seed']}", fontsize=9
    )
    style.save(figure, folder, "hashing_exact")
