"""Semantic hashing of 20 Newsgroups with a Bernoulli VAE (Section 5): documents become codes of b bits.

Encoder: q(z given x) = prod_i Bernoulli(z_i; sigmoid(logits_i(x))), where the logits are

  e1  a linear layer of the word counts,
  e2  a hidden layer of 512 and a linear layer, of the word frequencies,
  e3  a linear layer of the word frequencies.

Decoder: d hidden layers of 512, then a linear layer and log-softmax over the words. Prior: Bernoulli(1/2) a bit.
Every document is smoothed: the training unigram distribution u, one word's worth of mass, is added to its counts c,
giving x = c + u with n = sum_v x_v.

The loss is the *relative* negative ELBO of the report's Tables 2 and 3, in nats a document: the document's own
entropy is taken off the reconstruction term,

  sum_v x_v (log(x_v / n) - log p(v given z))  +  KL(q(z given x) || p(z)),

so zero would mean a decoder that knows every document's word frequencies. Training is the report's: Adam 1e-3, batches
of 256, 1,000 epochs with one DisARM pair a step, then 500 with ten. "Test" in the report is the minimum over epochs of
the test loss, which selects on the test set; it is what this script compares with 387.

What is sparse stays sparse: the encoder's product, x . log p(z) and their gradients touch non-zero counts only, the
smoothing is a rank-one term. The only dense work is the normaliser of the softmax, and its gradient.
"""

import io
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data import newsgroups, write_aside
from disarm import ESTIMATORS, log_bernoulli
from figures import published, section5
from figures.run import RunError, as_config, cli, pick_device, save_result, table

HIDDEN = 512
LEAK = 0.01  # slope of LeakyReLU
GENERATORS = ("order", "noise", "test_noise")  # of a Trainer, and kept in checkpoints
FREE_ON_RESUME = {"epochs", "fine_epochs", "checkpoint_every", "resume", "archive", "out"}


