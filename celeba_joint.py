"""Joint ELBO training of a fitted encoder and its true decoder (Section 4): the second row of Table 1.

It goes on from `celeba_encoder.py`: the encoder found there, a copy of g* as decoder, samples of the ground truth as
data, and the ELBO, reparameterised, with the analytic KL, maximised over both. Along the training are tracked the ELBO,
and the Fréchet distances of x* = g*(z) from its re-decoding g(z'), z' ~ q(z given x), which is the report's measure of
what the decoder loses, and from the decoder's own samples g(z) of other z.

The protocol is that of the encoder's run:

                     paper                                  published
  batch norm         evaluation mode: what is trained is    training mode in all networks; images for FID one at a
                     what is tested                         time
  Adam               2e-4                                   1e-5

--learn-sigma trains the standard deviation of the decoder's pixels too, which the report leaves out. The ground truth
keeps its own. --freeze-decoder is the control that Table 1 lacks: its first row has an encoder that maximises
log q(z given x), not the ELBO, so part of what joint training gains is the encoder's. Here the encoder gets the
ELBO, and the decoder stays g*.

The report at the end is that of `celeba_encoder.py`, with three more distances: of x* and g(z') with noise of
sigma = 0.05 added to that only, as the released code does for Table 1; of x* and the prior's g(z); of that and real
images.

All quantities are in nats an image, of 12,288 dimensions.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from celeba_encoder import (
    NETWORKS,
    QUICK,
    VAE,
    Encoder,
    Protocol,
    Trainer,
    TrainingOptions,
    feature_spaces,
    finish,
    networks_of,
    print_report,
    real_images,
    report,
)
from dcgan import Moments
from figures.run import RunError, as_config, begin, cli, load_torch, native_precision, save_torch

ADAM = {"paper": (2e-4, (0.9, 0.999)), "published": (1e-5, (0.9, 0.999))}  # learning rate, betas


@dataclass(frozen=True)
class Options(TrainingOptions):
    encoder: Path = Path("runs/celeba_encoder/model.pt")
    """encoder kept by celeba_encoder.py; its run says which ground truth, protocol and sigma"""
    learn_sigma: bool = False
    """train the decoder's sigma too"""
    freeze_decoder: bool = False
    """train the encoder only, by the same ELBO"""
    out: Path = Path("runs/celeba_joint")
    """folder for model.pt, the figure and result.json"""

    GROUPS: ClassVar = {"what is trained": "encoder learn-sigma freeze-decoder"} | TrainingOptions.GROUPS
    EXAMPLES: ClassVar = (
        ("--encoder runs/encoder_published/model.pt", "go on from there, in the protocol of that run"),
        ("--freeze-decoder --out runs/elbo", "the control: the encoder alone, by the same ELBO"),
    )


PRESETS = {
    "quick": (
        Options(iterations=1000, batch_size=64, **QUICK),
        "after `celeba_encoder.py --preset quick`: minutes, no FID",
    )
}


@dataclass(frozen=True)
class Continued(Options):
    """The options, and what the encoder's run fixes."""

    protocol: Protocol = "paper"
    sigma: float = 0.05


def main(options: Options) -> None:
    device, checkpoint = begin(options)
    before = load_torch(options.encoder, "encoder of celeba_encoder.py")
    try:
        config, state, ground_truth = (before[key] for key in ("config", "encoder", "ground_truth"))
        protocol, sigma = config["protocol"], config["sigma"]
    except (KeyError, TypeError) as error:
        raise RunError(f"{options.encoder} is no encoder of celeba_encoder.py: no {error}") from error
    truth, discriminator, kept = networks_of(ground_truth, options.encoder, device)
    options = replace(options, precision=options.precision or native_precision(device))
    options = Continued(**vars(options), protocol=protocol, sigma=sigma)
    encoder = Encoder(kept["width"]["nz"], kept["width"]["ndf"])
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise RunError(f"{options.encoder} has an encoder of another width than its ground truth") from error
    decoder = truth if options.freeze_decoder else copy.deepcopy(truth).requires_grad_(True)
    vae = VAE(truth, encoder.to(device), sigma, decoder).to(device)
    vae.log_sigma.requires_grad_(options.learn_sigma)
    spaces, real = feature_spaces(options, discriminator, device), real_images(options, kept)

    def objective(z: Tensor, x: Tensor, noise: torch.Generator) -> Tensor:
        return -vae.elbo(x, noise)["elbo"].mean()

    trainer = Trainer(vae, objective, ADAM[protocol], options, spaces, device)
    trainer.run(NETWORKS if protocol == "published" else (), checkpoint)
    metrics, _ = report(vae, options, spaces, real, known_moments(options, config, device), device)
    model = {"encoder": vae.encoder.state_dict(), "decoder": vae.decoder.state_dict(), "config": as_config(options)}
    save_torch(options.out / "model.pt", model | {"log_sigma": vae.log_sigma.detach()})
    changed = "frozen, ELBO" if options.freeze_decoder else "joint"
    print_report(finish(trainer, metrics, kept), changed + ", sigma learned" * options.learn_sigma)


def known_moments(options: Continued, config: dict[str, Any], device: torch.device) -> dict[str, dict[str, Moments]]:
    """Moments of the ground truth's images from the encoder's run, if that took them as this run would."""
    path = options.encoder.with_name("moments.pt")
    same = ("seed", "batch_size", "fid_images", "fid_dims", "precision", "images")
    if not path.is_file() or any(as_config(options)[key] != config[key] for key in same):
        return {}
    shared = load_torch(path, "moments of celeba_encoder.py")
    if shared.pop("device") != device.type:  # its random numbers are others
        return {}
    known: dict[str, dict[str, Moments]] = {}
    for space, kinds in shared.items():
        known[space] = {}
        for kind, values in kinds.items():
            known[space][kind] = Moments()
            vars(known[space][kind]).update(values)
    return known


if __name__ == "__main__":
    cli(Options, main, __doc__.splitlines()[0], PRESETS)
