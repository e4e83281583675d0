"""Each estimator against exact enumeration, in float64."""

import pytest
import torch
from toy import enumeration

import disarm

LOGITS = {
    "moderate": (0.3, -1.2, 0.0, 2.0),
    "saturated": (7.0, -7.0, 0.5, -5.0),
    "uniform": (0.0, 0.0, 0.0, 0.0),
}
TABLE = torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 + 10
PLACES = torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64)


def f(z: torch.Tensor) -> torch.Tensor:
    """An arbitrary function of four bits."""
    return TABLE[(z @ PLACES).long()]


def exact(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = logits.clone().requires_grad_()
    value = enumeration(f, logits)
    value.backward()
    return value.detach(), logits.grad


def draws(
    name: str, logits: torch.Tensor, samples: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    many = logits.repeat(samples, 1).requires_grad_()
    values = disarm.ESTIMATORS[name](f, many, torch.Generator().manual_seed(seed))
    values.sum().backward()
    return values.detach(), many.grad


@pytest.mark.parametrize("kind", LOGITS)
@pytest.mark.parametrize("name", disarm.ESTIMATORS)
def test_value_and_gradient_are_unbiased(name: str, kind: str) -> None:
    logits = torch.tensor(LOGITS[kind], dtype=torch.float64)
    value, gradient = exact(logits)
    values, gradients = draws(name, logits, samples := 200_000)
    for sampled, truth in ((values[:, None], value[None]), (gradients, gradient)):
        z = (sampled.mean(0) - truth) / (sampled.std(0) / samples**0.5)
        assert z.abs().max() < 4.5, z


@pytest.mark.parametrize("name", disarm.ESTIMATORS)
def test_a_wrong_gradient_would_be_seen(name: str) -> None:
    """The z-scores above have power: the gradient with three per cent added is ruled out."""
    logits = torch.tensor(LOGITS["moderate"], dtype=torch.float64)
    _, gradient = exact(logits)
    _, gradients = draws(name, logits, samples := 400_000)
    z = (gradients.mean(0) * 1.03 - gradient) / (gradients.std(0) / samples**0.5)
    assert z.abs().max() > 4.5, z


@pytest.mark.parametrize("kind", LOGITS)
def test_disarm_varies_no_more_than_arm(kind: str) -> None:
    logits = torch.tensor(LOGITS[kind], dtype=torch.float64)
    variances = [draws(name, logits, 100_000)[1].var(0) for name in ("disarm", "arm")]
    assert (variances[0] <= 1.05 * variances[1] + 1e-12).all(), variances


@pytest.mark.parametrize("name", disarm.ESTIMATORS)
def test_the_decoder_gets_the_gradient_of_the_mean_value(name: str) -> None:
    """f(z) = w . z: with a fixed seed, the gradient in w is the mean of the codes that f saw."""
    logits = torch.tensor([[0.3, -1.0, 0.2]], dtype=torch.float64)
    w = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    seen = []

    def linear(z: torch.Tensor) -> torch.Tensor:
        seen.append(z)
        return z @ w

    value = disarm.ESTIMATORS[name](
        linear, logits.requires_grad_(), torch.Generator().manual_seed(1)
    )
    value.sum().backward()
    (z,) = seen
    assert z.shape == (2, 1, 3)
    assert set(z.unique().tolist()) <= {0.0, 1.0}
    assert value.shape == (1,)
    torch.testing.assert_close(w.grad, z.mean((0, 1)))


def test_same_seed_same_estimate() -> None:
    logits = torch.zeros(5, 4, dtype=torch.float64)
    first, second = (draws("disarm", logits[0], 100, seed=4) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_log_bernoulli_normalises_and_survives_saturation() -> None:
    logits = torch.tensor([40.0, -500.0, 0.0], dtype=torch.float64)
    log_q = disarm.log_bernoulli(disarm.codes(3, logits), logits)
    torch.testing.assert_close(log_q.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    assert torch.isfinite(log_q).all()


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_the_factors_of_a_log_linear_decoder_are_its_log_softmax(bits: int) -> None:
    """Of logits of some hundreds, too, and in single precision."""
    weight, bias = 30 * torch.randn(50, bits), 9 * torch.randn(50)
    of_words, of_codes = disarm.log_linear(weight, bias)
    logits = weight.double() @ disarm.codes(bits, weight).double().T + bias[:, None]
    torch.testing.assert_close(
        (of_words @ of_codes).double(), torch.log_softmax(logits, 0), rtol=1e-5, atol=1e-3
    )
