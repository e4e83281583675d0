"""One step and one evaluation of every trainer on a device other than the CPU, without one.

The device is torch's own "meta", and under FakeTensorMode tensors have a device and a shape but no
values. An operation on tensors of two devices fails as on a GPU, and so does a random stream of
another device than its numbers, NumPy taking a tensor that is not on the CPU, or a product of
integers, which CUDA lacks. It shows nothing of values, other kernels, memory or speed; numbers read
off a tensor are ones. Left out are what selects elements by value and so has no shape here,
`Exact.measure`, `Evidence.measure` and Section 3's oracle.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from toy import corpus

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from data import faces
from figures import evidence
from figures.frechet import frechet_distance, moments, thumbnails

THERE = torch.device("meta")


class Stream:
    """A random stream that says where it is; torch makes none for a device that is not there."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def manual_seed(self, seed: int) -> "Stream":
        return self

    def get_state(self) -> int:
        return 0

    def set_state(self, state: int) -> None:
        pass


def drawing(function: Any) -> Any:
    """torch.rand and its like, with a stream that has to be where the numbers go."""

    def draw(
        *args: Any, generator: Stream | None = None, device: Any = None, **options: Any
    ) -> torch.Tensor:
        there = torch.device(device or "cpu")
        if generator is not None and generator.device.type != there.type:
            raise RuntimeError(
                f"Expected a '{there.type}' device type for generator, found "
                f"'{generator.device.type}'"
            )
        return function(*args, device=device, **options)

    return draw


