"""Section 3's training step against a straightforward one: `uv run tests/bench_mixture.py`. Not
part of the test suite.

The work is the released code's: 8,000 points, factorized encoder, joint steps. The other side is
the model as one
writes it down: autograd, residuals to each centre, softmax, default Adam. Both run in turns in one
process, and the ratio is taken round by round, since the speed of a shared machine drifts.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from mixture import CENTRES, Options, factorized, sample, train

STEPS, ROUNDS = 50, 21


def straightforward(x: torch.Tensor) -> Callable[[], None]:
    encoder = nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    means = nn.Parameter(torch.tensor(CENTRES))
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    optimizer = torch.optim.Adam([*encoder.parameters(), means], 1e-4)

    def run() -> None:
        for _ in range(STEPS):
            q = torch.softmax((encoder(x)[:, None, :] * bits).sum(-1), -1)
            residual = x[:, None, :] - means
            log_likelihood = -0.5 * (residual**2).sum(-1) - torch.log(torch.tensor(2 * torch.pi))
            kl = (q * (q.log() - torch.log(torch.tensor(0.25)))).sum(-1)
            loss = -((q * log_likelihood).sum(-1) - kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def ours(x: torch.Tensor) -> Callable[[], None]:
    encoder, means = factorized(x.device), torch.tensor(CENTRES)
    return lambda: train(x, encoder, means, 1.0, STEPS, 1e-4, True, lambda step, log_q: None)


def products(x: torch.Tensor) -> Callable[[], None]:
    """The step's matrix products alone, forward and backward: the floor for this arithmetic."""
    h, g, w = torch.rand(len(x), 64), torch.rand(len(x), 64), torch.rand(64, 64)
    top, first = torch.rand(64, 2), torch.rand(2, 64)
    square, table, narrow = torch.empty(64, 64), torch.empty(len(x), 64), torch.empty(len(x), 2)

    def run() -> None:
        for _ in range(STEPS):
            torch.mm(x, first, out=table)
            torch.mm(h, w, out=table)
            torch.mm(h, top, out=narrow)
            torch.mm(narrow.T, h)
            torch.mm(narrow, top.T, out=table)
            torch.mm(h.T, g, out=square)
            torch.mm(g, w, out=table)
            torch.mm(x.T, g)

    return run


def main() -> None:
    x = sample(Options(points_per_component=2000), 0, torch.device("cpu"))
    sides = {
        "straightforward": straightforward(x),
        "mixture.py": ours(x),
        "matrix products alone": products(x),
    }
    times = {name: [] for name in sides}
    for _ in range(ROUNDS + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / STEPS * 1e3)
    for name, values in times.items():
        print(
            f"{name}: median {statistics.median(values[1:]):.2f} ms a step (min "
            f"{min(values[1:]):.2f})"
        )
    ratios = [a / b for a, b in zip(times["straightforward"], times["mixture.py"], strict=True)][1:]
    print(
        f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to "
        f"{max(ratios):.2f}"
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
