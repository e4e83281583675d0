"""Section 4 without an encoder: Gaussians of each image, log p(x), against closed forms."""

import math
from pathlib import Path

import pytest
import torch
from test_section4 import SIGMA, SMALL, linear_vae, read, small_vae
from test_section4 import ground_truth as ground_truth  # a fixture
from torch import Tensor
from toy import good, interrupted, main, option_error, ran, the_one_line

import celeba_encoder
import celeba_joint
from celeba_encoder import VAE
from celeba_joint import Options
from figures import section4
from figures.evidence import Evidence, Posteriors, curvature, estimate, log_joint

WITHOUT = ("--evidence-images", 3, "--evidence-samples", 20)


@pytest.fixture(scope="module")
def encoder(ground_truth: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    good(celeba_encoder, "--ground-truth", ground_truth, *SMALL, "--out", folder)
    return folder / "model.pt"


def images(vae: VAE, n: int) -> tuple[Tensor, Tensor]:
    """Latents and images of a linear VAE, float64."""
    noise = torch.Generator().manual_seed(1)
    z = torch.randn(n, 3, generator=noise, dtype=torch.float64)
    with torch.no_grad():
        x = vae.decoder(z)
    return z, x + SIGMA * torch.randn(x.shape, generator=noise, dtype=torch.float64)


def log_evidence(weight: Tensor, x: Tensor) -> Tensor:
    """log N(x; 0, W W' + sigma^2 I), (N,)."""
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(len(weight), dtype=weight.dtype)
    of_x = torch.distributions.MultivariateNormal(torch.zeros_like(weight[:, 0]), covariance)
    return of_x.log_prob(x.flatten(1))


def factorized_gap(weight: Tensor) -> Tensor:
    """What the best factorized Gaussian loses, whatever x: (sum log P_ii - log det P) / 2."""
    precision = torch.eye(weight.shape[1], dtype=weight.dtype) + weight.T @ weight / SIGMA**2
    return 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))


def test_gauss_newton_finds_the_mode_and_its_precision_at_once() -> None:
    vae, weight, precision = linear_vae(orthogonal=False)
    z, x = images(vae, 7)
    for family in ("factorized", "full"):
        best = Posteriors(family, x, torch.zeros_like(z))
        best.to_mode(vae, 1)
        mode = torch.linalg.solve(precision, weight.T @ x.flatten(1).T / SIGMA**2).T
        torch.testing.assert_close(best.mean, mode)
        torch.testing.assert_close(best.precision, precision.expand(7, 3, 3))
        gradient, _ = curvature(vae, x, best.mean)
        assert gradient.abs().max() < 1e-10
        best.settle(vae, torch.Generator().manual_seed(2))  # it is there already
        torch.testing.assert_close(best.mean, mode)
        best.mean = torch.zeros_like(z)
        best.climb(vae, torch.randn(7, 3, dtype=torch.float64), 1.0)  # of a pair it is exact
        torch.testing.assert_close(best.mean, mode)
        torch.testing.assert_close(best.precision, precision.expand(7, 3, 3))


def test_gaps_of_both_families_are_the_closed_forms() -> None:
    vae, weight, _ = linear_vae(orthogonal=False)
    z, x = images(vae, 5)
    e = torch.randn(20_000, 5, 3, dtype=torch.float64)
    log_w = {}
    for family in ("factorized", "full"):
        best = Posteriors(family, x, z)
        best.to_mode(vae, 1)
        log_w[family] = best.log_weights(vae, torch.cat([e, -e])).detach()
    evidence = log_evidence(weight.detach(), x)
    torch.testing.assert_close(log_w["full"], evidence.expand(40_000, 5))  # each weight is log p(x)
    below = evidence - log_w["factorized"]
    assert abs(below.mean() - factorized_gap(weight)) < 4 * below.std() / below.numel() ** 0.5
    estimate = log_w["factorized"].logsumexp(0) - math.log(40_000)
    assert (estimate - evidence).abs().max() < 0.1
    assert factorized_gap(weight) > 0.1


