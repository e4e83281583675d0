"""Gradient estimators for Bernoulli latents (Section 5.1, "Gradient estimation").

For q(z) = prod_i Bernoulli(z_i; sigmoid(logits_i)) and any function f of the code, each estimator
below returns an unbiased estimate of E_q f(z), and its backward pass leaves an unbiased estimate of
the gradient

  * in `logits`: by ARM (Yin & Zhou, 2018), by DisARM (Dong, Mnih & Tucker, 2020, eq. 7, found at
    the same time as "U2G" by Yin, Ho, Yan, Qian & Zhou), by REINFORCE with a leave-one-out baseline
    (Kool, van Hoof & Welling, 2019) on two independent samples;
  * in everything that f depends on, the decoder's parameters for one, by differentiating the mean
    of its values.

One convention for all: `estimator(f, logits, generator)`, where

  logits:  shape (..., b)
  f:       maps codes of shape (2, ..., b), zeros and ones, to values of shape (2, ...). It is
           called once, with both samples stacked, and must not be differentiable in the logits
           itself: a term such as log q(z) enters with the logits detached, since
           E_q[grad log q(z)] = 0.
  returns: shape (...), the mean value of f.

Where b is small, `log_posterior`, `exact_elbo` and `best_factorized` sum over all 2^b codes
instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor

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


ESTIMATORS = {"disarm": disarm, "arm": arm, "reinforce": reinforce}


def codes(bits: int, like: Tensor) -> Tensor:
    """All binary codes, shape (2^bits, bits), in counting order; the first bit counts most."""
    numbers = torch.arange(2**bits, device=like.device)
    shifts = torch.arange(bits - 1, -1, -1, device=like.device)
    return ((numbers[:, None] >> shifts) & 1).to(like.dtype)


def log_linear(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Log-softmax over words of weight z + bias, (V, b) and (V,), for all codes z: two factors,
    (V, b + 2) and (b + 2, 2^b).

    It is the logits less log Z. Z is a sum over words of exponentials that are products: of the
    code's first half, and of its second; in float64, whose range is that of logits of hundreds.
    """
    words, bits = weight.shape
    bias, first = bias[:, None], bits // 2
    a = weight[:, :first] @ codes(first, weight).T + bias  # (V, 2^first)
    c = weight[:, first:] @ codes(bits - first, weight).T
    log_z = (a.double().exp().T @ c.double().exp()).log().to(weight)
    features = torch.cat([codes(bits, weight).T, log_z.new_ones(1, 2**bits), -log_z.view(1, -1)])
    return torch.cat([weight, bias, bias.new_ones(words, 1)], 1), features


def log_bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    """log q(z) in nats, shape (...), for codes and logits of shape (..., b)."""
    return (z * logits - torch.nn.functional.softplus(logits)).sum(-1)


def log_posterior(logits: Tensor, z: Tensor) -> Tensor:
    """log q(z given x) for all codes: logits (B, b), z (K, b) -> (B, K)."""
    return logits @ z.T - torch.nn.functional.softplus(logits).sum(-1, keepdim=True)


def exact_elbo(logits: Tensor, joint: Tensor, z: Tensor) -> Tensor:
    """The ELBO of each document, (B,), over all codes z (K, b); joint: log p(x, z), (B, K)."""
    log_q = log_posterior(logits, z)
    return (log_q.exp() * (joint - log_q)).sum(1)


def best_factorized(
    joint: Tensor, start: Tensor, z: Tensor, sweeps: int = 300, anew: bool = True
) -> Tensor:
    """Logits (N, b) of the best factorized posterior found for each document; joint: log p(x, z),
    (N, K), float64.

    Coordinate ascent on the ELBO: given the other bits, the best logit of a bit is the expected
    difference that it makes to log p(x, z). From three starts: `start` (N, b), the marginals of the
    posterior, and its mode; from `start` alone unless `anew`. What is found is a local optimum,
    never below `start`.
    """
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
        best = torch.where(better[:, None], logits, best)
        best_value = torch.where(better, value, best_value)
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
    """`value`, made to pass `gradient` on to the logits: what is added is zero with that slope."""
    return value + (gradient * (logits - logits.detach())).sum(-1)
