"""Semantic hashing of 20 Newsgroups with a Bernoulli VAE (Section 5): documents become codes of b bits.

Encoder: q(z given x) = prod_i Bernoulli(z_i; sigmoid(logits_i(x))), where the logits are

  e1  a linear layer of the word counts,
  e2  a hidden layer of 512 and a linear layer, of the word frequencies,
  e3  a linear layer of the word frequencies,
  e4  a linear layer of the word frequencies times the mean document length; not in the report. It knows what e3
      knows, in numbers as large as e1's, and so tells apart what a document's length says from what the scale does.

Decoder: d hidden layers of 512, then a linear layer and log-softmax over the words. Prior: Bernoulli(1/2) a bit, if
--prior says nothing else.
Every document is smoothed: the training unigram distribution u, one word's worth of mass, is added to its counts c,
giving x = c + u with n = sum_v x_v.

The loss is the *relative* negative ELBO of the report's Tables 2 and 3, in nats a document: the document's own
entropy is taken off the reconstruction term,

  sum_v x_v (log(x_v / n) - log p(v given z))  +  KL(q(z given x) || p(z)),

so zero would mean a decoder that knows every document's word frequencies. Training is the report's: Adam 1e-3, batches
of 256, 1,000 epochs with one DisARM pair a step, then 500 with ten. "Test" in the report is the minimum over epochs of
the test loss, which selects on the test set; --held-out selects on documents kept from training instead.

What is sparse stays sparse: the encoder's product, x . log p(z) and their gradients touch non-zero counts only, the
smoothing is a rank-one term. The only dense work is the normaliser of the softmax, and its gradient.

Without a command, one configuration is trained. `sweep` trains the grid of Tables 2 and 3; `exact` sums over all codes
of few bits, and takes the claim apart; `search` finds documents with a trained model.
"""

import contextlib
import functools
import json
import math
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import scipy.sparse
import torch
import tyro
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from data import SPLITS, Corpus, docstrings, newsgroups
from disarm import ESTIMATORS, codes, log_bernoulli
from figures import published, section5
from figures.run import (
    RunError,
    Terminated,
    as_config,
    begin,
    cli,
    native_precision,
    pick_device,
    same_options,
    save_result,
    save_torch,
    table,
    write_json,
)

HIDDEN = 512
LEAK = 0.01  # slope of LeakyReLU
GENERATORS = ("order", "noise", "test_noise")  # of a Trainer, and kept in checkpoints
FREE_ON_RESUME = {"epochs", "fine_epochs", "patience", "refine", "checkpoint_every", "resume", "archive", "out"}


@dataclass(frozen=True)
class Options:
    encoder: Literal["e1", "e2", "e3", "e4"] = "e1"
    """e1: linear, word counts; e2: one hidden layer, word frequencies; e3: linear, word frequencies; e4: linear,
    word frequencies times the mean document length"""
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
    encoder_lr: float | None = None
    """learning rate of the encoder; default: --lr"""
    weight_decay: float = 0.0
    """L2 penalty, as Adam's `weight_decay`, of the weights over the vocabulary"""
    word_dropout: float = 0.0
    """fraction of a document's distinct words hidden from the encoder at each training step; the counts of the others
    are scaled up by 1 / (1 - fraction)"""
    average: float = 0.0
    """decay, a step, of an exponential moving average of the weights, which is what is tested; 0: no average"""
    prior: Literal["uniform", "autoregressive"] = "uniform"
    """uniform: Bernoulli(1/2) a bit; autoregressive: in the fine epochs, each bit's logit is a trained linear function
    of the bits before it"""
    refine: int = 0
    """at the end, improve the posterior of each test document by so many steps of Adam (0.3, falling to 0) from the
    encoder's on; the loss after that is test_refined in result.json"""
    held_out: float = 0.0
    """fraction of the training documents kept from training, to select the epoch on; 0: select on the test set, as
    the report does"""
    last: bool = False
    """keep the model of the last epoch instead of the one with the lowest loss, when held-out documents have chosen the
    number of epochs in another run"""
    patience: int | None = None
    """stop when the selecting loss has had no new minimum for so many epochs; default: never"""
    test_counts: bool = False
    """test a second time with counts fed to an encoder trained on frequencies, as the released code does"""
    precision: Literal["float32", "bfloat16"] | None = None
    """what training on the CPU computes matrix products and the decoder's softmax in; weights and tests are in float32.
    Default: bfloat16 where the processor multiplies it natively (AVX512-BF16), else float32"""
    seed: int = 1
    """seed of initialisation, data order and samples"""
    device: str | None = None
    """where to train; default: the accelerator if there is one, else the CPU"""
    corpus: Literal["newsgroups", "docstrings"] = "newsgroups"
    """20 Newsgroups, or the docstrings of the installed libraries, which need no download"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; default: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded there"""
    checkpoint_every: int = 10
    """epochs between checkpoints"""
    resume: bool = False
    """go on from the checkpoint in --out, bit by bit as if never stopped"""
    out: Path = Path("runs/hashing")
    """folder for checkpoint.pt, result.json and the figure"""

    GROUPS: ClassVar = {
        "documents": "corpus archive",
        "model": "encoder bits decoder-layers prior",
        "training": "estimator epochs fine-epochs pairs batch-size lr encoder-lr weight-decay word-dropout average "
        "precision",
        "choice of the epoch, and tests": "held-out last patience test-counts refine",
        "run": "checkpoint-every seed device resume out",
    }
    EXAMPLES: ClassVar = (
        ("--epochs 100 --fine-epochs 0", "e1, b = 64, d = 0 of Table 3, a fifteenth of the training"),
        ("--encoder e3 --bits 8 --test-counts --out runs/e3", "frequencies, and what counts in their place do"),
    )

    def __post_init__(self) -> None:
        for name, least in (
            *(("bits", 1), ("decoder_layers", 0), ("epochs", 0), ("fine_epochs", 0), ("seed", 0)),
            *(("pairs", 1), ("batch_size", 1), ("checkpoint_every", 1), ("patience", 1), ("refine", 0)),
        ):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if self.epochs + self.fine_epochs < 1:
            raise ValueError("--epochs and --fine-epochs are both 0: nothing to train")
        for name in ("lr", "encoder_lr"):
            if getattr(self, name) is not None and not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"--{name.replace('_', '-')} must be a positive number, not {getattr(self, name)}")
        for name in ("word_dropout", "average", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 0 and below 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"--weight-decay must be at least 0, not {self.weight_decay}")
        if self.last and (self.held_out or self.patience is not None):
            raise ValueError("--last keeps the last epoch; it goes with neither --held-out nor --patience")
        if self.prior == "autoregressive" and not self.fine_epochs:
            raise ValueError("--prior autoregressive is trained in the fine epochs; --fine-epochs is 0")
        if self.test_counts and self.encoder == "e1":
            raise ValueError("--test-counts: e1 is trained on counts; there is no mismatch to test")


# --- documents ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """B documents. What the encoder sees stands twice, `counts` (B, V) and `transposed` (V, B), sparse CSR; what the
    decoder has to explain is `values` at (`rows`, `words`). The smoothing is left out of these, and part of `n` and
    `negentropy`.
    """

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

    def batch(self, documents: np.ndarray, dropout: float = 0.0, generator: torch.Generator | None = None) -> Batch:
        """dropout: hide this fraction of each document's distinct words from the encoder, and scale up the others."""
        device = self.u.device
        part = self.counts[documents]
        seen = part
        if dropout:
            kept = torch.rand(part.nnz, generator=generator).numpy() >= dropout
            seen = scipy.sparse.csr_array((part.data * kept / (1 - dropout), part.indices, part.indptr), part.shape)
            seen.data = seen.data.astype(part.dtype)
        rows = np.repeat(np.arange(len(documents)), np.diff(part.indptr))
        index = torch.from_numpy(documents).to(device)
        return Batch(
            _csr(seen, device),
            _csr(seen.T.tocsr(), device),
            torch.from_numpy(rows).to(device),
            torch.from_numpy(part.indices.astype(np.int64)).to(device),
            torch.from_numpy(part.data).to(device),
            self.n[index],
            self.negentropy[index],
        )

    def batches(self, size: int) -> Iterator[Batch]:
        for i in range(0, len(self), size):
            yield self.batch(np.arange(i, min(i + size, len(self))))


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