def test_curvature_is_that_of_autograd() -> None:
    vae = small_vae().double().eval()
    vae.log_sigma.fill_(math.log(0.5))
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    z = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    gradient, precision = curvature(vae, x, z.detach())
    (expected,) = torch.autograd.grad(log_joint(vae, x, z[None]).sum(), z)
    torch.testing.assert_close(gradient, expected)
    with torch.no_grad():
        steps = 1e-5 * torch.eye(5).double()[:, None]
        ahead, behind = (vae.decoder((z + step).flatten(0, 1)) for step in (steps, -steps))
    jacobian = ((ahead - behind) / 2e-5).view(5, 3, -1).transpose(0, 1)
    expected = torch.eye(5).double() + jacobian @ jacobian.mT / 0.25
    torch.testing.assert_close(precision, expected, rtol=1e-5, atol=1e-6)


def test_gauss_newton_climbs_a_decoder_that_is_not_linear() -> None:
    vae = small_vae().eval()
    vae.log_sigma.fill_(math.log(0.3))
    noise = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, generator=noise)
    x = vae.decoder(z).detach() + 0.3 * torch.randn(6, 3, 64, 64, generator=noise)
    best, values = Posteriors("full", x, torch.zeros(6, 5)), []
    for _ in range(30):
        values.append(log_joint(vae, x, best.mean[None])[0].detach())
        best.to_mode(vae, 1)
    assert (torch.stack(values).diff(dim=0) > -0.05).all()  # rounding, of values of thousands
    gradient, precision = curvature(vae, x, best.mean)
    decrement = (gradient * torch.linalg.solve(precision, gradient)).sum(1)
    assert decrement.median() < 0.01


def test_maximum_likelihood_is_where_full_posteriors_stay() -> None:
    """At the optimum of likelihood the mean gradient is zero with the full family, whatever the
    rotation of z; with the factorized one, only where the rotation makes the posterior factorize.
    """
    vae, _, _ = linear_vae(orthogonal=False)
    _, x = images(vae, 400)
    values, vectors = torch.linalg.eigh(x.flatten(1).T @ x.flatten(1) / 400)
    axes = vectors[:, -3:] * (values[-3:] - SIGMA**2).sqrt()
    noise = torch.Generator().manual_seed(5)
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=noise).double())[0]
    found = {}
    for name, at in (("axes", axes), ("rotated", axes @ rotation)):
        for family in ("full", "factorized"):
            with torch.no_grad():
                vae.decoder.weight.copy_(at)
            vae.decoder.weight.requires_grad_(True)
            best = Posteriors(family, x, torch.zeros(400, 3, dtype=torch.float64))
            best.to_mode(vae, 1)
            gradients = []
            for i in range(60):
                e = torch.randn(400, 3, generator=noise.manual_seed(i), dtype=torch.float64)
                loss = -best.log_weights(vae, torch.stack([e, -e])).mean()
                gradients.append(torch.autograd.grad(loss, vae.decoder.weight)[0])
            gradients = torch.stack(gradients)
            error = gradients.std(0).norm() / 60**0.5
            found[name, family] = (gradients.mean(0).norm() / error).item()
    assert found.pop(("rotated", "factorized")) > 10
    assert max(found.values()) < 1.6  # of the standard error


def test_what_a_run_loses_is_compared_with_full_gaussians_of_the_same_training() -> None:
    def result(weight: float, sigma: float, changes: list[float]) -> dict:
        config = {"weight": weight, "sigma": sigma, "seed": 0, "iterations": 8, "lr": None}
        config |= {"schedule": "falling", "evidence_images": 3, "batch_size": 4}
        history = {"iteration": [0, 4, 6, 8], "evidence_change": [0.0, -4.0, -3.0, -2.5]}
        metrics = {"evidence_changes": changes}
        return {"config": config, "history": history, "metrics": metrics, "data": "faces"}

    runs = {
        "a": result(0.0, 0.1, [9.0, 9.0, 9.0]),
        "b": result(0.0, 0.5, [-1.0, -2.0, -3.0]),
        "c": result(1.0, 0.5, [-2.0, -2.0, -5.0]),
    }
    mean, half = section4.beyond_full(runs["c"], runs) or (0.0, 0.0)
    assert mean == pytest.approx(1.0)  # of 1, 0, 2
    assert half == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # Student's, of two degrees of freedom
    assert section4.beyond_full(runs["b"], runs) is None
    assert section4.beyond_full(runs["c"] | {"data": "photographs"}, runs) is None
    runs["c"]["config"]["lr"] = 1e-3
    assert section4.beyond_full(runs["c"], runs) is None
    assert section4.last_quarter(runs["c"]) == 0.5


