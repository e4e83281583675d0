"""The law: cost is the area under the gap, in closed form, in all sections, as committed."""

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch
from toy import ROOT, corpus, good, main, option_error

import celeba_joint
import disarm
import hashing
import mixture
from data import DataError, newsgroups
from data.documents import some_words
from figures import law

COMMITTED = {
    path.stem: json.loads(path.read_bytes())
    for path in (ROOT / "figures/results/law").glob("*.json")
}


def test_the_law_for_a_linear_decoder_in_closed_form() -> None:
    """x = W diag(s) z + noise, z in the plane, W fixed: E and G of the two scales s are known."""
    truth = np.array([[1.0, 0.8], [0.2, 1.0], [0.5, -0.3]])
    target = truth @ truth.T + 0.25 * np.eye(3)

    def parts(s: np.ndarray) -> tuple[float, float]:
        w = truth * s
        covariance, precision = w @ w.T + 0.25 * np.eye(3), np.eye(2) + w.T @ w / 0.25
        evidence = -0.5 * (
            np.trace(np.linalg.solve(covariance, target))
            + np.linalg.slogdet(2 * np.pi * covariance)[1]
        )
        return evidence, 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])

    def ascend(s: np.ndarray, w: float) -> tuple[np.ndarray, float, float]:
        s = scipy.optimize.minimize(
            lambda at: w * parts(at)[1] - parts(at)[0], s, options={"gtol": 1e-7}
        ).x
        return s, *parts(s)

    metrics, states = law.follow(law.weights(17), ascend, np.ones(2))
    assert states[0] == pytest.approx(np.ones(2), abs=1e-5)  # the truth is the maximum likelihood
    assert np.abs(metrics["ahead"]).max() < 1e-8
    assert law.cost(metrics) == pytest.approx(law.area(metrics), rel=0.01)
    assert 0.001 < law.cost(metrics) < law.narrowing(metrics) < metrics["gap"][0]
    assert (np.diff(metrics["gap"]) < 0).all()
    assert law.holds(metrics)


def test_the_better_of_two_paths_is_kept() -> None:
    """Two fixed optima: E = 0 with G = 1, and E = -0.5 with G = 0, better beyond w = 1/2."""
    points = {"near": (0.0, 1.0), "far": (-0.5, 0.0)}
    metrics, states = law.follow(
        [0.0, 0.25, 0.75, 1.0], lambda name, w: (name, *points[name]), "near", "far"
    )
    assert states == ["near", "near", "far", "far"]
    assert metrics["evidence"] == [0.0, 0.0, -0.5, -0.5]
    assert metrics["ahead"] == [0.5, 0.25, -0.25, -0.5]
    assert law.cost(metrics) == law.area(metrics) == 0.5


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0])
def test_centres_are_found_where_no_step_helps(w: float) -> None:
    x, mass = mixture.quadrature(0.5, 6)
    assert mass.sum().item() == pytest.approx(1)
    truth = torch.tensor(mixture.CENTRES).double()
    assert (mass @ x).tolist() == pytest.approx(truth.mean(0).tolist())
    means = mixture.fit_means(x, truth, 0.5, w, mass)

    def value(means: torch.Tensor) -> float:
        log_p = mixture.log_joint(x, means, 0.5)
        log_q = mixture.oracle(log_p)
        elbo = (log_q.exp() * (log_p - log_q)).sum(0) @ mass
        return ((1 - w) * log_p.logsumexp(0) @ mass + w * elbo).item()

    best = value(means)
    for step in 1e-3 * torch.randn(
        20, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ):
        assert value(means + step) < best


def test_section_3_obeys_the_law() -> None:
    options = mixture.Options(law_variances=(1.0,), law_weights=9, law_nodes=6)
    cases, seconds = mixture.law_cases(options)
    assert seconds.keys() == {case["name"] for case in cases}
    assert len({case["name"] for case in cases}) == 2
    for case in cases:
        assert law.holds(case)
        assert 0.001 < law.cost(case) < law.narrowing(case)
        assert (np.diff(case["gap"]) < 1e-9).all()
        assert case["gap"][0] > case["gap"][-1] > 0


def test_the_best_factorized_posterior_is_not_beaten_from_random_starts() -> None:
    generator = torch.Generator().manual_seed(0)
    z = disarm.codes(3, torch.empty(0, dtype=torch.float64))
    joint = 2 * torch.randn(40, 8, generator=generator, dtype=torch.float64)
    start = torch.zeros(40, 3, dtype=torch.float64)
    best = disarm.exact_elbo(disarm.best_factorized(joint, start, z), joint, z)
    for _ in range(30):
        random = 3 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
        again = disarm.exact_elbo(disarm.best_factorized(joint, random, z, anew=False), joint, z)
        assert (again > best + 1e-9).double().mean() <= 0.05  # local optima: at most two of forty
    assert (best <= joint.logsumexp(1) + 1e-12).all()


