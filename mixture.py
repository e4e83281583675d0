"""Four Gaussians, an encoder of two independent bits (Section 3): joint training spoils a decoder.

Ground truth: p*(z) = 1/4 over code words z in {00, 01, 10, 11}, p*(x given z) = N(mu_z, variance
I). Encoder: q(z given x) proportional to exp<g(x), z>, g a ReLU network 2-64-64-2: the two bits of
z are independent given x. The true posterior is not of that form. One run goes through the whole
section, and past it:

  frozen       the encoder alone, trained with the ELBO under the true decoder: the gap is the
               approximation error
  joint        both, from there: the ELBO rises, the decoder's centres leave the data
  consistent   the report's remedy, not in the released code: q = softmax(W x + c), one linear layer
               2 -> 4. It holds the true posterior exactly; trained alone, then jointly, its KL
               vanishes and the decoder stays
  oracle       no network: for each x the best factorized posterior, by coordinate ascent. Its gap
               is what the factorization costs; the rest of the frozen gap is the network's. Also
               with the decoder's centres fitted to it, which is where joint training of a perfect
               network would end
  assignments  the three ways to lay code words on components: which is diagonally opposite which
  law          the oracle's optimum followed from likelihood to the ELBO: what joint training costs
               is an area

All quantities are in nats per point.

    uv run mixture.py           the settings of the report's text
    uv run mixture.py quick     a tenth of the steps, half a minute
    uv run mixture.py --points-per-component 2000 --joint-lr 1e-4     those of its released code
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from figures import cli, law, run

# Of code words 00, 01, 10, 11, as in the released code.
CENTRES = ((1.0, 1.0), (1.0, -1.0), (0.0, 0.0), (-1.0, 0.0))
# For each class of assignments, the component (index into CENTRES) of each code word; 00 is
# opposite 11, 01 to 10.
ASSIGNMENTS = {
    "(1,1) opposite (-1,0)": (0, 1, 2, 3),
    "(1,1) opposite (1,-1)": (0, 2, 3, 1),
    "(1,1) opposite (0,0)": (0, 1, 3, 2),
}
EVERY = 50  # steps between two looks at the ELBO
GRID = 121  # nodes per side of the decision regions
# Trainings of --steps in `section`, two stages each: factorized, consistent, two more assignments.
SECTION_RUNS = 8
HIDDEN = 64
Record = Callable[[int, Tensor], None]  # told of a step and its log q


@dataclass(frozen=True)
class Options:
    points: cli.Count = 2000
    """training points, z drawn first and then x, as the report's text says"""
    points_per_component: cli.OptionalCount = None
    """points for each of the four components, instead of --points; the released code: 2000"""
    variance: cli.Positive = 1.0
    """variance of each component; the report's text says 0.01, its numbers need 1"""
    steps: cli.Count = 10_000
    """full-batch steps with the decoder frozen, and again with both trained"""
    lr: cli.Positive = 1e-3
    """learning rate of Adam with the decoder frozen"""
    joint_lr: cli.Positive = 1e-3
    """learning rate of the new Adam of joint training; the released code has 1e-4"""
    law_variances: tuple[cli.Positive, ...] = (0.2, 0.35, 0.5, 1.0, 2.0, 4.0)
    """variances at which the optimum is followed from likelihood to the ELBO"""
    law_weights: cli.Several = 13
    """points on that path"""
    law_nodes: cli.Several = 24
    """nodes of quadrature about each centre, to a side, for that"""
    seed: cli.Natural = 0
    """seed of data and initialisation"""
    device: str | None = None
    """where to train; None: the accelerator if there is one, else the CPU"""
    resume: bool = False
    """keep the trainings of an interrupted run, if --out has them all"""
    out: Path = Path("runs/mixture")
    """folder for result.json and Figure 1"""


# Five times the rates, for there are few steps.
QUICK = Options(steps=1000, lr=5e-3, joint_lr=5e-3)
QUICK = replace(QUICK, law_variances=(0.35, 1.0), law_weights=7, law_nodes=12)


