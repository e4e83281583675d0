"""Gradient estimators for Bernoulli latents, and how noisy each is (Section 5.1, "Gradient estimation").

For q(z) = prod_i Bernoulli(z_i; sigmoid(logits_i)) and any function f of the code, each estimator below returns
an unbiased estimate of E_q f(z), and its backward pass leaves an unbiased estimate of the gradient

  * in `logits`: by ARM (Yin & Zhou, 2018), by DisARM (Dong, Mnih & Tucker, 2020, eq. 7, found at the same time as
    "U2G" by Yin, Ho, Yan, Qian & Zhou), by REINFORCE with a leave-one-out baseline (Kool, van Hoof & Welling, 2019)
    on two independent samples, or exactly, by summing over all 2^b codes;
  * in everything that f depends on, the decoder's parameters for one, by differentiating the mean of its values.

One convention for all: `estimator(f, logits, generator)`, where

  logits:  shape (..., b)
  f:       maps codes of shape (S, ..., b), zeros and ones, to values of shape (S, ...). It is called once, with all S
           samples stacked (S = 2, or 2^b for enumeration), and must not be differentiable in the logits itself: a term
           such as log q(z) enters with the logits detached, since E_q[grad log q(z)] = 0.
  returns: shape (...), the mean value of f.

Run as a script, it measures the variance of each against the scale of the logits and the number of bits b,
on documents and a decoder like those of Section 5, only smaller.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from figures import section5
from figures.run import cli, pick_device, save_result, table

Objective = Callable[[Tensor], Tensor]


def disarm(f: Objective, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """DisARM: an antithetic pair, with the uniform noise integrated out given the two codes."""
    _, z, z_tilde = _antithetic_pair(logits, generator)
    values = f(torch.stack([z, z_tilde]))
    gradient = 0.5 * _difference(values) * (z - z_tilde) * torch.sigmoid(logits.detach().abs())
    return _with_gradient(values.mean(0), logits, gradient)


def arm(f: Objective, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """ARM (augment, REINFORCE, merge): the same antithetic pair, weighted by the noise itself."""
    u, z, z_tilde = _antithetic_pair(logits, generator)
    values = f(torch.stack([z, z_tilde]))
    return _with_gradient(values.mean(0), logits, _difference(values) * (0.5 - u))


def reinforce(f: Objective, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """REINFORCE on two independent samples, each the baseline of the other."""
    probability = torch.sigmoid(logits.detach())
    z = (_uniform((2, *logits.shape), logits, generator) < probability).to(logits.dtype)
    values = f(z)
    return _with_gradient(values.mean(0), logits, 0.5 * _difference(values) * (z[0] - z[1]))


def enumeration(f: Objective, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """The exact expectation and gradient, a sum over all 2^b codes; for small b. Draws nothing from `generator`."""
    bits = logits.shape[-1]
    z = codes(bits, logits).reshape(-1, *(1,) * (logits.dim() - 1), bits).expand(-1, *logits.shape)
    return (log_bernoulli(z, logits).exp() * f(z)).sum(0)


ESTIMATORS = {"disarm": disarm, "arm": arm, "reinforce": reinforce, "enumeration": enumeration}


def codes(bits: int, like: Tensor) -> Tensor:
    """All binary codes, shape (2^bits, bits), in counting order with the first bit the most significant."""
    numbers = torch.arange(2**bits, device=like.device)
    return ((numbers[:, None] >> torch.arange(bits - 1, -1, -1, device=like.device)) & 1).to(like.dtype)


def log_bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    """log q(z) in nats, shape (...), for codes and logits of shape (..., b)."""
    return (z * logits - torch.nn.functional.softplus(logits)).sum(-1)


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def _antithetic_pair(logits: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform noise u, and the codes that u and 1 - u give; each code alone is a sample of q."""
    u = _uniform(logits.shape, logits, generator)
    probability = torch.sigmoid(logits.detach())
    return u, (u < probability).to(logits.dtype), (1 - u < probability).to(logits.dtype)


def _difference(values: Tensor) -> Tensor:
    return (values[0] - values[1]).detach().unsqueeze(-1)


