"""Joint ELBO training of a fitted encoder and its true decoder (Section 4): Table 1, second row.

It goes on from `celeba_encoder.py`: the encoder found there, a copy of g* as decoder, samples of
the ground truth as data, and the ELBO, reparameterised, with the analytic KL, maximised over both.
The protocol is that of the encoder's run:

                     report                            released
  batch norm         evaluation mode: what is          training mode in all networks; images for FID
                     trained is what is tested         one at a time
  Adam               2e-4                              1e-5

What the decoder loses is measured by Fréchet distances of x* = g*(z): from its re-decoding g(z'),
z' ~ q(z given x), as in the report, and from own samples g(z) of other z. On held-out images it is
measured by log p(x) itself, and by how far the ELBOs of the best Gaussians are below it.

--freeze-decoder is the control that Table 1 lacks. The encoder of its first row maximises log q(z
given x), not the ELBO, so part of what joint training gains is the encoder's.

--weight w takes the encoder away, so that none lags behind: each image has Gaussians of its own,
found by Newton-like steps. What is maximised is (1 - w) times the ELBO of the best full Gaussian
and w times that of the best factorized one. w = 0 is all but maximum likelihood: the control that
Section 3 (d) is there. What w = 1 loses beyond it is the factorized family's.

All quantities are in nats per image, of 12,288 dimensions.

    uv run celeba_joint.py                                      after celeba_encoder.py
    uv run celeba_joint.py --freeze-decoder --out runs/elbo     the control
    uv run celeba_joint.py --weight 1 --out runs/factorized     without an encoder
    uv run celeba_joint.py plane                                small enough to be solved
    uv run celeba_joint.py quick                                after `celeba_encoder.py quick`
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

import celeba_encoder
from celeba_encoder import VAE, Encoder, Protocol, Spaces, Trainer, TrainingOptions
from figures import cli, law, run
from figures.evidence import EVIDENCE, Evidence, Posteriors, kl_to_prior, normal

REUSE_RATE = 0.25  # of the steps of an image's means, once it has been in use
ADAM = {"report": (2e-4, (0.9, 0.999)), "released": (1e-5, (0.9, 0.999))}  # learning rate, betas


@dataclass(frozen=True)
class Options(TrainingOptions):
    encoder: Path = Path("runs/celeba_encoder/model.pt")
    """encoder of celeba_encoder.py, or of --freeze-decoder; its run fixes truth, protocol, sigma"""
    schedule: Literal["constant", "falling"] = "constant"
    """falling: the learning rate rises over the first tenth of the iterations, then falls to zero
    """
    learn_sigma: bool = False
    """train the decoder's sigma too"""
    freeze_decoder: bool = False
    """train the encoder only, by the same ELBO"""
    average: cli.Fraction = 0.0
    """decay per step of a moving average of the decoder, which is tracked and kept; 0: none"""
    weight: cli.OptionalShare = None
    """None: with the encoder; w: without it, (1 - w) ELBO of each image's best full Gaussian + w of
    its factorized; then the evidence is all that is measured, no ELBO at the end and no FID
    """
    reuse: cli.Count = 1
    """without an encoder: steps that an image is used in; twice it divides --batch-size"""
    evidence_images: cli.Natural = 256
    """held-out images whose log p(x) and gaps are tracked; 0: none"""
    evidence_samples: cli.Several = 100
    """samples for each of these, a fifth as many for the gaps, ten times as many where few count"""
    sigma: cli.OptionalPositive = None
    """standard deviation of a pixel in training without an encoder; None: that of the encoder's run
    """
    protocol: tyro.conf.Suppress[tyro.conf.Fixed[Protocol]] = "report"
    """that of the encoder's run"""
    out: Path = Path("runs/celeba_joint")
    """folder for model.pt, result.json and, with an encoder, the figure"""

    def __post_init__(self) -> None:
        if self.evidence_images == 1:
            raise ValueError("--evidence-images must be 0, or at least 2 for an interval")
        if self.weight is None:
            if self.reuse > 1 or self.average:
                raise ValueError("--reuse and --average go with --weight")
        elif self.freeze_decoder or not self.evidence_images:
            raise ValueError("--weight trains the decoder, and wants --evidence-images")
        elif self.precision not in (None, "float32"):
            raise ValueError("--weight wants --precision float32, in which Jacobians are taken")
        elif self.batch_size % (2 * self.reuse):
            raise ValueError("--batch-size must be a multiple of two times --reuse")