class SmoothedProduct(torch.autograd.Function):
    """x @ weight for smoothed documents x = c + u, (B, V) times (V, k).

    Only the non-zeros of c, and u once, are multiplied; the gradient in the weight is dense, for Adam.
    """

    @staticmethod
    def forward(ctx, weight: Tensor, batch: Batch, u: Tensor) -> Tensor:
        ctx.batch, ctx.u = batch, u
        return sparse_product(batch.counts, weight).add_(u @ weight)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return sparse_product(ctx.batch.transposed, grad.contiguous()).addr_(ctx.u, grad.sum(0)), None, None


def sparse_product(matrix: Tensor, dense: Tensor) -> Tensor:
    """matrix @ dense for a sparse CSR matrix, as weighted sums of rows: faster than torch's own product."""
    return nn.functional.embedding_bag(
        matrix.col_indices(),
        dense,
        matrix.crow_indices(),
        mode="sum",
        per_sample_weights=matrix.values(),
        include_last_offset=True,
    )


class RelativeNLL(torch.autograd.Function):
    """sum_v x_v (log(x_v / n) - log softmax(hidden @ weight.T + bias)_v), without a dense x.

    hidden (R, k) holds S = R / B samples for each of the B documents, sample after sample; weight (V, k); bias (V,);
    u (V,), the smoothing, a distribution. `table` (>= R, V) and `columns` (V, k + 4) are overwritten, and needed until
    the backward pass is done. The products over the vocabulary and the softmax are computed in their dtype.

    The softmax does not change when the logits of a row are shifted. Shifted to mean zero under u, those of common
    words are small, which suits bfloat16; the smoothing drops out of sum_v x_v logits_v; and the softmax can do without
    its maximum, as the log of its sum is then KL(u || softmax) + entropy of u: never small, and above float32's 88 only
    for a softmax that all but leaves out common words.
    """

    @staticmethod
    def forward(
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor, batch: Batch, u: Tensor, table: Tensor, columns: Tensor
    ) -> Tensor:
        k, samples = hidden.shape[1], len(hidden) // len(batch)
        # Bias and shift take part in the product, as two columns each: rounded, and what that leaves. In bfloat16, a
        # log-probability of -10 alone would be off by up to 0.03.
        columns[:, :k] = weight
        columns[:, k : k + 2] = in_two(bias, columns.dtype)
        columns[:, k + 2 :] = 1
        mean = u @ weight
        shift = in_two(-(hidden @ mean + u @ bias), columns.dtype)
        rows = torch.cat([hidden.to(columns.dtype), torch.ones_like(shift), shift], 1)
        logits = torch.mm(rows, columns.T, out=table[: len(hidden)])
        # Place of each non-zero count in the flattened (R, V) table, for every sample.
        row = (torch.arange(samples, device=u.device)[:, None] * len(batch) + batch.rows).ravel()
        place = row * len(bias) + batch.words.repeat(samples)
        values, n = batch.values.repeat(samples), batch.n.repeat(samples)
        found = torch.take(logits, place).to(u.dtype)
        dot = torch.zeros_like(n).scatter_add_(0, row, values * found)
        largest, total = torch.zeros_like(n), sum_of_powers(logits, u.dtype)
        if not math.isfinite(total.sum()):
            torch.mm(rows, columns.T, out=logits)
            largest = logits.amax(1)
            total = sum_of_powers(logits.sub_(largest[:, None]), u.dtype)
            largest = largest.to(u.dtype)
            found = found - largest[row]
        # d loss / d logits is n softmax - x; n / total is left out of the table here. Of x = c + u, the sparse c goes
        # into the table; u stays outside, as a rank-one term.
        differences = found.exp().addcmul_(values, (total / n)[row], value=-1).to(logits.dtype)
        ctx.save_for_backward(hidden, logits, columns, u, mean, place, differences, n / total)
        return batch.negentropy.repeat(samples) + n * (largest + total.log()) - dot

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, table, columns, u, mean, place, differences, scale = ctx.saved_tensors
        table.view(-1).put_(place, differences)
        scale = grad * scale
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            product = (table @ columns[:, : len(mean)]).to(grad.dtype)
            grad_hidden = product.mul_(scale[:, None]).addr_(grad, mean, alpha=-1)
        product = (table.T @ (hidden * scale[:, None]).to(table.dtype)).to(grad.dtype)
        grad_weight = product.addr_(u, grad @ hidden, alpha=-1)
        grad_bias = (table.T @ scale.to(table.dtype)).to(grad.dtype).sub_(u * grad.sum())
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def sum_of_powers(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Row sums, in `dtype`, of the exponentials, which take the place of the logits."""
    # Some columns at a time, as bfloat16 rounds each sum; a sum in another type would copy the table.
    return sum(part.sum(1).to(dtype) for part in logits.exp_().split(2560, 1))


def in_two(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (N,) as sums of two numbers of a type that may be narrower, (N, 2)."""
    rounded = x.to(dtype)
    return torch.stack([rounded, (x - rounded).to(dtype)], 1)


def linear_parameters(inputs: int, outputs: int, *shape: int) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight of the given shape and bias, initialised as torch.nn.Linear(inputs, outputs) does."""
    bound = inputs**-0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound)), nn.Parameter(
        torch.empty(outputs).uniform_(-bound, bound)
    )


class Encoder(nn.Module):
    """Logits of q(z given x), shape (B, b). The first layer's weight has shape (V, b), or (V, 512) for e2.

    length: mean length of the training documents, in words, smoothing included; e4's features are in this unit.
    """

    def __init__(self, kind: str, words: int, bits: int, length: float):
        super().__init__()
        self.frequencies = kind != "e1"
        first = HIDDEN if kind == "e2" else bits
        self.weight, self.bias = linear_parameters(words, first, words, first)
        self.rest = nn.Sequential(nn.LeakyReLU(LEAK), nn.Linear(HIDDEN, bits)) if kind == "e2" else nn.Identity()
        self.register_buffer("scale", torch.tensor(length if kind == "e4" else 1.0))

    def forward(self, batch: Batch, u: Tensor, counts: bool = False) -> Tensor:
        """counts: feed counts whatever the encoder was made for (`--test-counts`)."""
        product = SmoothedProduct.apply(self.weight, batch, u)
        if self.frequencies and not counts:
            product = product * (self.scale / batch.n)[:, None]
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
        self.work: dict[torch.dtype, tuple[Tensor, Tensor]] = {}  # `table` and `columns` of RelativeNLL

    def forward(self, z: Tensor, batch: Batch, u: Tensor) -> Tensor:
        """z: (S, B, b) -> relative NLL, nats, (S, B)."""
        hidden = self.hidden(z.flatten(0, 1))
        rounded = z.device.type == "cpu" and torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # products_in
        dtype = torch.bfloat16 if rounded and hidden.dtype == torch.float32 else hidden.dtype
        table, columns = self.work.get(dtype, (u[:0], u))
        if len(table) < len(hidden) or table.device != u.device:
            table = hidden.new_empty(len(hidden), len(self.bias), dtype=dtype)
            columns = hidden.new_empty(len(self.bias), hidden.shape[1] + 4, dtype=dtype)
            self.work[dtype] = table, columns
        nll = RelativeNLL.apply(hidden, self.weight, self.bias, batch, u, table, columns)
        return nll.view(z.shape[:2])


class Prior(nn.Module):
    """p(z) = prod_i Bernoulli(z_i; sigmoid(bias_i + sum_{j < i} weight_ij z_j)); uniform at the start, all zero."""

    def __init__(self, kind: str, bits: int):
        super().__init__()
        self.trained = kind == "autoregressive"
        self.bias = nn.Parameter(torch.zeros(bits), requires_grad=self.trained)
        self.weight = nn.Parameter(torch.zeros(bits, bits), requires_grad=self.trained)

    def forward(self, z: Tensor) -> Tensor:
        """log p(z) in nats, shape (...), of codes (..., b)."""
        if not self.trained:
            return z.new_full(z.shape[:-1], -z.shape[-1] * math.log(2))
        return log_bernoulli(z, self.bias + z @ self.weight.tril(-1).T)

    def kl(self, logits: Tensor, z: Tensor) -> Tensor:
        """KL(q || p) in nats of logits (B, b): exact, (B,), while the prior is uniform; else an unbiased estimate from
        samples z of q, (..., B, b) -> (..., B).
        """
        kl = kl_uniform(logits)
        if not (self.trained and (self.weight.any() or self.bias.any())):
            return kl
        return kl - logits.shape[-1] * math.log(2) - self(z)


class VAE(nn.Module):
    """Encoder, decoder and prior."""

    def __init__(self, options: Options, words: int, length: float = 1.0):
        super().__init__()
        self.encoder = Encoder(options.encoder, words, options.bits, length)
        self.decoder = Decoder(words, options.bits, options.decoder_layers)
        self.prior = Prior(options.prior, options.bits)

    def objective(self, z: Tensor, logits: Tensor, batch: Batch, u: Tensor) -> Tensor:
        """-log p(x given z) + log q(z) - log p(z), relative, nats, (S, B), for codes z (S, B, b).

        Its mean over q is the loss. The logits of q, (B, b), enter detached, as the estimators want it.
        """
        return self.decoder(z, batch, u) + log_bernoulli(z, logits.detach()) - self.prior(z)

    @torch.no_grad()
    def sampled_loss(self, logits: Tensor, batch: Batch, u: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss of each document from one sample of q, and its KL part; relative, nats, (B,) both."""
        p = torch.sigmoid(logits)
        z = (torch.rand(p.shape, generator=noise, device=p.device) < p).to(p.dtype)
        kl = self.prior.kl(logits, z)
        return self.decoder(z[None], batch, u)[0] + kl, kl

    @torch.no_grad()
    def codes(self, documents: Documents, u: Tensor) -> np.ndarray:
        """The most likely code of each document, packed."""
        parts = [self.encoder(batch, u) > 0 for batch in documents.batches(1024)]
        return pack(torch.cat(parts).cpu().numpy())


def kl_uniform(logits: Tensor) -> Tensor:
    """KL(q || Bernoulli(1/2)^b) in nats, shape (B,), of logits (B, b)."""
    return (torch.sigmoid(logits) * logits - nn.functional.softplus(logits) + math.log(2)).sum(-1)


# --- training -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Let float32 matrix products on the CPU round their factors to `precision`; the decoder takes its own in it."""
    matmul = torch.backends.mkldnn.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16" if precision == "bfloat16" else "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class Trainer:
    """Model, optimiser, noise and history: all that a checkpoint holds."""

    def __init__(self, options: Options, corpus: Corpus, device: torch.device):
        if options.precision == "bfloat16" and device.type != "cpu":
            raise RunError(f"--precision bfloat16 is for the CPU, not for {device.type}")
        self.options = replace(options, precision=options.precision or native_precision(device))
        self.device = device
        self.corpus = corpus.name
        counts, held_out, self.kept = corpus.train, None, None
        if options.held_out:
            order = np.random.default_rng(options.seed).permutation(counts.shape[0])
            size = round(options.held_out * len(order))
            if not 0 < size < len(order):
                raise RunError(f"--held-out {options.held_out} of {len(order)} training documents leaves none")
            self.kept = np.sort(order[size:])
            counts, held_out = counts[self.kept], counts[np.sort(order[:size])]
        self.u = torch.from_numpy(unigram(counts)).float().to(device)
        self.train, self.test = Documents(counts, self.u), Documents(corpus.test, self.u)
        self.held_out = None if held_out is None else Documents(held_out, self.u)
        torch.manual_seed(options.seed)
        self.model = VAE(self.options, len(self.u), self.train.n.double().mean().item()).to(device)
        self.averaged = None
        if options.average:
            self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(options.average))
        vocabulary_weights = [self.model.encoder.weight, self.model.decoder.weight]
        groups = {}
        for name, parameter in self.model.named_parameters():
            lr = options.encoder_lr if name.startswith("encoder") and options.encoder_lr else options.lr
            decay = options.weight_decay if any(parameter is w for w in vocabulary_weights) else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
        self.optimizer = torch.optim.Adam(
            [{"params": part, "lr": lr, "weight_decay": decay} for (lr, decay), part in groups.items()], fused=True
        )
        # Data order and hidden words, samples in training and samples in testing: each has a stream of its own.
        for i, name in enumerate(GENERATORS):
            generator = torch.Generator("cpu" if name == "order" else device)
            setattr(self, name, generator.manual_seed(len(GENERATORS) * options.seed + i))
        self.history = {key: [] for key in ("train", "test", "test_per_document", "test_kl")}
        if options.test_counts:
            self.history["test_counts"] = []
        if options.held_out:
            self.history["held_out"] = []
        self.selected: dict[str, Tensor] = {}
        self.seconds = 0.0

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history["train"])

    @property
    def selecting(self) -> list[float]:
        """The loss, an epoch, that selects the epoch: of held-out documents if there are any, else of the test set."""
        return self.history["held_out" if self.options.held_out else "test"]

    @property
    def selected_epoch(self) -> int:
        """The epoch whose model is kept, counted from 1."""
        return self.epoch if self.options.last else int(np.argmin(self.selecting)) + 1

    @property
    def finished(self) -> bool:
        total, patience = self.options.epochs + self.options.fine_epochs, self.options.patience
        waited = self.epoch - 1 - int(np.argmin(self.selecting)) if self.epoch else 0
        return self.epoch >= total or (patience is not None and waited >= patience)

    def step(self, batch: Batch, pairs: int) -> Tensor:
        """One Adam step; returns the batch's relative negative ELBO in nats a document, from the pairs' own values.

        Each code of a pair is a sample of q, so their mean reconstruction term, with the KL, is unbiased for the loss,
        and no decoder pass is spent on reporting. The ten-pair objective is one encoder pass and the mean of ten
        estimates.
        """
        with products_in(self.options.precision):
            logits = self.model.encoder(batch, self.u)
            latent = logits.detach().requires_grad_()
            loss = 0.0

            def f(z: Tensor) -> Tensor:
                nonlocal loss
                nll = self.model.decoder(z, batch, self.u)
                with torch.no_grad():
                    loss = loss + (nll + self.model.prior.kl(latent, z)).mean() / pairs
                return nll + log_bernoulli(z, latent.detach()) - self.model.prior(z)

            self.optimizer.zero_grad()
            for _ in range(pairs):
                estimate = ESTIMATORS[self.options.estimator](f, latent, self.noise)
                (estimate.mean() / pairs).backward()
            logits.backward(latent.grad)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.model)
        return loss

    @property
    def tested(self) -> VAE:
        """The model to test: the average of the weights if there is one."""
        return self.model if self.averaged is None else self.averaged.module

    @torch.no_grad()
    def evaluate(self, documents: Documents, counts: bool = False) -> dict[str, float]:
        """Loss from one sample a document: as published, mean over batches, and over documents; and the KL."""
        model = self.tested
        losses, kls, sizes = [], [], []
        for batch in documents.batches(self.options.batch_size):
            logits = model.encoder(batch, self.u, counts)
            loss, kl = model.sampled_loss(logits, batch, self.u, self.test_noise)
            losses.append(loss.mean())
            kls.append(kl.mean())
            sizes.append(len(batch))
        losses, kls, sizes = (torch.as_tensor(x, dtype=torch.float64) for x in (losses, kls, sizes))
        return {
            "loss": losses.mean().item(),
            "per_document": ((losses @ sizes) / sizes.sum()).item(),
            "kl": ((kls @ sizes) / sizes.sum()).item(),
        }

    def refined(self, documents: Documents) -> float:
        """Loss, mean over batches, after `--refine` steps on the posterior of each document, from the encoder's on."""
        model, steps = self.tested.requires_grad_(False), self.options.refine
        losses = []
        for batch in tqdm(list(documents.batches(self.options.batch_size)), desc="refining", unit="batch", leave=False):
            logits = model.encoder(batch, self.u).requires_grad_()
            optimizer = torch.optim.Adam([logits], 0.3, betas=(0.9, 0.99))
            schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
            f = functools.partial(model.objective, logits=logits, batch=batch, u=self.u)
            for _ in range(steps):
                optimizer.zero_grad()
                ESTIMATORS["disarm"](f, logits, self.test_noise).sum().backward()
                optimizer.step()
                schedule.step()
            losses.append(model.sampled_loss(logits.detach(), batch, self.u, self.test_noise)[0].mean())
        return torch.stack(losses).double().mean().item()

    def run_epoch(self) -> None:
        start = time.perf_counter()
        options = self.options
        fine = self.epoch >= options.epochs
        pairs = options.pairs if fine else 1
        # From the start, a trained prior would settle on the few bits that are used first.
        self.model.prior.requires_grad_(fine and options.prior == "autoregressive")
        order = torch.randperm(len(self.train), generator=self.order).numpy()
        losses = [
            self.step(self.train.batch(order[i : i + options.batch_size], options.word_dropout, self.order), pairs)
            for i in range(0, len(order), options.batch_size)
        ]
        noise = self.test_noise.get_state()
        test = self.evaluate(self.test)
        values = {"train": torch.stack(losses).double().mean().item(), "test": test["loss"]}
        values |= {f"test_{key}": test[key] for key in ("per_document", "kl")}
        if options.test_counts:
            self.test_noise.set_state(noise)
            values["test_counts"] = self.evaluate(self.test, counts=True)["loss"]
        if self.held_out is not None:
            values["held_out"] = self.evaluate(self.held_out)["loss"]
        for key, value in values.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the {key} loss is {value} in epoch {self.epoch + 1}; a smaller --lr may help. "
                    f"The last checkpoint, if there is one, is untouched"
                )
        for key, value in values.items():
            self.history[key].append(value)
        if self.selected_epoch == self.epoch:
            self.selected = {key: value.detach().clone() for key, value in self.tested.state_dict().items()}
        self.seconds += time.perf_counter() - start

    def save(self, path: Path) -> None:
        save_torch(
            path,
            {
                "config": as_config(self.options),
                "corpus": self.corpus,
                "model": self.model.state_dict(),
                "averaged": None if self.averaged is None else self.averaged.state_dict(),
                "selected": self.selected,
                "optimizer": self.optimizer.state_dict(),
                "generators": {key: getattr(self, key).get_state() for key in GENERATORS},
                "history": self.history,
                "seconds": self.seconds,
            },
        )

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises RunError if it is none, or one of a run with other options or documents."""
        options = self.options
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            before, done = state["config"], len(state["history"]["train"])
            same_options(path, before, as_config(options), FREE_ON_RESUME)
            if state["corpus"] != self.corpus:
                raise RunError(f"--resume: {path} was trained on {state['corpus']}, not on {self.corpus}")
            one_pair = min(done, before["epochs"])
            if done > options.epochs + options.fine_epochs or one_pair != min(done, options.epochs):
                raise RunError(
                    f"--resume: {path} is at epoch {done}, {one_pair} of them with one pair; --epochs {options.epochs} "
                    f"--fine-epochs {options.fine_epochs} does not go through there"
                )
            self.model.load_state_dict(state["model"])
            if self.averaged is not None:
                self.averaged.load_state_dict(state["averaged"])
            self.optimizer.load_state_dict(state["optimizer"])
            for key in GENERATORS:
                getattr(self, key).set_state(state["generators"][key])
            self.selected, self.history, self.seconds = state["selected"], state["history"], state["seconds"]
        except RunError:
            raise
        except Exception as error:  # torch raises anything from KeyError to UnpicklingError here
            raise RunError(f"{path} is no checkpoint: {(str(error) or 'empty').splitlines()[0]}") from error


def train(options: Options, corpus: Corpus) -> dict:
    """Train and keep `checkpoint.pt`, `model.pt` (the selected epoch) and `result.json` in --out; returns the result.

    Raises RunError if --out holds another run or an option cannot be met here, FloatingPointError if a loss is not
    finite.
    """
    device, checkpoint = begin(options)
    trainer = Trainer(options, corpus, device)
    if checkpoint.exists():
        trainer.load(checkpoint)
    with tqdm(total=options.epochs + options.fine_epochs, initial=trainer.epoch, desc="training", unit="epoch") as bar:
        while not trainer.finished:
            trainer.run_epoch()
            bar.set_postfix_str(
                f"-ELBO train {trainer.history['train'][-1]:.1f} test {trainer.history['test'][-1]:.1f}"
            )
            bar.update()
            if trainer.epoch % options.checkpoint_every == 0 or trainer.finished:
                trainer.save(checkpoint)
    start, history = time.perf_counter(), trainer.history
    best, selected = int(np.argmin(history["test"])), trainer.selected_epoch
    trainer.tested.load_state_dict(trainer.selected)
    save_model(options.out / "model.pt", trainer, corpus, selected)
    train_codes, test_codes = (
        trainer.tested.codes(documents, trainer.u) for documents in (trainer.train, trainer.test)
    )
    labels = corpus.train_labels if trainer.kept is None else corpus.train_labels[trainer.kept]
    metrics = {
        "train_final": history["train"][-1],
        "test_final": history["test"][-1],
        "test_min": history["test"][best],
        "test_min_epoch": best + 1,
        "test_min_per_document": min(history["test_per_document"]),
        "selected_epoch": selected,
        "test_selected": history["test"][selected - 1],
        "precision_at_100": precision_at(100, test_codes, corpus.test_labels, train_codes, labels),
        "epochs": trainer.epoch,
    }
    if options.test_counts:
        metrics["test_counts_min"] = min(history["test_counts"])
    if options.refine:
        metrics["test_refined"] = trainer.refined(trainer.test)
    return save_result(
        options.out,
        trainer.options,
        device,
        trainer.seconds + time.perf_counter() - start,
        metrics,
        history,
        corpus=corpus.name,
        documents=[len(trainer.train), len(trainer.test)],
    )


def main(options: Options) -> None:
    result = train(options, load_corpus(options.corpus, options.archive))
    section5.draw_hashing_curves(result, options.out)
    metrics = result["metrics"]
    cell = options.encoder, options.bits, options.decoder_layers
    if result["corpus"] != newsgroups.NAME:
        cell = ("other documents",) * 3  # nothing is published of them
    original = published.HASHING_ORIGINAL.get(options.bits) if cell[::2] == ("e1", 0) else None
    chosen = "last epoch" if options.last else "held-out documents' choice" if options.held_out else None
    noisy = options.average or options.word_dropout  # "train" is then of another model, or with words hidden
    rows = [
        ("test, minimum over epochs", published.TABLE3.get(cell), original, metrics["test_min"]),
        ("  reached after epoch", None, None, metrics["test_min_epoch"]),
        *([(f"test, {chosen}", None, None, metrics["test_selected"])] if chosen else []),
        *([("  with refined posteriors", None, None, metrics["test_refined"])] if options.refine else []),
        (
            "train, last epoch" + " (while training)" * bool(noisy),
            published.TABLE2.get(cell),
            None,
            metrics["train_final"],
        ),
        ("epochs trained", 1500, None, metrics["epochs"]),
        ("precision@100, in per cent", None, None, 100 * metrics["precision_at_100"]),
    ]
    print(table(("relative -ELBO, nats a document", "paper", "original paper", "ours"), rows, digits=1))
    if result["corpus"] != newsgroups.NAME:
        print(f"corpus: {result['corpus']}, not that of the report")
    print(f"{result['seconds']:.0f} s on {result['environment']['device']}; result and figure in {options.out}")


def load_corpus(name: str, archive: Path | None) -> Corpus:
    if name == "docstrings":
        if archive is not None:
            raise RunError("--archive is of 20 Newsgroups; it does not go with --corpus docstrings")
        return docstrings.load()
    return newsgroups.load(archive)


# --- retrieval ------------------------------------------------------------------------------------------------------


def pack(z: np.ndarray) -> np.ndarray:
    """Codes (N, b) of zeros and ones, as 64-bit words, (N, ceil(b / 64))."""
    packed = np.packbits(z.astype(bool), axis=1)
    return np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)


def hamming(queries: np.ndarray, database: np.ndarray) -> np.ndarray:
    """Hamming distances of packed codes, (Q, words) and (N, words) -> (Q, N), uint16."""
    distance = np.zeros((len(queries), len(database)), np.uint16)
    for q, d in zip(queries.T, database.T, strict=True):
        distance += np.bitwise_count(q[:, None] ^ d)
    return distance


def precision_at(
    k: int, queries: np.ndarray, query_labels: np.ndarray, database: np.ndarray, database_labels: np.ndarray
) -> float:
    """Mean over queries of the fraction of the k nearest documents with the query's label, for packed codes.

    Of the documents as far away as the k-th, each is as likely to be among them: the expected value is taken.
    """
    k = min(k, len(database))
    total = 0.0
    for i in range(0, len(queries), 64):
        distance = hamming(queries[i : i + 64], database)
        kth = np.partition(distance, k - 1, axis=1)[:, k - 1 : k]
        right = query_labels[i : i + 64, None] == database_labels
        closer, tied = distance < kth, distance == kth
        chance = (k - closer.sum(1)) / tied.sum(1)
        total += ((closer & right).sum(1) + (tied & right).sum(1) * chance).sum() / k
    return total / len(queries)


def save_model(path: Path, trainer: Trainer, corpus: Corpus, epoch: int) -> None:
    """The model for others to load: plain tensors, strings and numbers, `torch.load(path, weights_only=True)`."""
    save_torch(
        path,
        {
            "config": as_config(trainer.options),
            "corpus": corpus.name,
            "epoch": epoch,
            "words": corpus.words,
            "u": trainer.u.cpu(),
            "model": {key: value.cpu() for key, value in trainer.selected.items()},
        },
    )


# --- sweep ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SweepOptions:
    encoders: tuple[Literal["e1", "e2", "e3", "e4"], ...] = ("e1", "e2", "e3", "e4")
    """encoders to train"""
    bits: tuple[int, ...] = (64, 8, 16, 32)
    """numbers of latents b, in this order"""
    decoder_layers: tuple[int, ...] = (0, 1, 2)
    """numbers of hidden layers d, in this order"""
    estimators: tuple[Literal["disarm", "arm", "reinforce"], ...] = ("disarm",)
    """gradient estimators"""
    seeds: tuple[int, ...] = (1,)
    """seeds"""
    held_out: tuple[float, ...] = (0.0,)
    """fractions held out for selection; 0: train on all documents and select on the test set, as the report does"""
    encoder_lr: float | None = None
    """learning rate of the encoder; default: that of the decoder, 1e-3"""
    epochs: int = 1000
    """epochs with one pair of samples a step"""
    fine_epochs: int = 500
    """epochs after those, with ten pairs"""
    patience: int | None = None
    """stop a cell when its selecting loss has had no new minimum for so many epochs; default: never"""
    precision: Literal["float32", "bfloat16"] | None = None
    """of training, as in the single run"""
    jobs: int = 1
    """cells trained at a time, which share the cores"""
    device: str | None = None
    """where to train; default: the accelerator if there is one, else the CPU"""
    corpus: Literal["newsgroups", "docstrings"] = "newsgroups"
    """20 Newsgroups, or the docstrings of the installed libraries"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; default: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded there"""
    results: Path = Path("figures/results/hashing")
    """folder for one JSON a cell"""
    tables: Path = Path("figures")
    """folder for table2, table3, retrieval and hashing_cells, each as Markdown and LaTeX, and as CSV"""
    out: Path = Path("runs/sweep")
    """folder for one folder a cell, with checkpoint, model and log"""

    GROUPS: ClassVar = {
        "documents": "corpus archive",
        "grid": "encoders bits decoder-layers estimators seeds held-out encoder-lr",
        "training": "epochs fine-epochs patience precision",
        "run": "jobs device results tables out",
    }
    EXAMPLES: ClassVar = (
        ("--decoder-layers 0 --epochs 300 --fine-epochs 0", "the cells with d = 0, a fifth of the training"),
        ("--bits 8 16 --seeds 1 2 3 --jobs 2", "more seeds, two cells at a time"),
    )

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise ValueError(f"--jobs must be at least 1, not {self.jobs}")
        distinct(self, "encoders", "bits", "decoder_layers", "estimators", "seeds", "held_out")
        self.cells()  # each cell's own options are checked there

    def cells(self) -> list[Options]:
        """The options of every cell. Frequency encoders are tested with counts too: the released code's mismatch."""
        return [
            Options(
                encoder=encoder,
                bits=bits,
                decoder_layers=layers,
                estimator=estimator,
                encoder_lr=self.encoder_lr,
                epochs=self.epochs,
                fine_epochs=self.fine_epochs,
                patience=self.patience,
                held_out=held_out,
                test_counts=encoder in ("e2", "e3"),
                precision=self.precision,
                seed=seed,
                device=self.device,
                corpus=self.corpus,
                archive=self.archive,
                resume=True,
                out=self.out / cell_name(encoder, bits, layers, estimator, seed, held_out, self.encoder_lr),
            )
            for layers in self.decoder_layers
            for bits in self.bits
            for held_out in self.held_out
            for estimator in self.estimators
            for seed in self.seeds
            for encoder in self.encoders
        ]


