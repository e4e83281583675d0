"""One step and one evaluation of every trainer on another device than torch's default one.

Where there is an accelerator, it is used. Else the work is done on the CPU and the default is
"meta", whose tensors have no values: what is made without saying where fails as soon as its number
is wanted. That finds nothing of what is first moved to the CPU, of other kernels, or of speed.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from toy import corpus

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from data import faces
from figures import evidence
from figures.frechet import frechet_distance, moments, thumbnails
from figures.run import pick_device

THERE = pick_device(None)
elsewhere = torch.device("meta" if THERE.type == "cpu" else "cpu")


def test_what_is_made_elsewhere_is_found() -> None:
    with elsewhere, pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
        (torch.ones(3, device=THERE) + torch.ones(3)).sum().item()


@pytest.mark.parametrize("make", [mixture.factorized, mixture.consistent])
def test_mixture(make: Any) -> None:
    options, encoder, records = mixture.Options(points=40), make(THERE), []
    x = mixture.sample(options, THERE)  # drawn on the CPU, alike for all devices
    with elsewhere:
        means = torch.tensor(mixture.CENTRES, device=THERE)
        truth = means.clone()

        def record(step: int, log_q: torch.Tensor) -> None:
            records.append(mixture.measure(x, log_q, means, truth, options.variance))

        mixture.train(x, encoder, means, options.variance, 2, 1e-3, True, record)
    assert len(records) == 2


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("encoder", ["e1", "e2", "e3", "e4"])
def test_hashing(encoder: Any, layers: int) -> None:
    options = hashing.Options(
        encoder=encoder, decoder_layers=layers, bits=4, pairs=2, batch_size=16, held_out=0.2
    )
    options = replace(options, epochs=1, fine_epochs=1, test_counts=encoder != "e1")
    trainer = hashing.Trainer(options, corpus(), THERE)
    with elsewhere:
        losses = hashing.step(trainer, trainer.train.batch(np.arange(16)), options.pairs)
        trainer.record({"train": losses.item(), **hashing.test(trainer)})
        assert len(trainer.model.codes(trainer.test)) == len(trainer.test)


@pytest.mark.parametrize("objective", ["likelihood", "elbo", "disarm", "regression"])
def test_exact(objective: Any) -> None:
    sums = hashing.Exact(hashing.ExactOptions(bits=3, decoder_layers=1), corpus(), THERE)
    model = sums.model("e1")
    parts = ("encoder",) if objective == "regression" else ("encoder", "decoder")
    stage = hashing.Stage("stage", "e1", objective, 1, parts)
    with elsewhere:
        history = (sums.regress if objective == "regression" else sums.fit)(model, stage)
    assert len(history["test_elbo"]) == 1


def test_dcgan() -> None:
    options = dcgan.Options(data="faces", ngf=2, ndf=2, nz=3, batch_size=4, held_out=6)
    trainer = dcgan.Trainer(options, faces.draw(14, 0), THERE, "thumbnails")
    with elsewhere:
        trainer.step(trainer.batch(torch.arange(4, device=THERE)))
        real = moments(thumbnails, iter([torch.rand(6, 3, 64, 64, device=THERE)]))
        frechet_distance(real, moments(thumbnails, trainer.generated(6)))


@pytest.fixture
def vae() -> Iterator[celeba_encoder.VAE]:
    parts = (dcgan.Generator(3, 2), celeba_encoder.Encoder(3, 2), 0.05, dcgan.Generator(3, 2))
    return celeba_encoder.VAE(*parts).to(THERE).eval()


@pytest.mark.parametrize("protocol", ["report", "released"])
def test_encoder_and_joint_training(protocol: Any, vae: celeba_encoder.VAE) -> None:
    options = replace(celeba_encoder.QUICK, protocol=protocol, precision="float32")
    few = {"batch_size": 4, "test_images": 8, "bound_images": 1, "laplace_images": 1}
    options = replace(options, **few, fid_images=8, track_images=4)
    spaces = {"discriminator": dcgan.Discriminator(2).to(THERE).eval().features}

    def objective(z: torch.Tensor, x: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        return -vae.elbo(x, noise)["elbo"].mean() - evidence.log_normal(z, *vae.encoder(x)).mean()

    trainer = celeba_encoder.Trainer(vae, objective, (1e-3, (0.9, 0.999)), options, spaces, THERE)
    held_out = faces.draw(8, 0)
    with elsewhere:
        with celeba_encoder.modes(vae, "encoder", learning=True):
            trainer.step()
        trainer.track()
        metrics, _ = celeba_encoder.evaluate(vae, options, spaces, held_out, {}, THERE)
    assert metrics["frechet"]["discriminator"].keys() >= {"means", "floor"}


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_joint_training_without_an_encoder(weight: float, vae: celeba_encoder.VAE) -> None:
    options = celeba_joint.Options(
        weight=weight, batch_size=4, evidence_images=4, precision="float32"
    )
    trainer = celeba_joint.Joint(vae, options, {}, THERE)
    with elsewhere:
        trainer.step()
        z = torch.zeros(4, 3, device=THERE)
        full = evidence.Posteriors("full", vae.sample(z, trainer.noise)[1], z)
        evidence.estimate(full.log_weights(vae, torch.zeros(2, 4, 3, device=THERE)))