QUICK = Options(iterations=250, batch_size=64, track=3, track_images=200, test_images=500)
QUICK = replace(QUICK, laplace_images=8, fid_images=1000, fid_dims=0)
QUICK = replace(QUICK, evidence_images=16, evidence_samples=20)


def shares(options: Options) -> dict[str, float]:
    """How much of the objective is the ELBO of each image's best Gaussian, by family."""
    assert options.weight is not None
    both = {"factorized": options.weight, "full": 1 - options.weight}
    return {family: share for family, share in both.items() if share}


def make_trainer(vae: VAE, options: Options, spaces: Spaces) -> Trainer:
    """The trainer, with what it holds besides: the evidence of held-out images, without an encoder
    the images in use, of each family, the oldest first, and an average of the decoder.
    """
    device = vae.log_sigma.device
    evidence = Evidence(vae, options, device) if options.evidence_images else None
    kinds, also = (), {"evidence": evidence, "images": {}, "averaged": None}
    if options.weight is None:
        kinds = ("frechet",) if options.freeze_decoder else ("frechet", "prior")
    vae.encoder.requires_grad_(options.weight is None)
    trainer = Trainer(vae, ADAM[options.protocol], options, spaces, kinds, **also)
    trainer.history |= {key: [] for key in (EVIDENCE if evidence else ())}
    if options.weight is not None:
        z = torch.zeros(options.batch_size, vae.nz, device=device)
        x = vae.sample(z, trainer.noise)[0]
        trainer.also["images"] = {f: Posteriors(f, 0 * x, z) for f in shares(options)}
    if options.average:
        averaged = AveragedModel(vae.decoder, multi_avg_fn=get_ema_multi_avg_fn(options.average))
        trainer.also["averaged"] = averaged.requires_grad_(False)
        tested = VAE(vae.truth, vae.encoder, vae.sigma, averaged.module)
        trainer.tested = tested.to(device).eval()
    return trainer


def step(trainer: Trainer) -> Tensor:
    """One step of Adam: with an encoder, on the ELBO of one z for each of fresh images; else on
    that of the pairs mean +- R e of images in use, whose Gaussians are improved by it.
    """
    options, vae, noise = trainer.options, trainer.vae, trainer.noise
    images, optimizer = trainer.also["images"], trainer.optimizer
    if options.schedule == "falling":
        done = (trainer.iteration + 0.5) / options.iterations
        highest = options.lr or ADAM[options.protocol][0]
        optimizer.param_groups[0]["lr"] = highest * min(10 * done, (1 - done) / 0.9)
    if options.weight is None:
        with trainer.autocast():
            x = vae.sample(normal((options.batch_size, vae.nz), noise), noise)[1]
            loss = -vae.elbo(x, noise)["elbo"].mean()
    else:
        for _ in range(1 if trainer.iteration else options.reuse):
            renew(images, vae, options, noise)
        e = normal((options.batch_size, vae.nz), noise)
        elbos = [w * images[f].pair_elbo(vae, e).mean() for f, w in shares(options).items()]
        loss = -torch.stack(elbos).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    for family, posteriors in images.items():
        gradient = -posteriors.mean.grad * options.batch_size / shares(options)[family]
        posteriors.improve(gradient, REUSE_RATE)
    if trainer.also["averaged"] is not None:
        trainer.also["averaged"].update_parameters(vae.decoder)
    return loss.detach()


