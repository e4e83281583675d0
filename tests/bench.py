"""How fast a step is, beside a straightforward one and the products in it: `uv run tests/bench.py`;
what imports and --help take; and Section 5's memory and time with so many documents and words:
`uv run tests/bench.py 1e6 1e4`.

The straightforward side is the model as one writes it down: autograd, dense counts, a pass for each
code, default Adam and memory format, float32. "Products" are the step's matrix products or
convolutions alone, forward and backward: the floor for this arithmetic. All run in turns in one
process, and ratios are taken round by round, since a shared machine's speed drifts.
"""

import copy
import itertools
import math
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus
from toy import ROOT

import celeba_encoder
import celeba_joint
import dcgan
import hashing
import mixture
from data import faces, newsgroups, texts
from disarm import codes, exact_elbo
from figures.run import native_precision, print_table

CPU = torch.device("cpu")
Run = Callable[[], object]


def in_turns(name: str, sides: dict[str, Run], steps: int = 1, rounds: int = 7) -> None:
    """Print ms per step of all sides, `steps` in each call, and how much less than the first's."""
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds + 1):
        for side, run in sides.items():
            start = time.perf_counter()
            run()
            times[side].append((time.perf_counter() - start) / steps * 1e3)
    first, rows = next(iter(times.values())), []
    for side, values in times.items():
        ratios = [a / b for a, b in zip(first, values, strict=True)][1:]
        rows.append((side, statistics.median(values[1:]), statistics.median(ratios)))
    print_table((name, "ms a step", "times as fast"), rows, digits=2)


