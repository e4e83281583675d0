"""Section 5, summed over all codes: likelihood, bound, the best factorized posterior, and the stages of `exact`."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy import corpus, main, the_one_line

import disarm
import hashing

CPU = torch.device("cpu")
SMALL = hashing.ExactOptions(
    encoders=("e1", "e4"),
    bits=3,
    likelihood_epochs=3,
    encoder_epochs=2,
    joint_epochs=2,
    scratch_epochs=2,
    batch_size=16,
    lr=0.05,
    device="cpu",
)
STAGES = ["frozen", "frozen_disarm", "joint", "regressed", "scratch"]


def doubled(bits: int = 3, layers: int = 0, scale: float = 6.0) -> tuple[hashing.Exact, hashing.VAE, hashing.Batch]:
    """A model in float64 on the toy corpus, its decoder far from trivial, and a batch of 12 documents."""
    world = hashing.Exact(replace(SMALL, bits=bits, decoder_layers=layers), corpus(), CPU)
    world.u, world.z, world.log_prior = world.u.double(), world.z.double(), world.log_prior.double()
    world.documents = {split: hashing.Documents(d.counts, world.u) for split, d in world.documents.items()}
    model = world.model("e1").double()
    with torch.no_grad():
        model.decoder.weight.mul_(scale)
    return world, model, world.documents["train"].batch(np.arange(12))


@pytest.mark.parametrize("layers", [0, 2])
def test_joint_of_all_codes_is_the_dense_formula(layers: int) -> None:
    world, model, batch = doubled(layers=layers)
    found = hashing.log_joint(hashing.log_decoder(model, world.z), batch, world.u, world.log_prior)
    nll = model.decoder(world.z[:, None].expand(-1, len(batch), -1), batch, world.u)  # what the sampled training uses
    torch.testing.assert_close(found, -nll.T - 3 * np.log(2))
    x = torch.from_numpy(corpus().train[:12].toarray()).double() + world.u
    log_p = torch.log_softmax(model.decoder.hidden(world.z) @ model.decoder.weight.T + model.decoder.bias, 1)
    dense = x @ log_p.T - (x * (x / x.sum(1, keepdim=True)).log()).sum(1, keepdim=True) - 3 * np.log(2)
    torch.testing.assert_close(found, dense)


def test_enumeration_gradients_equal_finite_differences() -> None:
    world, model, batch = doubled(bits=2)
    decoder = model.decoder

    def objective(weight: torch.Tensor, bias: torch.Tensor, encoder_weight: torch.Tensor) -> torch.Tensor:
        log_p = torch.log_softmax(weight @ world.z.T + bias[:, None], 0)
        joint = hashing.log_joint(log_p, batch, world.u, world.log_prior)
        logits = hashing.SmoothedProduct.apply(encoder_weight, batch, world.u)
        return torch.stack([hashing.exact_elbo(logits, joint, world.z).mean(), joint.logsumexp(1).mean()])

    inputs = [p.detach().clone().requires_grad_() for p in (decoder.weight, decoder.bias, model.encoder.weight)]
    assert torch.autograd.gradcheck(objective, inputs)


def test_exact_elbo_is_what_sampling_gives() -> None:
    """8 bits, within 3 standard errors; and no document has a bound above its likelihood."""
    world, model, batch = doubled(bits=8)
    joint = hashing.log_joint(hashing.log_decoder(model, world.z), batch, world.u, world.log_prior).detach()
    logits = (model.encoder(batch, world.u) * 8).detach()
    elbo = hashing.exact_elbo(logits, joint, world.z)
    assert (joint.logsumexp(1) >= elbo).all()
    q, samples = torch.sigmoid(logits), 4000
    z = (torch.rand(samples, *q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype) < q).double()
    values = -hashing.kl_uniform(logits) - model.decoder(z, batch, world.u).detach()
    assert (values.mean() - elbo.mean()).abs() < 3 * (values.var(0) / samples).mean().div(len(batch)).sqrt()
    assert values.std(0).mean() > 0.1


def test_sampled_loss_of_a_trained_model_is_the_exact_one(tmp_path: Path) -> None:
    """The two ways through the code, on a trained 8-bit model: `Trainer.evaluate` and `Exact.totals`."""
    toy = corpus()
    options = hashing.Options(bits=8, epochs=40, fine_epochs=0, lr=0.02, batch_size=64, device="cpu", out=tmp_path)
    trainer = hashing.Trainer(options, toy, CPU)
    while not trainer.finished:
        trainer.run_epoch()
    samples = np.array([trainer.evaluate(trainer.test)["per_document"] for _ in range(400)])
    likelihood, elbo = hashing.Exact(replace(SMALL, bits=8), toy, CPU).totals(trainer.model, "test")
    assert abs(samples.mean() + elbo) < 3 * samples.std() / 400**0.5
    assert elbo < likelihood


def test_disarm_on_the_table_is_unbiased() -> None:
    world, model, batch = doubled()
    joint = hashing.log_joint(hashing.log_decoder(model, world.z), batch, world.u, world.log_prior).detach()
    joint.requires_grad_()
    logits = model.encoder(batch, world.u).detach().requires_grad_()
    exact = torch.autograd.grad(hashing.exact_elbo(logits, joint, world.z).sum(), (logits, joint))
    many, noise = 20_000, torch.Generator().manual_seed(0)
    sums = [torch.zeros_like(g) for g in exact]
    squares = [torch.zeros_like(g) for g in exact]
    for _ in range(many // 100):
        repeated = logits.detach().repeat(100, 1).requires_grad_()
        table = joint.detach().repeat(100, 1).requires_grad_()
        value = hashing.disarm_elbo(repeated, table, world.z, noise).sum()
        for i, g in enumerate(torch.autograd.grad(value, (repeated, table))):
            g = g.view(100, len(batch), -1)
            sums[i] += g.sum(0)
            squares[i] += g.square().sum(0)
    for g, total, square in zip(exact, sums, squares, strict=True):
        mean = total / many
        error = ((square / many - mean**2).clamp_min(1e-12) / many).sqrt()
        assert ((mean - g).abs() / error).max() < 4.5


def test_best_factorized_posterior() -> None:
    """Against the best of a fine grid for two bits; never below its start, never above the likelihood."""
    world, model, batch = doubled(bits=2, scale=10)
    joint = hashing.log_joint(hashing.log_decoder(model, world.z), batch, world.u, world.log_prior).detach()
    start = model.encoder(batch, world.u).detach()
    found = hashing.exact_elbo(hashing.best_factorized(joint, start, world.z), joint, world.z)
    grid = torch.tensor(list(itertools.product(np.linspace(-12, 12, 121), repeat=2)), dtype=torch.float64)
    best = torch.stack([hashing.exact_elbo(grid, row.expand(len(grid), -1), world.z).max() for row in joint])
    assert (found >= best - 1e-9).all()
    assert (found <= joint.logsumexp(1) + 1e-12).all()
    assert (found >= hashing.exact_elbo(start, joint, world.z)).all()
    assert (found - hashing.exact_elbo(start, joint, world.z)).mean() > 0.01


def test_a_factorized_posterior_leaves_no_gap() -> None:
    z = disarm.codes(4, torch.empty(0, dtype=torch.float64))
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    joint = hashing.log_posterior(logits, z) - 5.0
    found = hashing.best_factorized(joint, torch.zeros_like(logits), z)
    torch.testing.assert_close(found, logits)
    torch.testing.assert_close(hashing.exact_elbo(found, joint, z), torch.full((7,), -5.0, dtype=torch.float64))


def test_measure_splits_the_gap() -> None:
    world, model, _ = doubled()
    for split in ("train", "test"):
        m = world.measure(model, split)
        assert m["gap"] == pytest.approx(m["log_likelihood"] - m["elbo"])
        assert m["gap"] == pytest.approx(m["factorization"] + m["amortization"])
        assert min(m["factorization"], m["amortization"], m["total_correlation"]) >= 0
        assert (m["log_likelihood"], m["elbo"]) == pytest.approx(world.totals(model, split))


def test_regression_finds_the_best_linear_map_to_the_marginals() -> None:
    """Where the gradient of the cross-entropy to the exact marginals is zero, whatever the scale of the features."""
    world, model, _ = doubled()
    batch = world.documents["train"].batch(np.arange(len(world.documents["train"])))
    joint = hashing.log_joint(hashing.log_decoder(model, world.z), batch, world.u, world.log_prior)
    marginals = (torch.softmax(joint, 1) @ world.z).detach()
    world.regress(model, 20, "regression")
    error = torch.sigmoid(model.encoder(batch, world.u)) - marginals
    assert ((batch.counts.to_dense() + world.u).T @ error).abs().max() < 1e-3
    assert error.square().mean() < (marginals - marginals.mean(0)).square().mean() / 2


def test_normaliser_is_the_part_of_the_posterior_that_is_not_additive() -> None:
    """The exact posterior's log-odds interactions are n times those of A, and of nothing else."""
    world, model, batch = doubled(bits=2)
    joint = hashing.log_joint(hashing.log_decoder(model, world.z), batch, world.u, world.log_prior)
    a = (world.z @ model.decoder.weight.T + model.decoder.bias).logsumexp(1)
    interaction = torch.tensor([1.0, -1, -1, 1], dtype=torch.float64)
    torch.testing.assert_close(joint @ interaction, -batch.n * (a @ interaction))
    found = world.normaliser(model)
    assert 0 < found["fraction"] < 1
    assert found["rms"] > 0
    assert 1 <= found["codes_used"] <= 4
    with torch.no_grad():  # a bit that changes no word's probability leaves A affine in the other
        model.decoder.weight[:, 0] = 0
    assert world.normaliser(model)["rms"] < 1e-6


