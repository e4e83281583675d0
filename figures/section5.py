"""Figures of Section 5, each drawn from a result.json alone."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, ScalarFormatter

from data import SPLITS, newsgroups
from figures import reference, style
from figures.run import print_closing, print_table


def draw_estimator_variance(result: dict, folder: Path) -> None:
    """Total gradient variance against the scale of the logits and against b."""
    config, metrics = result["config"], result["metrics"]
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.8), sharey=True)
    panels = (
        ("scale", config["scales"], "logit scale (b = 16)"),
        ("bits", config["bits"], "number of bits b (logit scale 1)"),
    )
    names = {"arm": "ARM", "reinforce": "REINFORCE-LOO", "disarm": "DisARM"}
    for axis, (panel, x, label) in zip(axes, panels, strict=True):
        for i, (name, text) in enumerate(names.items()):
            axis.plot(x, metrics[panel][name], label=text, **style.look(i))
        axis.set(xscale="log", yscale="log", xlabel=label)
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.set_title("(a)" if panel == "scale" else "(b)", loc="left")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
    axes[0].set_ylabel("total variance of the gradient (nats²)")
    axes[0].legend()
    style.save(figure, folder, "estimator_variance")


def report_variance(result: dict, folder: Path) -> None:
    """Draw the variances, and print them."""
    draw_estimator_variance(result, folder)
    config, metrics = result["config"], result["metrics"]
    rows = []
    for panel, values in (("scale", config["scales"]), ("bits", config["bits"])):
        variances = (metrics[panel][name] for name in ("arm", "reinforce", "disarm"))
        rows += [(f"{panel} {x:g}", *of) for x, *of in zip(values, *variances, strict=True)]
    print_table(("total variance, nats^2", "ARM", "REINFORCE-LOO", "DisARM"), rows, digits=2)
    print_closing(result)


SHOWN = {  # cells whose test curves are in the section's figure, by b
    "e1_b{}_d0": "e1: counts",
    "e3_b{}_d0": "e3: frequencies",
    "e4_b{}_d0": "e4: frequencies x mean length",
    "e3_b{}_d0_lr0.1": "e3, encoder's rate x 100",
}
ENCODERS, BITS, LAYERS = ("e1", "e2", "e3", "e4"), (8, 16, 32, 64), (0, 1, 2)
COLOUR = dict(zip(("e1", "e3", "e2", "e4"), style.COLOURS, strict=False))


def of_the_report(cells: dict[str, dict]) -> dict[tuple[str, int, int], dict]:
    """The cells of Tables 2 and 3 by encoder, b and d."""
    keys = ("encoder", "bits", "decoder_layers")
    grid = {name: r for name, r in cells.items() if re.fullmatch(r"e\d_b\d+_d\d", name)}
    return {tuple(r["config"][key] for key in keys): r for r in grid.values()}


def shown(cells: dict[str, dict]) -> dict[str, dict]:
    """Those of SHOWN, by label, with the largest b."""
    for bits in reversed(BITS):
        names = {label: name.format(bits) for name, label in SHOWN.items()}
        if found := {label: cells[name] for label, name in names.items() if name in cells}:
            return found
    return {}


def write_tables(cells: dict[str, dict], folder: Path) -> None:
    """Tables 2 and 3, ours beside the report's, and hashing_cells.csv; cells: results by name."""
    grid = of_the_report(cells)
    corpora = sorted({result["corpus"] for result in cells.values()})
    published = corpora == [newsgroups.NAME]
    write_cells(cells, folder)
    for name, title, report, key in (
        ("table2", "Train negative ELBO, last epoch", reference.TABLE2, "train_final"),
        ("table3", "Test negative ELBO, minimum over epochs", reference.TABLE3, "test_min"),
    ):
        rows = []
        there = {place[1:] for place in grid}
        for bits, layers in itertools.product(BITS, LAYERS):
            if (bits, layers) not in there:
                continue
            row: list[object] = [bits, layers]
            for cell in ((encoder, bits, layers) for encoder in ENCODERS):
                metrics = grid[cell]["metrics"] if cell in grid else {}
                ours = f"{metrics[key]:.1f}" if metrics else "not run"
                epochs = metrics.get("epochs", 0)
                few = f" ({epochs})" * (0 < epochs < reference.SECTION5_EPOCHS)
                row.append(f"{report.get(cell, '-') if published else '-'} / {ours}{few}")
            rows.append(row)
        caption = (
            f"{title}, relative to the documents' entropy, nats per document: report / ours, in "
            "brackets its epochs, where they are fewer than the report's "
            f"{reference.SECTION5_EPOCHS:,}. {', '.join(corpora)}. The report has no e4."
        )
        if rows:
            style.write_table(folder / name, caption, ("b", "d", *ENCODERS), rows)