# --- ground truth ---------------------------------------------------------------------------------


def sample(options: Options, device: torch.device) -> Tensor:
    """Training points, float32, (N, 2). The same seed gives the same noise at every variance."""
    generator = torch.Generator().manual_seed(options.seed)
    if options.points_per_component is None:
        z = torch.randint(4, (options.points,), generator=generator)
    else:
        z = torch.arange(4).repeat_interleave(options.points_per_component)
    noise = torch.randn(len(z), 2, generator=generator)
    return (torch.tensor(CENTRES)[z] + math.sqrt(options.variance) * noise).to(device)


def statistics(x: Tensor) -> Tensor:
    """Sufficient statistics (x_1, x_2, |x|^2, 1) of points (N, 2); shape (4, N)."""
    return torch.stack([x[:, 0], x[:, 1], (x**2).sum(1), torch.ones_like(x[:, 0])])


def natural_parameters(means: Tensor, variance: float) -> Tensor:
    """Rows eta_z with log p(x, z) = <eta_z, statistics(x)>; centres (4, 2) -> (4, 4)."""
    square = -(means**2).sum(1, keepdim=True) / (2 * variance)
    constant = square - math.log(2 * math.pi * variance) - math.log(4)
    return torch.cat([means / variance, torch.full_like(constant, -0.5 / variance), constant], 1)


def log_joint(x: Tensor, means: Tensor, variance: float) -> Tensor:
    """log p(x, z) for all four z, (4, N), of points (N, 2) and centres (4, 2)."""
    return natural_parameters(means, variance) @ statistics(x)


