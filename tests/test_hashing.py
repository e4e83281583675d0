"""Section 5: the sparse loss against the dense formula, resumption bit by bit, and bad input."""

import json
import math
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
import torch
from toy import HASHING, corpus, main, python, the_one_line

import disarm
import hashing
from data.newsgroups import Corpus

CPU = torch.device("cpu")
SMALL = hashing.Options(bits=4, epochs=4, fine_epochs=2, pairs=3, batch_size=16, checkpoint_every=1, device="cpu")
ARGUMENTS = ("--bits", 4, "--epochs", 4, "--fine-epochs", 2, "--pairs", 3, "--batch-size", 16, "--checkpoint-every", 1)


@pytest.fixture
def toy_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hashing.py's command line, run in this process, find the toy corpus."""
    monkeypatch.setattr(hashing.newsgroups, "load", lambda archive: corpus())


def dense_nll(x: torch.Tensor, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """The definition: sum_v x_v (log(x_v / n) - log softmax_v), x dense and smoothed."""
    log_p = torch.log_softmax(hidden @ weight.T + bias, -1)
    return (x * ((x / x.sum(-1, keepdim=True)).log() - log_p)).sum(-1)


def smoothed(counts: scipy.sparse.csr_array, u: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(counts.toarray()).to(u) + u


def compare_with_dense(counts: scipy.sparse.csr_array, u: torch.Tensor, rows: np.ndarray, k: int) -> None:
    batch = hashing.Documents(counts, u).batch(rows)
    generator = torch.Generator().manual_seed(0)
    shape = {"hidden": (2 * len(rows), k), "weight": (len(u), k), "bias": (len(u),)}
    inputs = [torch.randn(s, generator=generator, dtype=u.dtype).requires_grad_() for s in shape.values()]
    upstream = torch.rand(2 * len(rows), generator=generator, dtype=u.dtype) + 0.5
    scratch = torch.empty(2 * len(rows) + 3, len(u), dtype=u.dtype)
    value = hashing.RelativeNLL.apply(*inputs, batch, u, scratch)
    found = torch.autograd.grad(value, inputs, upstream)
    dense = dense_nll(smoothed(counts[rows], u).repeat(2, 1), *inputs)
    expected = torch.autograd.grad(dense, inputs, upstream)
    assert ((value - dense).abs() / dense.abs()).max() < 1e-6
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-6 * b.abs().max()


def unigram(counts: scipy.sparse.csr_array, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.from_numpy(hashing.unigram(counts)).to(dtype)


def test_loss_and_gradients_equal_the_dense_formula() -> None:
    toy = corpus()
    compare_with_dense(toy.test, unigram(toy.train), np.arange(21), 5)


def test_loss_and_gradients_equal_the_dense_formula_on_real_documents(newsgroups_corpus: Corpus) -> None:
    real = newsgroups_corpus
    longest = np.argsort(np.diff(real.train.indptr))[-8:]
    rows = np.concatenate([np.arange(0, 11_269, 500), longest])
    compare_with_dense(real.train, unigram(real.train), rows, 16)


def test_single_precision_is_enough_on_real_documents(newsgroups_corpus: Corpus) -> None:
    """The training precision itself: a batch's mean loss within 1e-5 of float64."""
    real, losses = newsgroups_corpus, []
    for dtype in (torch.float32, torch.float64):
        u = unigram(real.train, dtype)
        torch.manual_seed(0)
        decoder = hashing.Decoder(len(u), 16, 1).to(dtype)
        z = torch.randint(2, (2, 256, 16), generator=torch.Generator().manual_seed(1)).to(dtype)
        losses.append(decoder(z, hashing.Documents(real.train, u).batch(np.arange(256)), u).mean().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_unigram_is_the_notes_smoothing() -> None:
    counts = scipy.sparse.csr_array(np.array([[2.0, 0, 1], [1, 0, 0]], np.float32))
    expected = np.array([3.0001, 0.0001, 1.0001])
    np.testing.assert_allclose(hashing.unigram(counts), expected / expected.sum())


@pytest.mark.parametrize("kind", ["e1", "e2", "e3"])
def test_encoders_equal_dense_layers(kind: str) -> None:
    toy = corpus()
    u = unigram(toy.train)
    encoder = hashing.Encoder(kind, len(u), 4).double()
    batch = hashing.Documents(toy.train, u).batch(np.arange(20))
    x = smoothed(toy.train[:20], u)
    features = x if kind == "e1" else x / x.sum(1, keepdim=True)
    expected = encoder.rest(features @ encoder.weight + encoder.bias)
    torch.testing.assert_close(encoder(batch, u), expected)
    mismatched = encoder.rest(x @ encoder.weight + encoder.bias)
    torch.testing.assert_close(encoder(batch, u, counts=True), mismatched)
    parameters = list(encoder.parameters())
    for a, b in zip(
        torch.autograd.grad(encoder(batch, u).square().sum(), parameters),
        torch.autograd.grad(encoder.rest(features @ encoder.weight + encoder.bias).square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_initialisation_is_that_of_linear_layers() -> None:
    model = hashing.VAE(hashing.Options(decoder_layers=2), 10_000)
    assert model.encoder.weight.shape == (10_000, 64)
    assert model.encoder.weight.abs().max().item() == pytest.approx(0.01, rel=1e-2)
    assert model.decoder.weight.shape == (10_000, 512)
    assert model.decoder.weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-2)
    assert [m.in_features for m in model.decoder.hidden if hasattr(m, "in_features")] == [64, 512]


def test_kl_to_prior_is_the_sum_over_codes() -> None:
    logits = torch.tensor([[0.0, 3.0, -20.0], [1.0, 700.0, 0.5]], dtype=torch.float64)
    z = disarm.codes(3, logits)[:, None].expand(-1, 2, -1)
    log_q = disarm.log_bernoulli(z, logits)
    expected = (log_q.exp() * (log_q + 3 * math.log(2))).sum(0)
    torch.testing.assert_close(hashing.kl_to_prior(logits), expected)


def test_test_loss_is_the_exact_elbo_on_average() -> None:
    """One sample a document against the sum over all codes, through the real evaluation."""
    toy = corpus()
    trainer = hashing.Trainer(replace(SMALL, bits=3), toy, CPU)
    with torch.no_grad():
        trainer.model.encoder.weight.mul_(20)  # away from the uniform posterior
        trainer.model.decoder.weight.mul_(4)
        exact = []
        for batch in trainer.test.batches(16):
            logits = trainer.model.encoder(batch, trainer.u)
            z = disarm.codes(3, logits)[:, None].expand(-1, len(batch), -1)
            q = disarm.log_bernoulli(z, logits).exp()
            exact.append(((q * trainer.model.decoder(z, batch, trainer.u)).sum(0) + hashing.kl_to_prior(logits)).mean())
    samples = np.array([trainer.evaluate()["test"] for _ in range(300)])
    exact = torch.stack(exact).mean().item()
    assert abs(samples.mean() - exact) < 4.5 * samples.std() / 300**0.5
    assert samples.std() > 0


def test_step_leaves_the_exact_gradient_on_average() -> None:
    """The encoder's gradient after `step`, with ten pairs, against enumeration of all codes."""
    toy = corpus()
    trainer = hashing.Trainer(replace(SMALL, bits=3, lr=1e-30), toy, CPU)
    batch = trainer.train.batch(np.arange(16))
    with torch.no_grad():
        trainer.model.decoder.weight.mul_(5)
    logits = trainer.model.encoder(batch, trainer.u)

    def f(z: torch.Tensor) -> torch.Tensor:
        return trainer.model.decoder(z, batch, trainer.u) + disarm.log_bernoulli(z, logits.detach())

    disarm.enumeration(f, logits).mean().backward()
    parameters = [trainer.model.encoder.weight, trainer.model.encoder.bias, trainer.model.decoder.bias]
    exact = [p.grad.clone() for p in parameters]
    draws = []
    for _ in range(draws_made := 150):
        trainer.step(batch, 10)
        draws.append([p.grad.clone() for p in parameters])
    for i, expected in enumerate(exact):
        sampled = torch.stack([draw[i] for draw in draws])
        error = (sampled.mean(0) - expected).norm() / (sampled.std(0).norm() / draws_made**0.5)
        assert error < 2  # a chi variable of many degrees of freedom over its root mean square
        assert expected.norm() > 3 * sampled.std(0).norm() / draws_made**0.5


@pytest.mark.parametrize("estimator", ["disarm", "arm", "reinforce"])
@pytest.mark.parametrize(("encoder", "layers"), [("e1", 0), ("e2", 1), ("e3", 2)])
def test_every_part_trains(encoder: str, layers: int, estimator: str, tmp_path: Path) -> None:
    options = replace(
        SMALL, encoder=encoder, decoder_layers=layers, estimator=estimator, lr=1e-2, epochs=25, out=tmp_path
    )
    result = hashing.train(options, corpus())
    train = result["history"]["train"]
    assert np.mean(train[-3:]) < np.mean(train[:3])
    assert result["metrics"]["test_min"] == min(result["history"]["test"])
    assert result["metrics"]["epochs"] == 27


def test_scratch_used_twice_is_an_error_not_a_wrong_gradient() -> None:
    trainer = hashing.Trainer(SMALL, corpus(), CPU)
    batch = trainer.train.batch(np.arange(4))
    z = torch.ones(1, 4, 4)
    first = trainer.model.decoder(z, batch, trainer.u)
    trainer.model.decoder(z, batch, trainer.u)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()


def everything(out: Path) -> tuple[dict, dict]:
    return torch.load(out / "checkpoint.pt", weights_only=True), json.loads((out / "result.json").read_text())


def assert_bitwise_equal(a: object, b: object) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a.keys() - {"seconds", "config"}:
            assert_bitwise_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        for one, other in zip(a, b, strict=True):
            assert_bitwise_equal(one, other)
    else:
        assert a == b


def test_a_killed_run_resumes_bit_by_bit(tmp_path: Path) -> None:
    """SIGKILL somewhere in the one-pair epochs, SIGINT in the fine ones; the end is that of a run never stopped."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    long = ("--epochs", 40, "--fine-epochs", 60, *ARGUMENTS[6:], "--bits", 4)
    done = python(HASHING, *long, "--out", whole)
    assert done.returncode == 0, done.stderr
    checkpoint, result = killed / "checkpoint.pt", killed / "result.json"
    for least, stop in ((5, signal.SIGKILL), (45, signal.SIGINT)):
        command = [sys.executable, "-c", HASHING, *map(str, long), "--resume", "--out", killed]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 100
        epochs = 0
        while epochs < least and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
            if checkpoint.exists():  # always a whole file, whenever it is read
                epochs = len(torch.load(checkpoint, weights_only=True)["history"]["train"])
        assert process.poll() is None, "finished before it could be stopped"
        process.send_signal(stop)
        _, errors = process.communicate(timeout=60)
        assert not result.exists()
        if stop == signal.SIGINT:
            assert process.returncode == 130
            assert "Traceback" not in errors
            assert "--resume" in errors.splitlines()[-1]
        assert [p.name for p in killed.iterdir() if not p.name.startswith(".")] == ["checkpoint.pt"]
    done = python(HASHING, *long, "--resume", "--out", killed)
    assert done.returncode == 0, done.stderr
    (state, result_a), (other, result_b) = everything(whole), everything(killed)
    assert_bitwise_equal(state, other)
    assert result_a["metrics"] == result_b["metrics"]
    assert result_a["history"] == result_b["history"]


def test_resume_can_add_epochs_but_not_change_the_model(tmp_path: Path) -> None:
    options = replace(SMALL, epochs=2, fine_epochs=0, out=tmp_path)
    hashing.train(options, corpus())
    with pytest.raises(hashing.RunError, match="--resume"):
        hashing.train(options, corpus())
    with pytest.raises(hashing.RunError, match="--bits 4, not 5"):
        hashing.train(replace(options, bits=5, resume=True), corpus())
    assert hashing.train(replace(options, fine_epochs=2, resume=True), corpus())["metrics"]["epochs"] == 4
    with pytest.raises(hashing.RunError, match="past --epochs 3"):
        hashing.train(replace(options, epochs=3, resume=True), corpus())


def test_seed_decides(tmp_path: Path) -> None:
    runs = [
        hashing.train(replace(SMALL, seed=seed, out=tmp_path / str(i)), corpus())["metrics"]
        for i, seed in enumerate((1, 1, 2))
    ]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_test_counts_changes_testing_only(tmp_path: Path) -> None:
    histories = [
        hashing.train(replace(SMALL, encoder="e3", lr=0.1, test_counts=counts, out=tmp_path / str(counts)), corpus())[
            "history"
        ]
        for counts in (False, True)
    ]
    assert histories[0]["train"] == histories[1]["train"]
    assert histories[0]["test"] != histories[1]["test"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nonsense", 1), "--nonsense"),
        (("--bits", 0), "--bits must be at least 1"),
        (("--bits", "many"), "many"),
        (("--encoder", "e9"), "e9"),
        (("--lr", 0), "--lr"),
        (("--epochs", 0, "--fine-epochs", 0), "nothing to train"),
        (("--decoder-layers", -1), "--decoder-layers"),
    ],
)
def test_bad_options_are_one_line(arguments: tuple, named: str, tmp_path: Path) -> None:
    done = main(hashing, *arguments, "--out", tmp_path / "out")
    assert named in the_one_line(done)
    assert done.returncode == 2
    assert not (tmp_path / "out").exists()


def test_bad_runs_are_one_line_and_leave_what_was_there(tmp_path: Path, toy_corpus: None) -> None:
    done = main(hashing, *ARGUMENTS, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "hashing_curves.png" in before

    def unchanged() -> bool:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    assert "--resume" in the_one_line(main(hashing, *ARGUMENTS, "--out", tmp_path))
    assert unchanged()
    more = (*ARGUMENTS, "--fine-epochs", 9, "--resume", "--out", tmp_path)
    full_disk = (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    done = python(HASHING, *more, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, full_disk))
    assert "File too large" in the_one_line(done)
    assert unchanged()
    (tmp_path / "checkpoint.pt").write_bytes(before["checkpoint.pt"][:1000])
    assert "is no checkpoint" in the_one_line(main(hashing, *more))


def test_a_loss_that_is_not_a_number_is_one_line(tmp_path: Path, toy_corpus: None) -> None:
    line = the_one_line(main(hashing, *ARGUMENTS, "--lr", 1e38, "--out", tmp_path))
    assert "loss is" in line
    assert "epoch 1" in line
    assert not list(tmp_path.iterdir())
