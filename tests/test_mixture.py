"""Section 3: gradients against autograd, the oracle against brute force, and whole small runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy import complaint, good, main, the_one_line

import mixture
from mixture import CENTRES, Options

CPU = torch.device("cpu")
QUICK = ("--points 200 --steps 60 ",)
QUICK += ("--law-variances", 1, "--law-weights", 3, "--law-nodes", 6)


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def x(double: None) -> torch.Tensor:
    return torch.randn(40, 2, generator=torch.Generator().manual_seed(0)) * 1.5


TRUTH = torch.tensor(CENTRES, dtype=torch.float64)


@pytest.mark.parametrize("variance", [0.01, 1.0, 4.0])
def test_log_joint_is_the_density(x: torch.Tensor, variance: float) -> None:
    density = torch.distributions.MultivariateNormal(TRUTH, variance * torch.eye(2))
    expected = density.log_prob(x[:, None]).T + torch.tensor(0.25).log()
    torch.testing.assert_close(mixture.log_joint(x, TRUTH, variance), expected)


@pytest.mark.parametrize("make", [mixture.factorized, mixture.consistent])
@pytest.mark.parametrize("variance", [0.3, 1.0])
def test_gradients_equal_autograd(x: torch.Tensor, make: type, variance: float) -> None:
    torch.manual_seed(1)
    encoder, means = make(CPU), TRUTH.clone()
    encoder.training_on(x)
    log_q = encoder.log_q(x, keep=True)
    values, grad_log_q, grad_means = mixture.Elbo(x, variance)(log_q, means)
    encoder.backward(x, grad_log_q)

    h = x
    parameters = [
        (w.clone().requires_grad_(), b.clone().requires_grad_()) for w, b in encoder.layers
    ]
    for i, (weight, bias) in enumerate(parameters):
        h = h @ weight.T + bias
        h = h.relu() if i + 1 < len(parameters) else h
    log_q = torch.log_softmax(h @ encoder.features.T, 1)
    mu = means.clone().requires_grad_()
    residual = ((x[:, None] - mu) ** 2).sum(-1)
    log_p = -residual / (2 * variance) - torch.log(torch.tensor(8 * torch.pi * variance))
    elbo = (log_q.exp() * (log_p - log_q)).sum(1)
    elbo.sum().backward()
    torch.testing.assert_close(values, elbo)
    torch.testing.assert_close(grad_means, mu.grad)
    for (grad_weight, grad_bias), (weight, bias) in zip(encoder.grads, parameters, strict=True):
        torch.testing.assert_close(grad_weight, weight.grad)
        torch.testing.assert_close(grad_bias, bias.grad)


def test_factorized_encoder_has_independent_bits(x: torch.Tensor) -> None:
    log_q = mixture.factorized(CPU).log_q(x)
    torch.testing.assert_close(log_q[0] + log_q[3], log_q[1] + log_q[2])
    torch.testing.assert_close(log_q.exp().sum(0), torch.ones(len(x)))


def test_oracle_is_the_best_factorized_posterior(x: torch.Tensor) -> None:
    """Against every pair of bit probabilities on a fine grid; and it is factorized itself."""
    log_p = mixture.log_joint(x, TRUTH, 1.0)
    log_q = mixture.oracle(log_p)
    torch.testing.assert_close(log_q[0] + log_q[3], log_q[1] + log_q[2])
    elbo = (log_q.exp() * (log_p - log_q)).sum(0)
    p = torch.linspace(0.001, 0.999, 400)
    p1, p2 = (side.ravel()[:, None] for side in torch.meshgrid(p, p, indexing="ij"))
    q = torch.cat([(1 - p1) * (1 - p2), (1 - p1) * p2, p1 * (1 - p2), p1 * p2], 1)
    best = (q @ log_p - (q * q.log()).sum(1, keepdim=True)).max(0).values
    assert (elbo >= best - 1e-12).all()
    assert (elbo <= best + 2e-3).all()  # the grid ends at probabilities of 0.001 and 0.999


def test_oracle_gap_at_both_variances() -> None:
    """What factorization costs the true posterior: 0.0638 nats at variance 1, none at 0.01."""
    truth = torch.tensor(CENTRES)
    for variance, expected, within in ((1.0, 0.0638, 0.002), (0.01, 0.0, 1e-4)):
        x = mixture.sample(Options(points=50_000, variance=variance), CPU)
        log_q = mixture.oracle(mixture.log_joint(x, truth, variance))
        found = mixture.measure(x, log_q, truth, truth, variance)
        assert found["kl"] == pytest.approx(expected, abs=within)
        assert found["kl"] == pytest.approx(found["kl_true"], abs=1e-9)


def test_exact_posterior_closes_the_gap_and_maximum_likelihood_is_stationary(
    x: torch.Tensor,
) -> None:
    means = mixture.fit_means(x, TRUTH, 1.0, 0.0)
    log_p = mixture.log_joint(x, means, 1.0)
    found = mixture.measure(x, mixture.exact(log_p), means, TRUTH, 1.0)
    start = mixture.measure(x, mixture.exact(mixture.log_joint(x, TRUTH, 1.0)), TRUTH, TRUTH, 1.0)
    assert found["kl"] == pytest.approx(0, abs=1e-12)
    assert found["evidence"] > start["evidence"]
    _, _, gradient = mixture.Elbo(x, 1.0)(mixture.exact(log_p), means)
    assert gradient.abs().max() / len(x) < 1e-5


def test_two_of_the_three_assignments_are_mirror_images() -> None:
    """Reflecting the plane swaps (1, 1) and (1, -1), and two classes; the third is itself."""
    x = mixture.sample(Options(points=3000), CPU).double()
    orders = list(mixture.ASSIGNMENTS.values())
    assert len({frozenset(map(frozenset, ((o[0], o[3]), (o[1], o[2])))) for o in orders}) == 3
    gaps = {}
    for flip in (1.0, -1.0):
        for i, order in enumerate(orders):
            laid = TRUTH[list(order)]
            log_p = mixture.log_joint(x * torch.tensor([1.0, flip]), laid, 1.0)
            q = mixture.oracle(log_p)
            gaps[i, flip] = (
                (torch.logsumexp(log_p, 0) - (q.exp() * (log_p - q)).sum(0)).mean().item()
            )
    assert gaps[0, 1.0] == pytest.approx(gaps[2, -1.0], abs=1e-9)
    assert gaps[1, 1.0] == pytest.approx(gaps[1, -1.0], abs=1e-9)
    assert gaps[1, 1.0] > 1.5 * gaps[0, 1.0]


def test_sample_follows_the_protocols() -> None:
    x = mixture.sample(Options(points_per_component=5000, variance=0.25, seed=3), CPU)
    assert x.shape == (20_000, 2)
    for part, centre in zip(x.split(5000), CENTRES, strict=True):
        torch.testing.assert_close(part.mean(0), torch.tensor(centre), atol=0.03, rtol=0)
        torch.testing.assert_close(part.var(0), torch.full((2,), 0.25), atol=0.02, rtol=0)
    drawn = mixture.sample(Options(points=20_000, seed=3), CPU)
    torch.testing.assert_close(drawn.mean(0), torch.tensor(CENTRES).mean(0), atol=0.04, rtol=0)
    assert not torch.equal(drawn, mixture.sample(Options(points=20_000, seed=4), CPU))


def test_training_raises_the_elbo_and_the_consistent_encoder_reaches_the_posterior() -> None:
    options = Options(points=500)
    x, truth = mixture.sample(options, CPU), torch.tensor(CENTRES)
    torch.manual_seed(0)
    encoder, means = mixture.consistent(CPU), truth.clone()
    seen = []
    long = mixture.Options(steps=4000, lr=1e-2)
    mixture.train(x, encoder, means, long, False, lambda step, log_q: seen.append(step))
    assert seen == [*range(0, 4000, mixture.EVERY), 4000]
    found = mixture.measure(x, encoder.log_q(x), means, truth, 1.0)
    assert found["kl"] < 1e-3
    assert torch.equal(means, truth)
    mixture.train(x, encoder, means, mixture.Options(steps=200), True, lambda *_: None)
    assert mixture.measure(x, encoder.log_q(x), means, truth, 1.0)["elbo"] > found["elbo"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A small run through the command line."""
    out = tmp_path_factory.mktemp("mixture")
    done = good(mixture, *QUICK, "--out", out)
    return out, done.stdout


