"""log p(x) of images under a decoder, and how far below it ELBOs are (Section 4).

A bound cannot show what joint training costs, so log p(x) itself is estimated: by importance
sampling from Gaussians that are fitted to each image; and for the ground truth from its Jacobian.
celeba_joint.py trains by such Gaussians, too.

`vae` has the networks `truth` g*, `encoder` and `decoder` g, as those of dcgan.py with their
Jacobians, the standard deviation `sigma` of the ground truth's pixels and `log_sigma` of the
decoder's, `nz`, and `sample`, as celeba_encoder.VAE.
All quantities are in nats per image.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from figures import run

FAMILIES = ("factorized", "full")
EVIDENCE = ("evidence", "evidence_change", "evidence_half_width", "gap_factorized", "gap_full")
EVIDENCE += ("gap_encoder", "effective_samples")  # of `Evidence.measure`
CHUNK = 256  # images decoded at a time, and columns of Jacobians


def log_normal(x: Tensor, mean: Tensor, log_s: Tensor) -> Tensor:
    """log N(x; mean, diag s^2), summed over all dimensions but the first."""
    of_each = -0.5 * ((x - mean) / log_s.exp()) ** 2 - log_s - 0.5 * math.log(2 * math.pi)
    return of_each.flatten(1).sum(1)


def kl_to_prior(mu: Tensor, log_s: Tensor) -> Tensor:
    """KL(N(mu, diag s^2) || N(0, I)), (N,), of mu and log s, (N, nz)."""
    return 0.5 * (mu**2 + (2 * log_s).exp() - 1 - 2 * log_s).sum(1)


def normal(shape: Sequence[int], noise: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=noise, device=noise.device)


def noise_surplus(x: Tensor, clean: Tensor, sigma: float) -> Tensor:
    """By how many nats (N,) the noise of x = x* + sigma e is larger than expected: (|e|^2 -
    dimensions) / 2.

    Its mean is zero and it is common to all log-likelihoods of x; added to them it takes away most
    of their variance.
    """
    return 0.5 * ((((x - clean) / sigma) ** 2).flatten(1).sum(1) - clean[0].numel())


def laplace(vae: Any, options: Any, device: torch.device) -> dict[str, float]:
    """log p(x) under the ground truth, and the best factorized Gaussian, with g* linear about the
    true z.

    Then the posterior is Gaussian with precision H = I + J'J / sigma^2, J the Jacobian of g*; with
    x = g*(z) + sigma e its mode lies at z + H^-1 b, b = J'e / sigma - z, and
        log p(x) = log p(x, z) + b'H^-1 b / 2 + log(2 pi) nz / 2 - log det H / 2.
    The factorized Gaussian that is closest in KL has the precisions H_ii; it loses (sum log H_ii -
    log det H) / 2.
    """
    noise = torch.Generator(device).manual_seed(3_000_003 + options.seed)
    nz = vae.nz
    totals = {"evidence": 0.0, "factorization": 0.0}
    identity = torch.eye(nz, dtype=torch.float64, device=device)
    for _ in range(options.laplace_images):
        z = normal((1, nz), noise)
        e = normal(vae.truth(z).shape, noise)
        jacobian = vae.truth.with_jacobian(z)[1][0].flatten(1).double()  # (nz, pixels)
        precision = identity + jacobian @ jacobian.T / vae.sigma**2
        b = jacobian @ e.flatten().double() / vae.sigma - z[0].double()
        # Of log N(x; x*, sigma^2 I).
        expected = -0.5 * e.numel() * (1 + math.log(2 * math.pi * vae.sigma**2))
        log_joint = expected + log_normal(z, 0 * z, 0 * z)
        log_det = torch.logdet(precision)
        value = log_joint.double().item() + 0.5 * (b @ torch.linalg.solve(precision, b)).item()
        value += 0.5 * nz * math.log(2 * math.pi)
        totals["evidence"] += value - 0.5 * log_det.item()
        totals["factorization"] += 0.5 * (precision.diagonal().log().sum() - log_det).item()
    return {key: value / options.laplace_images for key, value in totals.items()}


class Posteriors(nn.Module):
    """A Gaussian q(z given x) = N(mean, C) for each of N images x, without an encoder.

    Nothing here checks whether a precision is one, for which an accelerator would be waited for:
    what follows from one that is not finite shows in the loss.

    Its precision is that of Gauss and Newton, P = I + E_q[J'J] / sigma^2 with J the Jacobian of the
    decoder, and C is P^-1 (full) or diag(P)^-1 (factorized): where the decoder is linear, the best
    Gaussian of the family.
    """

    x: Tensor
    mean: Tensor
    precision: Tensor

    def __init__(self, family: str, x: Tensor, start: Tensor):
        super().__init__()
        self.family = family
        self.register_buffer("x", x)
        self.register_buffer("mean", start.clone())  # (N, nz)
        self.register_buffer("precision", torch.diag_embed(torch.ones_like(start)))

    def root(self) -> Tensor:
        """R, (N, nz, nz), with C = R R'."""
        precision = self.precision
        if self.family == "factorized":
            return torch.diag_embed(precision.diagonal(dim1=1, dim2=2).rsqrt())
        upper = torch.linalg.cholesky_ex(precision)[0].mT
        identity = torch.eye(upper.shape[1], dtype=upper.dtype, device=upper.device)
        return torch.linalg.solve_triangular(upper, identity.expand_as(upper), upper=True)

    def sample(self, e: Tensor) -> Tensor:
        """z = mean + R e of standard normal e, (S, N, nz) -> (S, N, nz)."""
        return self.mean + torch.einsum("nij,snj->sni", self.root(), e)

    @torch.no_grad()
    def to_mode(self, vae: Any, steps: int) -> None:
        """Gauss-Newton steps to the largest log p(x, z), each halved until that does not fall."""
        for _ in range(steps):
            gradient, self.precision = curvature(vae, self.x, self.mean)
            step = torch.linalg.solve_ex(self.precision, gradient)[0]
            candidates = torch.stack([self.mean, *(self.mean + step / 2**i for i in range(5))])
            best = log_joint(vae, self.x, candidates).argmax(0)
            self.mean = candidates[best, torch.arange(len(best), device=best.device)]

    def pair_elbo(self, vae: Any, e: Tensor) -> Tensor:
        """An estimate of the ELBO of each image, nats, (N,), from the pair mean +- R e, e (N, nz).

        Differentiable in the decoder, and in the means, whose gradient is E_q[J'(x - g(z))] /
        sigma^2 - mean; for a linear decoder, the pair's is exact.
        """
        self.mean.requires_grad_()
        return self.log_weights(vae, torch.stack([e, -e])).mean(0)

    @torch.no_grad()
    def improve(self, gradient: Tensor, rate: float) -> None:
        """A natural-gradient step of the means on the ELBO, given its gradient (N, nz)."""
        step = torch.linalg.solve_ex(self.precision, gradient[..., None])[0][..., 0]
        self.mean = self.mean.detach() + rate * step

    def climb(self, vae: Any, e: Tensor, rate: float) -> None:
        """The same with the gradient from the pair mean +- R e, e (N, nz)."""
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.pair_elbo(vae, e).sum(), self.mean)
        self.improve(gradient, rate)

    @torch.no_grad()
    def renew(self, new: "Posteriors") -> None:
        """The new images and their Gaussians take the place of the oldest."""
        for name in ("x", "mean", "precision"):
            setattr(self, name, torch.cat([getattr(self, name)[len(new.x) :], getattr(new, name)]))

    def settle(self, vae: Any, noise: torch.Generator) -> None:
        """To the Gaussian of largest ELBO, in three steps from the mode, of precisions too."""
        for rate in (1 / 2, 1 / 3, 1 / 4):
            e = normal(self.mean.shape, noise).to(self.mean)
            _, precision = curvature(vae, self.x, self.sample(e[None])[0])
            self.precision = self.precision.lerp(precision, rate)
            self.climb(vae, e, rate)

    def log_weights(self, vae: Any, e: Tensor) -> Tensor:
        """log p(x, z) - log q(z given x), nats, (S, N), of the samples made of e, (S, N, nz)."""
        zero = torch.zeros_like(e[0])
        log_e = torch.stack([log_normal(part, zero, zero) for part in e])
        log_det = self.root().diagonal(dim1=1, dim2=2).log().sum(1)
        return log_joint(vae, self.x, self.sample(e)) - log_e + log_det