def cell_name(
    encoder: str, bits: int, layers: int, estimator: str, seed: int, held_out: float, encoder_lr: float | None
) -> str:
    """Such as e1_b64_d0, with what differs from the report's protocol after it."""
    return (
        f"{encoder}_b{bits}_d{layers}"
        + (f"_{estimator}" if estimator != "disarm" else "")
        + (f"_seed{seed}" if seed != 1 else "")
        + (f"_heldout{held_out:g}" if held_out else "")
        + (f"_lr{encoder_lr:g}" if encoder_lr else "")
    )


def as_arguments(options: Options) -> list[str]:
    """The command line that gives these options."""
    arguments = []
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            arguments += [f"--{field.name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return arguments


def distinct(options: object, *names: str) -> None:
    """Raise ValueError if one of these tuples of options is empty or names something twice."""
    for name in names:
        values = getattr(options, name)
        if not values or len(set(values)) < len(values):
            raise ValueError(f"--{name.replace('_', '-')} must name one or more, each once")


def done(path: Path, options: Options, corpus: str) -> bool:
    """Whether the result at `path` is that of a cell trained as far as `options` ask.

    Raises RunError if it is no result, or one with other options or documents.
    """
    try:
        result = json.loads(path.read_text())
        config, epochs, made_of = result["config"], result["metrics"]["epochs"], result["corpus"]
        losses = result["history"]["held_out" if config["held_out"] else "test"]
    except FileNotFoundError:
        return False
    except (ValueError, KeyError) as error:
        raise RunError(f"{path} is no result of a cell: {error!r}; move it away to train the cell again") from error
    free = FREE_ON_RESUME | {"device"} | ({"precision"} if options.precision is None else set())
    same_options(path, config, as_config(options), free)
    if made_of != corpus:
        raise RunError(f"{path} was trained on {made_of}, not on {corpus}; name other --results")
    if min(epochs, config["epochs"]) != min(epochs, options.epochs):
        return False
    waited = epochs - 1 - int(np.argmin(losses))
    return epochs >= options.epochs + options.fine_epochs or (
        options.patience is not None and waited >= options.patience
    )


def sweep(options: SweepOptions) -> None:
    """Train every cell that is not done, each in a process of its own, then write Tables 2 and 3."""
    corpus = load_corpus(options.corpus, options.archive).name  # once, and an error once
    cells = options.cells()
    waiting = [cell for cell in cells if not done(options.results / f"{cell.out.name}.json", cell, corpus)]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, cores // options.jobs)
    failed: list[str] = []
    children: list[subprocess.Popen] = []
    stopped = threading.Event()

    def run(cell: Options) -> None:
        cell.out.mkdir(parents=True, exist_ok=True)
        path = cell.out / "log.txt"
        with path.open("ab") as log:
            before = log.tell()
            child = subprocess.Popen(
                [sys.executable, str(Path(__file__)), *as_arguments(cell)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
            children.append(child)
            if stopped.is_set():
                child.terminate()
            code = child.wait()
        if code == 0:
            result = json.loads((cell.out / "result.json").read_text())
            write_json(options.results / f"{cell.out.name}.json", result)
        elif code != 130:
            said = path.read_bytes()[before:].decode(errors="replace").replace("\r", "\n").split("\n")
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            failed.append(f"{cell.out.name} (exit code {code}: {last})")

    with (
        tqdm(total=len(cells), initial=len(cells) - len(waiting), desc="sweep", unit="cell") as bar,
        ThreadPoolExecutor(options.jobs) as pool,
    ):
        futures = {pool.submit(run, cell): cell for cell in waiting}
        try:
            for future in as_completed(futures):
                future.result()
                bar.set_postfix_str(futures[future].out.name)
                bar.update()
        except BaseException as stop:
            if isinstance(stop, Terminated):  # `kill` reaches this process only, Ctrl-C the cells, too
                stopped.set()
                for child in children:
                    child.terminate()
            pool.shutdown(cancel_futures=True)
            raise
    trained = section5.read_cells(options.results)
    section5.write_tables(trained, options.tables)
    section5.write_retrieval(trained, options.tables)
    print((options.tables / "table3.md").read_text())
    if failed:
        raise RunError(f"{len(failed)} of {len(cells)} cells failed: {'; '.join(failed)}")


# --- search ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SearchOptions:
    query: tyro.conf.Positional[tuple[str, ...]] = ()
    """words to search for; or give --file or --document"""
    file: Path | None = None
    """a text file to search with"""
    document: int | None = None
    """a document of the corpus to search with, counted from 1 through the training and then the test documents"""
    model: Path = Path("runs/hashing/model.pt")
    """model.pt of a trained run"""
    top: int = 10
    """number of documents to show"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; default: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded there"""

    GROUPS: ClassVar = {"one of": "query file document", "search": "top", "model and corpus": "model archive"}
    EXAMPLES: ClassVar = (
        ('"orbit shuttle launch nasa"', "after a run of hashing.py"),
        ("--document 1 --top 3", "the three documents nearest to the first of the corpus"),
    )

    def __post_init__(self) -> None:
        if (len(self.query) > 0) + (self.file is not None) + (self.document is not None) != 1:
            raise ValueError("search with one of: words, --file, --document")
        if self.top < 1:
            raise ValueError(f"--top must be at least 1, not {self.top}")


def search(options: SearchOptions) -> None:
    """Find the documents whose codes are nearest to that of words, a text file or a document, by a trained model."""
    if not options.model.is_file():
        raise RunError(f"no model at {options.model}: train one with hashing.py first, or name one with --model")
    try:
        saved = torch.load(options.model, map_location="cpu", weights_only=True)
        config = saved["config"]
        model = VAE(
            Options(**{key: config[key] for key in ("encoder", "bits", "decoder_layers", "prior")}),
            len(saved["words"]),
        )
        model.load_state_dict(saved["model"])
    except Exception as error:  # torch raises anything from KeyError to UnpicklingError here
        raise RunError(f"{options.model} is no model: {(str(error) or 'empty').splitlines()[0]}") from error
    corpus = load_corpus(config["corpus"], options.archive)
    if corpus.words != saved["words"]:
        raise RunError(f"{options.model} was trained on {saved['corpus']} with other words than {corpus.name} has here")
    counts = scipy.sparse.vstack([corpus.train, corpus.test], format="csr")
    groups = [corpus.groups[i] for i in (*corpus.train_labels, *corpus.test_labels)]
    titles = corpus.train_titles + corpus.test_titles
    query = _query(options, corpus, counts)
    with torch.no_grad():
        logits = model.encoder(Documents(query, saved["u"]).batch(np.arange(1)), saved["u"])[0]
    database = model.codes(Documents(counts, saved["u"]), saved["u"])
    distance = hamming(pack((logits > 0).numpy()[None]), database)[0]
    bits = np.unpackbits(database.view(np.uint8), axis=1)[:, : config["bits"]]
    likely = bits @ logits.numpy()  # log q of each code given the query, but for a constant: orders equal distances
    order = np.lexsort((-likely, distance))
    if options.document is not None:
        order = order[order != options.document - 1]
    inverse_frequency = np.log(len(titles) / np.maximum(1, np.bincount(counts.indices, minlength=counts.shape[1])))

    def telling(i: int) -> str:
        row = counts[[i]]
        best = np.argsort(-row.data * inverse_frequency[row.indices], kind="stable")[:6]
        return " ".join(corpus.words[j] for j in row.indices[best])

    rows = [(int(distance[i]), groups[i], titles[i], telling(i)) for i in order[: options.top]]
    if options.document is not None:
        print(f"{groups[options.document - 1]}, {titles[options.document - 1]}: {telling(options.document - 1)}")
    print(table(("distance", "group", "document", "telling words"), rows))
    print(f"{config['bits']} bits; {corpus.name}; {options.model}, epoch {saved['epoch']}")


def _query(options: SearchOptions, corpus: Corpus, counts: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Word counts, (1, V), of what is searched for; unknown words are named on the way."""
    if options.document is not None:
        if not 1 <= options.document <= counts.shape[0]:
            raise RunError(f"--document must be from 1 to {counts.shape[0]}, not {options.document}")
        return counts[[options.document - 1]]
    text = " ".join(options.query) if options.file is None else options.file.read_text(errors="replace")
    index = {word: i for i, word in enumerate(corpus.words)}
    found, unknown = [], {}
    for word in re.findall(r"[^\W_]+", text.lower()):
        if word in index:
            found.append(index[word])
        else:
            unknown[word] = True
    if unknown:
        some = " ".join(list(unknown)[:20])
        print(f"not among the {len(index):,} words: {some}{f' and {len(unknown) - 20} more' * (len(unknown) > 20)}")
    if not found:
        raise RunError(f"no word of the query is among the {len(index):,} words of {corpus.name}")
    row = np.bincount(found, minlength=len(index)).astype(np.float32)
    return scipy.sparse.csr_array(row[None])


# --- exact ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactOptions:
    encoders: tuple[Literal["e1", "e2", "e3", "e4"], ...] = ("e1", "e3", "e4")
    """encoders to fit to the maximum likelihood decoder"""
    bits: int = 8
    """b, number of Bernoulli latents; all 2^b codes are summed over"""
    decoder_layers: int = 0
    """d, number of hidden layers of 512 in the decoder"""
    likelihood_epochs: int = 250
    """epochs of maximum likelihood for the decoder alone"""
    encoder_epochs: int = 60
    """epochs of the encoder alone, the decoder frozen"""
    joint_epochs: int = 120
    """epochs of joint training, and of maximum likelihood going on beside it"""
    scratch_epochs: int = 250
    """epochs of joint training from scratch by DisARM and, for the first encoder, by the exact gradient too"""
    batch_size: int = 256
    """documents a step"""
    lr: float = 3e-3
    """learning rate of Adam, new in each stage"""
    seed: int = 1
    """seed of initialisation, data order and samples"""
    device: str | None = None
    """where to train; default: the accelerator if there is one, else the CPU"""
    corpus: Literal["newsgroups", "docstrings"] = "newsgroups"
    """20 Newsgroups, or the docstrings of the installed libraries"""
    archive: Path | None = None
    """20news-bydate-matlab.tgz; default: $NEWSGROUPS_ARCHIVE, else data/, else it is downloaded there"""
    resume: bool = False
    """keep the finished stages of an interrupted run in --out"""
    out: Path = Path("runs/exact")
    """folder for one file a stage, result.json and the figure"""

    GROUPS: ClassVar = {
        "documents": "corpus archive",
        "model": "encoders bits decoder-layers",
        "training": "likelihood-epochs encoder-epochs joint-epochs scratch-epochs batch-size lr",
        "run": "seed device resume out",
    }
    EXAMPLES: ClassVar = (
        ("", "b = 8, d = 0, on 20 Newsgroups"),
        ("--corpus docstrings --bits 6 --encoders e1 e3 --out runs/small", "without 20 Newsgroups, and faster"),
    )

    def __post_init__(self) -> None:
        distinct(self, "encoders")
        if not 1 <= self.bits <= 12:
            raise ValueError(f"--bits must be from 1 to 12 to sum over all codes, not {self.bits}")
        for name, least in (
            *(("decoder_layers", 0), ("likelihood_epochs", 1), ("encoder_epochs", 1)),
            *(("joint_epochs", 1), ("scratch_epochs", 1), ("batch_size", 1), ("seed", 0)),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, not {getattr(self, name)}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be a positive number, not {self.lr}")


def log_decoder(model: VAE, z: Tensor) -> Tensor:
    """log p(v given z) of every word for the codes z, (K, b) -> (V, K)."""
    decoder = model.decoder
    return torch.log_softmax(decoder.weight @ decoder.hidden(z).T + decoder.bias[:, None], 0)


def log_joint(log_p: Tensor, batch: Batch, u: Tensor, log_prior: Tensor) -> Tensor:
    """log p(x, z), relative to the document's entropy, for all codes: log_p (V, K), log_prior (K,) -> (B, K)."""
    return SmoothedProduct.apply(log_p, batch, u) + log_prior - batch.negentropy[:, None]


def log_posterior(logits: Tensor, z: Tensor) -> Tensor:
    """log q(z given x) for all codes: logits (B, b), z (K, b) -> (B, K)."""
    return logits @ z.T - nn.functional.softplus(logits).sum(-1, keepdim=True)


def exact_elbo(logits: Tensor, joint: Tensor, z: Tensor) -> Tensor:
    """The ELBO of each document, (B,), summed over all codes z (K, b); joint: log p(x, z), (B, K)."""
    log_q = log_posterior(logits, z)
    return (log_q.exp() * (joint - log_q)).sum(1)


def disarm_elbo(logits: Tensor, joint: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
    """The ELBO of each document from one DisARM pair, whose values are looked up among all codes."""
    place = 2 ** torch.arange(z.shape[1] - 1, -1, -1, device=z.device)

    def f(pair: Tensor) -> Tensor:
        found = joint.expand(len(pair), *joint.shape).gather(2, (pair.long() @ place)[..., None])[..., 0]
        return found - log_bernoulli(pair, logits.detach())

    return ESTIMATORS["disarm"](f, logits, generator)


def best_factorized(joint: Tensor, start: Tensor, z: Tensor, sweeps: int = 300) -> Tensor:
    """Logits (N, b) of the best factorized posterior found for each document; joint: log p(x, z), (N, K), float64.

    Coordinate ascent on the ELBO: given the other bits, the best logit of a bit is the expected difference that it
    makes to log p(x, z). From three starts: `start` (N, b), the marginals of the posterior, and its mode. What is found
    is a local optimum, never below `start`.
    """
    bits = z.shape[1]
    number = torch.arange(len(z), device=z.device)
    ones = [number[z[:, i] == 1] for i in range(bits)]
    zeros = [one - 2 ** (bits - 1 - i) for i, one in enumerate(ones)]
    mode = z[joint.argmax(1)]
    marginal = (torch.softmax(joint, 1) @ z).clamp(1e-12, 1 - 1e-12)
    best, best_value = start, exact_elbo(start, joint, z)
    for logits in (start, torch.logit(marginal), 16 * mode - 8):
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
        best, best_value = torch.where(better[:, None], logits, best), torch.where(better, value, best_value)
    return best


class Exact:
    """A corpus, all codes, and what can be said of a model by summing over them."""

    def __init__(self, options: ExactOptions, corpus: Corpus, device: torch.device):
        self.options, self.device = options, device
        self.u = torch.from_numpy(unigram(corpus.train)).float().to(device)
        self.documents = {split: Documents(getattr(corpus, split), self.u) for split in SPLITS}
        self.z = codes(options.bits, self.u)
        self.log_prior = log_bernoulli(self.z, torch.zeros(options.bits, device=device))

    def model(self, encoder: str) -> VAE:
        """A new model; one seed gives one decoder, whatever the encoder."""
        options = Options(encoder=encoder, bits=self.options.bits, decoder_layers=self.options.decoder_layers)
        torch.manual_seed(self.options.seed)
        decoder = VAE(replace(options, encoder="e1"), len(self.u)).decoder
        model = VAE(options, len(self.u), self.documents["train"].n.double().mean().item())
        model.decoder.load_state_dict(decoder.state_dict())
        return model.to(self.device)

    @torch.no_grad()
    def totals(self, model: VAE, split: str) -> tuple[float, float]:
        """Mean log-likelihood and ELBO of a document, relative, nats."""
        log_p = log_decoder(model, self.z)
        sums = np.zeros(2)
        for batch in self.documents[split].batches(1024):
            joint = log_joint(log_p, batch, self.u, self.log_prior)
            elbo = exact_elbo(model.encoder(batch, self.u), joint, self.z)
            sums += [joint.logsumexp(1).double().sum().item(), elbo.double().sum().item()]
        return tuple(sums / len(self.documents[split]))

    def fit(self, model: VAE, objective: str, epochs: int, encoder: bool, decoder: bool, name: str) -> dict:
        """Train parts of the model, in place; returns its history, an epoch: log-likelihood and ELBO of each split.

        objective: "likelihood", exact; "elbo", exact; or "disarm", the ELBO from one pair of samples.
        The train values are means over the epoch's batches, each before its step; the test values are after the epoch.
        """
        options = self.options
        parameters = [
            *(model.encoder.parameters() if encoder else ()),
            *(model.decoder.parameters() if decoder else ()),
        ]
        optimizer = torch.optim.Adam(parameters, options.lr, fused=True)
        generator = torch.Generator().manual_seed(options.seed)
        noise = torch.Generator(self.device).manual_seed(options.seed + 1)
        model.encoder.requires_grad_(encoder)
        model.decoder.requires_grad_(decoder)
        train = self.documents["train"]
        history = {f"{split}_{value}": [] for split in SPLITS for value in ("log_likelihood", "elbo")}
        log_p = None
        for _ in tqdm(range(epochs), desc=name, unit="epoch", leave=False):
            order = torch.randperm(len(train), generator=generator).numpy()
            sums = np.zeros(2)
            for i in range(0, len(order), options.batch_size):
                batch = train.batch(order[i : i + options.batch_size])
                if decoder or log_p is None:
                    log_p = log_decoder(model, self.z)
                joint = log_joint(log_p, batch, self.u, self.log_prior)
                logits = model.encoder(batch, self.u)
                likelihood, elbo = joint.logsumexp(1), exact_elbo(logits, joint, self.z)
                loss = {"likelihood": likelihood, "elbo": elbo}.get(objective)
                if objective == "disarm":
                    loss = disarm_elbo(logits, joint, self.z, noise)
                optimizer.zero_grad()
                (-loss.mean()).backward()
                optimizer.step()
                sums += [likelihood.detach().double().sum().item(), elbo.detach().double().sum().item()]
            values = [*sums / len(train), *self.totals(model, "test")]
            if not np.isfinite(values).all():
                raise FloatingPointError(f"{name}: the loss is not finite in epoch {len(history['test_elbo']) + 1}")
            for key, value in zip(history, values, strict=True):
                history[key].append(float(value))
        return history

    def regress(self, model: VAE, steps: int, name: str) -> dict:
        """Fit the encoder, in place, to the marginals of the exact posterior by logistic regression, all at once.

        Unlike the ELBO, this cross-entropy is convex for a linear encoder, so that L-BFGS, `steps` times 20 iterations,
        tells what the encoder can do from what training by the ELBO makes of it. Returns a history of one entry.
        """
        model.encoder.requires_grad_(True)
        train = self.documents["train"].batch(np.arange(len(self.documents["train"])))
        with torch.no_grad():
            joint = log_joint(log_decoder(model, self.z), train, self.u, self.log_prior)
            marginals = torch.softmax(joint, 1) @ self.z
        optimizer = torch.optim.LBFGS(
            model.encoder.parameters(),
            max_iter=20,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_change=0.0,
        )

        def cross_entropy() -> Tensor:
            optimizer.zero_grad()
            logits = model.encoder(train, self.u)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, marginals, reduction="none").sum(1).mean()
            loss.backward()
            return loss

        for _ in tqdm(range(steps), desc=name, unit="step", leave=False):
            optimizer.step(cross_entropy)
        history = {}
        for split in SPLITS:
            likelihood, elbo = self.totals(model, split)
            history |= {f"{split}_log_likelihood": [float(likelihood)], f"{split}_elbo": [float(elbo)]}
        return history

    @torch.no_grad()
    def measure(self, model: VAE, split: str) -> dict[str, float]:
        """Means over documents, nats.

        Relative log-likelihood and ELBO; the gap between them in two parts; the posterior's entropy, and how far it is
        from a product (total correlation).

        `factorization` is what the best factorized posterior *found* leaves, so an upper bound of what the best
        one leaves, and `amortization`, the rest of the gap, a lower bound.
        """
        log_p, z = log_decoder(model, self.z), self.z.double()
        sums: dict[str, float] = {}
        for batch in self.documents[split].batches(1024):
            joint = log_joint(log_p, batch, self.u, self.log_prior).double()
            logits = model.encoder(batch, self.u).double()
            likelihood, elbo = joint.logsumexp(1), exact_elbo(logits, joint, z)
            best = exact_elbo(best_factorized(joint, logits, z), joint, z)
            posterior = (joint - likelihood[:, None]).exp()
            entropy = -(posterior * (joint - likelihood[:, None])).sum(1)
            marginal = (posterior @ z).clamp(1e-300, 1)
            marginals = -(torch.xlogy(marginal, marginal) + torch.xlogy(1 - marginal, 1 - marginal)).sum(1)
            parts = {
                "log_likelihood": likelihood,
                "elbo": elbo,
                "gap": likelihood - elbo,
                "factorization": likelihood - best,
                "amortization": best - elbo,
                "posterior_entropy": entropy,
                "total_correlation": marginals - entropy,
            }
            for key, value in parts.items():
                sums[key] = sums.get(key, 0.0) + value.sum().item()
        return {key: value / len(self.documents[split]) for key, value in sums.items()}

    @torch.no_grad()
    def normaliser(self, model: VAE) -> dict[str, float]:
        """What keeps the posterior from a product when d = 0.

        There log p(z given x) = z . (W^T x) - n A(z) + const with A(z) = logsumexp_v(W_v . z + c_v): all of it but A is
        additive in the bits. Returns A's distance from an affine function of the bits, over the codes as training
        documents use them: `rms` in nats for a document of mean length, `fraction` of A's variance; and
        `codes_used`, the exponential of the entropy of that use.
        """
        log_p, z = log_decoder(model, self.z), self.z.double()
        decoder = model.decoder
        a = (decoder.hidden(self.z) @ decoder.weight.T + decoder.bias).double().logsumexp(1)
        weight = torch.zeros_like(a)
        for batch in self.documents["train"].batches(1024):
            weight += torch.softmax(log_joint(log_p, batch, self.u, self.log_prior).double(), 1).sum(0)
        root = (weight / weight.sum()).sqrt()[:, None]
        design = torch.cat([torch.ones_like(z[:, :1]), z], 1)
        fitted = design @ torch.linalg.lstsq(root * design, root * a[:, None]).solution
        residual, centred = a - fitted[:, 0], a - (root[:, 0] ** 2 * a).sum()
        variance = (root[:, 0] ** 2 * residual**2).sum()
        length = self.documents["train"].n.double().mean()
        return {
            "rms": (length * variance.sqrt()).item(),
            "fraction": (variance / (root[:, 0] ** 2 * centred**2).sum()).item(),
            "codes_used": (-(root**2 * (root**2).log()).nansum()).exp().item(),
        }


def exact(options: ExactOptions) -> None:
    """Train with sums over all 2^b codes: does joint ELBO training lower the likelihood that a decoder had reached?"""
    corpus = load_corpus(options.corpus, options.archive)
    device = pick_device(options.device)
    torch.set_flush_denormal(True)
    world = Exact(options, corpus, device)
    metrics: dict[str, dict] = {}
    history: dict[str, dict] = {}
    seconds = 0.0

    def stage(name: str, model: VAE, objective: str, epochs: int, encoder: bool, decoder: bool) -> VAE:
        """Run or load one stage; returns the trained model."""
        nonlocal seconds
        path = options.out / f"{name}.pt"
        if options.resume and path.exists():
            try:
                state = torch.load(path, map_location=device, weights_only=True)
                same_options(path, state["config"], as_config(options), FREE_ON_RESUME | {"device", "encoders"})
                if state["corpus"] != corpus.name:
                    raise RunError(f"--resume: {path} was trained on {state['corpus']}, not on {corpus.name}")
                model.load_state_dict(state["model"])
            except RunError:
                raise
            except Exception as error:  # torch raises anything from KeyError to UnpicklingError here
                raise RunError(f"{path} is no stage: {(str(error) or 'empty').splitlines()[0]}") from error
        else:
            if path.exists() and not options.resume:
                raise RunError(f"{options.out} holds a run already: go on with --resume, or name another --out")
            start = time.perf_counter()
            if objective == "regression":
                trained = world.regress(model, epochs, name)
            else:
                trained = world.fit(model, objective, epochs, encoder, decoder, name)
            measured = {split: world.measure(model, split) for split in SPLITS}
            if objective == "likelihood":  # there is no trained encoder to speak of
                measured = {
                    split: {key: m[key] for key in ("log_likelihood", "posterior_entropy", "total_correlation")}
                    for split, m in measured.items()
                }
            if options.decoder_layers == 0:
                measured["normaliser"] = world.normaliser(model)
            state = {
                "config": as_config(options),
                "corpus": corpus.name,
                "model": model.state_dict(),
                "history": trained,
                "metrics": measured,
                "seconds": time.perf_counter() - start,
            }
            save_torch(path, state)
        metrics[name], history[name] = state["metrics"], state["history"]
        seconds += state["seconds"]
        return model

    def continued(encoder: str, *parts: VAE) -> VAE:
        """A model with the decoder of the first, and the encoder of the second, if any."""
        model = world.model(encoder)
        model.decoder.load_state_dict(parts[0].decoder.state_dict())
        if len(parts) > 1:
            model.encoder.load_state_dict(parts[1].encoder.state_dict())
        return model

    likelihood = stage("likelihood", world.model("e1"), "likelihood", options.likelihood_epochs, False, True)
    stage("likelihood_on", continued("e1", likelihood), "likelihood", options.joint_epochs, False, True)
    for encoder in options.encoders:
        frozen = stage(f"{encoder}_frozen", continued(encoder, likelihood), "elbo", options.encoder_epochs, True, False)
        sampled = continued(encoder, likelihood)
        stage(f"{encoder}_frozen_disarm", sampled, "disarm", options.encoder_epochs, True, False)
        stage(f"{encoder}_joint", continued(encoder, likelihood, frozen), "elbo", options.joint_epochs, True, True)
        regressed = stage(f"{encoder}_regressed", continued(encoder, likelihood), "regression", 50, True, False)
        stage(f"{encoder}_scratch", world.model(encoder), "disarm", options.scratch_epochs, True, True)
        if encoder == options.encoders[0]:  # once, to tell what the bound does from what fitting and sampling do
            model = continued(encoder, likelihood, regressed)
            stage(f"{encoder}_regressed_joint", model, "elbo", options.joint_epochs, True, True)
            stage(f"{encoder}_scratch_exact", world.model(encoder), "elbo", options.scratch_epochs, True, True)
    result = save_result(options.out, options, device, seconds, metrics, history, corpus=corpus.name)
    section5.draw_exact(result, options.out)
    columns = ("log_likelihood", "elbo", "gap", "factorization", "amortization", "total_correlation")
    for split in SPLITS:
        rows = []
        for name, measured in metrics.items():
            m = measured[split]
            rows.append((name, *(m.get(key) for key in columns)))
        print(table((f"{split}, nats a document", *(key.replace("_", " ") for key in columns)), rows, digits=2))
    print(f"{result['seconds']:.0f} s on {result['environment']['device']}; result and figure in {options.out}")


# Chosen by the loss of held-out documents, in runs of its own (README).
BEST = Options(
    epochs=130,
    fine_epochs=70,  # these train the prior too
    pairs=1,
    lr=3e-3,
    weight_decay=1e-3,
    word_dropout=0.5,
    average=0.998,
    prior="autoregressive",
    refine=150,
    last=True,
)
PRESETS = {
    "report": (Options(), "the report's protocol, the default"),
    "best": (BEST, "a model of the same size that generalises better"),
}
COMMANDS = {"sweep": (SweepOptions, sweep), "exact": (ExactOptions, exact), "search": (SearchOptions, search)}

if __name__ == "__main__":
    cli(Options, main, __doc__.splitlines()[0], PRESETS, **COMMANDS)