def write_cells(cells: dict[str, dict], folder: Path) -> None:
    """hashing_cells.csv: of every cell the options and metrics below, seconds per epoch, whatever
    else the machine was doing, and the machine.
    """
    options = ("epochs", "fine_epochs", "patience")  # the last, of old: stopped so long past it
    metrics = ("epochs", "train_final", "test_min", "test_min_epoch", "test_counts_min")
    metrics += ("selected_epoch", "test_selected", "precision_at_100")
    rows = []
    for name, result in cells.items():
        m, there = result["metrics"], result["environment"]
        values = [*(result["config"].get(key) or 0 for key in options), *map(m.get, metrics)]
        values = [f"{v:.4g}" if isinstance(v, float) else v for v in values]
        rows.append((name, *values, f"{result['seconds'] / m['epochs']:.2f}", there["device"]))
    header = ("cell", "epochs asked", "fine epochs", "patience", "epochs run", *metrics[1:])
    style.write_csv(folder / "hashing_cells", (*header, "seconds per epoch", "device"), rows)


def draw_table3(grid: dict[tuple[str, int, int], dict], folder: Path) -> None:
    """Table 3: the report's test losses against ours, tested as trained (filled), and by an encoder
    that was trained on frequencies and is fed counts (hollow).
    """
    figure, axis = plt.subplots(figsize=(4.8, 4.8))
    for i, encoder in enumerate(ENCODERS[:3]):
        keys = (("test_min", True, "as trained"), ("test_counts_min", False, "fed counts"))
        for key, filled, words in keys:
            look: Any = {"marker": style.MARKERS[i], "edgecolors": COLOUR[encoder]}
            look["facecolors"] = COLOUR[encoder] if filled else "none"
            here = {cell: r["metrics"] for cell, r in grid.items() if cell[0] == encoder}
            for cell, metrics in here.items():
                if cell in reference.TABLE3 and key in metrics:
                    size = 36 if metrics["epochs"] == reference.SECTION5_EPOCHS else 10
                    axis.scatter(reference.TABLE3[cell], metrics[key], size, zorder=3, **look)
            if any(key in metrics for metrics in here.values()):
                axis.scatter([], [], 36, label=f"{encoder}, {words}" if i else encoder, **look)
    axis.scatter([], [], 10, color="0.35", label="small: fewer epochs than the report's")
    low = min(axis.get_xlim()[0], axis.get_ylim()[0])
    high = max(axis.get_xlim()[1], axis.get_ylim()[1])
    axis.plot([low, high], [low, high], color=style.REFERENCE, linewidth=1, zorder=2)
    axis.set(xlim=(low, high), ylim=(low, high), aspect="equal")
    axis.set(xlabel="the report's test loss (nats per document)", ylabel="our test loss")
    axis.legend(fontsize=8)
    style.save(figure, folder, "table3")


def report_hashing(result: dict, folder: Path) -> None:
    """Draw the curves of one run of hashing.py, and print its losses beside those of the report."""
    style.curves(result["history"], "relative negative ELBO,\nnats per document", folder)
    config, metrics = result["config"], result["metrics"]
    cell: tuple = tuple(config[key] for key in ("encoder", "bits", "decoder_layers"))
    if result["corpus"] != newsgroups.NAME:
        print(f"corpus: {result['corpus']}, not that of the report")
        cell = (None, None, None)
    original = reference.HASHING_ORIGINAL.get(cell[1]) if cell[::2] == ("e1", 0) else None
    rows = [
        ("test, minimum over epochs", reference.TABLE3.get(cell), original, metrics["test_min"]),
        ("reached after epoch", None, None, metrics["test_min_epoch"]),
        ("train, last epoch", reference.TABLE2.get(cell), None, metrics["train_final"]),
        ("epochs trained", reference.SECTION5_EPOCHS, None, metrics["epochs"]),
        ("precision@100, in per cent", None, None, 100 * metrics["precision_at_100"]),
    ]
    if config["held_out"]:
        rows.insert(2, ("test, held-out documents' choice", None, None, metrics["test_selected"]))
    header = ("relative -ELBO, nats per document", "report", "original paper", "ours")
    print_table(header, rows, digits=1)
    print_closing(result)