class Pretence(TorchFunctionMode):
    """Give ones for the numbers that a program reads off a tensor."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name, tensor = getattr(function, "__name__", ""), args[0] if args else None
        if isinstance(tensor, FakeTensor):
            if "matmul" in name and not tensor.is_floating_point():
                raise NotImplementedError(f"no product of integers on CUDA: {tensor.dtype}")
            if name in ("item", "__float__"):
                return 1.0
            if name == "__bool__":
                return True
            if name in ("tolist", "numpy"):
                if name == "numpy" and tensor.device.type != "cpu":
                    raise TypeError(f"can't convert {tensor.device} device type tensor to numpy")
                ones = np.ones(tensor.shape, str(tensor.dtype).removeprefix("torch."))
                return ones if name == "numpy" else ones.tolist()
        # Else FakeTensorMode would keep its value, and want a kernel to move it.
        if name == "tensor":
            plain = function(*args, **kwargs | {"device": None})
            return torch.empty(plain.shape, dtype=plain.dtype, device=kwargs.get("device"))
        return function(*args, **kwargs)


def moved(module: nn.Module, device: torch.device, **_: Any) -> nn.Module:
    """nn.Module.to, which cannot swap tensors without values in place."""
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    there = tensor.detach().to(device)
                    trained = isinstance(tensor, nn.Parameter)
                    store[name] = nn.Parameter(there, tensor.requires_grad) if trained else there
    return module


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch, "Generator", Stream)
    for name in ("rand", "randn", "randint", "randperm"):
        monkeypatch.setattr(torch, name, drawing(getattr(torch, name)))
    monkeypatch.setattr(nn.Module, "to", moved)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(
        sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_, **__: None
    )
    with FakeTensorMode(allow_non_fake_inputs=True), Pretence():
        yield


@pytest.mark.usefixtures("pretended")
def test_the_pretence_finds_what_is_on_another_device() -> None:
    here, there = torch.ones(3), torch.ones(3, device=THERE)
    with pytest.raises(RuntimeError, match="cpu"):
        here + there
    with pytest.raises(TypeError, match="meta"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(), device=THERE)
    with pytest.raises(NotImplementedError, match="int64"):
        there.long() @ there.long()
    assert torch.rand(3, generator=torch.Generator(THERE), device=THERE).device == THERE


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("make", [mixture.factorized, mixture.consistent])
def test_mixture(make: Any) -> None:
    options = mixture.Options(points=40)
    x, means = mixture.sample(options, THERE), torch.tensor(mixture.CENTRES, device=THERE)
    encoder, truth, records = make(THERE), means.clone(), []

    def record(step: int, log_q: torch.Tensor) -> None:
        records.append(mixture.measure(x, log_q, means, truth, options.variance))

    mixture.train(x, encoder, means, options.variance, 2, 1e-3, True, record)
    assert len(records) == 2
    assert means.device == encoder.theta.grad.device == THERE


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("encoder", ["e1", "e2", "e3", "e4"])
def test_hashing(encoder: Any, layers: int) -> None:
    options = hashing.Options(
        encoder=encoder,
        decoder_layers=layers,
        bits=4,
        pairs=2,
        batch_size=16,
        epochs=1,
        fine_epochs=1,
        held_out=0.2,
        test_counts=encoder != "e1",
    )
    trainer = hashing.Trainer(options, corpus(), THERE)
    losses = hashing.step(trainer, trainer.train.batch(np.arange(16)), options.pairs)
    trainer.record({"train": losses.item(), **hashing.test(trainer)})
    assert len(trainer.model.codes(trainer.test)) == len(trainer.test)
    assert {p.grad.device for p in trainer.model.parameters() if p.grad is not None} == {THERE}


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("objective", ["likelihood", "elbo", "disarm", "regression"])
def test_exact(objective: Any) -> None:
    sums = hashing.Exact(hashing.ExactOptions(bits=3, decoder_layers=1), corpus(), THERE)
    model = sums.model("e1")
    parts = ("encoder",) if objective == "regression" else ("encoder", "decoder")
    stage = hashing.Stage("stage", "e1", objective, 1, parts)
    history = (sums.regress if objective == "regression" else sums.fit)(model, stage)
    assert len(history["test_elbo"]) == 1


@pytest.mark.usefixtures("pretended")
def test_dcgan() -> None:
    options = dcgan.Options(data="faces", ngf=2, ndf=2, nz=3, batch_size=4, held_out=6)
    trainer = dcgan.Trainer(options, faces.draw(14, 0), THERE, "thumbnails")
    losses = trainer.step(trainer.batch(torch.arange(4)))
    real = moments(thumbnails, iter([torch.zeros(6, 3, 64, 64, device=THERE)]))
    frechet_distance(real, moments(thumbnails, trainer.generated(6)))
    assert losses.device == THERE


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("protocol", ["report", "released"])
@pytest.mark.parametrize("joint", [False, True])
def test_encoder_and_joint_training(protocol: Any, joint: bool) -> None:
    options = replace(
        celeba_encoder.QUICK,
        protocol=protocol,
        batch_size=4,
        test_images=8,
        bound_images=1,
        laplace_images=1,
        fid_images=8,
        track_images=4,
        precision="float32",
    )
    truth, discriminator = dcgan.Generator(3, 2).to(THERE), dcgan.Discriminator(2).to(THERE).eval()
    encoder, decoder = (
        celeba_encoder.Encoder(3, 2).to(THERE),
        dcgan.Generator(3, 2).to(THERE) if joint else None,
    )
    vae = celeba_encoder.VAE(truth, encoder, 0.05, decoder).to(THERE)
    spaces = {"discriminator": discriminator.features}

    def objective(z: torch.Tensor, x: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
        loss = -vae.elbo(x, noise)["elbo"] if joint else -evidence.log_normal(z, *vae.encoder(x))
        return loss.mean()

    trainer = celeba_encoder.Trainer(vae, objective, (1e-3, (0.9, 0.999)), options, spaces, THERE)
    with celeba_encoder.modes(vae, "encoder", learning=True):
        loss = trainer.step()
    trainer.track()
    metrics, _ = celeba_encoder.evaluate(vae, options, spaces, faces.draw(8, 0), {}, THERE)
    assert loss.device == THERE
    assert metrics["frechet"]["discriminator"].keys() >= {"means", "floor"}


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_joint_training_without_an_encoder(weight: float) -> None:
    options = celeba_joint.Options(
        weight=weight, batch_size=4, evidence_images=4, precision="float32"
    )
    truth, decoder = dcgan.Generator(3, 2).to(THERE), dcgan.Generator(3, 2).to(THERE)
    vae = (
        celeba_encoder.VAE(truth, celeba_encoder.Encoder(3, 2).to(THERE), 0.05, decoder)
        .to(THERE)
        .eval()
    )
    trainer = celeba_joint.Joint(vae, options, {}, THERE)
    assert trainer.step().device == THERE
    z = torch.zeros(4, 3, device=THERE)
    full = evidence.Posteriors("full", vae.sample(z, trainer.noise)[1], z)
    assert (
        evidence.estimate(full.log_weights(vae, torch.zeros(2, 4, 3, device=THERE)))[0].device
        == THERE
    )
