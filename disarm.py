"""Gradient estimators for Bernoulli latents, and how noisy each is (Section 5.1, "Gradient
estimation").

For q(z) = prod_i Bernoulli(z_i; sigmoid(logits_i)) and any function f of the code, each estimator
below returns an unbiased estimate of E_q f(z), and its backward pass leaves an unbiased estimate of
the gradient

  * in `logits`: by ARM (Yin & Zhou, 2018), by DisARM (Dong, Mnih & Tucker, 2020, eq. 7, found at
    the same time as "U2G" by Yin, Ho, Yan, Qian & Zhou), by REINFORCE with a leave-one-out baseline
    (Kool, van Hoof & Welling, 2019) on two independent samples, or exactly, by summing over all 2^b
    codes;
  * in everything that f depends on, the decoder's parameters for one, by differentiating the mean
    of its values.

One convention for all: `estimator(f, logits, generator)`, where

  logits:  shape (..., b)
  f:       maps codes of shape (S, ..., b), zeros and ones, to values of shape (S, ...). It is
           called once, with all S samples stacked (S = 2, or 2^b for enumeration), and must not be
           differentiable in the logits itself: a term such as log q(z) enters with the logits
           detached, since E_q[grad log q(z)] = 0.
  returns: shape (...), the mean value of f.

Where b is small, `log_posterior`, `exact_elbo` and `best_factorized` sum over all 2^b codes
instead.

Run as a script, it measures the variance of each estimator against the scale of the logits and the
number of bits b, on documents and a decoder like those of Section 5, only smaller:

    uv run disarm.py                                       both curves, in half a minute
    uv run disarm.py --samples 40000 --out runs/finer      with a third of the statistical error
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from figures import section5
from figures.cli import Count, Natural, Positive, Several, cli
from figures.run import pick_device, print_closing, print_table, save_result

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
    """The exact expectation and gradient, a sum over all 2^b codes; for small b. Draws nothing from
    `generator`."""
    bits = logits.shape[-1]
    z = codes(bits, logits).reshape(-1, *(1,) * (logits.dim() - 1), bits).expand(-1, *logits.shape)
    return (log_bernoulli(z, logits).exp() * f(z)).sum(0)


ESTIMATORS = {"disarm": disarm, "arm": arm, "reinforce": reinforce, "enumeration": enumeration}


def codes(bits: int, like: Tensor) -> Tensor:
    """All binary codes, shape (2^bits, bits), in counting order with the first bit the most
    significant."""
    numbers = torch.arange(2**bits, device=like.device)
    return ((numbers[:, None] >> torch.arange(bits - 1, -1, -1, device=like.device)) & 1).to(
        like.dtype
    )


def log_bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    """log q(z) in nats, shape (...), for codes and logits of shape (..., b)."""
    return (z * logits - torch.nn.functional.softplus(logits)).sum(-1)


def log_posterior(logits: Tensor, z: Tensor) -> Tensor:
    """log q(z given x) for all codes: logits (B, b), or (B, K, b) where they depend on the code, z
    (K, b) -> (B, K)."""
    if logits.dim() == 3:
        return log_bernoulli(z, logits)
    return logits @ z.T - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)


def exact_elbo(logits: Tensor, joint: Tensor, z: Tensor) -> Tensor:
    """The ELBO of each document, (B,), summed over all codes z (K, b); joint: log p(x, z), (B,
    K)."""
    log_q = log_posterior(logits, z)
    return (log_q.exp() * (joint - log_q)).sum(1)


def sampled_elbo(logits: Tensor, joint: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """The ELBO of each document from one DisARM pair, whose values are looked up in `joint`."""
    place = 2 ** torch.arange(z.shape[1] - 1, -1, -1, device=z.device)

    def f(pair: Tensor) -> Tensor:
        number = (pair.long() * place).sum(
            -1, keepdim=True
        )  # not @: CUDA has no product of integers
        values = joint.expand(len(pair), *joint.shape).gather(2, number)[..., 0]
        return values - log_bernoulli(pair, logits.detach())

    return disarm(f, logits, generator)


def best_factorized(
    joint: Tensor, start: Tensor, z: Tensor, sweeps: int = 300, anew: bool = True
) -> Tensor:
    """Logits (N, b) of the best factorized posterior found for each document; joint: log p(x, z),
    (N, K), float64.

    Coordinate ascent on the ELBO: given the other bits, the best logit of a bit is the expected
    difference that it makes to log p(x, z). From three starts: `start` (N, b), the marginals of the
    posterior, and its mode; from `start` alone unless `anew`. What is found is a local optimum,
    never below `start`."""
    bits = z.shape[1]
    number = torch.arange(len(z), device=z.device)
    ones = [number[z[:, i] == 1] for i in range(bits)]
    zeros = [one - 2 ** (bits - 1 - i) for i, one in enumerate(ones)]
    mode = z[joint.argmax(1)]
    marginal = (torch.softmax(joint, 1) @ z).clamp(1e-12, 1 - 1e-12)
    best, best_value = start, exact_elbo(start, joint, z)
    for logits in (start, torch.logit(marginal), 16 * mode - 8) if anew else (start,):
        logits, moving = logits.clone(), torch.arange(len(joint), device=z.device)
        for _ in range(sweeps):
            part, values = logits[moving], joint[moving]
            before = torch.sigmoid(part)
            for i in range(bits):
                others = part.clone()
                others[:, i] = 0
                weight = 2 * log_posterior(others, z[ones[i]]).exp()  # the bit itself counts 1/2
                part[:, i] = (weight * (values[:, ones[i]] - values[:, zeros[i]])).sum(1)
            logits[moving] = part
            moving = moving[(torch.sigmoid(part) - before).abs().amax(1) > 1e-7]
            if not len(moving):
                break
        value = exact_elbo(logits, joint, z)
        better = value > best_value
        best, best_value = (
            torch.where(better[:, None], logits, best),
            torch.where(better, value, best_value),
        )
    return best


def _uniform(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)


def _antithetic_pair(
    logits: Tensor, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Uniform noise u, and the codes that u and 1 - u give; each code alone is a sample of q."""
    u = _uniform(logits.shape, logits, generator)
    probability = torch.sigmoid(logits.detach())
    return u, (u < probability).to(logits.dtype), (1 - u < probability).to(logits.dtype)