def _with_gradient(value: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """`value`, made to pass `gradient` on to the logits: the added term is zero and has that derivative."""
    return value + (gradient * (logits - logits.detach())).sum(-1)


@dataclass(frozen=True)
class Options:
    scales: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """standard deviations of the logits, at the number of bits --at-bits"""
    bits: tuple[int, ...] = (2, 4, 8, 16, 32, 64)
    """numbers of bits b, at the logit scale --at-scale"""
    at_bits: int = 16
    """number of bits of the first panel"""
    at_scale: float = 1.0
    """logit scale of the second panel"""
    documents: int = 16
    """random problems averaged for each point"""
    samples: int = 4000
    """gradient estimates drawn for each problem"""
    vocabulary: int = 500
    """words in the decoder's softmax"""
    length: int = 100
    """words in a document"""
    seed: int = 1
    """seed of problems and samples"""
    device: str | None = None
    """where to compute; default: the accelerator if there is one, else the CPU"""
    out: Path = Path("runs/disarm")
    """folder for result.json and the figure"""

    GROUPS: ClassVar = {
        "points of the curves": "scales bits at-bits at-scale",
        "problems": "documents samples vocabulary length",
        "run": "seed device out",
    }
    EXAMPLES: ClassVar = (
        ("", "both curves, in half a minute"),
        ("--samples 40000 --out runs/finer", "with a third of the statistical error"),
    )

    def __post_init__(self) -> None:
        counts = ("at_bits", "documents", "vocabulary", "length")
        for name in (*counts, "samples"):
            if getattr(self, name) < (2 if name == "samples" else 1):
                raise ValueError(f"--{name.replace('_', '-')} is too small: {getattr(self, name)}")
        if (
            not self.scales
            or not self.bits
            or min(self.bits) < 1
            or not all(0 < scale < float("inf") for scale in (*self.scales, self.at_scale))
        ):
            raise ValueError("--bits must all be at least 1, and scales positive numbers")


def total_variance(name: str, b: int, scale: float, options: Options, device: torch.device) -> float:
    """Sum over the b coordinates of the variance of the gradient in the logits (nats squared), mean over documents.

    The objective is Section 5's: -log p(x given z) + log q(z) - log p(z), with a random log-linear decoder and a
    document drawn from it.
    """
    problems = torch.Generator(device).manual_seed(options.seed)  # the same problems for every estimator
    noise = torch.Generator(device).manual_seed(options.seed + 1)
    total = 0.0
    for _ in range(options.documents):
        weight = torch.randn(b, options.vocabulary, generator=problems, device=device) / b**0.5
        code = torch.randint(2, (b,), generator=problems, device=device).float()
        words = torch.multinomial(torch.softmax(code @ weight, -1), options.length, True, generator=problems)
        counts = torch.bincount(words, minlength=options.vocabulary).float()
        logits = scale * torch.randn(b, generator=problems, device=device)

        def f(z: Tensor, weight=weight, counts=counts, logits=logits) -> Tensor:
            return -(torch.log_softmax(z @ weight, -1) @ counts) + log_bernoulli(z, logits)

        draws = logits.repeat(options.samples, 1).requires_grad_()
        ESTIMATORS[name](f, draws, noise).sum().backward()
        total += draws.grad.var(0).sum().item()
    return total / options.documents


def main(options: Options) -> None:
    device = pick_device(options.device)
    start = time.perf_counter()
    names = ("arm", "reinforce", "disarm")
    panels = {
        "scale": [(options.at_bits, scale) for scale in options.scales],
        "bits": [(b, options.at_scale) for b in options.bits],
    }
    metrics = {panel: {name: [] for name in names} for panel in panels}
    with tqdm(total=len(names) * sum(map(len, panels.values())), desc="variance", unit="point") as bar:
        for panel, points in panels.items():
            for b, scale in points:
                for name in names:
                    metrics[panel][name].append(total_variance(name, b, scale, options, device))
                    bar.update()
    result = save_result(options.out, options, device, time.perf_counter() - start, metrics, history={})
    rows = [
        (f"b = {b}, logit scale {scale:g}", *(metrics[panel][name][i] for name in names))
        for panel, points in panels.items()
        for i, (b, scale) in enumerate(points)
    ]
    print(table(("total variance, nats^2", "ARM", "REINFORCE-LOO", "DisARM"), rows, digits=2))
    section5.draw_estimator_variance(result, options.out)
    print(f"result and figure in {options.out}")


if __name__ == "__main__":
    cli(Options, main, "Measure the variance of ARM, REINFORCE-LOO and DisARM gradients (Section 5.1).")