def ascend(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()


def times(steps: int, step: Callable[[int], object]) -> Run:
    return lambda: [step(i) for i in range(steps)]


# --- Section 3 ------------------------------------------------------------------------------------


def section3(steps: int = 50) -> None:
    options = mixture.Options(points_per_component=2000, steps=steps, joint_lr=1e-4)
    x = mixture.sample(options, CPU)
    layers = nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    encoder, centres = nn.Sequential(*layers), nn.Parameter(torch.tensor(mixture.CENTRES))
    adam = torch.optim.Adam([*encoder.parameters(), centres], 1e-4)
    bits = codes(2, x)

    def negative_elbo() -> Tensor:
        q = torch.softmax((encoder(x)[:, None, :] * bits).sum(-1), -1)
        log_p = -0.5 * ((x[:, None, :] - centres) ** 2).sum(-1) - math.log(2 * math.pi)
        return -(q * (log_p - math.log(4) - q.log())).sum(-1).mean()

    ours, means = mixture.factorized(CPU), torch.tensor(mixture.CENTRES)
    h, g, w = torch.rand(len(x), 64), torch.rand(len(x), 64), torch.rand(64, 64)
    top, first, narrow = torch.rand(64, 2), torch.rand(2, 64), torch.rand(len(x), 2)
    square, table, out = torch.empty(64, 64), torch.empty(len(x), 64), torch.empty(len(x), 2)

    def products(_: int) -> None:
        for a, b in ((x, first), (h, w), (narrow, top.T), (g, w)):
            torch.mm(a, b, out=table)
        torch.mm(h, top, out=out)
        torch.mm(h.T, g, out=square)
        torch.mm(narrow.T, h)
        torch.mm(x.T, g)

    sides: dict[str, Run] = {
        "straightforward": times(steps, lambda _: ascend(negative_elbo, adam)),
        "ours": lambda: mixture.train(x, ours, means, options, True, lambda *_: None),
        "products": times(steps, products),
    }
    in_turns("Section 3, joint, 8,000 points", sides, steps, 21)


# --- Section 4, as wide as `dcgan.py quick` -------------------------------------------------------


def convolutions(*networks: nn.Module) -> nn.Sequential:
    """Those of the networks, one after another where they fit, without what lies between."""
    kinds = nn.Conv2d, nn.ConvTranspose2d
    layers = [layer for network in networks for layer in network.modules()]
    return nn.Sequential(*(copy.deepcopy(layer) for layer in layers if isinstance(layer, kinds)))


def section4() -> None:
    options = replace(dcgan.QUICK, faces=600, precision="float32")
    trainer = dcgan.Trainer(options, faces.draw(600), CPU, "thumbnails")
    batch, nz = 64, options.nz
    real = trainer.batch(torch.arange(batch))
    generator, discriminator = dcgan.Generator(nz, 16), dcgan.Discriminator(16)
    adams = [torch.optim.Adam(n.parameters(), 1e-3) for n in (generator, discriminator)]
    one, zero = torch.ones(batch), torch.zeros(batch)

    def tutorial() -> None:
        discriminator.zero_grad()
        binary_cross_entropy_with_logits(discriminator(real), one).backward()
        fake = generator(torch.randn(batch, nz))
        binary_cross_entropy_with_logits(discriminator(fake.detach()), zero).backward()
        adams[1].step()
        generator.zero_grad()
        binary_cross_entropy_with_logits(discriminator(fake), one).backward()
        adams[0].step()

    up, down = convolutions(generator), convolutions(discriminator)

    def of_gan() -> None:
        fake = up(torch.randn(batch, nz, 1, 1))
        (down(real).sum() + down(fake.detach()).sum()).backward()
        down.requires_grad_(False)(fake).sum().backward()
        down.requires_grad_(True)

    sides: dict[str, Run] = {"straightforward": tutorial, "ours": lambda: trainer.step(real)}
    in_turns("Section 4, GAN, 64 images", sides | {"products": of_gan})

    truth = dcgan.Generator(nz, 16).eval().requires_grad_(False)
    joint = replace(celeba_joint.QUICK, precision="float32", evidence_images=2)

    def made(weight: float | None) -> celeba_encoder.Trainer:
        decoder = copy.deepcopy(truth).requires_grad_(True).to(memory_format=torch.channels_last)
        encoder = celeba_encoder.Encoder(nz, 16)
        vae = celeba_encoder.VAE(truth, encoder, 0.5, decoder).eval()
        return celeba_joint.make_trainer(vae, replace(joint, weight=weight), {})

    fitted = celeba_encoder.VAE(truth, celeba_encoder.Encoder(nz, 16), 0.05)
    encoding = replace(celeba_encoder.QUICK, precision="float32")
    fitting = celeba_encoder.Trainer(fitted, (1e-3, (0.9, 0.999)), encoding, {})
    encoder, noise = celeba_encoder.Encoder(nz, 16), torch.manual_seed(0)
    adam = torch.optim.Adam(encoder.parameters(), 1e-3)
    there, back = map(convolutions, (encoder, truth))

    def negative_log_q() -> Tensor:
        with torch.no_grad():
            z = torch.randn(batch, nz)
            x = truth(z) + 0.05 * torch.randn(batch, 3, 64, 64)
        mu, log_s = encoder(x)
        return (0.5 * ((z - mu) / log_s.exp()) ** 2 + log_s).sum(1).mean()

    def of_encoder() -> None:
        with torch.no_grad():
            x = back(torch.randn(batch, nz, 1, 1))
        there(x).sum().backward()

    sides = {"straightforward": partial(ascend, negative_log_q, adam)}
    sides["ours"] = partial(celeba_encoder.step, fitting)
    with celeba_encoder.modes(fitted, "encoder", learning=True):
        in_turns("encoder, 64 images", sides | {"products": of_encoder})

    decoder = copy.deepcopy(truth).requires_grad_(True)
    plain = celeba_encoder.VAE(truth, celeba_encoder.Encoder(nz, 16), 0.5, decoder).eval()
    adam = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad])

    def negative_elbo() -> Tensor:
        x = plain.sample(torch.randn(batch, nz), noise)[1]
        return -plain.elbo(x, noise)["elbo"].mean()

    there, back = map(convolutions, (plain.encoder, plain.decoder))

    def of_joint() -> None:
        with torch.no_grad():
            x = back(torch.randn(batch, nz, 1, 1))
        back(there(x)[:, :nz]).sum().backward()

    sides = {"straightforward": lambda: ascend(negative_elbo, adam)}
    sides["ours"] = partial(celeba_joint.step, made(None))
    in_turns("joint training, 64 images", sides | {"products": of_joint})
    in_turns("without an encoder, 64 images", {"ours": partial(celeba_joint.step, made(1.0))})