def test_evidence_is_that_of_a_linear_decoder() -> None:
    vae, weight, _ = linear_vae(orthogonal=False)
    options = celeba_joint.Options(evidence_images=300, evidence_samples=100)
    evidence = Evidence(vae, options, torch.device("cpu"))
    first = evidence.measure(vae)
    x = evidence.best["full"].x.double()
    expected = log_evidence(weight.detach(), x).mean().item() + evidence.surplus.mean().item()
    assert first["evidence"] == pytest.approx(expected, abs=1e-3)
    assert first["gap_factorized"] == pytest.approx(factorized_gap(weight).item(), abs=0.02)
    # It is the best factorized.
    assert first["gap_encoder"] == pytest.approx(factorized_gap(weight).item(), abs=0.05)
    assert abs(first["gap_full"]) < 1e-3
    assert first["effective_samples"] > 99.9
    assert first["evidence_change"] == 0
    with torch.no_grad():
        vae.decoder.weight.mul_(1.1)
    second = evidence.measure(vae)
    weight = vae.decoder.weight.detach()
    change = log_evidence(weight, x) - log_evidence(weight / 1.1, x)
    assert second["evidence_change"] == pytest.approx(change.mean().item(), abs=1e-3)
    half_width = 1.968 * change.std().item() / 300**0.5
    assert second["evidence_half_width"] == pytest.approx(half_width, rel=1e-3)


def test_importance_weights_against_a_known_mean() -> None:
    noise = torch.Generator().manual_seed(0)
    log_w = torch.randn(50_000, 2, dtype=torch.float64, generator=noise) - 0.5
    mean, effective = estimate(log_w)
    assert mean.abs().max() < 0.02  # of a log-normal variable with mean 1
    # 1 / E[w^2].
    torch.testing.assert_close(effective, torch.full((2,), 100 / math.e).double(), atol=1.0, rtol=0)
    assert estimate(torch.tensor([[0.0], [-1000.0]]))[1] == pytest.approx(50)


