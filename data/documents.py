"""Batches of smoothed, sparse documents, and the two products of Section 5 with them.

Every document is smoothed: the training unigram distribution u, shape (V,), one word's worth of
mass, is added to its counts c. With x = c + u, shape (B, V), and n = sum_v x_v, the two products
are, written densely,

  SmoothedProduct  x @ weight
  RelativeNLL      sum_v x_v (log(x_v / n) - log softmax(hidden @ weight.T + bias)_v)

the first layer of an encoder, and the reconstruction term of the loss, relative to the document's
own entropy. Here x
is never made: products with c touch its non-zeros only, and the smoothing is a rank-one term. The
only dense work is the softmax's normaliser and its gradient. tests/test_hashing.py compares both
with these formulas, in float64.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import torch
from torch import Tensor, nn

from data import Corpus, DataError, docstrings, newsgroups, texts
from data.texts import words_of

BLOCK = 2**15  # documents
SHOWN = 6  # characteristic words of a document


@dataclass(frozen=True)
class Batch:
    """B documents. The smoothing u is not in their counts, but in `n` and `negentropy`."""

    counts: "Counts"
    n: Tensor  # (B,): length with the smoothing's one word
    negentropy: Tensor  # (B,): sum_v x_v log(x_v / n), nats
    u: Tensor  # (V,): the smoothing

    def __len__(self) -> int:
        return len(self.n)


class Counts:
    """Sparse counts c (B, V); products with them are weighted sums of the other factor's rows.

    rows, columns: of c's rows and of its columns, the indices of the non-zeros, where those of each
    begin and the last end, and the values.
    """

    def __init__(self, rows: Sequence[Tensor], columns: Sequence[Tensor]):
        self.parts = (rows, columns)

    def product(self, dense: Tensor, transposed: bool = False) -> Tensor:
        """c @ dense, (V, k) -> (B, k); transposed: c.T @ dense, (B, k) -> (V, k)."""
        indices, offsets, values = self.parts[transposed]
        return nn.functional.embedding_bag(
            indices, dense, offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )


def parts_of(counts: scipy.sparse.csr_array) -> list[Tensor]:
    """Indices, offsets and values, as `Counts` takes them."""
    return [torch.from_numpy(part) for part in (counts.indices, counts.indptr, counts.data)]


class Resident:
    """Counts (N, V) that lie on an accelerator, where batches are put together without waiting."""

    def __init__(self, counts: scipy.sparse.csr_array, device: torch.device):
        self.words = counts.shape[1]
        self.lengths = np.diff(counts.indptr)
        indices, self.starts, self.values = (part.to(device) for part in parts_of(counts))
        self.indices, self.lengths_there = indices.long(), self.starts.diff().long()

    def batch(self, documents: np.ndarray, index: Tensor) -> Counts:
        """Of documents given by number, which `index` has on the device."""
        nonzeros, device = int(self.lengths[documents].sum()), index.device
        lengths = self.lengths_there[index]
        ends = nn.functional.pad(lengths.cumsum(0), (1, 0))
        # Of each non-zero: its document within the batch, and its place in all of them.
        document = torch.arange(len(documents), device=device)
        document = document.repeat_interleave(lengths, output_size=nonzeros)
        place = (self.starts[index] - ends[:-1])[document] + torch.arange(nonzeros, device=device)
        words, values = self.indices[place], self.values[place]
        order = words.argsort(stable=True)
        of_word = torch.searchsorted(words[order], torch.arange(self.words + 1, device=device))
        return Counts((words, ends, values), (document[order], of_word, values[order]))


def unigram(counts: scipy.sparse.csr_array) -> np.ndarray:
    """The smoothing u, (V,): the training counts, 1/10,000 added to each word, normalised."""
    of_blocks = (np.bincount(c.indices, c.data, counts.shape[1]) for _, _, c in blocks(counts))
    total = sum(of_blocks, np.zeros(counts.shape[1])) + 1e-4
    return total / total.sum()


def hold_out(count: int, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents to train on, and to hold out, of `count`. Raises DataError if one has none."""
    order = np.random.default_rng(seed).permutation(count)
    size = round(fraction * count)
    if not 0 < size < count:
        raise DataError(f"--held-out {fraction} of {count} training documents leaves none")
    return np.sort(order[size:]), np.sort(order[:size])


