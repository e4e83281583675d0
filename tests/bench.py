"""Training steps of Sections 3 and 5 against straightforward ones: `uv run tests/bench.py`; and
Section 5's memory and time with so many documents and words: `uv run tests/bench.py 1e6 1e4`.

Section 3: the released code's 8,000 points, factorized encoder, joint steps. Section 5: batches of
256 real documents, e1, b = 64, one DisARM pair and the batch's train loss, and ten pairs. The other
side is the model as one writes it down: autograd, dense counts, a pass for each code, default Adam,
float32. "Products" are the step's matrix products alone, the floor for this arithmetic. All run in
turns in one process, and ratios are taken round by round, since a shared machine's speed drifts.
"""

import itertools
import math
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from torch.nn.functional import softplus

import hashing
import mixture
from data import newsgroups, texts
from figures.run import native_precision

FEW, STEPS = 50, 20  # steps of a turn, in Sections 3 and 5
CPU = torch.device("cpu")


def compare(sides: Mapping[str, Callable[[], None]], steps: int, rounds: int) -> None:
    """Run all sides in turns, and print ms per step and ratios to the first."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / steps * 1e3)
    first = next(iter(times.values()))
    for name, values in times.items():
        ratios = [a / b for a, b in zip(first, values, strict=True)][1:]
        print(
            f"  {name}: median {statistics.median(values[1:]):.2f} ms a step (min "
            f"{min(values[1:]):.2f}); {statistics.median(ratios):.2f} times as fast, from "
            f"{min(ratios):.2f} to {max(ratios):.2f}"
        )


def straightforward_mixture(x: torch.Tensor) -> Callable[[], None]:
    encoder = nn.Sequential(
        nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )
    means = nn.Parameter(torch.tensor(mixture.CENTRES))
    bits = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    optimizer = torch.optim.Adam([*encoder.parameters(), means], 1e-4)

    def run() -> None:
        for _ in range(FEW):
            q = torch.softmax((encoder(x)[:, None, :] * bits).sum(-1), -1)
            residual = x[:, None, :] - means
            log_likelihood = -0.5 * (residual**2).sum(-1) - torch.log(torch.tensor(2 * torch.pi))
            kl = (q * (q.log() - torch.log(torch.tensor(0.25)))).sum(-1)
            loss = -((q * log_likelihood).sum(-1) - kl).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def our_mixture(x: torch.Tensor) -> Callable[[], None]:
    encoder, means = mixture.factorized(CPU), torch.tensor(mixture.CENTRES)
    return lambda: mixture.train(x, encoder, means, 1.0, FEW, 1e-4, True, lambda step, log_q: None)


def mixture_products(x: torch.Tensor) -> Callable[[], None]:
    """The step's matrix products alone, forward and backward: the floor for this arithmetic."""
    h, g, w = torch.rand(len(x), 64), torch.rand(len(x), 64), torch.rand(64, 64)
    top, first = torch.rand(64, 2), torch.rand(2, 64)
    square, table, narrow = torch.empty(64, 64), torch.empty(len(x), 64), torch.empty(len(x), 2)

    def run() -> None:
        for _ in range(FEW):
            torch.mm(x, first, out=table)
            torch.mm(h, w, out=table)
            torch.mm(h, top, out=narrow)
            torch.mm(narrow.T, h)
            torch.mm(narrow, top.T, out=table)
            torch.mm(h.T, g, out=square)
            torch.mm(g, w, out=table)
            torch.mm(x.T, g)

    return run


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


def hashing_products(
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


def scale(documents: int, words: int) -> None:
    """One line: peak memory after counting the documents' words, and after training and keeping
    the model; and seconds. They are texts of words of 20 Newsgroups, each one of several at random.
    """
    source, rng = newsgroups.load(), np.random.default_rng(0)
    several, rest = divmod(words, len(source.words))
    if not several or rest:
        sys.exit(f"words: a multiple of {len(source.words):,}")

    def drawn(split: str, count: int) -> Iterator[texts.Document]:
        for i, row in enumerate(rng.integers(source.train.shape[0], size=count)):
            place = slice(*source.train.indptr[row : row + 2])
            tokens = source.train.indices[place].repeat(source.train.data[place].astype(int))
            which = rng.integers(several, size=len(tokens))
            pairs = zip(tokens, which, strict=True)
            yield f"{split}/{i}", "all", " ".join(f"{source.words[j]}{k}" for j, k in pairs)

    with mock.patch.object(texts, "VOCABULARY", words):
        both = itertools.chain(drawn("train", documents), drawn("test", documents // 10))
        corpus = texts.corpus_of(both, "drawn")
    counted = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with tempfile.TemporaryDirectory() as folder:
        options = hashing.Options(bits=16, epochs=1, fine_epochs=0, out=Path(folder))
        begun = time.perf_counter()
        trainer = hashing.Trainer(options, corpus, CPU)
        loaded = time.perf_counter()
        order = rng.permutation(documents)
        for i in range(STEPS):
            hashing.step(trainer, trainer.train.batch(order[256 * i : 256 * (i + 1)]), 1)
        stepped = time.perf_counter()
        trainer.record({"train": 0.0, **hashing.test(trainer)})
        tested = time.perf_counter()
        hashing.finish(trainer, corpus)
        ended = time.perf_counter()
    print(
        f"{documents:,} documents, {words:,} words, {corpus.train.nnz:,} non-zeros: peak "
        f"{counted:.2f} GiB counted, "
        f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at the end; load "
        f"{loaded - begun:.1f} s; step {(stepped - loaded) / STEPS * 1e3:.0f} ms; test of a tenth "
        f"{tested - stepped:.1f} s; codes and retrieval {ended - tested:.1f} s"
    )


def main() -> None:
    x = mixture.sample(mixture.Options(points_per_component=2000), CPU)
    print("Section 3, joint, 8,000 points")
    sides = {"straightforward": straightforward_mixture(x), "ours": our_mixture(x)}
    compare(sides | {"products": mixture_products(x)}, FEW, 21)
    torch.set_flush_denormal(True)
    corpus = newsgroups.load()
    precisions = ["float32"] + ["bfloat16"] * (native_precision(CPU) == "bfloat16")
    for layers, pairs in ((0, 1), (1, 1), (2, 1), (0, 10)):
        print(f"Section 5, b = 64, d = {layers}, {pairs} pair(s) a step")
        options = [hashing.Options(decoder_layers=layers, precision=name) for name in precisions]
        trainers = [hashing.Trainer(of_side, corpus, CPU) for of_side in options]
        order = np.random.default_rng(0).permutation(len(trainers[0].train))
        steps = STEPS if pairs == 1 else 2
        batches = [order[256 * i : 256 * (i + 1)] for i in range(steps)]

        def ours(trainer: hashing.Trainer, i: int, pairs: int = pairs, rows=batches) -> None:
            hashing.step(trainer, trainer.train.batch(rows[i]), pairs).item()

        each = {"straightforward": dense(trainers[0], batches, pairs)}
        for trainer in trainers:
            each[f"ours, {trainer.options.precision}"] = partial(ours, trainer)
        each["products, float32"] = hashing_products(trainers[0], batches, pairs)

        def turn(step: Callable[[int], None], steps: int = steps) -> None:
            for i in range(steps):
                step(i)

        compare({name: partial(turn, step) for name, step in each.items()}, steps, 7)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")


if __name__ == "__main__":
    scale(*(int(float(word)) for word in sys.argv[1:])) if sys.argv[1:] else main()