def test_stages_repeat_resume_and_tell_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing.newsgroups, "load", lambda archive: corpus())
    options = replace(SMALL, likelihood_epochs=40, encoder_epochs=40, joint_epochs=10, out=tmp_path / "a")
    hashing.exact(options)
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    stages = [f"{encoder}_{stage}" for encoder in ("e1", "e4") for stage in STAGES]
    assert set(result["metrics"]) == {"likelihood", "likelihood_on", "e1_regressed_joint", "e1_scratch_exact", *stages}
    train = {name: stage["train"] for name, stage in result["metrics"].items()}
    assert train["likelihood_on"]["log_likelihood"] > train["likelihood"]["log_likelihood"]
    assert "elbo" not in train["likelihood"]
    assert train["e1_frozen"]["log_likelihood"] == train["likelihood"]["log_likelihood"]
    assert train["e1_joint"]["elbo"] > train["e1_frozen"]["elbo"]
    assert train["e1_frozen"]["amortization"] < 2
    assert (tmp_path / "a" / "hashing_exact_d0.png").is_file()
    with pytest.raises(hashing.RunError, match="--resume"):
        hashing.exact(options)
    with pytest.raises(hashing.RunError, match=r"--lr 0\.05, not 0\.1"):
        hashing.exact(replace(options, lr=0.1, resume=True))
    for stage in ("likelihood_on", "e4_joint"):
        (tmp_path / "a" / f"{stage}.pt").unlink()
    hashing.exact(replace(options, resume=True))
    again = json.loads((tmp_path / "a" / "result.json").read_text())
    assert (again["metrics"], again["history"]) == (result["metrics"], result["history"])
    (tmp_path / "a" / "likelihood.pt").write_bytes(b"no checkpoint")
    line = the_one_line(main(hashing, "exact", "--bits", 3, "--resume", "--out", tmp_path / "a"))
    assert "is no stage" in line