# --- Section 5 ------------------------------------------------------------------------------------


def dense(trainer: hashing.Trainer, batches: list[np.ndarray], pairs: int) -> Callable[[int], None]:
    options = trainer.options
    sizes = [options.bits] + [hashing.HIDDEN] * options.decoder_layers
    words = len(trainer.u)
    encoder = nn.Linear(words, options.bits)
    hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.LeakyReLU())]
    decoder = nn.Sequential(*hidden, nn.Linear(sizes[-1], words), nn.LogSoftmax(1))
    adam = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-3)

    def relative_nll(x: Tensor, z: Tensor) -> Tensor:
        frequencies = x / x.sum(1, keepdim=True)
        return (x * frequencies.log()).sum(1) - (x * decoder(z)).sum(1)

    def step(i: int) -> None:
        x = torch.from_numpy(trainer.train.counts[batches[i]].toarray()) + trainer.u
        logits = encoder(x)
        q = logits.detach()

        def loss() -> Tensor:
            total = torch.zeros(())
            for _ in range(pairs):
                u = torch.rand_like(q)
                z = [(u < torch.sigmoid(q)).float(), (1 - u < torch.sigmoid(q)).float()]
                f = [relative_nll(x, c) + (c * q - softplus(q) + math.log(2)).sum(1) for c in z]
                weight = 0.5 * (f[0] - f[1]).detach()[:, None] * (z[0] - z[1])
                weight = weight * torch.sigmoid(q.abs())
                total = total + ((f[0] + f[1]) / 2 + (weight * (logits - q)).sum(1)).mean() / pairs
            return total

        ascend(loss, adam)
        with torch.no_grad():
            z = (torch.rand_like(q) < torch.sigmoid(q)).float()
            (relative_nll(x, z) + hashing.kl_uniform(q)).mean().item()

    return step


def vocabulary_products(trainer: hashing.Trainer, pairs: int) -> Callable[[int], None]:
    k, words = len(trainer.model.decoder.weight[0]), len(trainer.u)
    hidden, weight = torch.rand(512, k), torch.rand(words, k)
    logits, grad = torch.rand(512, words), torch.rand(words, k)

    def step(_: int) -> None:
        for _ in range(pairs):
            torch.mm(hidden, weight.T, out=logits)
            torch.mm(logits.T, hidden, out=grad)
            if trainer.options.decoder_layers:
                torch.mm(logits, weight)

    return step


def section5() -> None:
    torch.set_flush_denormal(True)
    corpus = newsgroups.load()
    precisions = ["float32"] + ["bfloat16"] * (native_precision(CPU) == "bfloat16")
    for layers, pairs, steps in ((0, 1, 20), (1, 1, 10), (2, 1, 10), (0, 10, 2)):
        options = [hashing.Options(decoder_layers=layers, precision=name) for name in precisions]
        trainers = [hashing.Trainer(of_side, corpus, CPU) for of_side in options]
        order = np.random.default_rng(0).permutation(len(trainers[0].train))
        batches = np.split(order[: 256 * steps], steps)

        def ours(trainer: hashing.Trainer, i: int, pairs: int = pairs, rows=batches) -> None:
            hashing.step(trainer, trainer.train.batch(rows[i]), pairs).item()

        sides = {"straightforward": times(steps, dense(trainers[0], batches, pairs))}
        for trainer in trainers:
            sides[f"ours, {trainer.options.precision}"] = times(steps, partial(ours, trainer))
        sides["products, float32"] = times(steps, vocabulary_products(trainers[0], pairs))
        in_turns(f"Section 5, b = 64, d = {layers}, {pairs} pair(s)", sides, steps)
    sums = hashing.Exact(hashing.ExactOptions(), corpus, CPU)
    model = sums.model("e1")
    batch, adam = sums.documents["train"].batch(batches[0]), torch.optim.Adam(model.parameters())

    def negative_elbo(table: bool) -> Tensor:
        log_p = hashing.log_decoder(model, sums.z)
        if table:
            weight, bias = model.decoder.weight, model.decoder.bias
            log_p = torch.log_softmax(weight @ sums.z.T + bias[:, None], 0), None
        joint = hashing.log_joint(log_p, batch, sums.z)
        return -exact_elbo(model.encoder(batch), joint, sums.z).mean()

    sides = {"a table of words by codes": lambda: ascend(partial(negative_elbo, True), adam)}
    sides["ours"] = lambda: ascend(partial(negative_elbo, False), adam)
    in_turns("exact, b = 8, d = 0", sides)