def log_joint(vae: Any, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z), nats, (S, B), of images x (B, 3, 64, 64) and latents z (S, B, nz)."""
    values, zero = [], z.new_zeros(())
    for part in z.split(max(1, CHUNK // len(x))):
        flat = part.flatten(0, 1)
        of_x = log_normal(x.repeat(len(part), 1, 1, 1), vae.decoder(flat), vae.log_sigma)
        values.append((of_x + log_normal(flat, zero, zero)).view(part.shape[:2]))
    return torch.cat(values)


def curvature(vae: Any, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of log p(x, z) in z, (B, nz), and Gauss-Newton's I + J'J / sigma^2, (B, nz, nz)."""
    nz, gradients, precisions = z.shape[1], [], []
    identity = torch.eye(nz, dtype=z.dtype, device=z.device)
    size = max(1, CHUNK // nz)
    for images, latents in zip(x.split(size), z.split(size), strict=True):
        decoded, jacobian = vae.decoder.with_jacobian(latents)
        jacobian = jacobian.flatten(2) / vae.log_sigma.exp()  # (B, nz, pixels)
        residual = ((images - decoded) / vae.log_sigma.exp()).flatten(1)
        gradients.append(torch.einsum("bkp,bp->bk", jacobian, residual) - latents)
        precisions.append(identity + jacobian @ jacobian.mT)
    return torch.cat(gradients), torch.cat(precisions)


class Evidence(nn.Module):
    """log p(x) under the present decoder, and ELBOs below it, on held-out images of the truth."""

    first: Tensor  # log p(x) of each image at the first call
    change: Tensor  # that at the last call, less the first

    def __init__(self, vae: Any, options: Any, device: torch.device):
        super().__init__()
        noise = torch.Generator(device).manual_seed(6_000_003 + options.seed)
        n, self.samples = options.evidence_images, options.evidence_samples
        z = normal((n, vae.nz), noise)
        clean, x = vae.sample(z, noise)
        self.best = nn.ModuleDict({family: Posteriors(family, x, z) for family in FAMILIES})
        self.seed = options.seed
        self.surplus = noise_surplus(x, clean, vae.sigma)
        self.register_buffer("first", torch.full_like(self.surplus, math.nan, dtype=torch.float64))
        self.register_buffer("change", torch.zeros_like(self.first))

    @torch.no_grad()
    def measure(self, vae: Any) -> dict[str, float]:
        """Means over the images, nats: `evidence`, and its change since the first call, paired by
        image, with the half width of its 95% interval; `gap_...` of the best factorized and full
        Gaussian, and of the encoder, below it; and the smallest effective sample size of 100.
        """
        # The same at each call.
        noise = torch.Generator(self.first.device).manual_seed(7_000_003 + self.seed)
        starting = bool(self.first.isnan().any())
        full, factorized = self.best["full"], self.best["factorized"]
        assert isinstance(full, Posteriors)
        assert isinstance(factorized, Posteriors)
        full.to_mode(vae, 10 if starting else 2)
        factorized.load_state_dict(full.state_dict())  # the mode is the same
        full.settle(vae, noise)
        factorized.settle(vae, noise)
        e = normal((-(-self.samples // 2), *full.mean.shape), noise)
        log_w = full.log_weights(vae, torch.cat([e, -e])).double()
        few = e[: -(-len(e) // 5)]
        few = torch.cat([few, -few])
        evidence, effective = estimate(log_w)
        if (low := effective < 10).any():
            again = Posteriors("full", full.x[low], full.mean[low])
            again.precision = full.precision[low]
            more = normal((10, self.samples, *again.mean.shape), noise)
            weights = torch.cat([again.log_weights(vae, e).double() for e in more])
            evidence[low], effective[low] = estimate(weights)
        if starting:
            self.first.copy_(evidence)
        change = self.change.copy_(evidence - self.first)
        mu, log_s = vae.encoder(full.x)
        log_q = -0.5 * (few**2).sum(2) - log_s.sum(1) - 0.5 * vae.nz * math.log(2 * math.pi)
        of_encoder = log_joint(vae, full.x, mu + log_s.exp() * few).double() - log_q
        below = {"factorized": factorized.log_weights(vae, few).double(), "full": log_w}
        below["encoder"] = of_encoder
        gaps = {name: (evidence - elbo.mean(0)).mean().item() for name, elbo in below.items()}
        return {
            "evidence": (evidence + self.surplus).mean().item(),
            "evidence_change": change.mean().item(),
            "evidence_half_width": run.half_width(change.tolist()),
            **{f"gap_{name}": gap for name, gap in gaps.items()},
            "effective_samples": effective.min().item(),
        }


def estimate(log_w: Tensor) -> tuple[Tensor, Tensor]:
    """log of the mean weight, and effective sample size of 100, (N,), of log weights (S, N)."""
    total = log_w.logsumexp(0)
    effective = (2 * total - (2 * log_w).logsumexp(0)).exp() * 100 / len(log_w)
    return total - math.log(len(log_w)), effective