def renew(
    images: Mapping[str, Posteriors], vae: VAE, options: Options, noise: torch.Generator
) -> None:
    """Draw fresh images, find their Gaussians, and drop as many of the oldest."""
    fresh = options.batch_size // options.reuse
    z = normal((fresh // 2, vae.nz), noise)
    clean, x = vae.sample(z, noise)
    # Each with its pixels' noise and with the opposite: what the noise adds to the gradient all
    # but cancels.
    modes_of = Posteriors("full", torch.cat([x, 2 * clean - x]), torch.cat([z, z]))
    pairs = normal((3, fresh, vae.nz), noise)
    # Its precision, of the true z, is all but one sample of the posterior's mean.
    modes_of.to_mode(vae, 1)
    for family, posteriors in images.items():
        new = Posteriors(family, modes_of.x, modes_of.mean)
        new.precision = modes_of.precision
        for i, e in enumerate(pairs):
            new.climb(vae, e, 1 / (i + 1))
        posteriors.renew(new)


def measure(trainer: Trainer) -> dict[str, Any]:
    """With an encoder, its ELBO on fresh samples; else what is maximised, of held-out images, each
    with its best Gaussians, without parts. And the evidence of held-out images.
    """
    options, measured = trainer.options, {}
    if trainer.also["evidence"] is not None:
        with celeba_encoder.modes(trainer.tested):
            measured = trainer.also["evidence"].measure(trainer.tested)
    if options.weight is None:
        return measured | celeba_encoder.measure(trainer)
    gap = sum(share * measured[f"gap_{family}"] for family, share in shares(options).items())
    return measured | {"elbo": measured["evidence"] - gap, "data": None, "kl": None}


def main(options: Options) -> None:
    device, checkpoint = run.begin(options)
    with run.reading(options.encoder, "encoder of celeba_encoder.py") as before:
        config = before["config"]
        truth, discriminator, origin = celeba_encoder.networks_of(before["ground_truth"], device)
        encoder = Encoder(origin["width"]["nz"], origin["width"]["ndf"])
        encoder.load_state_dict(before["encoder"])
    if options.weight is None and options.sigma not in (None, config["sigma"]):
        raise cli.RunError("--sigma goes with --weight")
    if options.weight is not None and options.precision is None:
        options = replace(options, precision="float32")
    options = run.precise(options, device)
    if options.weight is not None and config["protocol"] != "report":
        raise cli.RunError("--weight wants the report's protocol: here images depend on batches")
    sigma = options.sigma or config["sigma"]
    options = replace(options, protocol=config["protocol"], sigma=sigma)
    if not config.get("freeze_decoder", True):
        raise cli.RunError(f"{options.encoder} is of joint training, not fitted to g*")
    decoder = truth if options.freeze_decoder else copy.deepcopy(truth).requires_grad_(True)
    decoder.to(memory_format=torch.channels_last)  # a tenth faster
    vae = VAE(truth, encoder.to(device), sigma, decoder).to(device).eval()
    vae.log_sigma.requires_grad_(options.learn_sigma)
    spaces = {}
    if options.weight is None:
        spaces = celeba_encoder.feature_spaces(options, discriminator, device)
    trainer = make_trainer(vae, options, spaces)
    by_batch = celeba_encoder.NETWORKS if options.protocol == "released" else ()
    celeba_encoder.train(trainer, step, measure, by_batch, checkpoint)
    vae, evidence = trainer.tested, trainer.also["evidence"]
    model = {name: getattr(vae, name).state_dict() for name in ("encoder", "decoder")}
    model |= {"log_sigma": vae.log_sigma.detach(), "config": run.as_config(options)}
    run.save_torch(options.out / "model.pt", model | {"ground_truth": before["ground_truth"]})
    changes = {} if evidence is None else {"evidence_changes": evidence.change.tolist()}
    if options.weight is None:
        metrics = celeba_encoder.evaluate(vae, options, spaces, device) | changes
        metrics["encoder_fitted_by"] = "ELBO" if "freeze_decoder" in config else "log q"
        metrics["encoder_iterations"] = config["iterations"]
        stage = "frozen, ELBO" if options.freeze_decoder else "joint"
        stage += ", sigma learned" * options.learn_sigma
        celeba_encoder.finish(trainer, metrics, origin, stage)
        return
    last = {key: values[-1] for key, values in trainer.history.items() if values}
    result = run.save_result(
        *(options, device, trainer.seconds, last | changes, trainer.history),
        data=origin["images"],
        ground_truth=dict(origin),
    )
    from figures import section4

    section4.report_evidence(result)


# --- the same in the plane, where nothing is sampled ----------------------------------------------


@dataclass(frozen=True)
class PlaneOptions:
    hidden: cli.Count = 3
    """tanh units of the decoder's hidden layer"""
    pixels: cli.Count = 6
    """dimensions of x"""
    sigmas: tuple[cli.Positive, ...] = (0.8, 0.7, 0.6, 0.5, 0.4)
    """standard deviations of a pixel; a path is followed for each"""
    points: cli.Count = 150
    """points of the ground truth to train on"""
    encoder: cli.OptionalNatural = None
    """None: a best Gaussian for each point; else hidden tanh units of an encoder, 0: linear"""
    family: Literal["factorized", "full"] = "factorized"
    """covariance of the Gaussians q"""
    weights: cli.Several = 9
    """points on the path from likelihood (w = 0) to the ELBO (w = 1), squares of equal steps"""
    seed: cli.Natural = 0
    """seed of ground truth, points and encoder"""
    resume: bool = False
    """keep the finished sigmas of an interrupted run in --out"""
    out: Path = Path("runs/plane")
    """folder for one file per sigma and result.json"""


REACH = 4.5  # half the side of the grid of latents
FRESH = 1000  # points to test on


class Plane:
    """A decoder x = W2 tanh(W1 z + b1) + sigma e with z ~ N(0, I) in the plane.

    There log p(x) is a sum over a grid (spacing at most 0.23 sigma), and an ELBO one over
    Gauss-Hermite nodes, in float64. Parameters are flat vectors: theta of the decoder, phi of all
    q.
    """

    def __init__(self, options: PlaneOptions, sigma: float):
        self.options, self.sigma = options, sigma
        hidden, pixels = options.hidden, options.pixels
        noise = torch.Generator().manual_seed(options.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=noise, dtype=torch.float64)

        self.shapes = [(hidden, 2), (hidden,), (pixels, hidden)]
        parts = draw(hidden, 2), 0.7 * draw(hidden), 2 / hidden**0.5 * draw(pixels, hidden)
        self.truth = torch.cat([part.ravel() for part in parts])
        count = options.points + FRESH
        x = self.decode(self.truth, draw(count, 2)) + sigma * draw(count, pixels)
        self.x, self.fresh = x[: options.points], x[options.points :]
        self.draw_grid(math.ceil(9 * REACH / sigma))
        nodes, masses = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(8))
        self.nodes = torch.cartesian_prod(nodes, nodes)
        self.masses = (masses[:, None] * masses).ravel() / (2 * math.pi)
        # Mean, log standard deviations, (shear).
        self.statistics = 4 if options.family == "factorized" else 5
        widths = [pixels, *([options.encoder] if options.encoder else []), self.statistics]
        pairs = itertools.pairwise(widths)
        self.layers = [shape for a, b in pairs for shape in ((b, a), (b,))]
        lengths = [math.prod(shape) for shape in self.layers]
        self.phi = torch.zeros(options.points * self.statistics, dtype=torch.float64)
        if options.encoder is not None:
            self.phi = 0.3 * draw(sum(lengths))
        # Steps are taken in units of the score's spread, so that no direction is much longer than
        # others.
        self.of_x = functools.partial(self.evidence, x=self.x)
        scores = torch.autograd.functional.jacobian(self.of_x, self.truth)
        fisher = scores.T @ scores / len(self.x)
        fisher += 1e-3 * fisher.diagonal().mean() * torch.eye(len(fisher), dtype=torch.float64)
        self.unit = torch.linalg.inv(torch.linalg.cholesky(fisher)).T

    def draw_grid(self, side: int) -> None:
        """So many nodes a side for log p(x)."""
        nodes = torch.linspace(-REACH, REACH, side, dtype=torch.float64)
        self.grid = torch.cartesian_prod(nodes, nodes)
        log_area = 2 * math.log(2 * REACH / (side - 1))
        self.log_mass = log_area - math.log(2 * math.pi) - 0.5 * (self.grid**2).sum(1)

    def decode(self, theta: Tensor, z: Tensor) -> Tensor:
        """Mean of x, (..., pixels), of latents z, (..., 2)."""
        w1, b1, w2 = split(theta, self.shapes)
        return torch.tanh(z @ w1.T + b1) @ w2.T

    def log_normaliser(self) -> float:
        return 0.5 * self.options.pixels * math.log(2 * math.pi * self.sigma**2)

    def evidence(self, theta: Tensor, x: Tensor) -> Tensor:
        """log p(x), (N,), of points (N, pixels)."""
        g = self.decode(theta, self.grid)
        of_nodes = self.log_mass - (g**2).sum(1) / (2 * self.sigma**2)
        of_points = -(x**2).sum(1) / (2 * self.sigma**2) - self.log_normaliser()
        return torch.addmm(of_nodes, x / self.sigma**2, g.T).logsumexp(1) + of_points

    def gaussians(self, phi: Tensor, x: Tensor) -> Tensor:
        """Mean (2), log standard deviations (2) and, if covariance is full, shear: (N, 4 or 5)."""
        if self.options.encoder is None:
            return phi.view(len(x), -1)
        weight, bias, *top = split(phi, self.layers)
        h = x @ weight.T + bias
        return torch.tanh(h) @ top[0].T + top[1] if top else h

    def elbo(self, theta: Tensor, phi: Tensor, x: Tensor) -> Tensor:
        """ELBO, (N,), of points (N, pixels); z = mean + R e, R lower triangular."""
        q = self.gaussians(phi, x)
        mean, log_s, shear = q[:, :2], q[:, 2:4], q[:, 4:]
        z = mean + log_s.exp() * self.nodes[:, None]
        if shear.numel():
            z = z + nn.functional.pad(shear * self.nodes[:, None, :1], (1, 0))
        distance = self.masses @ ((x - self.decode(theta, z)) ** 2).sum(2)
        kl = kl_to_prior(mean, log_s) + 0.5 * (shear**2).sum(1)
        return -distance / (2 * self.sigma**2) - self.log_normaliser() - kl

    def climb(
        self, value: Callable[[Tensor], Tensor], start: Tensor, unit: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Uphill from `start` by L-BFGS, in coordinates v with parameters start + unit(v)."""
        steps = {"maxcor": 50, "maxiter": 600, "gtol": 1e-6, "ftol": 1e-9}
        zero = torch.zeros_like(start)
        return start + unit(law.uphill(lambda v: value(start + unit(v)), zero, steps))

    def fit(self, theta: Tensor, phi: Tensor) -> Tensor:
        """phi of the largest ELBO."""
        scale = self.options.points**0.5 if self.options.encoder is None else 1.0
        return self.climb(lambda at: self.elbo(theta, at, self.x).mean(), phi, lambda v: scale * v)

    def ascend(
        self, state: tuple[Tensor, Tensor], w: float
    ) -> tuple[tuple[Tensor, Tensor], float, float]:
        """Uphill on E - w G from decoder and q; both, E and G there."""
        (theta, phi), k = state, len(self.truth)
        if w:
            scale = (self.options.points / w) ** 0.5 if self.options.encoder is None else 1.0

            def value(at: Tensor) -> Tensor:
                elbo = self.elbo(at[:k], at[k:], self.x).mean()
                return w * elbo + (1 - w) * self.evidence(at[:k], self.x).mean() if w < 1 else elbo

            def unit(v: Tensor) -> Tensor:
                return torch.cat([self.unit @ v[:k], scale * v[k:]])

            theta, phi = self.climb(value, torch.cat(state), unit).tensor_split([k])
        else:
            theta = self.climb(lambda at: self.of_x(at).mean(), theta, lambda v: self.unit @ v)
            phi = self.fit(theta, phi)
        evidence = self.evidence(theta, self.x).mean().item()
        elbo = self.elbo(theta, phi, self.x).mean().item()
        return (theta, phi), evidence, evidence - elbo


def split(flat: Tensor, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Consecutive parts of a flat vector, in their shapes."""
    parts = flat.split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def plane(options: PlaneOptions) -> None:
    """What joint training costs where all can be summed: the path of a small VAE in the plane."""
    torch.set_num_threads(1)  # of products this small, several take longer
    cases = []
    for sigma in tqdm(options.sigmas, desc="plane", unit="sigma"):

        def path(sigma: float = sigma) -> dict[str, Any]:
            small = Plane(options, sigma)
            start = small.truth, small.fit(small.truth, small.phi)
            metrics, states = law.follow(law.weights(options.weights), small.ascend, start, start)
            ends = ((states[0], 0.0), (states[-1], 1.0))
            metrics["fresh"] = [small.evidence(s[0], small.fresh).mean().item() for s, _ in ends]
            # An optimiser finds what a coarse grid does not see.
            small.draw_grid(2 * math.ceil(9 * REACH / sigma))
            metrics["finer_evidence"] = [small.ascend(state, w)[1] for state, w in ends]
            return {"metrics": metrics}

        state = run.keep(options.out / f"{sigma:g}.pt", options, {"sigmas", "resume", "out"}, path)
        kind = "own" if options.encoder is None else f"encoder{options.encoder}"
        name = f"plane{options.hidden}_{options.family}_{kind}_{sigma:g}_seed{options.seed}"
        case = {"name": name, "section": 4, "knob": "sigma", "value": sigma, "seed": options.seed}
        own, encoder = "best Gaussian of each point", f"encoder of {options.encoder} hidden units"
        q = own if options.encoder is None else encoder
        case |= {"of": f"plane, {options.hidden} hidden units; {options.family}, {q}"}
        cases.append(case | {"seconds": state["seconds"]} | state["metrics"])
    law.save(options, cases)


RUNS = (
    ("report", main, Options(), "the report's joint training, the default"),
    ("quick", main, QUICK, "after `celeba_encoder.py quick`: minutes on two cores, no FID"),
    ("plane", plane, PlaneOptions(), "a Gaussian VAE small enough to be solved"),
)

if __name__ == "__main__":
    cli.main(__doc__, *RUNS)
