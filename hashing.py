"""Semantic hashing with a Bernoulli VAE (Section 5): documents become codes of b bits.

Encoder: q(z given x) = prod_i Bernoulli(z_i; sigmoid(logits_i(x))), where the logits are

  e1  a linear layer of the word counts,
  e2  a hidden layer of 512 and a linear layer, of the word frequencies,
  e3  a linear layer of the word frequencies,
  e4  e3 with its input times the mean document length, the scale of e1's; not in the report.

Decoder: d hidden layers of 512, then a linear layer and log-softmax over the words. Prior:
Bernoulli(1/2) per bit. Documents are smoothed, x = c + u: to its counts c the training unigram
distribution is added; n = sum_v x_v.

The loss is the *relative* negative ELBO of the report's Tables 2 and 3, in nats per document: the
document's own entropy is taken off the reconstruction term,

  sum_v x_v (log(x_v / n) - log p(v given z))  +  KL(q(z given x) || p(z)),

so zero would mean a decoder that knows every document's word frequencies. Training is the report's:
Adam 1e-3, batches of 256, 1,000 epochs with one DisARM pair per step, then 500 with ten. "Test" in
the report is the minimum over epochs of the test loss, which selects on the test set; --held-out
selects on documents kept from training instead.

    uv run hashing.py --epochs 100 --fine-epochs 0         a fifteenth of the report's training
    uv run hashing.py search "orbit shuttle launch"        find documents by the model of a run
    uv run hashing.py exact --corpus docstrings --bits 6   sums over all codes
    uv run hashing.py lengths --corpus docstrings          documents of few words, at the optimum
    uv run hashing.py variance                             how noisy the gradient estimators are
"""

import functools
import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse
import torch
import tyro
from torch import Tensor, nn
from tqdm import tqdm

from data import SPLITS, Corpus, frequent_words, hamming, texts
from data.documents import (
    Batch,
    Documents,
    RelativeNLL,
    SmoothedProduct,
    Workspace,
    characteristic_words,
    counts_of_text,
    distinct_codes,
    hold_out,
    load_corpus,
    some_words,
    unigram,
)
from disarm import ESTIMATORS, best_factorized, codes, exact_elbo, log_bernoulli, log_linear
from figures import cli, law, run

HIDDEN = 512
LEAK = 0.01  # slope
REGRESSION = 50  # times 20 iterations of L-BFGS
FREE_ON_RESUME = {"epochs", "fine_epochs", "checkpoint_every", "resume", "archive", "out"}
CURVES = ("train_log_likelihood", "train_elbo", "test_log_likelihood", "test_elbo")  # of `exact`
EncoderKind = Literal["e1", "e2", "e3", "e4"]


@dataclass(frozen=True)
class CorpusOptions:
    corpus: str = "newsgroups"
    """newsgroups; docstrings, of numpy and scipy; or own documents: a folder of .txt files, a .csv
    or a .jsonl file with a column `text`"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; None: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded there
    """
    seed: cli.Natural = 1
    """seed of initialisation, data order and samples"""
    resume: bool = False
    """go on from what is in --out, bit by bit as if never stopped; a finished run is tested again
    """


@dataclass(frozen=True)
class CommonOptions(CorpusOptions):
    decoder_layers: cli.Natural = 0
    """d, number of hidden layers of 512 in the decoder"""
    batch_size: cli.Count = 256
    """documents per step"""
    device: str | None = None
    """where to train; None: the accelerator if there is one, else the CPU"""


@dataclass(frozen=True)
class Options(CommonOptions):
    encoder: EncoderKind = "e1"
    """e1: linear in counts; e2: hidden layer, frequencies; e3: linear in these; e4: e3, scaled"""
    bits: cli.Count = 64
    """b, number of Bernoulli latents"""
    estimator: Literal["disarm", "arm", "reinforce"] = "disarm"
    """gradient estimator for the encoder, two samples each"""
    epochs: cli.Natural = 1000
    """epochs with one pair of samples per step"""
    fine_epochs: cli.Natural = 500
    """epochs after those, with --pairs pairs per step"""
    pairs: cli.Count = 10
    """pairs of samples per step in the fine epochs"""
    lr: cli.Positive = 1e-3
    """learning rate of Adam"""
    encoder_lr: cli.OptionalPositive = None
    """learning rate of the encoder; None: --lr"""
    held_out: cli.Fraction = 0.0
    """share of the training documents kept for selecting the epoch; 0: the test set selects"""
    test_counts: bool = False
    """test again with counts, fed to an encoder of frequencies, as the released code does"""
    precision: cli.Precision | None = None
    """arithmetic of training, not of tests: bfloat16 for CPUs, tf32 for NVIDIA's GPUs; None:
    bfloat16 where a CPU has instructions for it, else float32
    """
    checkpoint_every: cli.Count = 10
    """epochs between checkpoints"""
    out: Path = Path("runs/hashing")
    """folder for checkpoint.pt, result.json and the figure"""

    def __post_init__(self) -> None:
        if self.epochs + self.fine_epochs < 1:
            raise ValueError("--epochs and --fine-epochs are both 0: nothing to train")
        if self.test_counts and self.encoder == "e1":
            raise ValueError("--test-counts: e1 is trained on counts; there is no mismatch to test")