def test_evidence_and_bounds_in_the_plane() -> None:
    """With a small first layer tanh is linear, and p(x) a Gaussian."""
    options = celeba_joint.PlaneOptions(points=30)
    small = celeba_joint.Plane(options, 0.5)
    theta = small.truth.clone()
    theta[:9] *= 1e-4
    theta[6:9] = 0
    theta[9:] *= 1e4 / 4
    w1, _, w2 = celeba_joint.split(theta, small.shapes)
    weight = w2 @ w1
    covariance = weight @ weight.T + 0.25 * torch.eye(6).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(6).double(), covariance)
    # The grid ends.
    found, expected = small.evidence(theta, small.x), normal.log_prob(small.x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    gaps = {}
    for family in ("factorized", "full"):
        same = celeba_joint.Plane(celeba_joint.PlaneOptions(points=30, family=family), 0.5)
        phi = same.fit(theta, same.phi)
        gaps[family] = (same.evidence(theta, same.x) - same.elbo(theta, phi, same.x)).mean().item()
    precision = torch.eye(2).double() + weight.T @ weight / 0.25
    assert gaps["full"] == pytest.approx(0, abs=1e-5)
    expected = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert gaps["factorized"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("encoder", [None, 0, 2])
def test_encoders_in_the_plane(encoder: int | None) -> None:
    small = celeba_joint.Plane(celeba_joint.PlaneOptions(points=12, encoder=encoder), 0.8)
    phi = small.fit(small.truth, small.phi)
    elbo = small.elbo(small.truth, phi, small.x)
    assert small.gaussians(phi, small.x).shape == (12, 4)
    assert elbo.mean() > small.elbo(small.truth, small.phi, small.x).mean()
    assert (elbo < small.evidence(small.truth, small.x) + 1e-6).all()


def test_plane_through_the_command_line(tmp_path: Path) -> None:
    arguments = ("plane --sigmas 0.8 --weights 3 --hidden 1 --points 60 --out", tmp_path)
    good(celeba_joint, *arguments)
    result = json.loads((tmp_path / "result.json").read_bytes())
    cases = law.split(result)
    assert [case["metrics"]["value"] for case in cases.values()] == [0.8]
    for case in cases.values():
        assert case["config"]["points"] == 60
        metrics = case["metrics"]
        assert metrics["weight"][0] == 0 < metrics["weight"][1] < metrics["weight"][-1] == 1
        assert law.cost(metrics) <= law.narrowing(metrics) + 1e-6
        assert metrics["finer_evidence"][1] == pytest.approx(metrics["evidence"][-1], abs=0.01)
    good(celeba_joint, *arguments, "--resume")
    again = law.split(json.loads((tmp_path / "result.json").read_bytes()))
    first, second = ({n: c["metrics"] for n, c in found.items()} for found in (cases, again))
    assert first == second


def test_words_are_drawn_from_each_document() -> None:
    counts = scipy.sparse.csr_array(np.array([[3, 0, 2], [1, 0, 0], [0, 4, 4]], np.float32))
    found = some_words(counts, 4, 9, np.random.default_rng(0)).toarray()
    assert found.shape == (2, 3)  # one is too short
    with pytest.raises(DataError, match="no document has so many"):
        some_words(counts, 9, 9, np.random.default_rng(0))
    assert (found.sum(1) == 4).all()
    assert (found <= counts.toarray()[[0, 2]]).all()
    many = [some_words(counts, 1, 9, np.random.default_rng(i)).toarray()[0] for i in range(400)]
    assert np.mean(many, 0) == pytest.approx([0.6, 0, 0.4], abs=0.1)


@pytest.mark.parametrize("decoder", ["linear", "free"])
def test_lengths_through_the_command_line(
    decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newsgroups, "load", lambda archive: corpus(60))
    arguments = ("lengths --lengths 3 9 --bits 2 --decoder", decoder, "--weights 9 --out", tmp_path)
    good(hashing, *arguments)
    for case in law.split(json.loads((tmp_path / "result.json").read_bytes())).values():
        metrics = case["metrics"]
        assert law.cost(metrics) <= law.narrowing(metrics) + 1e-6
        assert law.holds(metrics) or max(map(abs, metrics["ahead"])) > 1e-4
    assert option_error(main(hashing, "lengths", "--bits", 9))


@pytest.mark.parametrize("name", COMMITTED)
def test_every_committed_case(name: str) -> None:
    """The bound, a gap that falls with w, and the identity, or the jump that explains."""
    metrics = COMMITTED[name]["metrics"]
    assert metrics.keys() >= {
        "section",
        "knob",
        "value",
        "seed",
        "of",
        "settled",
        "weight",
        "evidence",
        "gap",
    }
    assert metrics["weight"][0] == 0
    assert metrics["weight"][-1] == 1
    assert len(metrics["weight"]) == len(metrics["evidence"]) == len(metrics["gap"])
    assert metrics["settled"] == law.holds(metrics)
    assert law.holds(metrics) or max(map(abs, metrics["ahead"])) > 1e-3
    assert -1e-3 < law.cost(metrics) < law.narrowing(metrics) + 1e-3
    assert (np.diff(metrics["gap"]) < 1e-3).all() or not metrics["settled"]


def test_nearly_all_committed_cases_are_settled() -> None:
    assert sum(case["metrics"]["settled"] for case in COMMITTED.values()) >= 0.9 * len(COMMITTED)
    assert {case["metrics"]["section"] for case in COMMITTED.values()} == {3, 4, 5}
    assert len(COMMITTED) >= 30