def test_images_of_which_few_samples_count_get_more(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, weight, _ = linear_vae(orthogonal=False)
    options = celeba_joint.Options(evidence_images=3, evidence_samples=40)
    evidence = Evidence(vae, options, torch.device("cpu"))
    log_weights, drawn = Posteriors.log_weights, []

    def worse(self: Posteriors, vae: VAE, e: Tensor) -> Tensor:
        """As if the second image's proposal were bad: one of forty samples has all the weight."""
        values = log_weights(self, vae, e)
        bad = (self.x == evidence.best["full"].x[1]).flatten(1).all(1)
        drawn.append((self.family, bad.tolist(), len(e)))
        spread = torch.where(torch.arange(len(e)) == 0, math.log(len(e)), -30.0)
        return values + torch.where(bad, spread[:, None], 0.0)

    monkeypatch.setattr(Posteriors, "log_weights", worse)
    measured = evidence.measure(vae)
    of_full = [rest for family, *rest in drawn if family == "full" and rest[1] > 2]
    assert of_full == [[[False, True, False], 40], *[[[True], 40]] * 10]
    assert measured["effective_samples"] == pytest.approx(2.5, rel=0.01)  # ten of 400
    expected = log_evidence(weight.detach(), evidence.best["full"].x.double()) + evidence.surplus
    assert measured["evidence"] == pytest.approx(expected.mean().item(), abs=1e-3)


def test_a_falling_rate_rises_first(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, step = [], celeba_joint.step

    def watched(trainer: celeba_joint.Trainer) -> Tensor:
        loss = step(trainer)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        return loss

    monkeypatch.setattr(celeba_joint, "step", watched)
    arguments = (*SMALL, "--evidence-images 0 --iterations 20 --schedule falling --lr 1e-3")
    good(celeba_joint, "--encoder", encoder, *arguments, "--out", tmp_path / "a")
    assert rates[:2] == pytest.approx([0.25e-3, 0.75e-3])
    assert rates[2:] == pytest.approx([1e-3 * (17.5 - i) / 18 for i in range(18)])


def test_an_encoder_fitted_by_the_elbo_can_go_on(encoder: Path, tmp_path: Path) -> None:
    steps = (("--freeze-decoder",), (), ())
    kept, done = encoder, None
    for i, words in enumerate(steps):
        arguments = ("--encoder", kept, *SMALL, *WITHOUT, *words)
        done = main(celeba_joint, *arguments, "--out", tmp_path / f"{i}")
        if i < 2:
            assert done.returncode == 0, done.stderr
            kept = tmp_path / f"{i}" / "model.pt"
    first, second = (read(tmp_path / name)["history"]["elbo"] for name in ("0", "1"))
    assert second[0] == pytest.approx(first[-1])
    assert "joint training" in the_one_line(done)


@pytest.mark.parametrize(
    ("weight", "others"),
    [(1, ()), (0, ("--batch-size 12 --reuse 3",)), (0.25, ("--reuse", 2, "--average", 0.5))],
)
def test_a_run_without_an_encoder(
    encoder: Path, weight: float, others: tuple, tmp_path: Path
) -> None:
    arguments = (*SMALL, *WITHOUT, "--encoder", encoder, "--weight", weight, "--sigma 0.2", *others)
    whole = good(celeba_joint, *arguments, "--out", tmp_path / "whole")
    assert "evidence" in whole.stdout
    result = read(tmp_path / "whole")
    history = result["history"]
    assert result["config"]["sigma"] == 0.2
    assert history["iteration"] == [0, 2, 4, 6]
    assert len(history["gap_full"]) == 4
    assert not {"frechet_discriminator", "prior_discriminator"} & history.keys()
    places = zip(history["evidence"], history["gap_factorized"], history["gap_full"], strict=True)
    own = [e - weight * factorized - (1 - weight) * full for e, factorized, full in places]
    assert history["elbo"] == pytest.approx(own)
    assert history["evidence_change"][0] == 0 != history["evidence_change"][-1]
    with interrupted(celeba_joint, "step", 3):
        assert main(celeba_joint, *arguments, "--out", tmp_path / "parts").returncode == 130
    assert ran(celeba_joint, *arguments, "--resume", out=tmp_path / "parts")["history"] == history
    paths = (tmp_path / name / "checkpoint.pt" for name in ("whole", "parts"))
    states = [torch.load(path, weights_only=True)["vae"] for path in paths]
    for key, values in states[0].items():
        assert torch.equal(values, states[1][key]), key


def test_without_an_encoder_the_decoder_is_a_fixed_function(encoder: Path, tmp_path: Path) -> None:
    kept = torch.load(encoder, weights_only=True)
    kept["config"]["protocol"] = "released"
    torch.save(kept, tmp_path / "model.pt")
    arguments = (*SMALL, *WITHOUT, "--weight 0 --out", tmp_path / "out")
    arguments += ("--encoder", tmp_path / "model.pt")
    assert "wants the report's protocol" in the_one_line(main(celeba_joint, *arguments))


def test_an_encoder_run_tracks_the_evidence_too(encoder: Path, tmp_path: Path) -> None:
    arguments = (*SMALL, *WITHOUT, "--encoder", encoder)
    good(celeba_joint, *arguments, "--out", tmp_path / "a")
    history = read(tmp_path / "a")["history"]
    assert len(history["gap_encoder"]) == len(history["elbo"]) == 4
    good(celeba_joint, *arguments, "--evidence-images", 0, "--out", tmp_path / "b")
    assert read(tmp_path / "b")["history"]["elbo"] == history["elbo"]


def test_options_that_do_not_go_together(tmp_path: Path) -> None:
    for words in (("--weight", 0, "--freeze-decoder"), ("--evidence-images", 1), ("--reuse", 2)):
        assert option_error(main(celeba_joint, *words))
    assert option_error(main(celeba_joint, "--weight", 0, "--precision", "bfloat16"))
    assert option_error(main(celeba_joint, "--weight", 1, "--precision", "tf32"))
    assert option_error(main(celeba_joint, "--weight", 1.5))
    assert option_error(main(celeba_joint, "--weight", 1, "--reuse", 3))
    assert Options().weight is None
    missing = ("--encoder", tmp_path / "no", "--out", tmp_path)
    assert the_one_line(main(celeba_joint, "--weight", 0, *missing))