class Elbo:
    """The mean ELBO of the points x, (N, 2), with its gradients in closed form.

    With r_z = log p(x, z) - log q(z given x), the ELBO at x is sum_z q_z r_z; its gradient in the
    unnormalised log q_z is q_z (r_z - ELBO), and in mu_z it is q_z (x - mu_z) / variance.
    """

    def __init__(self, x: Tensor, variance: float):
        self.statistics, self.variance = statistics(x), variance
        self.q, self.r, self.product = x.new_empty(3, 4, len(x))
        self.elbo = x.new_empty(len(x))

    def __call__(self, log_q: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log_q (4, N), means (4, 2) -> ELBO at each x (N,), and the gradients of their *sum* in
        the unnormalised log_q (4, N) and in the means (4, 2). The first two are overwritten by the
        next call.
        """
        q = torch.exp(log_q, out=self.q)
        eta = natural_parameters(means, self.variance)
        r = torch.addmm(log_q, eta, self.statistics, beta=-1, out=self.r)
        elbo = torch.sum(torch.mul(q, r, out=self.product), 0, out=self.elbo)
        moments = q @ self.statistics.T  # sums over x of q_z (x_1, x_2, |x|^2, 1)
        return elbo, r.sub_(elbo).mul_(q), (moments[:, :2] - moments[:, 3:] * means) / self.variance


# --- encoders -------------------------------------------------------------------------------------


class Encoder:
    """q(z given x) = softmax over z of <g(x), T_z>, g a ReLU network, T the features of z, shape
    (4, k).

    Two bits as features make q factorized. The unit vectors of R^4 make it general, and with a
    network of a single linear layer that is the consistent VAE.

    The gradient is written out, and `training_on` allocates every array of N rows once: on a full
    batch, autograd's new arrays cost about as much as the matrix products. All parameters lie in
    one vector `theta`, for Adam in one kernel.
    """

    def __init__(self, sizes: tuple[int, ...], features: Tensor):
        self.features = features
        layers = [nn.Linear(*pair, device=features.device) for pair in itertools.pairwise(sizes)]
        parameters = [p.detach() for layer in layers for p in (layer.weight, layer.bias)]
        self.theta = torch.cat([p.ravel() for p in parameters])
        self.theta.grad = torch.zeros_like(self.theta)
        shapes, lengths = [p.shape for p in parameters], [p.numel() for p in parameters]

        def pairs(flat: Tensor) -> list[tuple[Tensor, Tensor]]:
            parts = zip(flat.split(lengths), shapes, strict=True)
            views = [part.view(shape) for part, shape in parts]
            return list(zip(views[::2], views[1::2], strict=True))

        self.layers, self.grads = pairs(self.theta), pairs(self.theta.grad)

    def training_on(self, x: Tensor) -> None:
        """Allocate what forward and backward passes over the points x, (N, 2), need."""
        self.outputs = [x.new_empty(len(x), len(bias)) for _, bias in self.layers]
        self.grad_top = torch.empty_like(self.outputs[-1])
        self.spare = torch.empty_like(self.outputs[-2:][0])  # as wide as a hidden layer
        self.exponent, self.log_softmax = x.new_empty(2, 4, len(x))

    def log_q(self, x: Tensor, keep: bool = False) -> Tensor:
        """log q(z given x), (4, N). With `keep` the layers' outputs are kept for `backward`."""
        for i, (weight, bias) in enumerate(self.layers):
            x = torch.addmm(bias, x, weight.T, out=self.outputs[i] if keep else None)
            if i + 1 < len(self.layers):
                x.relu_()
        exponent = torch.mm(self.features, x.T, out=self.exponent if keep else None)
        return torch.log_softmax(exponent, 0, out=self.log_softmax if keep else None)

    def backward(self, x: Tensor, grad: Tensor) -> None:
        """Write theta.grad, given the gradient in the unnormalised log q, (4, N), of the last kept
        forward pass.

        Hidden layers have one width. Each output is overwritten on the way, by the gradient of the
        layer below.
        """
        grad = torch.mm(grad.T, self.features, out=self.grad_top)
        spare = self.spare
        for i in reversed(range(len(self.layers))):
            below = self.outputs[i - 1] if i else x
            grad_weight, grad_bias = self.grads[i]
            # The narrow factor first: over N rows that is several times faster.
            if grad.shape[1] < below.shape[1]:
                torch.mm(grad.T, below, out=grad_weight)
            else:
                grad_weight.copy_(torch.mm(below.T, grad).T)
            torch.sum(grad, 0, out=grad_bias)
            if i:  # through the ReLU, in place
                grad = torch.mm(grad, self.layers[i][0], out=spare)
                torch.ops.aten.threshold_backward.grad_input(grad, below, 0, grad_input=grad)
                spare = below


def factorized(device: torch.device) -> Encoder:
    bit = torch.arange(2.0, device=device)
    return Encoder((2, HIDDEN, HIDDEN, 2), torch.cartesian_prod(bit, bit))


def consistent(device: torch.device) -> Encoder:
    return Encoder((2, 4), torch.eye(4, device=device))


def train(
    x: Tensor, encoder: Encoder, means: Tensor, options: Options, joint: bool, record: Record
) -> None:
    """Maximise the mean ELBO by full-batch Adam, in place: the encoder alone, or with `means` (4,
    2) if `joint`.

    record(step, log_q) is called before every EVERY-th step and after the last.
    """
    elbo, steps = Elbo(x, options.variance), options.steps
    encoder.training_on(x)
    # Gradients are of sums over x. Adam is blind to their scale but for its epsilon, which scales
    # along.
    trained = [encoder.theta, means] if joint else [encoder.theta]
    lr = options.joint_lr if joint else options.lr
    optimizer = torch.optim.Adam(trained, lr, eps=1e-8 * len(x), fused=True, maximize=True)
    for step in range(steps):
        log_q = encoder.log_q(x, keep=True)
        if step % EVERY == 0:
            record(step, log_q)
        _, grad_log_q, means.grad = elbo(log_q, means)  # the last of use only if `joint`
        encoder.backward(x, grad_log_q)
        optimizer.step()
    record(steps, encoder.log_q(x))


# --- without a network ----------------------------------------------------------------------------


def oracle(log_p: Tensor) -> Tensor:
    """The factorized posterior of highest ELBO for each x: log p(x, z), (4, N) -> log q(z given x),
    (4, N).

    Coordinate ascent over the two bits. Given P(z_2 = 1) the best log-odds of z_1 are b_1 + c P(z_2
    = 1), and likewise for z_2, where log p(x, z) = a + b_1 z_1 + b_2 z_2 + c z_1 z_2. One sweep is
    a monotone map of P(z_2 = 1), so the starts 0 and 1 lead to the outermost fixed points; 1/2 is a
    third start. float64 throughout.
    """
    f00, f01, f10, f11 = log_p.double()
    b1, b2, c = f10 - f00, f01 - f00, f11 - f10 - f01 + f00
    candidates = []
    for start in (0.0, 0.5, 1.0):
        p2 = torch.full_like(b1, start)
        moving = torch.arange(len(b1), device=b1.device)
        for _ in range(2000):  # few points need more than twenty
            p1 = torch.sigmoid(b1[moving] + c[moving] * p2[moving])
            new = torch.sigmoid(b2[moving] + c[moving] * p1)
            change = (new - p2[moving]).abs()
            p2[moving] = new
            moving = moving[change > 1e-9]
            if not len(moving):
                break
        g1 = b1 + c * p2
        g2 = b2 + c * torch.sigmoid(g1)
        one, zero = nn.functional.logsigmoid, lambda g: nn.functional.logsigmoid(-g)
        candidates.append(torch.stack([a(g1) + b(g2) for a in (zero, one) for b in (zero, one)]))
    log_q = torch.stack(candidates)
    best = (log_q.exp() * (log_p.double() - log_q)).sum(1).argmax(0)
    return log_q[best, :, torch.arange(len(best), device=best.device)].T.contiguous()


def exact(log_p: Tensor) -> Tensor:
    """The posterior itself: log p(x, z), (4, N) -> log p(z given x), (4, N)."""
    return torch.log_softmax(log_p.double(), 0)


def quadrature(variance: float, side: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes about the centres, (4 side^2, 2), and masses for means under p*."""
    nodes, masses = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(side))
    around = math.sqrt(variance) * torch.cartesian_prod(nodes, nodes)
    mass = (masses[:, None] * masses).flatten().repeat(4)
    return (torch.tensor(CENTRES).double()[:, None] + around).flatten(0, 1), mass / mass.sum()


def fit_means(
    x: Tensor, means: Tensor, variance: float, w: float, mass: Tensor | None = None
) -> Tensor:
    """The centres, (4, 2), that maximise E - w G, uphill from `means`: mean log p(x) of the points
    x, (N, 2), less w times the mean gap of the best factorized q. mass: of each point, (N,); None:
    the same of all.

    w = 0 is maximum likelihood, w = 1 the best decoder for a factorized q.
    """
    import scipy.optimize

    x = x.double()
    mass = torch.full_like(x[:, 0], 1 / len(x)) if mass is None else mass

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        mu = torch.from_numpy(flat.reshape(4, 2)).to(x)
        log_p = log_joint(x, mu, variance)
        value, gradient = 0.0, torch.zeros_like(mu)
        for share, posterior in ((1 - w, exact), (w, oracle)):
            # ELBO of the exact q: E. Both q are at their optima: their own change adds no gradient.
            if share:
                log_q = posterior(log_p)
                q = mass * log_q.exp()
                value += share * (q * (log_p - log_q)).sum().item()
                gradient += share * (q @ x - q.sum(1, keepdim=True) * mu) / variance
        return -value, -gradient.cpu().numpy().ravel()

    start, steps = means.double().cpu().numpy().ravel(), {"gtol": 1e-7, "ftol": 1e-15}
    optimum = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=steps)
    return torch.from_numpy(optimum.x.reshape(4, 2)).to(x)


def ascended(
    x: Tensor, mass: Tensor, variance: float, means: Tensor, w: float
) -> tuple[Tensor, float, float]:
    """`fit_means`, and E and G there."""
    means = fit_means(x, means, variance, w, mass)
    log_p = log_joint(x, means, variance)
    log_q = oracle(log_p)
    evidence = log_p.logsumexp(0) @ mass
    elbo = (log_q.exp() * (log_p - log_q)).sum(0) @ mass
    return means, evidence.item(), (evidence - elbo).item()


def law_cases(options: Options) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The law (figures/law.py) under p* itself: theta(w) of the oracle at each of --law-variances,
    and of the two classes of assignments that are no mirror images of each other. And the seconds
    of each.
    """
    cases, seconds = [], {}
    points = [(v, name) for v in options.law_variances for name in list(ASSIGNMENTS)[:2]]
    for variance, name in tqdm(points, desc="law", unit="case"):
        start = time.perf_counter()
        x, mass = quadrature(variance, options.law_nodes)
        truth = torch.tensor(CENTRES).double()[list(ASSIGNMENTS[name])]
        ascend = functools.partial(ascended, x, mass, variance)
        metrics, _ = law.follow(law.weights(options.law_weights), ascend, truth, truth)
        case: dict[str, Any] = {"section": 3, "knob": "variance", "value": variance, "seed": None}
        code_of_left = ASSIGNMENTS[name].index(3)  # of (-1, 0)
        case |= {"name": f"mixture_{variance:g}_{code_of_left}", "of": f"code words: {name}"}
        cases.append(case | metrics)
        seconds[case["name"]] = round(time.perf_counter() - start, 2)
    return cases, seconds


# --- results --------------------------------------------------------------------------------------


def measure(x: Tensor, log_q: Tensor, means: Tensor, truth: Tensor, variance: float) -> dict:
    """ELBO, log evidence and KLs of a state, float64, and how far centres are from the true."""
    x, log_q, means, truth = x.double(), log_q.double(), means.double(), truth.double()
    log_p = log_joint(x, means, variance)
    elbo = (log_q.exp() * (log_p - log_q)).sum(0).mean().item()
    evidence = torch.logsumexp(log_p, 0).mean().item()
    kl_true = (log_q.exp() * (log_q - exact(log_joint(x, truth, variance)))).sum(0).mean().item()
    measured = {"elbo": elbo, "evidence": evidence, "kl": evidence - elbo, "kl_true": kl_true}
    drift = (means - truth).norm(dim=1).tolist()
    return measured | {"means": means.tolist(), "drift": drift}


def picture(
    posterior: Callable[[Tensor], Tensor], means: Tensor, x: Tensor, extent: list[float]
) -> dict:
    """A panel of Figure 1: arg max of the posterior at points and on a grid, and the centres."""
    left, right, bottom, top = extent
    sides = torch.linspace(bottom, top, GRID), torch.linspace(left, right, GRID)
    grid = torch.cartesian_prod(*sides).flip(1).to(x)
    regions = "".join(map(str, posterior(grid).argmax(0).tolist()))
    return {
        "points": "".join(map(str, posterior(x).argmax(0).tolist())),
        "regions": [regions[i : i + GRID] for i in range(0, len(regions), GRID)],
        "means": means.tolist(),
    }


def two_stages(
    options: Options, make: Callable[[torch.device], Encoder], x: Tensor, truth: Tensor, bar: tqdm
) -> Iterator[tuple[str, dict, Encoder, Tensor]]:
    """Train an encoder with the decoder frozen at `truth`, then both from there.

    Yields after each stage its name, measurements, encoder and means.
    """
    torch.manual_seed(options.seed)
    encoder, means = make(x.device), truth.clone()
    for stage in ("frozen", "joint"):

        def record(step: int, log_q: Tensor) -> None:
            elbo = measure(x, log_q, means, truth, options.variance)["elbo"]
            run.check_finite({"ELBO": elbo}, f"at step {step}")
            bar.set_postfix_str(f"ELBO {elbo:.4f}", refresh=False)
            bar.update(step % EVERY or min(step, EVERY))  # steps since the last call, at first 0

        train(x, encoder, means, options, stage == "joint", record)
        measured = measure(x, encoder.log_q(x), means, truth, options.variance)
        yield stage, measured, encoder, means


def section(options: Options, device: torch.device, bar: tqdm) -> dict[str, Any]:
    """Stages, oracle and assignments: metrics, and the panels of Figure 1."""
    x, variance = sample(options, device), options.variance
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(options.seed))
    shown = x[rows[:2000]]
    extent = [end for axis in shown.T for end in (axis.min().item(), axis.max().item())]
    points = [[round(v, 3) for v in point] for point in shown.tolist()]
    panels: dict = {"extent": extent, "x": points}

    truth = torch.tensor(CENTRES, device=device)
    log_p = log_joint(x, truth, variance)
    metrics: dict = {"truth": measure(x, exact(log_p), truth, truth, variance)}
    panels["truth"] = picture(lambda x: exact(log_joint(x, truth, variance)), truth, shown, extent)
    metrics["oracle"] = measure(x, oracle(log_p), truth, truth, variance)
    for name, posterior, w in (("oracle_joint", oracle, 1.0), ("maximum_likelihood", exact, 0.0)):
        means = fit_means(x, truth, variance, w)
        log_q = posterior(log_joint(x.double(), means, variance))
        metrics[name] = measure(x, log_q, means, truth, variance)
    for make, prefix in ((factorized, ""), (consistent, "consistent_")):
        for stage, measured, encoder, means in two_stages(options, make, x, truth, bar):
            metrics[prefix + stage] = measured
            panels[prefix + stage] = picture(encoder.log_q, means, shown, extent)

    metrics["assignments"] = {}
    for name, components in ASSIGNMENTS.items():
        laid = truth[list(components)]
        means = fit_means(x, laid, variance, 1.0)
        before, after = log_joint(x, laid, variance), log_joint(x.double(), means, variance)
        of_assignment = {"oracle": measure(x, oracle(before), laid, laid, variance)}
        of_assignment["oracle_joint"] = measure(x, oracle(after), means, laid, variance)
        if components == (0, 1, 2, 3):  # the two stages above were this one's
            of_assignment |= {stage: metrics[stage] for stage in ("frozen", "joint")}
        else:
            stages = two_stages(options, factorized, x, laid, bar)
            of_assignment |= {stage: measured for stage, measured, *_ in stages}
        metrics["assignments"][name] = of_assignment
    return {"metrics": metrics, "panels": panels}


def main(options: Options) -> None:
    device = run.pick_device(options.device)
    total = SECTION_RUNS * options.steps
    with tqdm(total=total, desc="mixture", unit="step", unit_scale=True) as bar:
        path = options.out / f"seed-{options.seed}.pt"
        make = functools.partial(section, options, device, bar)
        trained = run.keep(path, options, {"resume", "out"}, make)
        bar.update(total - bar.n)
    start = time.perf_counter()
    cases, seconds_of_cases = law_cases(options)
    seconds = time.perf_counter() - start + trained["seconds"]
    metrics = trained["metrics"] | {"cases": cases}
    result = run.save_result(
        *(options, device, seconds, metrics, {}),
        panels=trained["panels"],
        seconds_of_cases=seconds_of_cases,
    )
    from figures import section3

    section3.report_mixture(result, options.out)
    law.report(cases)


RUNS = (
    ("report", main, Options(), "the settings of the report's text, the default"),
    ("quick", main, QUICK, "a tenth of the steps at five times the rate, half a minute"),
)

if __name__ == "__main__":
    cli.main(__doc__, *RUNS)