def report_exact(result: dict, folder: Path) -> None:
    """Draw the stages of one run of `hashing.py exact`, and print what was measured after each."""
    figure, axis = plt.subplots(figsize=(4.8, 3.6))
    _stages(axis, result, result["config"]["encoders"][0])
    axis.legend(fontsize=8)
    style.save(figure, folder, "exact")
    columns = ("log_likelihood", "elbo", "gap", "factorization", "amortization")
    for split in SPLITS:
        stages = {name: measured[split] for name, measured in result["metrics"].items()}
        rows = [(name, *map(measured.get, columns)) for name, measured in stages.items()]
        header = (f"{split}, nats per document", *(key.replace("_", " ") for key in columns))
        print_table(header, rows, digits=2)
    print_closing(result)


def _stages(axis: plt.Axes, result: dict, encoder: str) -> None:
    """The three stages on the train set: decoder by likelihood, encoder alone, both by the ELBO."""
    config, history = result["config"], result["history"]
    stages = ("likelihood_epochs", "encoder_epochs", "joint_epochs")
    ends = np.cumsum([config[stage] for stage in stages])
    epochs = np.arange(1, ends[-1] + 1)
    frozen, joint = history[f"{encoder}_frozen"], history[f"{encoder}_joint"]
    alone = history["likelihood_on"]["train_log_likelihood"]
    parts = (history["likelihood"], frozen, joint)
    both = np.concatenate([part["train_log_likelihood"] for part in parts])
    elbo = np.array(frozen["train_elbo"] + joint["train_elbo"])
    look: Any = {"color": "0.35", "linestyle": ":"}
    axis.plot(epochs[ends[1] :], alone, label="the same, never by ELBO", **look)
    axis.plot(epochs, both, color=style.COLOURS[0], label="log-likelihood")
    axis.plot(epochs[ends[0] :], elbo, color=style.COLOURS[1], linestyle="--", label="ELBO")
    axis.fill_between(epochs[ends[0] :], elbo, both[ends[0] :], color="0.92")
    low, high = min(elbo[len(frozen["train_elbo"]) // 3 :]), max(*both, *alone)
    # Room for the legend and for the stages.
    axis.set_ylim(low - 0.3 * (high - low), high + 0.35 * (high - low))
    shown = max(1, ends[0] - 2 * (ends[2] - ends[0]) // 5)  # of the first stage, its end
    axis.set_xlim(shown, ends[-1])
    axis.set(xlabel="epoch", ylabel="relative log p(x), ELBO\n(nats per document)")
    parts = ("decoder:\nlikelihood", "encoder:\nELBO", "both:\nELBO")
    for start, end, text in zip((shown, *ends[:-1]), ends, parts, strict=True):
        axis.axvline(start, color="0.7", linewidth=0.8)
        place: Any = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top"}
        axis.text((start + end) / 2, 0.99, text, fontsize=7, **place)


def write_exact(results: Mapping[str, dict], folder: Path) -> None:
    """exact.csv: what `hashing.py exact` measured after each of its stages.

    Means over the train set, where not said otherwise, sums over all codes, nats. gap = log
    likelihood - elbo = factorization, what the best factorized posterior found leaves, +
    amortization, the rest.
    """
    columns = ("log_likelihood", "elbo", "gap", "factorization", "amortization")
    rows = []
    for run, result in results.items():
        place = [result["config"][key] for key in ("bits", "decoder_layers", "seed")]
        histories = {stage: history["test_elbo"] for stage, history in result["history"].items()}
        for stage, measured in result["metrics"].items():
            values = [measured["train"].get(key) for key in (*columns, "posterior_entropy")]
            values += [measured["test"].get(key) for key in columns[:2]]
            values = [None if value is None else f"{value:.2f}" for value in values]
            epochs = None if "joint" not in stage and "regr" in stage else len(histories[stage])
            rows.append((run, *place, stage, epochs, *values))
    header = ("run", "b", "d", "seed", "stage", "epochs", *columns, "posterior_entropy")
    style.write_csv(folder / "exact", (*header, "test log_likelihood", "test elbo"), rows)


def draw_section5(exact: Mapping[str, dict], cells: dict[str, dict], folder: Path) -> None:
    """Section 5 at a glance; exact: results of `hashing.py exact`, by name; cells: of `shown`.

    (a) What joint training does to the exact likelihood, for the first encoder and the deepest
    decoder; (b) for all, the likelihood lost in joint training against the gap before it, hollow
    where a regression had fitted the encoder; (c) test curves of counts, frequencies, and
    frequencies in the scale of counts.
    """
    figure, axes = plt.subplots(1, 3, figsize=(10.4, 3.6))
    results = list(exact.values())
    deepest = max(results, key=lambda result: result["config"]["decoder_layers"])
    config, axis = deepest["config"], axes[0]
    _stages(axis, deepest, config["encoders"][0])
    axis.set_title(f"(a) train, {config['encoders'][0]}, d = {config['decoder_layers']}")
    axis.legend(loc="lower right", fontsize=6.5, handlelength=1.5)
    axis = axes[1]
    for result in results:
        layers, stages = result["config"]["decoder_layers"], result["metrics"]
        for name in (name for name in stages if name.endswith("_joint")):
            encoder = name.partition("_")[0]
            regressed = name == f"{encoder}_regressed_joint"
            start = f"{encoder}_{'regressed' if regressed else 'frozen'}"
            train = {stage: stages[stage]["train"] for stage in ("likelihood_on", start, name)}
            lost = train["likelihood_on"]["log_likelihood"] - train[name]["log_likelihood"]
            look = {"color": COLOUR[encoder], "marker": style.MARKERS[layers]}
            look["markerfacecolor"] = "none" if regressed else COLOUR[encoder]
            axis.plot(train[start]["gap"], lost, **look, linestyle="none", markersize=4)
    present = sorted({encoder for result in results for encoder in result["config"]["encoders"]})
    keys = [Line2D([], [], color=COLOUR[e], linewidth=4, label=e) for e in present]
    grey: Any = {"color": "0.35", "linestyle": "none"}
    for layers in sorted({result["config"]["decoder_layers"] for result in results}):
        keys.append(Line2D([], [], marker=style.MARKERS[layers], label=f"d = {layers}", **grey))
    keys.append(Line2D([], [], marker="o", mfc="none", label="by regression", **grey))
    axis.legend(handles=keys, fontsize=7, loc="upper left")
    axis.axhline(0, color="0.7", linewidth=0.8)
    axis.set(
        xlabel="gap of the encoder before joint training (nats)",
        ylabel="train log-likelihood below\nlikelihood training (nats)",
        title="(b) what joint training costs",
        xscale="log",
    )
    axis.set_yscale("symlog", linthresh=1)
    axis.margins(y=0.08)
    bound = np.geomspace(*axis.get_xlim(), 99)
    axis.plot(bound, bound, color=style.REFERENCE, linestyle=":", zorder=0)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_formatter("{x:g}")
    axis = axes[2]
    curves = {label: [-loss for loss in c["history"]["test"]] for label, c in cells.items()}
    for label, test in curves.items():
        i = list(SHOWN.values()).index(label)
        look = {"color": style.COLOURS[(0, 1, 3, 2)[i]], "linestyle": style.LINES[i]}
        axis.plot(range(1, len(test) + 1), test, label=label, **look)
    # From where the slowest is after 50 epochs, of few a quarter, to the highest value.
    low = min(test[min(50, len(test) // 4)] for test in curves.values())
    high = max(map(max, curves.values()))
    axis.set(
        xlabel="epoch",
        ylabel="relative ELBO, nats per document",
        title=f"(c) test, b = {next(iter(cells.values()))['config']['bits']}, d = 0",
        xscale="log",
        xlim=(max(1, max(map(len, curves.values())) // 30), None),
        ylim=(low - 0.5 * (high - low), high + 0.1 * (high - low)),  # room for the legend
    )
    axis.legend(fontsize=7, loc="lower right")
    style.save(figure, folder, "section5")
