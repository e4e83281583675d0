"""Figures and Table 1 of Section 4, each drawn from the result JSON of its script alone."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from figures import style


def draw_dcgan(result: dict, folder: Path) -> None:
    """Losses of the GAN, and the Fréchet distance to held-out real images that selects the epoch."""
    history, selected = result["history"], result["metrics"]["selected_epoch"]
    epochs = range(1, len(history["frechet"]) + 1)
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1))
    for i, key in enumerate(("discriminator_loss", "generator_loss")):
        look = {"color": style.COLOURS[i], "linestyle": style.LINES[i]}
        axes[0].plot(epochs, history[key], label=key.replace("_", "'s ").replace("s l", "s l"), **look)
    axes[0].set(xlabel="epoch", ylabel="loss (nats an image)")
    axes[0].legend()
    axes[1].plot(epochs, history["frechet"], color=style.COLOURS[0])
    axes[1].plot(
        selected,
        history["frechet"][selected - 1],
        linestyle="none",
        marker=style.MARKERS[0],
        color=style.COLOURS[1],
        label=f"selected: epoch {selected}",
    )
    axes[1].set(xlabel="epoch", ylabel=f"{result['space']}\nto held-out real images", ylim=(0, None))
    axes[1].legend()
    style.save(figure, folder, "dcgan_curves")


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


def draw_training(result: dict, folder: Path) -> None:
    """ELBO, and Fréchet distance of x* and its re-decoding, along a training of Section 4."""
    history, config = result["history"], result["config"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.1))
    axes[0].plot(history["iteration"], history["elbo"], color=style.COLOURS[0], marker=style.MARKERS[0])
    axes[0].set(xlabel="iteration", ylabel="ELBO (nats an image)")
    _frechet(axes[1], result, 0)
    axes[1].legend()
    figure.suptitle(f"{config['protocol']} protocol, {result['data']}", fontsize=9)
    style.save(figure, folder, "training")


def _frechet(axis: Axes, result: dict, first: int) -> None:
    history = result["history"]
    names = {
        "frechet_inception": f"FID, {result['config']['fid_dims']} dimensions",
        "frechet_discriminator": "discriminator's features",
    }
    for i, (key, label) in enumerate(names.items(), start=first):
        if key in history:
            start = history[key][0]
            look = {"color": style.COLOURS[i], "linestyle": style.LINES[i], "marker": style.MARKERS[i]}
            axis.plot(history["iteration"], [value / start for value in history[key]], label=label, **look)
    axis.set(xlabel="iteration", ylabel="Fréchet distance of x* and decoded,\nrelative to the start", yscale="log")