def test_a_run_leaves_result_and_figures(run: tuple[Path, str]) -> None:
    out, printed = run
    result = json.loads((out / "result.json").read_bytes())
    assert {"config", "metrics", "environment", "seconds", "history"} <= result.keys()
    assert {"torch", "device", "threads", "commit"} <= result["environment"].keys()
    assert (out / "figure1.png").stat().st_size > 5000
    metrics = result["metrics"]
    assert metrics["frozen"]["means"] == [list(centre) for centre in CENTRES]
    assert metrics["joint"]["elbo"] > metrics["frozen"]["elbo"]
    assert metrics["frozen"]["kl"] >= metrics["oracle"]["kl"] - 1e-9
    assert "-3.37" in printed
    assert "released code" in printed


def test_same_seed_same_metrics_and_resume_keeps_trainings(
    run: tuple[Path, str], tmp_path: Path
) -> None:
    out, _ = run
    metrics = json.loads((out / "result.json").read_bytes())["metrics"]
    kept = (out / "seed-0.pt").read_bytes()  # of a run interrupted after its trainings
    (tmp_path / "seed-0.pt").write_bytes(kept)
    good(mixture, *QUICK, "--resume", "--out", tmp_path)
    assert json.loads((tmp_path / "result.json").read_bytes())["metrics"] == metrics
    assert (tmp_path / "seed-0.pt").read_bytes() == kept
    line = the_one_line(main(mixture, *QUICK, "--variance", 2, "--resume", "--out", tmp_path))
    assert "--variance 1.0, not 2.0" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--points", 0), "--points"),
        (("--variance", -1), "--variance"),
        (("--variance", "nan"), "--variance"),
        (("--nonsense", 1), "--nonsense"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_bad_input_is_refused(arguments: tuple, named: str, tmp_path: Path) -> None:
    assert named in complaint(main(mixture, *arguments, "--out", tmp_path))
    assert not list(tmp_path.iterdir())


def test_divergence_is_one_line_and_keeps_an_earlier_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("earlier")
    done = main(mixture, *QUICK, "--lr", 1e38, "--out", tmp_path)
    assert "ELBO is" in the_one_line(done)
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == "earlier"