@dataclass(frozen=True)
class Options:
    encoder: Literal["e1", "e2", "e3"] = "e1"
    """e1: linear, word counts; e2: one hidden layer, word frequencies; e3: linear, word frequencies"""
    bits: int = 64
    """b, number of Bernoulli latents"""
    decoder_layers: int = 0
    """d, number of hidden layers of 512 in the decoder"""
    estimator: Literal["disarm", "arm", "reinforce"] = "disarm"
    """gradient estimator for the encoder, two samples each"""
    epochs: int = 1000
    """epochs with one pair of samples a step"""
    fine_epochs: int = 500
    """epochs after those, with --pairs pairs a step"""
    pairs: int = 10
    """pairs of samples a step in the fine epochs"""
    batch_size: int = 256
    """documents a step"""
    lr: float = 1e-3
    """learning rate of Adam"""
    test_counts: bool = False
    """feed counts at test time to encoders trained on frequencies, as the released code does"""
    seed: int = 1
    """seed of initialisation, data order and samples"""
    device: str | None = None
    """where to train; default: the accelerator if there is one, else the CPU"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; default: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded there"""
    checkpoint_every: int = 10
    """epochs between checkpoints"""
    resume: bool = False
    """go on from the checkpoint in --out, bit by bit as if never stopped"""
    out: Path = Path("runs/hashing")
    """folder for checkpoint.pt, result.json and the figure"""

    def __post_init__(self) -> None:
        for name, least in (
            *(("bits", 1), ("decoder_layers", 0), ("epochs", 0), ("fine_epochs", 0)),
            *(("pairs", 1), ("batch_size", 1), ("checkpoint_every", 1)),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if self.epochs + self.fine_epochs < 1:
            raise ValueError("--epochs and --fine-epochs are both 0: nothing to train")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be a positive number, not {self.lr}")


# --- documents ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """B documents. `counts` (B, V) and `transposed` (V, B) are the same sparse CSR table, without the smoothing."""

    counts: Tensor
    transposed: Tensor
    rows: Tensor  # (nnz,) int64: document of each non-zero
    words: Tensor  # (nnz,) int64: its word
    values: Tensor  # (nnz,): its count
    n: Tensor  # (B,): length with the smoothing's one word
    negentropy: Tensor  # (B,): sum_v x_v log(x_v / n), nats

    def __len__(self) -> int:
        return len(self.n)


class Documents:
    """One split of the corpus, smoothed with the unigram distribution `u` of shape (V,)."""

    def __init__(self, counts: scipy.sparse.csr_array, u: Tensor):
        self.counts = counts.astype(torch.empty(0, dtype=u.dtype).numpy().dtype)
        self.u = u
        p = u.double().cpu().numpy()
        c = counts.data.astype(np.float64)
        at = p[counts.indices]
        document = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        x_log_x = np.bincount(document, (c + at) * np.log(c + at) - at * np.log(at), minlength=counts.shape[0])
        n = np.bincount(document, c, minlength=counts.shape[0]) + 1.0
        self.n = torch.from_numpy(n).to(u)
        self.negentropy = torch.from_numpy(x_log_x + p @ np.log(p) - n * np.log(n)).to(u)

    def __len__(self) -> int:
        return len(self.n)

    def batch(self, documents: np.ndarray) -> Batch:
        device = self.u.device
        part = self.counts[documents]
        transposed = part.T.tocsr()
        rows = np.repeat(np.arange(len(documents)), np.diff(part.indptr))
        index = torch.from_numpy(documents).to(device)
        return Batch(
            _csr(part, device),
            _csr(transposed, device),
            torch.from_numpy(rows).to(device),
            torch.from_numpy(part.indices.astype(np.int64)).to(device),
            torch.from_numpy(part.data).to(device),
            self.n[index],
            self.negentropy[index],
        )

    def batches(self, size: int, order: np.ndarray | None = None) -> Iterator[Batch]:
        order = np.arange(len(self)) if order is None else order
        for i in range(0, len(order), size):
            yield self.batch(order[i : i + size])


def _csr(matrix: scipy.sparse.csr_array, device: torch.device) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        parts = (torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data))
        return torch.sparse_csr_tensor(*parts, size=matrix.shape, check_invariants=False).to(device)


def unigram(counts: scipy.sparse.csr_array) -> np.ndarray:
    """The smoothing distribution u, shape (V,): the training counts, 1/10,000 added to each word, normalised."""
    total = counts.sum(0, dtype=np.float64) + 1e-4
    return total / total.sum()


# --- model ----------------------------------------------------------------------------------------------------------


class SparseProduct(torch.autograd.Function):
    """counts @ weight, (B, V) times (V, k); the gradient, transposed @ grad, is dense, for Adam."""

    @staticmethod
    def forward(ctx, weight: Tensor, batch: Batch) -> Tensor:
        ctx.batch = batch
        return batch.counts @ weight

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.batch.transposed @ grad.contiguous(), None