def some_words(
    counts: scipy.sparse.csr_array, n: int, most: int, rng: np.random.Generator
) -> scipy.sparse.csr_array:
    """n words, drawn without replacement, of each of `most` random documents that are as long, (N,
    V). Raises DataError if none is.
    """
    long = np.flatnonzero(counts.sum(1) >= n)
    if not len(long):
        raise DataError(f"--lengths {n}: no document has so many of the frequent words")
    found = counts[np.sort(rng.permutation(long)[:most])].astype(np.float64)
    for start, end in itertools.pairwise(found.indptr):
        bag = found.data[start:end].astype(np.int64)
        found.data[start:end] = rng.multivariate_hypergeometric(bag, n, method="count")
    found.eliminate_zeros()
    return found


def counts_of_text(text: str, words: list[str], name: str) -> scipy.sparse.csr_array:
    """Counts (1, V) of the words of a text; those that the corpus, called `name`, lacks are named
    on the way.

    Raises DataError if it lacks all.
    """
    index, tokens = {word: i for i, word in enumerate(words)}, words_of(text)
    unknown = list(dict.fromkeys(token for token in tokens if token not in index))
    if unknown:
        more = f" and {len(unknown) - 20} more" * (len(unknown) > 20)
        print(f"not among the {len(index):,} words: {' '.join(unknown[:20])}{more}")
    columns = np.array([index[token] for token in tokens if token in index], np.int64)
    if not len(columns):
        raise DataError(f"no word of the query is among the {len(index):,} words of {name}")
    row = np.bincount(columns, minlength=len(index)).astype(np.float32)
    return scipy.sparse.csr_array(row[None])


def blocks(counts: scipy.sparse.csr_array) -> Iterator[tuple[slice, np.ndarray, Any]]:
    """Some rows at a time, for which what is computed of each non-zero fits in memory: which, their
    counts, and of each non-zero the row within the block.
    """
    for start in range(0, counts.shape[0], BLOCK):
        rows = counts[start : start + BLOCK]
        within = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
        yield slice(start, start + rows.shape[0]), within, rows


def characteristic_words(train: scipy.sparse.csr_array, test: scipy.sparse.csr_array) -> np.ndarray:
    """Of each document, rows of counts (N, V), first of train, then of test, the SHOWN words of
    largest tf-idf, int32 (N, SHOWN); -1 where it has fewer. Document frequencies are of train.
    """
    of_blocks = (np.bincount(c.indices, minlength=train.shape[1]) for _, _, c in blocks(train))
    idf = np.log(train.shape[0] / np.maximum(1, sum(of_blocks)))
    found = []
    for _, document, rows in itertools.chain(blocks(train), blocks(test)):
        order = np.lexsort((-rows.data * idf[rows.indices], document))  # rows stay in their order
        place = np.arange(len(order)) - rows.indptr[document]
        first = place < SHOWN
        words = np.full((rows.shape[0], SHOWN), -1, np.int32)
        words[document[first], place[first]] = rows.indices[order][first]
        found.append(words)
    return np.concatenate(found)


def load_corpus(name: str, archive: Path | None) -> Corpus:
    """20 Newsgroups from its archive, docstrings, or a folder or file of own documents. Raises
    DataError, one line, if it cannot be had.
    """
    if name == "newsgroups":
        return newsgroups.load(archive)
    if archive is not None:
        raise DataError(f"--archive is of 20 Newsgroups; it does not go with --corpus {name}")
    return docstrings.load() if name == "docstrings" else texts.load(Path(name))


