"""Joint ELBO training of a fitted encoder and its true decoder (Section 4): the second row of Table 1.

It goes on from `celeba_encoder.py`: the encoder found there, a copy of g* as decoder, samples of the ground truth as
data, and the ELBO, reparameterised, with the analytic KL, maximised over both. Along the training are tracked the ELBO,
and the Fréchet distances of x* = g*(z) from its re-decoding g(z'), z' ~ q(z given x), which is the report's measure of
what the decoder loses, and from the decoder's own samples g(z) of other z.

The protocol is that of the encoder's run:

                     report                                 released
  batch norm         evaluation mode: what is trained is    training mode in all networks; images for FID one at a
                     what is tested                         time
  Adam               2e-4                                   1e-5

--learn-sigma trains the standard deviation of the decoder's pixels too, which the report leaves out. The ground truth
keeps its own. --freeze-decoder is the control that Table 1 lacks: its first row has an encoder that maximises
log q(z given x), not the ELBO, so part of what joint training gains is the encoder's. Here the encoder gets the
ELBO, and the decoder stays g*.

The evaluation at the end is that of `celeba_encoder.py`, with three more distances: of x* and g(z') with noise of
sigma = 0.05 added to that only, as the released code does for Table 1; of x* and the prior's g(z); of that and real
images.

All quantities are in nats per image, of 12,288 dimensions.

    uv run celeba_joint.py                                      after celeba_encoder.py
    uv run celeba_joint.py --freeze-decoder --out runs/elbo     the control
    uv run celeba_joint.py quick                                after `celeba_encoder.py quick`; no FID
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from celeba_encoder import (
    NETWORKS,
    VAE,
    Encoder,
    Protocol,
    Trainer,
    TrainingOptions,
    evaluate,
    feature_spaces,
    finish,
    networks_of,
    real_images,
)
from figures import run
from figures.cli import cli
from figures.frechet import Moments

ADAM = {"report": (2e-4, (0.9, 0.999)), "released": (1e-5, (0.9, 0.999))}  # learning rate, betas


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


QUICK = Options(
    iterations=250,
    batch_size=64,
    test_images=2000,
    bound_images=50,
    laplace_images=16,
    fid_images=2000,
    fid_dims=0,
    track=5,
    track_images=500,
)


@dataclass(frozen=True)
class Continued(Options):
    """The options, and what the encoder's run fixes."""

    protocol: Protocol = "report"
    sigma: float = 0.05


def main(options: Options) -> None:
    device, checkpoint = run.begin(options)
    with run.reading(options.encoder, "encoder of celeba_encoder.py") as before:
        config = run.in_present_words(before["config"])
        truth, discriminator, origin = networks_of(before["ground_truth"], device)
        encoder = Encoder(origin["width"]["nz"], origin["width"]["ndf"])
        encoder.load_state_dict(before["encoder"])
    options = replace(options, precision=options.precision or run.native_precision(device))
    options = Continued(**vars(options), protocol=config["protocol"], sigma=config["sigma"])
    decoder = truth if options.freeze_decoder else copy.deepcopy(truth).requires_grad_(True)
    vae = VAE(truth, encoder.to(device), options.sigma, decoder).to(device)
    vae.log_sigma.requires_grad_(options.learn_sigma)
    real = real_images(options, origin)  # before Inception's weights are fetched: what is wrong shows first
    spaces = feature_spaces(options, discriminator, device)

    def objective(z: Tensor, x: Tensor, noise: torch.Generator) -> Tensor:
        return -vae.elbo(x, noise)["elbo"].mean()

    trainer = Trainer(vae, objective, ADAM[options.protocol], options, spaces, device)
    trainer.run(NETWORKS if options.protocol == "released" else (), checkpoint)
    metrics, _ = evaluate(vae, options, spaces, real, known_moments(options, config, device), device)
    model = {"encoder": vae.encoder.state_dict(), "decoder": vae.decoder.state_dict(), "config": run.as_config(options)}
    run.save_torch(options.out / "model.pt", model | {"log_sigma": vae.log_sigma.detach()})
    changed = "frozen, ELBO" if options.freeze_decoder else "joint"
    finish(trainer, metrics, origin, changed + ", sigma learned" * options.learn_sigma)


def known_moments(options: Continued, config: dict, device: torch.device) -> dict[str, dict[str, Moments]]:
    """Moments of the ground truth's images from the encoder's run, if that took them as this run would."""
    path = options.encoder.with_name("moments.pt")
    same = ("seed", "batch_size", "fid_images", "fid_dims", "precision", "images")
    if not path.is_file() or any(run.as_config(options)[key] != config[key] for key in same):
        return {}
    known: dict[str, dict[str, Moments]] = {}
    with run.reading(path, "file of moments of celeba_encoder.py") as shared:
        if shared.pop("device") != device.type:  # its random numbers are others
            return {}
        for space, kinds in shared.items():
            known[space] = {}
            for kind, values in kinds.items():
                known[space][kind] = Moments()
                vars(known[space][kind]).update(values)
    return known


RUNS = (
    ("report", main, Options(), "the report's joint training, the default"),
    ("quick", main, QUICK, "after `celeba_encoder.py quick`: minutes on two cores, no FID"),
)

if __name__ == "__main__":
    cli(__doc__, *RUNS)
