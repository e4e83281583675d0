"""One step and one evaluation of every trainer on another device than torch's default one.

Where there is an accelerator, it is used. Else the work is done on the CPU and the default is
"meta", whose tensors have no values: what is made without saying where fails as soon as its number
is wanted. That finds nothing of what is first moved to the CPU, of other kernels, or of speed.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from toy import corpus

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from data import faces
from data.documents import Documents, Resident
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

        mixture.train(x, encoder, means, replace(options, steps=2), True, record)
    assert len(records) == 2


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("encoder", ["e1", "e2", "e3", "e4"])
def test_hashing(encoder: Any, layers: int, tmp_path: Path) -> None:
    options = hashing.Options(
        encoder=encoder, decoder_layers=layers, bits=4, pairs=2, batch_size=16, held_out=0.2
    )
    options = replace(options, epochs=1, test_counts=encoder != "e1", out=tmp_path)
    trainer = hashing.Trainer(options, corpus(), THERE)
    with elsewhere:
        losses = hashing.step(trainer, trainer.train.batch(np.arange(16)), options.pairs)
        trainer.record({"train": losses.item(), **hashing.test(trainer)})
    hashing.finish(trainer, corpus())


@pytest.mark.parametrize("objective", ["likelihood", "elbo", "regression"])
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
def test_encoder_training(protocol: Any, vae: celeba_encoder.VAE) -> None:
    options = replace(celeba_encoder.QUICK, protocol=protocol, precision="float32")
    few = {"batch_size": 4, "test_images": 8, "laplace_images": 1}
    options = replace(options, **few, fid_images=8, track_images=4)
    spaces = {"discriminator": dcgan.Discriminator(2).to(THERE).eval().features}

    trainer = celeba_encoder.Trainer(vae, (1e-3, (0.9, 0.999)), options, spaces)
    with elsewhere:
        with celeba_encoder.modes(vae, "encoder", learning=True):
            celeba_encoder.step(trainer)
        celeba_encoder.track(trainer, celeba_encoder.measure(trainer))
        metrics = celeba_encoder.evaluate(vae, options, spaces, THERE)
    assert metrics["frechet"]["discriminator"].keys() >= {"means", "floor"}


@pytest.mark.parametrize("weight", [None, 0.0, 1.0])
def test_joint_training(weight: float | None, vae: celeba_encoder.VAE) -> None:
    options = celeba_joint.Options(
        weight=weight, batch_size=4, evidence_images=4, precision="float32"
    )
    trainer = celeba_joint.make_trainer(vae, options, {})
    with elsewhere:
        celeba_joint.step(trainer)
        z = torch.zeros(4, 3, device=THERE)
        full = evidence.Posteriors("full", vae.sample(z, trainer.noise)[1], z)
        evidence.estimate(full.log_weights(vae, torch.zeros(2, 4, 3, device=THERE)))


class NoWait(TorchDispatchMode):
    """Fails where a program on an accelerator would have to wait for it."""

    WAITS = ("_local_scalar_dense", "nonzero", "_unique", "equal", "_linalg_check_errors")

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if op.overloadpacket.__name__.startswith(self.WAITS):
            pytest.fail(f"waits in {op}")
        return op(*args, **(kwargs or {}))


@pytest.fixture
def move_nowhere(monkeypatch: pytest.MonkeyPatch) -> Callable[..., torch.optim.Optimizer]:
    """Moves modules to "meta", as if it were an accelerator: tensors there have no numbers."""

    def noise(*shape: Any, **_: Any) -> torch.Tensor:
        return torch.empty(*shape, device="meta")

    def move(*modules: torch.nn.Module) -> torch.optim.Optimizer:
        """Move modules there, with an optimiser, as fused Adam has no kernel there; and all noise
        from now on.
        """
        for name in ("rand", "randn"):
            monkeypatch.setattr(torch, name, noise)
        parameters = [p for m in modules for p in m.to("meta").parameters() if p.requires_grad]
        return torch.optim.SGD(parameters)

    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    return move


def test_a_wait_is_found() -> None:
    """By the mode of what has numbers; what has none fails by itself where one is wanted."""
    for wait in (torch.Tensor.item, torch.nonzero, torch.linalg.cholesky, torch.unique):
        x = torch.ones(1) if wait is torch.Tensor.item else torch.eye(2)
        with NoWait(), pytest.raises(pytest.fail.Exception, match="waits"):
            wait(x)


@pytest.mark.parametrize("estimator", ["disarm", "arm", "reinforce"])
@pytest.mark.parametrize("encoder", ["e1", "e2", "e4"])
def test_a_step_of_hashing_does_not_wait(encoder: Any, estimator: Any, move_nowhere: Any) -> None:
    options = hashing.Options(encoder=encoder, estimator=estimator, decoder_layers=1, bits=4)
    trainer = hashing.Trainer(options, corpus(), torch.device("cpu"))
    trainer.device, trainer.optimizer = torch.device("meta"), move_nowhere(trainer.model)
    train = trainer.train
    train.resident = Resident(train.counts, trainer.device)
    for name in ("u", "n", "negentropy"):
        setattr(train, name, getattr(train, name).to("meta"))
    with NoWait():
        hashing.step(trainer, train.batch(np.arange(16)), 2)


def test_batches_put_together_on_the_device_are_the_same() -> None:
    counts = corpus().train
    rows = np.random.default_rng(0).permutation(50)[:20]  # empty documents, too
    u = torch.full((30,), 1 / 30, dtype=torch.float64)
    there, here = Resident(counts, THERE), Documents(counts, u).batch(rows).counts
    found = there.batch(rows, torch.from_numpy(rows).to(THERE))
    for a, b in zip(found.parts, here.parts, strict=True):
        for part, expected in zip(a, b, strict=True):
            assert (part.cpu().numpy() == expected.numpy()).all()


def test_steps_of_section_4_do_not_wait(move_nowhere: Any) -> None:
    gan = dcgan.Options(data="faces", ngf=2, ndf=2, nz=3, batch_size=4, held_out=6)
    trainer = dcgan.Trainer(gan, faces.draw(14, 0), torch.device("cpu"), "thumbnails")
    parts = (dcgan.Generator(3, 2), celeba_encoder.Encoder(3, 2), 0.05, dcgan.Generator(3, 2))
    options = celeba_joint.Options(batch_size=4, evidence_images=0, precision="float32")
    arms = []
    for changes in ({}, {"weight": 0.5, "evidence_images": 4}):
        vae = celeba_encoder.VAE(*copy.deepcopy(parts)).eval()
        changed = replace(options, **changes)
        arms.append(celeba_joint.make_trainer(vae, changed, {}))
    trainer.device = torch.device("meta")
    trainer.optimizers = {key: move_nowhere(network) for key, network in trainer.networks.items()}
    for arm in arms:
        arm.optimizer = move_nowhere(arm.vae, *arm.also["images"].values())
    with NoWait():
        trainer.step(trainer.batch(torch.arange(4)).to("meta"))
        for arm in arms:
            celeba_joint.step(arm)