def _difference(values: Tensor) -> Tensor:
    return (values[0] - values[1]).detach().unsqueeze(-1)


def _with_gradient(value: Tensor, logits: Tensor, gradient: Tensor) -> Tensor:
    """`value`, made to pass `gradient` on to the logits: the added term is zero and has that
    derivative."""
    return value + (gradient * (logits - logits.detach())).sum(-1)


@dataclass(frozen=True)
class Options:
    scales: tuple[Positive, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """standard deviations of the logits, at the number of bits --at-bits"""
    bits: tuple[Count, ...] = (2, 4, 8, 16, 32, 64)
    """numbers of bits b, at the logit scale --at-scale"""
    at_bits: Count = 16
    """number of bits of the first panel"""
    at_scale: Positive = 1.0
    """logit scale of the second panel"""
    documents: Count = 16
    """random problems averaged for each point"""
    samples: Several = 4000
    """gradient estimates drawn for each problem"""
    vocabulary: Count = 500
    """words in the decoder's softmax"""
    length: Count = 100
    """words in a document"""
    seed: Natural = 1
    """seed of problems and samples"""
    device: str | None = None
    """where to compute; default: the accelerator if there is one, else the CPU"""
    out: Path = Path("runs/disarm")
    """folder for result.json and the figure"""


def total_variance(
    name: str, b: int, scale: float, options: Options, device: torch.device
) -> float:
    """Sum over the b coordinates of the variance of the gradient in the logits (nats squared), mean
    over documents.

    The objective is Section 5's: -log p(x given z) + log q(z) - log p(z), with a random log-linear
    decoder and a document drawn from it.
    """
    problems = torch.Generator(device).manual_seed(
        options.seed
    )  # the same problems for every estimator
    noise = torch.Generator(device).manual_seed(options.seed + 1)
    total = 0.0
    for _ in range(options.documents):
        weight = torch.randn(b, options.vocabulary, generator=problems, device=device) / b**0.5
        code = torch.randint(2, (b,), generator=problems, device=device).float()
        words = torch.multinomial(
            torch.softmax(code @ weight, -1), options.length, True, generator=problems
        )
        counts = torch.bincount(words, minlength=options.vocabulary).float()
        logits = scale * torch.randn(b, generator=problems, device=device)

        def f(z: Tensor, weight=weight, counts=counts, logits=logits) -> Tensor:
            return -(torch.log_softmax(z @ weight, -1) @ counts) + log_bernoulli(z, logits)

        draws = logits.repeat(options.samples, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(ESTIMATORS[name](f, draws, noise).sum(), draws)
        total += gradient.var(0).sum().item()
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
    with tqdm(
        total=len(names) * sum(map(len, panels.values())), desc="variance", unit="point"
    ) as bar:
        for panel, points in panels.items():
            for b, scale in points:
                for name in names:
                    metrics[panel][name].append(total_variance(name, b, scale, options, device))
                    bar.update()
    result = save_result(
        options.out, options, device, time.perf_counter() - start, metrics, history={}
    )
    rows = [
        (f"b = {b}, logit scale {scale:g}", *(metrics[panel][name][i] for name in names))
        for panel, points in panels.items()
        for i, (b, scale) in enumerate(points)
    ]
    print_table(("total variance, nats^2", "ARM", "REINFORCE-LOO", "DisARM"), rows, digits=2)
    section5.draw_estimator_variance(result, options.out)
    print_closing(result)


RUNS = (("measure", main, Options(), "measure the variance of the gradients"),)

if __name__ == "__main__":
    cli(__doc__, *RUNS)