class RelativeNLL(torch.autograd.Function):
    """sum_v x_v (log(x_v / n) - log softmax(hidden @ weight.T + bias)_v), without a dense x.

    hidden (R, k) holds S = R / B samples for each of the B documents, sample after sample; weight (V, k); bias (V,);
    u (V,). `scratch` (>= R, V) is overwritten: it holds the logits, then their softmax until the backward pass is done.
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor, batch: Batch, u: Tensor, scratch: Tensor) -> Tensor:
        samples = len(hidden) // len(batch)
        logits = scratch[: len(hidden)]
        torch.addmm(bias, hidden, weight.T, out=logits)
        # Place of each non-zero count in the flattened (R, V) table, for every sample.
        row = (torch.arange(samples, device=u.device)[:, None] * len(batch) + batch.rows).ravel()
        place = row * len(bias) + batch.words.repeat(samples)
        values = batch.values.repeat(samples)
        smoothed = weight.T @ u
        dot = torch.addmv(bias @ u, hidden, smoothed).scatter_add_(0, row, values * torch.take(logits, place))
        largest = logits.amax(1)
        torch.softmax(logits, 1, out=logits)
        log_normaliser = largest - logits.amax(1).log()
        ctx.save_for_backward(hidden, weight, logits, u, smoothed, place, values, batch.n.repeat(samples), row)
        return batch.negentropy.repeat(samples) + batch.n.repeat(samples) * log_normaliser - dot

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, softmax, u, smoothed, place, values, n, row = ctx.saved_tensors
        # d loss / d logits is n softmax - x. Of x = c + u, the sparse c goes into the table, scaled as the rest will
        # be; u stays outside, as a rank-one term.
        softmax.view(-1).scatter_add_(0, place, -values / n[row])
        scale = grad * n
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            grad_hidden = (softmax @ weight).mul_(scale[:, None]).addr_(grad, smoothed, alpha=-1)
        grad_weight = (softmax.T @ (hidden * scale[:, None])).addr_(u, grad @ hidden, alpha=-1)
        grad_bias = (scale @ softmax).sub_(u * grad.sum())
        return grad_hidden, grad_weight, grad_bias, None, None, None


def linear_parameters(inputs: int, outputs: int, *shape: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight of the given shape and bias, initialised as torch.nn.Linear(inputs, outputs) does."""
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound)), nn.Parameter(
        torch.empty(outputs).uniform_(-bound, bound)
    )


class Encoder(nn.Module):
    """Logits of q(z given x), shape (B, b). The first layer's weight has shape (V, b), or (V, 512) for e2."""

    def __init__(self, kind: str, words: int, bits: int):
        super().__init__()
        self.frequencies = kind != "e1"
        first = HIDDEN if kind == "e2" else bits
        self.weight, self.bias = linear_parameters(words, first, words, first)
        self.rest = nn.Sequential(nn.LeakyReLU(LEAK), nn.Linear(HIDDEN, bits)) if kind == "e2" else nn.Identity()

    def forward(self, batch: Batch, u: Tensor, counts: bool = False) -> Tensor:
        """counts: feed counts whatever the encoder was made for (`--test-counts`)."""
        product = SparseProduct.apply(self.weight, batch) + u @ self.weight
        if self.frequencies and not counts:
            product = product / batch.n[:, None]
        return self.rest(product + self.bias)


class Decoder(nn.Module):
    """Relative negative log-likelihood of documents given codes."""

    def __init__(self, words: int, bits: int, layers: int):
        super().__init__()
        sizes = [bits] + [HIDDEN] * layers
        self.hidden = nn.Sequential(
            *(m for i in range(layers) for m in (nn.Linear(sizes[i], sizes[i + 1]), nn.LeakyReLU(LEAK)))
        )
        self.weight, self.bias = linear_parameters(sizes[-1], words, words, sizes[-1])
        self.scratch = torch.empty(0)

    def forward(self, z: Tensor, batch: Batch, u: Tensor) -> Tensor:
        """z: (S, B, b) -> relative NLL, nats, (S, B)."""
        hidden = self.hidden(z.flatten(0, 1))
        if len(self.scratch) < len(hidden) or self.scratch.dtype != hidden.dtype or self.scratch.device != u.device:
            self.scratch = hidden.new_empty(len(hidden), len(self.bias))
        return RelativeNLL.apply(hidden, self.weight, self.bias, batch, u, self.scratch).view(z.shape[:2])


class VAE(nn.Module):
    def __init__(self, options: Options, words: int):
        super().__init__()
        self.encoder = Encoder(options.encoder, words, options.bits)
        self.decoder = Decoder(words, options.bits, options.decoder_layers)


def kl_to_prior(logits: Tensor) -> Tensor:
    """KL(q || Bernoulli(1/2)^b) in nats, shape (B,)."""
    p = torch.sigmoid(logits)
    return (p * logits - nn.functional.softplus(logits) + math.log(2)).sum(-1)