# --- starts, and scale ----------------------------------------------------------------------------


def starts() -> None:
    scripts = ("mixture", "dcgan", "celeba_encoder", "celeba_joint", "hashing", "figures/make")
    commands = {"import torch": ("-c", "import torch"), "import disarm": ("-c", "import disarm")}
    commands |= {f"{script}.py --help": (f"{script}.py", "--help") for script in scripts}
    start = partial(subprocess.run, cwd=ROOT, check=True, capture_output=True)
    sides = {name: partial(start, (sys.executable, *words)) for name, words in commands.items()}
    in_turns("start", sides, rounds=5)


def scale(documents: int, words: int) -> None:
    """Peak memory after counting the documents' words, and after training and keeping the model;
    and seconds. They are texts of words of 20 Newsgroups, each one of several at random.
    """
    source, rng = newsgroups.load(), np.random.default_rng(0)
    several, rest = divmod(words, len(source.words))
    if not several or rest:
        sys.exit(f"words: a multiple of {len(source.words):,}")

    def drawn(split: str, count: int) -> Iterator[texts.Document]:
        for i, row in enumerate(rng.integers(source.train.shape[0], size=count)):
            place = slice(*source.train.indptr[row : row + 2])
            tokens = source.train.indices[place].repeat(source.train.data[place].astype(int))
            pairs = zip(tokens, rng.integers(several, size=len(tokens)), strict=True)
            yield f"{split}/{i}", "all", " ".join(f"{source.words[j]}{k}" for j, k in pairs)

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    with mock.patch.object(texts, "VOCABULARY", words):
        both = itertools.chain(drawn("train", documents), drawn("test", documents // 10))
        corpus = texts.corpus_of(both, "drawn")
    rows: list[tuple[str, float]] = [("GiB at most, words counted", peak())]
    with tempfile.TemporaryDirectory() as folder:
        options = hashing.Options(bits=16, epochs=1, fine_epochs=0, out=Path(folder))
        clock = [time.perf_counter()]
        trainer = hashing.Trainer(options, corpus, CPU)
        clock.append(time.perf_counter())
        for chosen in np.split(rng.permutation(documents)[: 20 * 256], 20):
            hashing.step(trainer, trainer.train.batch(chosen), 1)
        clock.append(time.perf_counter())
        trainer.record({"train": 0.0, **hashing.test(trainer)})
        clock.append(time.perf_counter())
        hashing.finish(trainer, corpus)
        clock.append(time.perf_counter())
    named = zip(("load", "20 steps", "test of a tenth", "codes"), pairwise(clock), strict=True)
    rows += [(f"s, {name}", end - start) for name, (start, end) in named]
    print_table((f"{documents:,} documents, {words:,} words", ""), [*rows, ("GiB", peak())], 1)


if __name__ == "__main__":
    if sys.argv[1:]:
        scale(*(int(float(word)) for word in sys.argv[1:]))
    else:
        for part in (starts, section3, section4, section5):
            part()
        print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