# --- model ----------------------------------------------------------------------------------------


def linear_parameters(inputs: int, outputs: int, *shape: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight of the given shape and bias, initialised as torch.nn.Linear(inputs, outputs) does."""
    bound = inputs**-0.5
    weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
    return weight, nn.Parameter(torch.empty(outputs).uniform_(-bound, bound))


class Encoder(nn.Module):
    """Logits of q(z given x), shape (B, b). The first layer's weight has shape (V, b), or (V, 512)
    for e2.

    length: mean length of the training documents, in words, smoothing included; e4's features are
    in this unit.
    """

    scale: Tensor

    def __init__(self, kind: str, words: int, bits: int, length: float):
        super().__init__()
        self.frequencies = kind != "e1"
        first = HIDDEN if kind == "e2" else bits
        self.weight, self.bias = linear_parameters(words, first, words, first)
        self.rest = nn.Identity()
        if kind == "e2":
            self.rest = nn.Sequential(nn.LeakyReLU(LEAK), nn.Linear(HIDDEN, bits))
        self.register_buffer("scale", torch.tensor(length if kind == "e4" else 1.0))

    def forward(self, batch: Batch, as_counts: bool = False) -> Tensor:
        """as_counts: feed counts whatever the encoder was made for (`--test-counts`)."""
        product = SmoothedProduct.apply(self.weight, batch)
        if self.frequencies and not as_counts:
            product = product * (self.scale / batch.n)[:, None]
        return self.rest(product + self.bias)


class Decoder(nn.Module):
    """Relative negative log-likelihood of documents given codes."""

    def __init__(self, words: int, bits: int, layers: int):
        super().__init__()
        sizes = [bits] + [HIDDEN] * layers
        self.hidden = nn.Sequential()
        for a, b in itertools.pairwise(sizes):
            self.hidden.extend([nn.Linear(a, b), nn.LeakyReLU(LEAK)])
        self.weight, self.bias = linear_parameters(sizes[-1], words, words, sizes[-1])
        self.workspace = Workspace()

    def forward(self, z: Tensor, batch: Batch, dtype: torch.dtype | None = None) -> Tensor:
        """Codes (..., B, b) -> relative NLL, nats, (..., B). dtype: of sums over words, or z's."""
        distinct, which = distinct_codes(z.flatten(0, -2))
        nll = RelativeNLL.apply(
            self.hidden(distinct), self.weight, self.bias, batch, self.workspace, dtype or z.dtype
        )
        return nll.gather(0, which.view(-1, len(batch))).view(z.shape[:-1])


def kl_uniform(logits: Tensor) -> Tensor:
    """KL(q || Bernoulli(1/2)^b) in nats, shape (B,), of logits (B, b)."""
    return (torch.sigmoid(logits) * logits - nn.functional.softplus(logits) + math.log(2)).sum(-1)


class VAE(nn.Module):
    """Encoder and decoder; the prior has nothing to learn."""

    def __init__(self, options: Options, words: int, length: float = 1.0):
        super().__init__()
        self.encoder = Encoder(options.encoder, words, options.bits, length)
        self.decoder = Decoder(words, options.bits, options.decoder_layers)


# --- training -------------------------------------------------------------------------------------


def train(options: Options, corpus: Corpus) -> dict[str, Any]:
    """Train and keep `checkpoint.pt`, `model.pt` (the selected epoch) and `result.json` in --out;
    returns the result.

    Raises RunError if --out holds another run or an option cannot be met, FloatingPointError if a
    loss is not finite.
    """
    device, checkpoint = run.begin(options)
    trainer = Trainer(options, corpus, device)
    if checkpoint.exists():
        resume(trainer, checkpoint)
    run.take_back(options.out, "epoch", trainer.epoch)
    total = options.epochs + options.fine_epochs
    with (
        run.saving_at_sigterm() as told,
        tqdm(total=total, initial=trainer.epoch, desc="training", unit="epoch") as bar,
    ):
        while trainer.epoch < total and not told():
            start = time.perf_counter()
            pairs = 1 if trainer.epoch < options.epochs else options.pairs
            order = torch.randperm(len(trainer.train), generator=trainer.generators["order"])
            losses = [
                step(trainer, trainer.train.batch(rows.numpy()), pairs)
                for rows in order.split(options.batch_size)
            ]
            values = {"train": torch.stack(losses).double().mean().item(), **test(trainer)}
            trainer.record(values)
            trainer.seconds += time.perf_counter() - start
            run.note(options.out, epoch=trainer.epoch, **values)
            bar.set_postfix_str(f"-ELBO train {values['train']:.1f} test {values['test']:.1f}")
            bar.update()
            if trainer.epoch % options.checkpoint_every == 0 or trainer.epoch == total or told():
                run.save_trainer(checkpoint, trainer, corpus=corpus.name)
    return finish(trainer, corpus)


def step(trainer: "Trainer", batch: Batch, pairs: int) -> Tensor:
    """One step of Adam; returns the batch's loss, the mean over the codes that the pairs drew.

    Each code of a pair is a sample of q, so this mean is unbiased, and no decoder pass is spent on
    reporting.
    """
    options, model, reported = trainer.options, trainer.model, []
    # Few bits: the pairs share most codes, decoded once. Many: a CPU's caches do not hold the
    # logits of all pairs.
    at_once = 1 if options.bits > 16 and trainer.device.type == "cpu" else pairs
    rounded = torch.bfloat16 if options.precision == "bfloat16" else None
    with run.products_in(options.precision):
        logits = model.encoder(batch)
        leaf = logits.detach().expand(at_once, -1, -1).requires_grad_()  # q's logits, (P, B, b)

        def f(z: Tensor) -> Tensor:
            """What is minimised: codes (2, P, B, b) -> -log p(x given z) - log p(z) + log q(z given
            x), (2, P, B), nats; the logits of q are detached, as the estimators want it.
            """
            nll = model.decoder(z, batch, rounded)
            with torch.no_grad():  # the same mean over q, less noisy, for the curves only
                reported.append((nll + kl_uniform(leaf)).mean() * at_once / pairs)
            return nll + log_bernoulli(z, leaf.detach()) + options.bits * math.log(2)

        trainer.optimizer.zero_grad()
        for _ in range(0, pairs, at_once):
            estimate = ESTIMATORS[options.estimator](f, leaf, trainer.generators["noise"])
            (estimate.mean() * at_once / pairs).backward()  # into the decoder and leaf.grad
        logits.backward(leaf.grad.sum(0))  # and on into the encoder, once for all pairs
    trainer.optimizer.step()
    return sum(reported[1:], reported[0])


def test(trainer: "Trainer") -> dict[str, float]:
    """The losses after an epoch: of the test set, and of what the options want besides."""
    noise = trainer.generators["test_noise"]
    before = noise.get_state()
    loss = evaluate(trainer, trainer.test)
    values = {"test": loss}
    if trainer.options.test_counts:
        noise.set_state(before)
        values["test_counts"] = evaluate(trainer, trainer.test, as_counts=True)
    if trainer.held_out is not None:
        values["held_out"] = evaluate(trainer, trainer.held_out)
    return values


@torch.no_grad()
def evaluate(trainer: "Trainer", documents: Documents, as_counts: bool = False) -> float:
    """Loss from one sample per document, mean over batches, as in the report."""
    model, noise, size = trainer.model, trainer.generators["test_noise"], trainer.options.batch_size
    losses = []
    # Several batches at once: with few bits, they share most codes, which are decoded once.
    for batch in documents.batches(8 * size):
        logits = model.encoder(batch, as_counts)
        p = torch.sigmoid(logits)
        z = (torch.rand(p.shape, generator=noise, device=p.device) < p).to(p.dtype)
        losses.append(model.decoder(z[None], batch)[0] + kl_uniform(logits))
    loss = torch.cat(losses).cpu().double()
    return torch.stack([batch.mean() for batch in loss.split(size)]).mean().item()


class Trainer:
    """The documents, and what a checkpoint holds: model, optimiser, noise and history."""

    KEPT = ("model", "selected", "optimizer", "generators", "history", "seconds")

    def __init__(self, options: Options, corpus: Corpus, device: torch.device):
        if options.precision == "bfloat16" and device.type != "cpu":
            raise cli.RunError(f"--precision bfloat16 is for the CPU, not for {device.type}")
        self.options = run.precise(options, device)
        self.device, self.corpus_name = device, corpus.name
        counts, held_out = corpus.train, None
        count = counts.shape[0]
        self.training_rows = np.arange(count)
        if options.held_out:
            self.training_rows, rows = hold_out(count, options.held_out, options.seed)
            counts, held_out = counts[self.training_rows], counts[rows]
        self.u = torch.from_numpy(unigram(counts)).float().to(device)
        self.train, self.test = Documents(counts, self.u), Documents(corpus.test, self.u)
        self.held_out = None if held_out is None else Documents(held_out, self.u)
        torch.manual_seed(options.seed)
        self.model = VAE(self.options, len(self.u), self.train.n.double().mean().item()).to(device)
        encoder, decoder = self.model.encoder.parameters(), self.model.decoder.parameters()
        groups = [{"params": encoder, "lr": options.encoder_lr or options.lr}, {"params": decoder}]
        self.optimizer = torch.optim.Adam(groups, options.lr, fused=True)
        # Data order, samples in training and samples in testing: each has a stream of its own.
        places = {"order": "cpu", "noise": device, "test_noise": device}
        self.generators = {name: torch.Generator(place) for name, place in places.items()}
        for i, generator in enumerate(self.generators.values()):
            generator.manual_seed(3 * options.seed + i)
        self.history: dict[str, list[float]] = {"train": []}
        self.selected: dict[str, Tensor] = {}
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """Epochs so far."""
        return len(self.history["train"])

    @property
    def selected_epoch(self) -> int:
        """The epoch of lowest loss of held-out documents, else of the test set, counted from 1."""
        return int(np.argmin(self.history["held_out" if self.held_out else "test"])) + 1

    def record(self, values: dict[str, float]) -> None:
        """Add an epoch's losses, and keep its model if it is the best. Raises FloatingPointError if
        one is not finite.
        """
        losses = {f"{key} loss": value for key, value in values.items()}
        run.check_finite(losses, f"in epoch {self.epoch + 1}")
        for key, value in values.items():
            self.history.setdefault(key, []).append(value)
        if self.selected_epoch == self.epoch:
            self.selected = {k: v.detach().clone() for k, v in self.model.state_dict().items()}


def resume(trainer: Trainer, path: Path) -> None:
    """Go on from a checkpoint. Raises RunError if it is none, or of other options or documents."""
    options = trainer.options
    with run.reading(path, "checkpoint of hashing.py") as state:
        before, epoch = state["config"], len(state["history"]["train"])
        now = run.as_config(options) | {"documents": trainer.corpus_name}
        run.same_options(path, before | {"documents": state["corpus"]}, now, FREE_ON_RESUME)
        one_pair = min(epoch, before["epochs"])
        if epoch > options.epochs + options.fine_epochs or one_pair != min(epoch, options.epochs):
            raise cli.RunError(
                f"--resume: {path} is at epoch {epoch}, {one_pair} of them with one pair; this "
                "schedule never passes through that state"
            )
        run.restore(trainer, state)


def finish(trainer: Trainer, corpus: Corpus) -> dict[str, Any]:
    """Write the model of the selected epoch and the result, which is returned."""
    options, history, selected = trainer.options, trainer.history, trainer.selected_epoch
    start = time.perf_counter()
    trainer.model.load_state_dict(trainer.selected)
    train = Documents(corpus.train, trainer.u) if trainer.held_out else trainer.train
    with torch.no_grad():  # the most likely code of each document
        batches = itertools.chain(train.batches(1024), trainer.test.batches(1024))
        bits = torch.cat([trainer.model.encoder(batch) > 0 for batch in batches])
    packed = hamming.pack(bits.cpu().numpy())
    labels = np.concatenate([corpus.train_labels, corpus.test_labels])
    titles = [t.encode("utf-8", "surrogatepass") for t in corpus.train_titles + corpus.test_titles]
    saved = {  # for others to load, and for `search`: plain tensors, strings and numbers
        "config": run.as_config(options),
        "corpus": corpus.name,
        "epoch": selected,
        "words": corpus.words,
        "u": trainer.u.cpu(),
        "model": {key: value.cpu() for key, value in trainer.selected.items()},
        "codes": torch.from_numpy(packed.view(np.int64)),
        "labels": torch.from_numpy(labels),
        "groups": corpus.groups,
        "titles": torch.frombuffer(bytearray(b"".join(titles)), dtype=torch.uint8),
        "title_ends": torch.tensor([len(title) for title in titles]).cumsum(0),
        "characteristic": torch.from_numpy(characteristic_words(corpus.train, corpus.test)),
    }
    run.save_torch(options.out / "model.pt", saved)
    rows, first = trainer.training_rows, corpus.train.shape[0]
    queries, database = (packed[first:], labels[first:]), (packed[rows], labels[rows])
    metrics = {
        "train_final": history["train"][-1],
        "test_min": min(history["test"]),
        "test_min_epoch": int(np.argmin(history["test"])) + 1,
        "selected_epoch": selected,
        "test_selected": history["test"][selected - 1],
        "precision_at_100": hamming.precision_at(100, *queries, *database),
        "epochs": trainer.epoch,
    }
    if options.test_counts:
        metrics["test_counts_min"] = min(history["test_counts"])
    seconds = trainer.seconds + time.perf_counter() - start
    return run.save_result(
        *(options, trainer.device, seconds, metrics, history),
        corpus=corpus.name,
        documents=[len(trainer.train), len(trainer.test)],
    )


def main(options: Options) -> None:
    result = train(options, load_corpus(options.corpus, options.archive))
    from figures import section5

    section5.report_hashing(result, options.out)


# --- retrieval ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchOptions:
    query: tyro.conf.Positional[tuple[str, ...]] = ()
    """words to search for, or a text, such as -- "$(cat letter.txt)" in the shell"""
    model: Path = Path("runs/hashing/model.pt")
    """model.pt of a trained run"""
    top: cli.Count = 10
    """number of documents to show"""


def search(options: SearchOptions) -> None:
    """Find the documents whose codes are nearest to that of a text, by what is kept of a trained
    model's run; of own documents the files are read that are shown.
    """
    if not options.query:
        raise cli.RunError("no words to search for")
    with run.reading(options.model, "model of hashing.py") as saved:
        config = saved["config"]
        architecture = {key: config[key] for key in ("encoder", "bits", "decoder_layers")}
        model = VAE(Options(**architecture), len(saved["words"]))
        model.load_state_dict(saved["model"])
        packed = saved["codes"].numpy().view(np.uint64)
        groups, ends = saved["groups"], saved["title_ends"]
    counts = counts_of_text(" ".join(options.query), saved["words"], saved["corpus"])
    words = [saved["words"][j] for j in counts.indices]
    with torch.no_grad():
        logits = model.encoder(Documents(counts, saved["u"]).batch(np.arange(1))).numpy()
    distance = hamming.distances(packed, hamming.pack(logits > 0)[0])
    top = min(options.top, len(packed))
    farthest = np.partition(distance, top - 1)[top - 1]
    near = np.flatnonzero(distance <= farthest)
    # Equal distances by log q of the code given the query, but for a constant.
    likely = hamming.unpack(packed[near], config["bits"]) @ logits[0]
    folder, rows = Path(config["corpus"]), []  # of own documents, whose lines can be shown
    for i in near[np.lexsort((-likely, distance[near]))][:top]:
        kept = saved["titles"][ends[i - 1] if i else 0 : ends[i]].numpy().tobytes()
        title = kept.decode("utf-8", "surrogatepass")
        path = folder / title
        line = texts.best_line(path, words) if folder.is_dir() and path.is_file() else ""
        typical = [saved["words"][j] for j in saved["characteristic"][i].tolist() if j >= 0]
        group = groups[saved["labels"][i]]
        rows.append((int(distance[i]), group, title, line or " ".join(typical)))
    shown = "line that matches best" if folder.is_dir() else "characteristic words"
    run.print_table(("distance", "group", "document", shown), rows)
    if (alike := int((distance == farthest).sum())) > top:
        print(f"{alike:,} documents are as near as the last: these codes do not tell them apart")
    print(f"{config['bits']} bits; {saved['corpus']}; {options.model}, epoch {saved['epoch']}")


# --- all codes summed over ------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactOptions(CommonOptions):
    encoders: tuple[EncoderKind, ...] = ("e1", "e3", "e4")
    """encoders to fit to the maximum likelihood decoder"""
    bits: cli.Count = 8
    """b, number of Bernoulli latents, 12 at most; all 2^b codes are summed over"""
    likelihood_epochs: cli.Count = 250
    """epochs of maximum likelihood for the decoder alone"""
    encoder_epochs: cli.Count = 60
    """epochs of the encoder alone, the decoder frozen"""
    joint_epochs: cli.Count = 120
    """epochs of joint training, and of maximum likelihood going on beside it"""
    lr: cli.Positive = 3e-3
    """learning rate of Adam, new in each stage"""
    out: Path = Path("runs/exact")
    """folder for one file per stage, result.json and the figure"""

    def __post_init__(self) -> None:
        if not self.encoders or len(set(self.encoders)) < len(self.encoders):
            raise ValueError("--encoders must name one or more, each once")
        if self.bits > 12:
            raise ValueError(f"--bits must be at most 12 to sum over all codes, not {self.bits}")


@dataclass(frozen=True)
class Stage:
    """One training of `exact`, and from which earlier stages it goes on."""

    name: str
    encoder: EncoderKind
    objective: Literal["likelihood", "elbo", "regression"]
    epochs: int
    trains: tuple[str, ...]
    decoder_from: str | None = None
    encoder_from: str | None = None


def stages(options: ExactOptions) -> list[Stage]:
    """All trainings of `exact`, in order."""
    first, on = options.likelihood_epochs, options.joint_epochs
    alone, both = ("encoder",), ("encoder", "decoder")
    plan = [
        Stage("likelihood", "e1", "likelihood", first, ("decoder",)),  # any encoder: it stays idle
        Stage("likelihood_on", "e1", "likelihood", on, ("decoder",), "likelihood"),
    ]
    for e in options.encoders:
        plan += [
            Stage(f"{e}_frozen", e, "elbo", options.encoder_epochs, alone, "likelihood"),
            Stage(f"{e}_joint", e, "elbo", on, both, "likelihood", f"{e}_frozen"),
            Stage(f"{e}_regressed", e, "regression", REGRESSION, alone, "likelihood"),
        ]
    e = options.encoders[0]  # once, to separate what the bound does from what fitting does
    last = Stage(f"{e}_regressed_joint", e, "elbo", on, both, "likelihood", f"{e}_regressed")
    return [*plan, last]


def log_decoder(model: VAE, z: Tensor) -> tuple[Tensor, Tensor | None]:
    """log p(v given z), z (K, b) all of `codes`: two factors (V, m), (m, K), or a table (V, K)."""
    decoder = model.decoder
    if not len(decoder.hidden):
        return log_linear(decoder.weight, decoder.bias)
    return torch.log_softmax(decoder.weight @ decoder.hidden(z).T + decoder.bias[:, None], 0), None


def log_joint(log_p: tuple[Tensor, Tensor | None], batch: Batch, z: Tensor) -> Tensor:
    """log p(x, z), relative to the document's entropy, (B, K); log_p: of `log_decoder`."""
    of_words, of_codes = log_p
    log_likelihood = SmoothedProduct.apply(of_words, batch)
    if of_codes is not None:
        log_likelihood = log_likelihood @ of_codes
    return log_likelihood - z.shape[1] * math.log(2) - batch.negentropy[:, None]


class Exact:
    """A corpus, all codes z (K, b), and what can be said of a model by summing over them."""

    def __init__(self, options: ExactOptions, corpus: Corpus, device: torch.device):
        self.options, self.device = options, device
        self.u = torch.from_numpy(unigram(corpus.train)).float().to(device)
        self.documents = {split: Documents(getattr(corpus, split), self.u) for split in SPLITS}
        self.z = codes(options.bits, self.u)

    def model(self, encoder: EncoderKind) -> VAE:
        """A new model; one seed gives one decoder, whatever the encoder."""
        bits, words = self.options.bits, len(self.u)
        torch.manual_seed(self.options.seed)
        model = VAE(Options(bits=bits, decoder_layers=self.options.decoder_layers), words)
        length = self.documents["train"].n.double().mean().item()
        model.encoder = Encoder(encoder, words, bits, length)
        return model.to(self.device)

    @torch.no_grad()
    def totals(self, model: VAE, split: str) -> tuple[float, float]:
        """Mean log-likelihood and ELBO of a document, relative, nats."""
        log_p, documents = log_decoder(model, self.z), self.documents[split]
        sums = np.zeros(2)
        for batch in documents.batches(1024):
            joint = log_joint(log_p, batch, self.z)
            elbo = exact_elbo(model.encoder(batch), joint, self.z)
            sums += [joint.logsumexp(1).double().sum().item(), elbo.double().sum().item()]
        return float(sums[0] / len(documents)), float(sums[1] / len(documents))

    def fit(self, model: VAE, stage: Stage) -> dict[str, list[float]]:
        """Train parts of the model, in place; returns log-likelihood and ELBO of each split per
        epoch.

        The train values are means over the epoch's batches, each before its step; the test values
        are after the epoch.
        """
        options, train = self.options, self.documents["train"]
        parts = [getattr(model.requires_grad_(False), part) for part in stage.trains]
        parameters = [p.requires_grad_(True) for part in parts for p in part.parameters()]
        optimizer = torch.optim.Adam(parameters, options.lr, fused=True)
        generator = torch.Generator().manual_seed(options.seed)
        values: list[list[float]] = []
        log_p = log_decoder(model, self.z)
        for epoch in tqdm(range(stage.epochs), desc=stage.name, unit="epoch", leave=False):
            order = torch.randperm(len(train), generator=generator, device="cpu").numpy()
            sums = torch.zeros(2, dtype=torch.float64, device=self.device)
            for i in range(0, len(order), options.batch_size):
                batch = train.batch(order[i : i + options.batch_size])
                if "decoder" in stage.trains:
                    log_p = log_decoder(model, self.z)
                joint = log_joint(log_p, batch, self.z)
                likelihood = joint.logsumexp(1)
                elbo = exact_elbo(model.encoder(batch), joint, self.z)
                gain = likelihood if stage.objective == "likelihood" else elbo
                optimizer.zero_grad()
                (-gain.mean()).backward()
                optimizer.step()
                of_batch = [value.detach().double().sum() for value in (likelihood, elbo)]
                sums = sums + torch.stack(of_batch).to(sums)
            values.append([*(sums / len(train)).tolist(), *self.totals(model, "test")])
            named = dict(zip(CURVES, values[-1], strict=True))
            run.check_finite(named, f"in epoch {epoch + 1} of {stage.name}")
        return dict(zip(CURVES, map(list, zip(*values, strict=True)), strict=True))

    def regress(self, model: VAE, stage: Stage) -> dict[str, list[float]]:
        """Fit the encoder, in place, to the marginals of the exact posterior by logistic
        regression, all at once.

        Unlike the ELBO, this cross-entropy is convex for a linear encoder, so that L-BFGS, `epochs`
        times 20 iterations, shows what the encoder can do. Returns a history of one entry.
        """
        model.encoder.requires_grad_(True)
        train = self.documents["train"].batch(np.arange(len(self.documents["train"])))
        with torch.no_grad():
            joint = log_joint(log_decoder(model, self.z), train, self.z)
            marginals = torch.softmax(joint, 1) @ self.z
        how: dict[str, Any] = {"line_search_fn": "strong_wolfe", "tolerance_change": 0.0}
        optimizer = torch.optim.LBFGS(model.encoder.parameters(), history_size=20, **how)

        def cross_entropy() -> Tensor:
            optimizer.zero_grad()
            fit = nn.functional.binary_cross_entropy_with_logits
            loss = fit(model.encoder(train), marginals, reduction="none").sum(1).mean()
            loss.backward()
            return loss

        for _ in tqdm(range(stage.epochs), desc=stage.name, unit="step", leave=False):
            optimizer.step(cross_entropy)
        values = [[value] for split in SPLITS for value in self.totals(model, split)]
        return dict(zip(CURVES, values, strict=True))

    @torch.no_grad()
    def measure(self, model: VAE, split: str) -> dict[str, float]:
        """Means over documents, nats: relative log-likelihood and ELBO; the gap between them in two
        parts; and the posterior's entropy.

        `factorization` is what the best factorized posterior *that was found* leaves, so an upper
        bound of what the best one leaves, and `amortization`, the rest of the gap, a lower bound.
        """
        log_p, z = log_decoder(model, self.z), self.z.double()
        sums: dict[str, float] = {}
        for batch in self.documents[split].batches(1024):
            joint = log_joint(log_p, batch, self.z).double()
            logits, likelihood = model.encoder(batch).double(), joint.logsumexp(1)
            elbo = exact_elbo(logits, joint, z)
            best = exact_elbo(best_factorized(joint, logits, z), joint, z)
            posterior = (joint - likelihood[:, None]).exp()
            entropy = -(posterior * (joint - likelihood[:, None])).sum(1)
            parts = {"log_likelihood": likelihood, "elbo": elbo, "gap": likelihood - elbo}
            parts |= {"factorization": likelihood - best, "amortization": best - elbo}
            parts["posterior_entropy"] = entropy
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value.sum().item()
        return {key: value / len(self.documents[split]) for key, value in sums.items()}

    def run(self, stage: Stage, before: dict[str, dict]) -> dict[str, Any]:
        """Train one stage, from the models of those `before`; returns its own, and its numbers."""
        model = self.model(stage.encoder)
        for part, origin in (("decoder", stage.decoder_from), ("encoder", stage.encoder_from)):
            if origin is not None:
                state = before[origin]["model"].items()
                model.load_state_dict({k: v for k, v in state if k.startswith(part)}, strict=False)
        history = (self.regress if stage.objective == "regression" else self.fit)(model, stage)
        metrics = {split: self.measure(model, split) for split in SPLITS}
        if stage.objective == "likelihood":  # there is no trained encoder to speak of
            kept = ("log_likelihood", "posterior_entropy")
            metrics = {split: {key: m[key] for key in kept} for split, m in metrics.items()}
        return {"model": model.state_dict(), "history": history, "metrics": metrics}


def exact(options: ExactOptions) -> None:
    """Train with sums over all 2^b codes: does joint training lower a decoder's likelihood?"""
    corpus = load_corpus(options.corpus, options.archive)
    device = run.pick_device(options.device)
    torch.set_flush_denormal(True)
    over_codes = Exact(options, corpus, device)
    trained: dict[str, dict] = {}
    for stage in stages(options):
        path, free = options.out / f"{stage.name}.pt", FREE_ON_RESUME | {"device", "encoders"}
        make = functools.partial(over_codes.run, stage, trained)
        trained[stage.name] = run.keep(path, options, free, make, documents=corpus.name)
    metrics = {name: state["metrics"] for name, state in trained.items()}
    history = {name: state["history"] for name, state in trained.items()}
    seconds = sum(state["seconds"] for state in trained.values())
    result = run.save_result(options, device, seconds, metrics, history, corpus=corpus.name)
    from figures import section5

    section5.report_exact(result, options.out)


# --- documents of few words, at the optimum -------------------------------------------------------


@dataclass(frozen=True)
class LengthsOptions(CorpusOptions):
    lengths: tuple[cli.Count, ...] = (2, 4, 8, 16, 32, 64)
    """words kept of each document, drawn without replacement"""
    words: cli.Count = 300
    """the most frequent words of the corpus, which documents consist of"""
    documents: cli.Count = 1500
    """documents drawn from those that are long enough, at most"""
    bits: cli.Count = 4
    """b, number of Bernoulli latents, 8 at most; all 2^b codes are summed over"""
    decoder: Literal["linear", "free"] = "linear"
    """linear: d = 0; free: a distribution for each code, the most hidden layers could reach"""
    weights: cli.Several = 5
    """points on the path from likelihood (w = 0) to the ELBO (w = 1), squares of equal steps"""
    iterations: cli.Count = 1500
    """steps of L-BFGS at each point, at most"""
    out: Path = Path("runs/lengths")
    """folder for one file per length and result.json"""

    def __post_init__(self) -> None:
        if self.bits > 8:
            raise ValueError(f"--bits must be at most 8 to sum over all codes, not {self.bits}")


class Short:
    """Documents of n words, and where E - w G is largest: E mean log p(x), G the mean gap of the
    best factorized q.

    The decoder is a table of logits, words by codes: parameters (V, m) times features of the code
    (m, K).
    """

    def __init__(self, counts: scipy.sparse.csr_array, options: LengthsOptions):
        self.options, self.z = options, codes(options.bits, torch.empty(0, dtype=torch.float64))
        u = torch.from_numpy(unigram(counts))
        self.batch = Documents(counts, u).batch(np.arange(counts.shape[0]))
        ones, log_u = torch.ones(len(self.z), 1, dtype=torch.float64), u.log()
        linear = options.decoder == "linear"
        self.features = torch.cat([ones, self.z], 1).T if linear else torch.diag(ones[:, 0])
        noise = torch.Generator().manual_seed(options.seed)
        start = 0.1 * torch.randn(len(u), len(self.features), generator=noise, dtype=torch.float64)
        # From the unigram distribution: every code begins near it.
        start[:, : 1 if linear else None] += log_u[:, None]  # column of ones, or all codes'
        self.start = start
        self.logits = torch.zeros(len(self.batch), options.bits, dtype=torch.float64)

    def joint_of(self, parameters: Tensor) -> Tensor:
        log_p = torch.log_softmax(parameters @ self.features, 0)
        return log_joint((log_p, None), self.batch, self.z)

    def ascend(self, parameters: Tensor, w: float) -> tuple[Tensor, float, float]:
        """Uphill on E - w G by L-BFGS, q the best at each step; parameters, E and G there."""

        def value(at: Tensor) -> Tensor:
            joint = self.joint_of(at)
            evidence = joint.logsumexp(1).mean()
            if not w:
                return evidence
            # From the last q uphill; at its optimum, its change adds nothing to the gradient.
            self.logits = best_factorized(joint.detach(), self.logits, self.z, anew=False)
            return (1 - w) * evidence + w * exact_elbo(self.logits, joint, self.z).mean()

        steps = {"maxiter": self.options.iterations, "maxcor": 20, "ftol": 1e-11, "gtol": 1e-8}
        found = law.uphill(value, parameters, steps)
        with torch.no_grad():
            joint = self.joint_of(found)
            self.logits = best_factorized(joint, self.logits, self.z)
            evidence = joint.logsumexp(1).mean().item()
            elbo = exact_elbo(self.logits, joint, self.z).mean().item()
        return found, evidence, evidence - elbo


def lengths(options: LengthsOptions) -> None:
    """Where the family of q matters: the law's path at the optimum, for documents of n words."""
    torch.set_num_threads(1)  # of products this small, several take longer
    corpus = load_corpus(options.corpus, options.archive)
    weights = law.weights(options.weights)
    frequent = corpus.train[:, frequent_words(corpus.train, options.words)]
    cases = []
    for n in tqdm(options.lengths, desc="lengths", unit="length"):

        def path(n: int = n) -> dict[str, Any]:
            counts = some_words(frequent, n, options.documents, np.random.default_rng(options.seed))
            short = Short(counts, options)
            found, _ = law.follow(weights, short.ascend, short.start)
            return {"metrics": found | {"documents": counts.shape[0]}}

        free = {"lengths", "resume", "archive", "out"}
        state = run.keep(options.out / f"{n}.pt", options, free, path, documents=corpus.name)
        name = f"hashing_{options.decoder}_b{options.bits}_n{n}_seed{options.seed}"
        of = f"{options.decoder} decoder, b = {options.bits}"
        case = {"name": name, "section": 5, "knob": "words", "value": n, "seed": options.seed}
        cases.append(case | {"of": of, "seconds": state["seconds"]} | state["metrics"])
    law.save(options, cases, corpus=corpus.name)


# --- how noisy the estimators are -----------------------------------------------------------------


@dataclass(frozen=True)
class VarianceOptions:
    scales: tuple[cli.Positive, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    """standard deviations of the logits, for 16 bits"""
    bits: tuple[cli.Count, ...] = (2, 4, 8, 16, 32, 64)
    """numbers of bits b, for logits of standard deviation 1"""
    documents: cli.Count = 16
    """random problems averaged for each point"""
    samples: cli.Several = 4000
    """gradient estimates drawn for each problem"""
    seed: cli.Natural = 1
    """seed of problems and samples"""
    device: str | None = None
    """where to compute; None: the accelerator if there is one, else the CPU"""
    out: Path = Path("runs/disarm")
    """folder for result.json and the figure"""


def total_variance(
    name: str, b: int, scale: float, options: VarianceOptions, device: torch.device
) -> float:
    """Sum over the b coordinates of the variance of the gradient in the logits (nats squared), mean
    over documents.

    The objective is the section's, with a random log-linear decoder and a document drawn from it.
    """
    problems = torch.Generator(device).manual_seed(options.seed)  # the same for every estimator
    noise = torch.Generator(device).manual_seed(options.seed + 1)
    total = 0.0
    for _ in range(options.documents):
        weight = torch.randn(b, 500, generator=problems, device=device) / b**0.5  # of 500 words
        code = torch.randint(2, (b,), generator=problems, device=device).float()
        p = torch.softmax(code @ weight, -1)
        counts = torch.bincount(torch.multinomial(p, 100, True, generator=problems), minlength=500)
        counts = counts.float()
        logits = scale * torch.randn(b, generator=problems, device=device)

        def f(z: Tensor, weight=weight, counts=counts, logits=logits) -> Tensor:
            return -(torch.log_softmax(z @ weight, -1) @ counts) + log_bernoulli(z, logits)

        draws = logits.repeat(options.samples, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(ESTIMATORS[name](f, draws, noise).sum(), draws)
        total += gradient.var(0).sum().item()
    return total / options.documents


def variance(options: VarianceOptions) -> None:
    """Gradient variance of each estimator against the scale of the logits and the number of bits,
    on documents and a decoder like the section's, only smaller.
    """
    device, start = run.pick_device(options.device), time.perf_counter()
    names = ("arm", "reinforce", "disarm")
    points = [("scale", 16, scale) for scale in options.scales]
    points += [("bits", b, 1.0) for b in options.bits]
    metrics = {panel: {name: [] for name in names} for panel in ("scale", "bits")}
    for panel, b, scale in tqdm(points, desc="variance", unit="point"):
        for name in names:
            metrics[panel][name].append(total_variance(name, b, scale, options, device))
    seconds = time.perf_counter() - start
    result = run.save_result(options, device, seconds, metrics, history={})
    from figures import section5

    section5.report_variance(result, options.out)


RUNS = (
    ("report", main, Options(), "train one configuration by the report's protocol, the default"),
    ("exact", exact, ExactOptions(), "sum over all codes of few bits, and take the claim apart"),
    ("lengths", lengths, LengthsOptions(), "documents of few words, at the optimum"),
    ("variance", variance, VarianceOptions(), "measure how noisy the gradient estimators are"),
    ("search", search, SearchOptions(), "find documents with a trained model"),
)

if __name__ == "__main__":
    cli.main(__doc__, *RUNS)
