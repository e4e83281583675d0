"""Section 5: the sparse loss against the dense formula, resumption bit by bit, and bad input."""

import functools
import json
import math
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
import toy
from torch import Tensor
from toy import corpus, good, main, option_error, posix, python, the_one_line, words

import disarm
import hashing
from data import DataError, documents, newsgroups
from data.documents import Documents
from data.newsgroups import Corpus
from figures import run

CPU = torch.device("cpu")
SMALL = hashing.Options(
    bits=4, epochs=4, fine_epochs=2, pairs=3, batch_size=16, checkpoint_every=1, device="cpu"
)
FEW = "--bits 4 --pairs 3 --batch-size 16 --checkpoint-every 1"
ARGUMENTS = (FEW, "--epochs 4 --fine-epochs 2")


@pytest.fixture
def toy_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let hashing.py's command line, run in this process, find the toy corpus."""
    monkeypatch.setattr(newsgroups, "load", lambda archive: corpus())


def dense_nll(x: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The definition: sum_v x_v (log(x_v / n) - log softmax_v), x dense and smoothed."""
    log_p = torch.log_softmax(hidden @ weight.T + bias, -1)
    return (x * ((x / x.sum(-1, keepdim=True)).log() - log_p)).sum(-1)


def smoothed(counts: scipy.sparse.csr_array, u: Tensor) -> Tensor:
    return torch.from_numpy(counts.toarray()).to(u) + u


def compare_with_dense(
    counts: scipy.sparse.csr_array, u: Tensor, rows: np.ndarray, k: int, scale: float = 1.0
) -> None:
    batch = Documents(counts, u).batch(rows)
    generator = torch.Generator().manual_seed(0)
    shape = {"hidden": (len(rows) + 3, k), "weight": (len(u), k), "bias": (len(u),)}
    drawn = (torch.randn(s, generator=generator, dtype=u.dtype) for s in shape.values())
    inputs = [(scale * part).requires_grad_() for part in drawn]
    upstream = torch.rand((len(rows) + 3, len(rows)), generator=generator, dtype=u.dtype) - 0.2
    upstream[-1] = 0  # a code that no document uses
    value = documents.RelativeNLL.apply(*inputs, batch, documents.Workspace(), u.dtype)
    found = torch.autograd.grad(value, inputs, upstream)
    hidden, weight, bias = inputs
    dense = dense_nll(smoothed(counts[rows], u)[None], hidden[:, None], weight, bias)
    expected = torch.autograd.grad(dense, inputs, upstream)
    assert ((value - dense).abs() / dense.abs()).max() < 1e-6
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() < 1e-6 * b.abs().max()


def unigram(counts: scipy.sparse.csr_array, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(documents.unigram(counts)).to(dtype)


@pytest.mark.parametrize("block", [7, documents.BLOCK])
def test_loss_and_gradients_equal_the_dense_formula(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "BLOCK", block)
    toy = corpus()
    total = toy.train.toarray().astype(float).sum(0) + 1e-4
    assert (documents.unigram(toy.train) == total / total.sum()).all()
    compare_with_dense(toy.test, unigram(toy.train), np.arange(21), 5)


def test_a_softmax_beyond_the_range_of_the_exponential_is_still_right() -> None:
    toy = corpus()
    compare_with_dense(toy.test, unigram(toy.train), np.arange(21), 5, scale=30.0)
    u = unigram(toy.train, torch.float32)
    batch = Documents(toy.train, u).batch(np.arange(20))
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
        torch.manual_seed(0)
        decoder = hashing.Decoder(len(u), 3, 0)
        with torch.no_grad():
            decoder.weight.normal_(0, 100)
        loss = decoder(torch.ones(1, 20, 3), batch, dtype)
        loss.sum().backward()
        parameters = [decoder.weight, decoder.bias]
        dense = dense_nll(smoothed(toy.train[:20], u), torch.ones(20, 3), *parameters)
        torch.testing.assert_close(loss[0], dense, rtol=tolerance, atol=0)
        gradients = torch.autograd.grad(dense.sum(), parameters)
        for parameter, expected in zip(parameters, gradients, strict=True):
            assert (parameter.grad - expected).norm() < tolerance * expected.norm()


def test_loss_and_gradients_equal_the_dense_formula_on_real_documents(
    newsgroups_corpus: Corpus,
) -> None:
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
        losses.append(decoder(z, Documents(real.train, u).batch(np.arange(256))).mean().item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("layers", "bits"), [(0, 64), (1, 16)])
def test_bfloat16_logits_are_close_on_real_documents(
    newsgroups_corpus: Corpus, layers: int, bits: int
) -> None:
    """Loss and gradients, with logits as spread as those of a trained decoder, against float32."""
    real, found = newsgroups_corpus, []
    u = unigram(real.train, torch.float32)
    batch = Documents(real.train, u).batch(np.arange(256))
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        decoder = hashing.Decoder(len(u), bits, layers)
        with torch.no_grad():
            decoder.weight.normal_(0, 1.5 * decoder.weight.shape[1] ** -0.5)
            decoder.bias.copy_(u.log())
        z = torch.randint(2, (2, 256, bits), generator=torch.Generator().manual_seed(1)).float()
        with run.products_in("bfloat16" if dtype == torch.bfloat16 else "float32"):
            loss = decoder(z, batch, dtype)
            loss.mean().backward()
        found.append((loss.detach(), [p.grad for p in decoder.parameters()]))
    (exact, gradients), (loss, rounded) = found
    error = (loss - exact) / batch.n.repeat(2, 1)
    assert error.abs().max() < 0.01  # nats a word
    assert error.mean().abs() < 2e-4
    for a, b in zip(gradients, rounded, strict=True):
        assert 0 < (a - b).norm() < 0.01 * a.norm()


@pytest.mark.parametrize("kind", ["e1", "e2", "e3", "e4"])
def test_encoders_equal_dense_layers(kind: str) -> None:
    toy = corpus()
    u = unigram(toy.train)
    encoder = hashing.Encoder(kind, len(u), 4, length=15.0).double()
    batch = Documents(toy.train, u).batch(np.arange(20))
    x = smoothed(toy.train[:20], u)
    features = x if kind == "e1" else x / x.sum(1, keepdim=True) * (15.0 if kind == "e4" else 1.0)
    expected = encoder.rest(features @ encoder.weight + encoder.bias)
    torch.testing.assert_close(encoder(batch), expected)
    mismatched = encoder.rest(x @ encoder.weight + encoder.bias)
    torch.testing.assert_close(encoder(batch, as_counts=True), mismatched)
    parameters = list(encoder.parameters())
    found = torch.autograd.grad(encoder(batch).square().sum(), parameters)
    for a, b in zip(found, torch.autograd.grad(expected.square().sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)


def test_initialisation_is_that_of_linear_layers() -> None:
    model = hashing.VAE(hashing.Options(decoder_layers=2), 10_000)
    assert model.encoder.weight.shape == (10_000, 64)
    assert model.encoder.weight.abs().max().item() == pytest.approx(0.01, rel=1e-2)
    assert model.decoder.weight.shape == (10_000, 512)
    assert model.decoder.weight.abs().max().item() == pytest.approx(512**-0.5, rel=1e-2)
    assert [m.in_features for m in model.decoder.hidden if hasattr(m, "in_features")] == [64, 512]


def test_kl_is_the_sum_over_codes() -> None:
    logits = torch.tensor([[0.0, 3.0, -20.0], [1.0, 700.0, 0.5]], dtype=torch.float64)
    z = disarm.codes(3, logits)[:, None].expand(-1, 2, -1)
    log_q = disarm.log_bernoulli(z, logits)
    expected = (log_q.exp() * (log_q + 3 * math.log(2))).sum(0)
    torch.testing.assert_close(hashing.kl_uniform(logits), expected)


def test_test_loss_is_the_exact_elbo_on_average() -> None:
    """One sample a document against the sum over all codes, through the real evaluation."""
    toy = corpus()
    trainer = hashing.Trainer(replace(SMALL, bits=3), toy, CPU)
    with torch.no_grad():
        trainer.model.encoder.weight.mul_(20)  # away from the uniform posterior
        trainer.model.decoder.weight.mul_(4)
        exact = []
        for batch in trainer.test.batches(16):
            logits = trainer.model.encoder(batch)
            z = disarm.codes(3, logits)[:, None].expand(-1, len(batch), -1)
            q = disarm.log_bernoulli(z, logits).exp()
            nll = (q * trainer.model.decoder(z, batch)).sum(0)
            exact.append((nll + hashing.kl_uniform(logits)).mean())
    samples = np.array([hashing.evaluate(trainer, trainer.test) for _ in range(300)])
    exact = torch.stack(exact).mean().item()
    assert abs(samples.mean() - exact) < 4.5 * samples.std() / 300**0.5
    assert samples.std() > 0


def test_step_leaves_the_exact_gradient_on_average() -> None:
    """The encoder's gradient after `step`, with ten pairs, against enumeration of all codes."""
    options = replace(SMALL, bits=3, lr=1e-30, precision="float32")
    trainer = hashing.Trainer(options, corpus(), CPU)
    batch = trainer.train.batch(np.arange(16))
    with torch.no_grad():
        trainer.model.decoder.weight.mul_(5)
    logits = trainer.model.encoder(batch)

    def f(z: Tensor) -> Tensor:
        nll = trainer.model.decoder(z, batch)
        return nll + disarm.log_bernoulli(z, logits.detach())

    toy.enumeration(f, logits).mean().backward()
    model = trainer.model
    parameters = [model.encoder.weight, model.encoder.bias, model.decoder.bias]
    exact = [p.grad.clone() for p in parameters]
    draws = []
    for _ in range(draws_made := 150):
        hashing.step(trainer, batch, 10)
        draws.append([p.grad.clone() for p in parameters])
    for i, expected in enumerate(exact):
        sampled = torch.stack([draw[i] for draw in draws])
        error = (sampled.mean(0) - expected).norm() / (sampled.std(0).norm() / draws_made**0.5)
        # Chi over its root mean square; three bits make all of it: few degrees of freedom.
        assert error < 3
        assert expected.norm() > 3 * sampled.std(0).norm() / draws_made**0.5


@pytest.mark.parametrize("bits", [1, 3, 63, 64, 65, 130])
def test_distinct_codes_stand_for_all(bits: int) -> None:
    few = torch.randint(2, (70, bits), generator=torch.Generator().manual_seed(bits)).float()
    few[1] = 1 - few[0]
    few[2], few[2, -1] = few[0], 1 - few[0, -1]
    z = few.repeat(3, 1)
    distinct, which = hashing.distinct_codes(z)
    assert torch.equal(distinct[which], z)
    assert which.unique().numel() == len(few.unique(dim=0))
    assert len(distinct) % 64 == 0
    assert len(distinct) < len(few.unique(dim=0)) + 64


@pytest.mark.parametrize("bits", [4, 17])  # pairs together, and one at a time
def test_a_step_of_several_pairs_is_the_mean_of_steps_of_one(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same noise; repeated codes are decoded once in the first, each time in the others."""
    options = replace(SMALL, bits=bits, decoder_layers=1, lr=1e-30, precision="float32")
    trainer = hashing.Trainer(options, corpus(), CPU)
    batch, noise = trainer.train.batch(np.arange(16)), trainer.generators["noise"].get_state()

    def gradients(pairs: int) -> list[Tensor]:
        loss = hashing.step(trainer, batch, pairs)
        return [loss, *(p.grad.clone() for p in trainer.model.parameters() if p.grad is not None)]

    together = gradients(3)
    trainer.generators["noise"].set_state(noise)
    monkeypatch.setattr(hashing, "distinct_codes", lambda z: (z, torch.arange(len(z))))
    one_by_one = [gradients(1) for _ in range(3)]
    for found, *expected in zip(together, *one_by_one, strict=True):
        mean = sum(expected) / 3
        assert (found - mean).abs().max() < 1e-5 * mean.abs().max()


@pytest.mark.parametrize("estimator", ["disarm", "arm", "reinforce"])
@pytest.mark.parametrize(("encoder", "layers"), [("e1", 0), ("e2", 1), ("e3", 2)])
def test_every_part_trains(encoder: str, layers: int, estimator: str, tmp_path: Path) -> None:
    cell = {"encoder": encoder, "decoder_layers": layers, "estimator": estimator}
    result = hashing.train(replace(SMALL, **cell, lr=1e-2, epochs=25, out=tmp_path), corpus())
    train = result["history"]["train"]
    assert np.mean(train[-3:]) < np.mean(train[:3])
    assert result["metrics"]["test_min"] == min(result["history"]["test"])
    assert result["metrics"]["epochs"] == 27


def test_scratch_used_twice_is_an_error_not_a_wrong_gradient() -> None:
    trainer = hashing.Trainer(SMALL, corpus(), CPU)
    batch = trainer.train.batch(np.arange(4))
    z = torch.ones(1, 4, 4)
    first = trainer.model.decoder(z, batch)
    trainer.model.decoder(z, batch)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        first.sum().backward()


def everything(out: Path) -> tuple[dict, dict]:
    result = json.loads((out / "result.json").read_bytes())
    return torch.load(out / "checkpoint.pt", weights_only=True), result


def assert_bitwise_equal(a: object, b: object) -> None:
    if isinstance(a, Tensor):
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


@posix
def test_a_killed_run_resumes_bit_by_bit(tmp_path: Path, toy_corpus: None) -> None:
    """SIGKILL in one-pair epochs, SIGTERM in fine ones, which saves; the end is the same."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    long = (FEW, "--epochs 20 --fine-epochs 40")
    good(hashing, *long, "--out", whole)
    checkpoint, result = killed / "checkpoint.pt", killed / "result.json"
    for least, stop in ((5, signal.SIGKILL), (25, signal.SIGTERM)):
        command = [sys.executable, "-c", toy.HASHING, *words(*long, "--resume --out", killed)]
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
        if stop == signal.SIGTERM:
            assert process.returncode == 143
            saved = torch.load(checkpoint, weights_only=True)["history"]["train"]
            assert len(saved) > epochs  # the epoch of the signal, too
            assert "Traceback" not in errors
            assert "--resume" in errors.splitlines()[-1]
        left = {path.name for path in killed.iterdir() if not path.name.startswith(".")}
        assert left == {"checkpoint.pt", "history.jsonl"}
    good(hashing, *long, "--resume", "--out", killed)
    histories = [(out / "history.jsonl").read_bytes() for out in (whole, killed)]
    assert histories[0] == histories[1]
    (state, result_a), (other, result_b) = everything(whole), everything(killed)
    assert_bitwise_equal(state, other)
    assert result_a["metrics"] == result_b["metrics"]
    assert result_a["history"] == result_b["history"]


def test_every_option_resumes_bit_by_bit(tmp_path: Path) -> None:
    options = replace(SMALL, encoder="e4", encoder_lr=0.01, held_out=0.2)
    options = replace(options, test_counts=True, resume=True)
    hashing.train(replace(options, out=tmp_path / "whole"), corpus())
    for fine_epochs in (1, 2):
        hashing.train(replace(options, fine_epochs=fine_epochs, out=tmp_path / "parts"), corpus())
    (state, result_a), (other, result_b) = (everything(tmp_path / n) for n in ("whole", "parts"))
    assert_bitwise_equal(state, other)
    assert result_a["metrics"] == result_b["metrics"]


def test_resume_can_add_epochs_but_not_change_the_model(tmp_path: Path) -> None:
    options = replace(SMALL, epochs=2, fine_epochs=0, out=tmp_path)
    hashing.train(options, corpus())
    with pytest.raises(hashing.cli.RunError, match="--resume"):
        hashing.train(options, corpus())
    with pytest.raises(hashing.cli.RunError, match="--bits 4, not 5"):
        hashing.train(replace(options, bits=5, resume=True), corpus())
    again = replace(options, fine_epochs=2, resume=True)
    assert hashing.train(again, corpus())["metrics"]["epochs"] == 4
    # Of 2 and 2, where these runs never pass.
    for epochs, fine_epochs in ((3, 0), (3, 2), (6, 0), (2, 1)):
        with pytest.raises(hashing.cli.RunError, match="never passes through that state"):
            hashing.train(replace(again, epochs=epochs, fine_epochs=fine_epochs), corpus())
    with pytest.raises(hashing.cli.RunError, match="documents toy, not another"):
        hashing.train(replace(again, fine_epochs=3), replace(corpus(), name="another"))
    checkpoint = tmp_path / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    for broken, said in (
        ({"config": state["config"] | {"gone": 1}}, "an earlier version, which had --gone"),
        ({"model": {}}, "is no checkpoint"),
        ({"generators": {}}, "is no checkpoint"),
    ):
        torch.save(state | broken, checkpoint)
        with pytest.raises(hashing.cli.RunError, match=said):
            hashing.train(replace(again, fine_epochs=3), corpus())


def test_test_counts_adds_a_second_test_and_changes_nothing_else(tmp_path: Path) -> None:
    options = replace(SMALL, encoder="e3", lr=0.1, out=tmp_path / "plain")
    plain = hashing.train(options, corpus())
    both = hashing.train(replace(options, test_counts=True, out=tmp_path / "both"), corpus())
    second = both["history"].pop("test_counts")
    assert both["history"] == plain["history"]
    assert second != both["history"]["test"]
    assert both["metrics"]["test_counts_min"] == min(second)


def test_held_out_documents_are_not_trained_on(tmp_path: Path) -> None:
    toy = corpus()
    trainer = hashing.Trainer(replace(SMALL, held_out=0.2), toy, CPU)
    assert (len(trainer.train), len(trainer.held_out), len(trainer.test)) == (40, 10, 21)
    together = scipy.sparse.vstack([trainer.train.counts, trainer.held_out.counts]).toarray()
    np.testing.assert_array_equal(np.sort(together, 0), np.sort(toy.train.toarray(), 0))
    expected = documents.unigram(toy.train[trainer.training_rows])
    np.testing.assert_allclose(trainer.u.numpy(), expected, rtol=1e-6)
    result = hashing.train(replace(SMALL, held_out=0.2, epochs=20, out=tmp_path), toy)
    history, metrics = result["history"], result["metrics"]
    assert metrics["selected_epoch"] == int(np.argmin(history["held_out"])) + 1
    assert metrics["test_selected"] == history["test"][metrics["selected_epoch"] - 1]
    assert metrics["test_selected"] >= metrics["test_min"]
    with pytest.raises(DataError, match="leaves none"):
        hashing.Trainer(replace(SMALL, held_out=0.001), toy, CPU)


def test_the_model_kept_is_that_of_the_selected_epoch(tmp_path: Path) -> None:
    """Trained on to overfit, it tests as it did then; and it is a plain file."""
    toy = corpus()
    options = replace(SMALL, lr=0.2, epochs=60, fine_epochs=0, out=tmp_path)
    result = hashing.train(options, toy)
    epoch = result["metrics"]["selected_epoch"]
    assert epoch < 60
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert (saved["epoch"], saved["words"], saved["corpus"]) == (epoch, toy.words, "toy")
    hashing.train(replace(options, epochs=epoch, out=tmp_path / "again"), toy)
    again = torch.load(tmp_path / "again/checkpoint.pt", weights_only=True)
    assert_bitwise_equal(saved["model"], again["model"])


def test_encoder_learning_rate_reaches_its_parameters() -> None:
    trainer = hashing.Trainer(replace(SMALL, encoder_lr=0.5, decoder_layers=1), corpus(), CPU)
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            assert group["lr"] == (0.5 if names[parameter].startswith("encoder") else 1e-3)


def test_bfloat16_products_are_close_and_only_training_uses_them() -> None:
    toy = corpus(words=200)
    losses, gradients, tests = [], [], []
    for precision in ("float32", "bfloat16"):
        options = replace(SMALL, decoder_layers=1, lr=1e-30, precision=precision)
        trainer = hashing.Trainer(options, toy, CPU)
        losses.append(hashing.step(trainer, trainer.train.batch(np.arange(50)), 1).item())
        gradients.append([p.grad.clone() for p in trainer.model.parameters() if p.grad is not None])
        tests.append(hashing.evaluate(trainer, trainer.test))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for exact, rounded in zip(*gradients, strict=True):
        assert (exact - rounded).norm() < 0.05 * exact.norm()
    assert any(not torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert tests[0] == tests[1]
    with pytest.raises(hashing.cli.RunError, match="bfloat16 is for the CPU, not for cuda"):
        hashing.Trainer(trainer.options, toy, torch.device("cuda"))
    assert trainer.options.precision == "bfloat16"


def test_a_processor_told_to_be_a_lesser_one_trains_in_float32(monkeypatch) -> None:
    ask = "from figures import run; import torch; print(run.native_precision(torch.device('cpu')))"
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert python(ask).stdout == "float32\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--nonsense", 1), "--nonsense"),
        (("--bits", 0), "--bits: must be >=1, not 0"),
        (("--bits", "many"), "many"),
        (("--encoder", "e9"), "e9"),
        (("--lr", 0), "--lr: must be >0, not 0.0"),
        (("--lr", "inf"), "--lr: must be >0, not inf"),
        (("--epochs", 0, "--fine-epochs", 0), "nothing to train"),
        (("--decoder-layers", -1), "--decoder-layers"),
        (("--held-out", 1), "--held-out"),
        (("--test-counts",), "--test-counts"),
        (("--seed", -1), "--seed"),
        (("exact", "--encoders"), "--encoders"),
        (("exact", "--encoders", "e1", "e1"), "--encoders must name one or more, each once"),
        (("worst",), "worst"),
        (("exact", "--bits", 13), "--bits must be at most 12"),
    ],
)
def test_bad_options_are_named(arguments: tuple, named: str, tmp_path: Path) -> None:
    done = main(hashing, *arguments, "--out", tmp_path / "out")
    assert named in option_error(done)
    assert not (tmp_path / "out").exists()