# --- training -------------------------------------------------------------------------------------------------------


class Trainer:
    """Model, optimiser, noise and history: all that a checkpoint holds."""

    def __init__(self, options: Options, corpus: newsgroups.Corpus, device: torch.device):
        self.options = options
        self.device = device
        self.u = torch.from_numpy(unigram(corpus.train)).float().to(device)
        self.train, self.test = (Documents(counts, self.u) for counts in (corpus.train, corpus.test))
        torch.manual_seed(options.seed)
        self.model = VAE(options, len(self.u)).to(device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), options.lr, fused=True)
        # Data order, samples in training and samples in testing: each has a generator of its own.
        self.order = torch.Generator().manual_seed(options.seed)
        self.noise = torch.Generator(device).manual_seed(options.seed)
        self.test_noise = torch.Generator(device).manual_seed(options.seed)
        self.history = {key: [] for key in ("train", "test", "test_per_document", "test_kl")}
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history["train"])

    def step(self, batch: Batch, pairs: int) -> Tensor:
        """One Adam step; returns the batch's relative negative ELBO in nats a document, from the pairs' own values.

        Each code of a pair is a sample of q, so their mean reconstruction term with the analytic KL is unbiased for
        the loss, and no decoder pass is spent on reporting. The ten-pair objective is one encoder pass and the mean
        of ten estimates.
        """
        logits = self.model.encoder(batch, self.u)
        latent = logits.detach().requires_grad_()
        log_prior = -self.options.bits * math.log(2)
        loss = kl_to_prior(latent.detach()).mean()

        def f(z: Tensor) -> Tensor:
            nonlocal loss
            nll = self.model.decoder(z, batch, self.u)
            loss = loss + nll.detach().mean() / pairs
            return nll + log_bernoulli(z, latent.detach()) - log_prior

        self.optimizer.zero_grad()
        for _ in range(pairs):
            estimate = ESTIMATORS[self.options.estimator](f, latent, self.noise)
            (estimate.mean() / pairs).backward()
        logits.backward(latent.grad)
        self.optimizer.step()
        return loss

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Test loss from one sample a document: as published, mean over batches, and over documents; and the KL."""
        losses, kls, sizes = [], [], []
        for batch in self.test.batches(self.options.batch_size):
            logits = self.model.encoder(batch, self.u, self.options.test_counts)
            p = torch.sigmoid(logits)
            z = (torch.rand(p.shape, generator=self.test_noise, device=self.device) < p).to(p.dtype)
            kl = kl_to_prior(logits)
            losses.append((self.model.decoder(z[None], batch, self.u)[0] + kl).mean())
            kls.append(kl.mean())
            sizes.append(len(batch))
        losses, kls, sizes = (torch.as_tensor(x, dtype=torch.float64) for x in (losses, kls, sizes))
        return {
            "test": losses.mean().item(),
            "test_per_document": ((losses @ sizes) / sizes.sum()).item(),
            "test_kl": ((kls @ sizes) / sizes.sum()).item(),
        }

    def run_epoch(self) -> None:
        start = time.perf_counter()
        pairs = 1 if self.epoch < self.options.epochs else self.options.pairs
        order = torch.randperm(len(self.train), generator=self.order).numpy()
        losses = [self.step(batch, pairs) for batch in self.train.batches(self.options.batch_size, order)]
        values = {"train": torch.stack(losses).double().mean().item()} | self.evaluate()
        for key, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {key} loss is {value} in epoch {self.epoch + 1}; a smaller --lr may help. "
                    f"The last checkpoint, if there is one, is untouched"
                )
        for key, value in values.items():
            self.history[key].append(value)
        self.seconds += time.perf_counter() - start

    def save(self, path: Path) -> None:
        buffer = io.BytesIO()
        torch.save(
            {
                "config": as_config(self.options),
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generators": {key: getattr(self, key).get_state() for key in GENERATORS},
                "history": self.history,
                "seconds": self.seconds,
            },
            buffer,
        )
        write_aside(path, buffer.getbuffer())

    def load(self, path: Path) -> None:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before, now = state["config"], as_config(self.options)
        except Exception as error:  # torch raises anything from KeyError to UnpicklingError here
            raise RunError(f"{path} is no checkpoint: {(str(error) or 'empty').splitlines()[0]}") from error
        for key in before.keys() - FREE_ON_RESUME:
            if before[key] != now[key]:
                name = key.replace("_", "-")
                raise RunError(f"--resume: {path} was trained with --{name} {before[key]}, not {now[key]}")
        done = len(state["history"]["train"])
        if done > self.options.epochs and before["epochs"] != self.options.epochs:
            raise RunError(f"--resume: {path} is at epoch {done}, past --epochs {self.options.epochs}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for key in GENERATORS:
            getattr(self, key).set_state(state["generators"][key])
        self.history = state["history"]
        self.seconds = state["seconds"]


def train(options: Options, corpus: newsgroups.Corpus) -> dict:
    """Train and keep `checkpoint.pt`, `result.json` and the curves in --out; returns what result.json holds.

    Raises RunError if --out holds another run, FloatingPointError if a loss is not finite.
    """
    device = pick_device(options.device)
    torch.set_flush_denormal(True)  # far tails of the softmax are denormal, and slow
    checkpoint = options.out / "checkpoint.pt"
    trainer = Trainer(options, corpus, device)
    if options.resume and checkpoint.exists():
        trainer.load(checkpoint)
    elif checkpoint.exists():
        raise RunError(f"{options.out} holds a run already: go on with --resume, or name another --out")
    total = options.epochs + options.fine_epochs
    with tqdm(total=total, initial=trainer.epoch, desc="training", unit="epoch") as bar:
        while trainer.epoch < total:
            trainer.run_epoch()
            bar.set_postfix_str(
                f"-ELBO train {trainer.history['train'][-1]:.1f} test {trainer.history['test'][-1]:.1f}"
            )
            bar.update()
            if trainer.epoch % options.checkpoint_every == 0 or trainer.epoch == total:
                trainer.save(checkpoint)
    test = trainer.history["test"]
    best = int(np.argmin(test))
    metrics = {
        "train_final": trainer.history["train"][-1],
        "test_final": test[-1],
        "test_min": test[best],
        "test_min_epoch": best + 1,
        "test_min_per_document": min(trainer.history["test_per_document"]),
        "epochs": trainer.epoch,
    }
    return save_result(
        options.out,
        options,
        device,
        trainer.seconds,
        metrics,
        trainer.history,
        corpus=corpus.name,
        documents=[len(trainer.train), len(trainer.test)],
    )


def main(options: Options) -> None:
    corpus = newsgroups.load(options.archive)
    result = train(options, corpus)
    section5.draw_hashing_curves(result, options.out)
    metrics = result["metrics"]
    headline = (options.encoder, options.bits, options.decoder_layers) == ("e1", 64, 0)
    paper = (published.HASHING_PAPER_TEST, published.HASHING_PAPER_TRAIN) if headline else (None, None)
    original = published.HASHING_ORIGINAL_TEST if headline else None
    print(
        table(
            ("relative -ELBO, nats a document", "paper", "original paper", "ours"),
            [
                ("test, minimum over epochs", paper[0], original, metrics["test_min"]),
                ("  reached after epoch", None, None, metrics["test_min_epoch"]),
                ("train, last epoch", paper[1], None, metrics["train_final"]),
                ("epochs trained", 1500, None, metrics["epochs"]),
            ],
            digits=1,
        )
    )
    print(f"{result['seconds']:.0f} s on {result['environment']['device']}; result and figure in {options.out}")


if __name__ == "__main__":
    cli(Options, main, __doc__.splitlines()[0])
