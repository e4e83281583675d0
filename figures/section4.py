"""Figures and Table 1 of Section 4, each drawn from the result JSON of its script alone."""

from pathlib import Path

import matplotlib.pyplot as plt

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
