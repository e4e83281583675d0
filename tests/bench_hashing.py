"""Section 5's training step against a dense one: `uv run tests/bench_hashing.py`. Not part of the
test suite.

The work is that of the released code: batches of 256 real documents, e1, b = 64, one DisARM pair
and the train loss of the batch; at d = 0, 1, 2, and d = 0 with ten pairs. The other side is the
model as one writes it down: dense counts, a decoder pass for each code of the pair and one for the
train loss, autograd through log-softmax, default Adam, float32. Ours runs in float32 and, where the
processor multiplies it natively, in bfloat16, then the default of the script. All make their
batches from the same sparse table and run in turns; the ratio is taken round by round.
"""

import math
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

import hashing
from data import newsgroups
from figures.run import native_precision

STEPS, ROUNDS = 20, 7


def dense(trainer: hashing.Trainer, batches: list[np.ndarray], pairs: int) -> Callable[[int], None]:
    options = trainer.options
    sizes = [options.bits] + [hashing.HIDDEN] * options.decoder_layers
    words = len(trainer.u)
    encoder = nn.Linear(words, options.bits)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.LeakyReLU())]
    decoder = nn.Sequential(*hidden, nn.Linear(sizes[-1], words), nn.LogSoftmax(1))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)

    def relative_nll(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        frequencies = x / x.sum(1, keepdim=True)
        return (x * frequencies.log()).sum(1) - (x * decoder(z)).sum(1)

    def step(i: int) -> None:
        x = torch.from_numpy(trainer.train.counts[batches[i]].toarray()) + trainer.u
        logits = encoder(x)
        q = logits.detach()
        loss = 0.0
        for _ in range(pairs):
            u = torch.rand_like(logits)
            z = [(u < torch.sigmoid(q)).float(), (1 - u < torch.sigmoid(q)).float()]
            f = [
                relative_nll(x, code) + (code * q - softplus(q) + math.log(2)).sum(1) for code in z
            ]
            weight = 0.5 * (f[0] - f[1]).detach()[:, None] * (z[0] - z[1]) * torch.sigmoid(q.abs())
            loss = loss + ((f[0] + f[1]) / 2 + (weight * (logits - q)).sum(1)).mean() / pairs
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            z = (torch.rand_like(q) < torch.sigmoid(q)).float()
            (relative_nll(x, z) + hashing.kl_uniform(q)).mean().item()

    return step


def ours(trainer: hashing.Trainer, batches: list[np.ndarray], pairs: int) -> Callable[[int], None]:
    return lambda i: hashing.step(trainer, trainer.train.batch(batches[i]), pairs).item()


def products(
    trainer: hashing.Trainer, batches: list[np.ndarray], pairs: int
) -> Callable[[int], None]:
    """Our step's matrix products over the vocabulary alone, forward and backward: the floor for
    this arithmetic.
    """
    k, words, rows = len(trainer.model.decoder.weight[0]), len(trainer.u), 2 * len(batches[0])
    hidden, weight, logits, grad = (
        torch.rand(shape) for shape in ((rows, k), (words, k), (rows, words), (words, k))
    )

    def step(i: int) -> None:
        for _ in range(pairs):
            torch.mm(hidden, weight.T, out=logits)
            torch.mm(logits.T, hidden, out=grad)
            if trainer.options.decoder_layers:
                torch.mm(logits, weight)

    return step


def main() -> None:
    torch.set_flush_denormal(True)
    corpus, cpu = newsgroups.load(), torch.device("cpu")
    precisions = ["float32"] + ["bfloat16"] * (native_precision(cpu) == "bfloat16")
    for layers, pairs in ((0, 1), (1, 1), (2, 1), (0, 10)):
        trainers = {
            name: hashing.Trainer(
                hashing.Options(decoder_layers=layers, precision=name), corpus, cpu
            )
            for name in precisions
        }
        first = trainers["float32"]
        order = np.random.default_rng(0).permutation(len(first.train))
        batches = [order[256 * i : 256 * (i + 1)] for i in range(STEPS)]
        sides = {
            "dense": dense(first, batches, pairs),
            "products, float32": products(first, batches, pairs),
        }
        sides |= {
            f"ours, {name}": ours(trainer, batches, pairs) for name, trainer in trainers.items()
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(ROUNDS + 1):
            for name, step in sides.items():
                start = time.perf_counter()
                for i in range(STEPS if pairs == 1 else 2):
                    step(i)
                times[name].append((time.perf_counter() - start) / (i + 1) * 1e3)
        print(f"b = 64, d = {layers}, {pairs} pair(s) a step")
        for name, values in times.items():
            middle, least = statistics.median(values[1:]), min(values[1:])
            line = f"  {name}: median {middle:.1f} ms a step (min {least:.1f})"
            if name.startswith("ours"):
                ratios = [a / b for a, b in zip(times["dense"], values, strict=True)][1:]
                line += f"; ratio: median {statistics.median(ratios):.2f}, "
                line += f"from {min(ratios):.2f} to {max(ratios):.2f}"
            print(line)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    main()
