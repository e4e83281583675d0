"""Figures of Section 5, each drawn from a result.json alone."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, ScalarFormatter

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
    if (config["encoder"], config["bits"], config["decoder_layers"]) == ("e1", 64, 0):
        for value, label, line in (
            (published.HASHING_ORIGINAL_TEST, "original paper (ARM), test minimum", ":"),
            (published.HASHING_PAPER_TEST, "report (DisARM), test minimum", "-."),
        ):
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