class Documents:
    """One split of the corpus, smoothed with the unigram distribution `u` of shape (V,)."""

    def __init__(self, counts: scipy.sparse.csr_array, u: Tensor):
        self.counts = counts.astype(torch.empty(0, dtype=u.dtype).numpy().dtype, copy=False)
        self.u = u
        p = u.double().cpu().numpy()
        entropy = p @ np.log(p)
        lengths, sums = np.empty((2, counts.shape[0]))
        for block, document, rows in blocks(counts):
            c, at = rows.data.astype(np.float64), p[rows.indices]
            n = np.bincount(document, c, minlength=rows.shape[0]) + 1.0
            x_log_x = (c + at) * np.log(c + at) - at * np.log(at)
            x_log_x = np.bincount(document, x_log_x, minlength=rows.shape[0]) + entropy
            lengths[block], sums[block] = n, x_log_x - n * np.log(n)
        self.n, self.negentropy = (torch.from_numpy(part).to(u) for part in (lengths, sums))
        self.resident = None if u.device.type == "cpu" else Resident(self.counts, u.device)

    def __len__(self) -> int:
        return len(self.n)

    def batch(self, documents: np.ndarray) -> Batch:
        index = torch.from_numpy(documents).to(self.u.device, non_blocking=True)
        if self.resident is not None:
            counts = self.resident.batch(documents, index)
        else:
            rows = self.counts[documents]
            counts = Counts(parts_of(rows), parts_of(rows.T.tocsr()))
        return Batch(counts, self.n[index], self.negentropy[index], self.u)

    def batches(self, size: int) -> Iterator[Batch]:
        for i in range(0, len(self), size):
            yield self.batch(np.arange(i, min(i + size, len(self))))


class SmoothedProduct(torch.autograd.Function):
    """x @ weight for a batch of documents x, (B, V) times (V, k) -> (B, k).

    Only the non-zeros of c, and u once, are multiplied; the gradient in the weight is dense, for
    Adam.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, batch: Batch) -> Tensor:
        ctx.batch = batch
        return batch.counts.product(weight).add_(batch.u @ weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,), batch = grads, ctx.batch
        product = batch.counts.product(grad.contiguous(), transposed=True)
        return product.addr_(batch.u, grad.sum(0)), None


class Workspace:
    """Memory that RelativeNLL writes its logits to, and its factors: fresh memory would cost as
    much as the products.

    One call of RelativeNLL uses it at a time, until its backward pass is done; autograd raises
    RuntimeError else.
    """

    def __init__(self) -> None:
        # A block of almost 32 MiB, freed at once: from then on glibc's malloc keeps freed blocks of
        # up to this size, such as gradients, for reuse, and does not take their pages from the
        # system anew in every step.
        torch.empty(2**25 - 2**12, dtype=torch.uint8)
        self.tensors: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}

    def take(self, rows: int, weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Room for logits (V, rows) and for factors (V, k + 4), of weight (V, k)."""
        like: Any = {"dtype": dtype, "device": weight.device}
        empty = torch.empty(0, **like), torch.empty(0, **like)
        logits, factors = self.tensors.setdefault((dtype, weight.device), empty)
        logits.resize_(max(len(logits), len(weight) * rows))
        factors.resize_(len(weight), weight.shape[1] + 4)
        return logits[: len(weight) * rows].view(len(weight), rows), factors


