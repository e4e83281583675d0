"""Section 5, summed over all codes: likelihood, bound, best factorized posterior, stages."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy import corpus, main, the_one_line

import disarm
import hashing
from data import newsgroups
from data.documents import Batch, Documents, SmoothedProduct

CPU = torch.device("cpu")
SMALL = hashing.ExactOptions(
    encoders=("e1", "e4"),
    bits=3,
    likelihood_epochs=3,
    encoder_epochs=2,
    joint_epochs=2,
    batch_size=16,
    lr=0.05,
    device="cpu",
)
STAGES = ["frozen", "joint", "regressed"]


def doubled(
    bits: int = 3, layers: int = 0, scale: float = 6.0
) -> tuple[hashing.Exact, hashing.VAE, Batch]:
    """A model in float64 on the toy corpus, its decoder far from trivial, and twelve documents."""
    sums = hashing.Exact(replace(SMALL, bits=bits, decoder_layers=layers), corpus(), CPU)
    sums.u, sums.z = sums.u.double(), sums.z.double()
    sums.documents = {split: Documents(d.counts, sums.u) for split, d in sums.documents.items()}
    model = sums.model("e1").double()
    with torch.no_grad():
        model.decoder.weight.mul_(scale)
    return sums, model, sums.documents["train"].batch(np.arange(12))


@pytest.mark.parametrize("layers", [0, 2])
def test_joint_of_all_codes_is_the_dense_formula(layers: int) -> None:
    sums, model, batch = doubled(layers=layers)
    found = hashing.log_joint(hashing.log_decoder(model, sums.z), batch, sums.z)
    # What the sampled training uses.
    nll = model.decoder(sums.z[:, None].expand(-1, len(batch), -1), batch)
    torch.testing.assert_close(found, -nll.T - 3 * np.log(2))
    x = torch.from_numpy(corpus().train[:12].toarray()).double() + sums.u
    log_p = torch.log_softmax(
        model.decoder.hidden(sums.z) @ model.decoder.weight.T + model.decoder.bias, 1
    )
    dense = (
        x @ log_p.T - (x * (x / x.sum(1, keepdim=True)).log()).sum(1, keepdim=True) - 3 * np.log(2)
    )
    torch.testing.assert_close(found, dense)


def test_enumeration_gradients_equal_finite_differences() -> None:
    sums, model, batch = doubled(bits=2)
    decoder = model.decoder

    def objective(
        weight: torch.Tensor, bias: torch.Tensor, encoder_weight: torch.Tensor
    ) -> torch.Tensor:
        parts = SimpleNamespace(weight=weight, bias=bias, hidden=decoder.hidden)
        log_p = hashing.log_decoder(SimpleNamespace(decoder=parts), sums.z)
        joint = hashing.log_joint(log_p, batch, sums.z)
        logits = SmoothedProduct.apply(encoder_weight, batch)
        return torch.stack(
            [disarm.exact_elbo(logits, joint, sums.z).mean(), joint.logsumexp(1).mean()]
        )

    parameters = decoder.weight, decoder.bias, model.encoder.weight
    inputs = [p.detach().clone().requires_grad_() for p in parameters]
    assert torch.autograd.gradcheck(objective, inputs)


def test_exact_elbo_is_what_sampling_gives() -> None:
    """8 bits, within 3 standard errors; and no document has a bound above its likelihood."""
    sums, model, batch = doubled(bits=8)
    joint = hashing.log_joint(hashing.log_decoder(model, sums.z), batch, sums.z).detach()
    logits = (model.encoder(batch) * 8).detach()
    elbo = disarm.exact_elbo(logits, joint, sums.z)
    assert (joint.logsumexp(1) >= elbo).all()
    q, samples = torch.sigmoid(logits), 4000
    z = (
        torch.rand(samples, *q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype) < q
    ).double()
    values = -hashing.kl_uniform(logits) - model.decoder(z, batch).detach()
    assert (values.mean() - elbo.mean()).abs() < 3 * (values.var(0) / samples).mean().div(
        len(batch)
    ).sqrt()
    assert values.std(0).mean() > 0.1


def test_sampled_loss_of_a_trained_model_is_the_exact_one(tmp_path: Path) -> None:
    """The two ways through the code, on a trained model: `evaluate` and `Exact.totals`."""
    toy = corpus()
    options = hashing.Options(
        bits=8, epochs=40, fine_epochs=0, lr=0.02, batch_size=64, device="cpu", out=tmp_path
    )
    trainer = hashing.Trainer(options, toy, CPU)
    hashing.train(options, toy)
    hashing.resume(trainer, tmp_path / "checkpoint.pt")
    trainer.options = replace(trainer.options, batch_size=len(trainer.test))
    samples = np.array([hashing.evaluate(trainer, trainer.test) for _ in range(400)])
    likelihood, elbo = hashing.Exact(replace(SMALL, bits=8), toy, CPU).totals(trainer.model, "test")
    assert abs(samples.mean() + elbo) < 3 * samples.std() / 400**0.5
    assert elbo < likelihood


def test_best_factorized_posterior() -> None:
    """Against a fine grid for two bits; never below its start, nor above the likelihood."""
    sums, model, batch = doubled(bits=2, scale=10)
    joint = hashing.log_joint(hashing.log_decoder(model, sums.z), batch, sums.z).detach()
    start = model.encoder(batch).detach()
    found = disarm.exact_elbo(disarm.best_factorized(joint, start, sums.z), joint, sums.z)
    grid = torch.tensor(
        list(itertools.product(np.linspace(-12, 12, 121), repeat=2)), dtype=torch.float64
    )
    best = torch.stack(
        [disarm.exact_elbo(grid, row.expand(len(grid), -1), sums.z).max() for row in joint]
    )
    assert (found >= best - 1e-9).all()
    assert (found <= joint.logsumexp(1) + 1e-12).all()
    assert (found >= disarm.exact_elbo(start, joint, sums.z)).all()
    assert (found - disarm.exact_elbo(start, joint, sums.z)).mean() > 0.01


def test_a_factorized_posterior_leaves_no_gap() -> None:
    z = disarm.codes(4, torch.empty(0, dtype=torch.float64))
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    joint = disarm.log_posterior(logits, z) - 5.0
    found = disarm.best_factorized(joint, torch.zeros_like(logits), z)
    torch.testing.assert_close(found, logits)
    expected = torch.full((7,), -5.0, dtype=torch.float64)
    torch.testing.assert_close(disarm.exact_elbo(found, joint, z), expected)


def test_measure_splits_the_gap() -> None:
    sums, model, _ = doubled()
    for split in ("train", "test"):
        m = sums.measure(model, split)
        assert m["gap"] == pytest.approx(m["log_likelihood"] - m["elbo"])
        assert m["gap"] == pytest.approx(m["factorization"] + m["amortization"])
        assert min(m["factorization"], m["amortization"]) >= 0
        assert (m["log_likelihood"], m["elbo"]) == pytest.approx(sums.totals(model, split))


def test_regression_finds_the_best_linear_map_to_the_marginals() -> None:
    """Where the gradient of the cross-entropy to exact marginals is zero, whatever the scale."""
    sums, model, _ = doubled()
    batch = sums.documents["train"].batch(np.arange(len(sums.documents["train"])))
    joint = hashing.log_joint(hashing.log_decoder(model, sums.z), batch, sums.z)
    marginals = (torch.softmax(joint, 1) @ sums.z).detach()
    sums.regress(model, hashing.Stage("regression", "e1", "regression", 20, ("encoder",)))
    error = torch.sigmoid(model.encoder(batch)) - marginals
    assert (
        (batch.counts.product(torch.eye(len(sums.u), dtype=sums.u.dtype)) + sums.u).T @ error
    ).abs().max() < 1e-3
    assert error.square().mean() < (marginals - marginals.mean(0)).square().mean() / 2


def test_stages_repeat_resume_and_tell_what_they_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newsgroups, "load", lambda archive: corpus())
    options = replace(
        SMALL, likelihood_epochs=40, encoder_epochs=40, joint_epochs=10, out=tmp_path / "a"
    )
    hashing.exact(options)
    result = json.loads((tmp_path / "a" / "result.json").read_bytes())
    stages = [f"{encoder}_{stage}" for encoder in ("e1", "e4") for stage in STAGES]
    assert set(result["metrics"]) == {"likelihood", "likelihood_on", "e1_regressed_joint", *stages}
    train = {name: stage["train"] for name, stage in result["metrics"].items()}
    assert train["likelihood_on"]["log_likelihood"] > train["likelihood"]["log_likelihood"]
    assert "elbo" not in train["likelihood"]
    assert train["e1_frozen"]["log_likelihood"] == train["likelihood"]["log_likelihood"]
    assert train["e1_joint"]["elbo"] > train["e1_frozen"]["elbo"]
    assert train["e1_frozen"]["amortization"] < 2
    assert (tmp_path / "a" / "exact.png").is_file()
    with pytest.raises(hashing.cli.RunError, match="--resume"):
        hashing.exact(options)
    with pytest.raises(hashing.cli.RunError, match=r"--lr 0\.05, not 0\.1"):
        hashing.exact(replace(options, lr=0.1, resume=True))
    for stage in ("likelihood_on", "e4_joint"):
        (tmp_path / "a" / f"{stage}.pt").unlink()
    hashing.exact(replace(options, resume=True))
    again = json.loads((tmp_path / "a" / "result.json").read_bytes())
    assert (again["metrics"], again["history"]) == (result["metrics"], result["history"])
    (tmp_path / "a" / "likelihood.pt").write_bytes(b"no checkpoint")
    line = the_one_line(main(hashing, "exact", "--bits", 3, "--resume", "--out", tmp_path / "a"))
    assert "is no finished stage" in line