def test_bad_runs_are_one_line_and_leave_what_was_there(tmp_path: Path, toy_corpus: None) -> None:
    good(hashing, *ARGUMENTS, "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "curves.png" in before

    def unchanged() -> bool:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    assert "--resume" in the_one_line(main(hashing, *ARGUMENTS, "--out", tmp_path))
    assert unchanged()
    more = (*ARGUMENTS, "--fine-epochs", 9, "--resume", "--out", tmp_path)
    (tmp_path / "checkpoint.pt").write_bytes(before["checkpoint.pt"][:1000])
    assert "is no checkpoint" in the_one_line(main(hashing, *more))


@posix
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    tmp_path: Path, toy_corpus: None
) -> None:
    import resource

    good(hashing, *ARGUMENTS, "--out", tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    full_disk = (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    more = (*ARGUMENTS, "--fine-epochs", 9, "--resume", "--out", tmp_path)
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, full_disk)
    done = python(toy.HASHING, *more, preexec_fn=limit)
    assert "File too large" in the_one_line(done)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.pop("history.jsonl").startswith(before.pop("history.jsonl"))
    assert after == before
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"epoch": 8, "tr')  # of a run that was killed while it wrote
    good(hashing, *more)
    lines = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    assert epochs == list(range(1, len(epochs) + 1))


def test_a_loss_that_is_not_a_number_is_one_line(tmp_path: Path, toy_corpus: None) -> None:
    line = the_one_line(main(hashing, *ARGUMENTS, "--lr", 1e38, "--out", tmp_path))
    assert "loss is" in line
    assert "epoch 1" in line
    assert not list(tmp_path.iterdir())