class RelativeNLL(torch.autograd.Function):
    """sum_v x_v (log(x_v / n) - log softmax(hidden @ weight.T + bias)_v), nats, of every document x
    under every row of
    hidden: hidden (K, k), weight (V, k), bias (V,) -> (K, B).

    dtype: what the products over the vocabulary and the softmax are computed in.

    The softmax does not change when the logits of a row are shifted. Shifted to mean zero under u,
    those of common words are small, which suits bfloat16; the smoothing drops out of sum_v x_v
    logits_v; and the softmax can do without its maximum, as the log of its sum is then KL(u ||
    softmax) + entropy of u: never small, and above float32's 88 only for a softmax that all but
    leaves out common words.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        batch: Batch,
        workspace: Workspace,
        dtype: torch.dtype,
    ) -> Tensor:
        k, u, n = hidden.shape[1], batch.u, batch.n
        logits, factors = workspace.take(len(hidden), weight, dtype)
        # Bias and shift take part in the product, as two columns each: rounded, and what that
        # leaves. In bfloat16, a log-probability of -10 alone would be off by up to 0.03.
        factors[:, :k] = weight
        factors[:, k : k + 2] = _rounded_and_remainder(bias, dtype)
        factors[:, k + 2 :] = 1
        mean, mean_bias = u @ weight, u @ bias
        shift = _rounded_and_remainder(-(hidden @ mean + mean_bias), dtype)
        rows = torch.cat([hidden.to(dtype), torch.ones_like(shift), shift], 1)
        torch.mm(factors, rows.T, out=logits)  # words as rows: faster in bfloat16 (tests/README.md)
        largest, on_cpu = torch.zeros_like(hidden[:, 0]), u.device.type == "cpu"
        total = _exponentiate_and_sum(logits, u.dtype) if on_cpu else None
        # Elsewhere the program would have to wait for the answer: the largest is always taken off.
        if total is None or not math.isfinite(total.sum()):
            if on_cpu:
                torch.mm(factors, rows.T, out=logits)
            largest = logits.amax(0)
            total = _exponentiate_and_sum(logits.sub_(largest), u.dtype)
            largest = largest.to(u.dtype)
        # sum_v x_v logits_v, shifted, so that of x = c + u only c is left: from c @ weight, once
        # for all rows.
        documents = batch.counts.product(weight).addr_(n - 1, mean, alpha=-1)
        offset = batch.counts.product(bias[:, None])[:, 0] - (n - 1) * mean_bias
        ctx.save_for_backward(hidden, logits, factors, mean, documents, total)
        ctx.batch = batch
        dot = torch.addmm(offset, hidden, documents.T)
        return torch.addr(batch.negentropy, largest + total.log(), n).sub_(dot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), batch = grads, ctx.batch
        hidden, exponentials, factors, mean, documents, total = ctx.saved_tensors
        # n softmax - x, of x = c + u: the dense softmax, the sparse c, and u as a rank-one term.
        weights = grad @ batch.n
        scale = weights / total
        grad_hidden = None
        if ctx.needs_input_grad[0]:
            product = (exponentials.T @ factors[:, : len(mean)]).to(grad.dtype)
            product.mul_(scale[:, None]).addr_(weights, mean, alpha=-1)
            grad_hidden = product.addmm_(grad, documents, alpha=-1)
        product = (exponentials @ (hidden * scale[:, None]).to(exponentials.dtype)).to(grad.dtype)
        by_document = grad.T @ hidden
        product.sub_(batch.counts.product(by_document, transposed=True))
        grad_weight = product.addr_(batch.u, by_document.sum(0), alpha=-1)
        product = (exponentials @ scale.to(exponentials.dtype)).to(grad.dtype)
        by_document = grad.sum(0)
        counts = batch.counts.product(by_document[:, None], transposed=True)[:, 0]
        grad_bias = product.sub_(counts).sub_(batch.u * by_document.sum())
        return grad_hidden, grad_weight, grad_bias, None, None, None


def distinct_codes(z: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct rows of the codes z (R, b), each once, and for each row of z which of them it
    is, (R,).

    The first row of z fills up to a multiple of 64: products of a shape not met before have to be
    compiled. On the CPU
    only: elsewhere the program would have to wait for the number of codes; there every row stands
    for itself.
    """
    rows = torch.arange(len(z), device=z.device)
    if z.device.type != "cpu":
        return z, rows
    bits = z.long() << torch.arange(z.shape[1], device=z.device) % 64
    packed = [word.sum(1) for word in bits.split(64, 1)]
    found, which = packed[0].unique(return_inverse=True)
    if len(packed) > 1:
        found, which = torch.stack(packed, 1).unique(return_inverse=True, dim=0)
    one_of_each = rows.new_zeros(-(-len(found) // 64) * 64).scatter_(0, which, rows)
    return z[one_of_each], which


def _exponentiate_and_sum(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Put exp(logits) in the place of logits (V, K); their sums over words, (K,), in `dtype`."""
    # Some words at a time, as bfloat16 rounds each sum; a sum in another type would copy all of
    # them.
    parts = [part.sum(0).to(dtype) for part in logits.exp_().split(2560)]
    return sum(parts[1:], parts[0])


def _rounded_and_remainder(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x (N,) as sums of two numbers of a type that may be narrower, (N, 2)."""
    rounded = x.to(dtype)
    return torch.stack([rounded, (x - rounded).to(dtype)], 1)
