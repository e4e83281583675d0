"""The VAE of Section 4: ELBO, Laplace, normalisation, both trainings, resume, bad input."""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from test_dcgan import CPU, TINY, no_network  # noqa: F401 (a fixture)
from torch import Tensor, nn
from toy import complaint, good, interrupted, main, ran, the_one_line

import celeba_encoder
import celeba_joint
import dcgan
from celeba_encoder import VAE, Encoder, Images, mean_elbo, modes
from figures import evidence, section4
from figures.evidence import laplace, noise_surplus

SMALL = (
    "--iterations 6 --batch-size 8 --test-images 20 --laplace-images 2",
    "--fid-images 24 --fid-dims 0 --track 3 --track-images 12 --checkpoint-every 2",
    "--precision float32 --device cpu",
)
RUNS = celeba_joint.RUNS
SHAPE = (3, 2, 2)  # of the images of the linear model
SIGMA = 0.3


@pytest.fixture(scope="module")
def ground_truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dcgan")
    good(dcgan, *TINY, "--epochs", 2, "--out", folder)
    return folder / "ground_truth.pt"


@pytest.fixture(scope="module")
def encoders(ground_truth: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of celeba_encoder.py in each protocol."""
    folders = {}
    for protocol in ("report", "released"):
        folders[protocol] = tmp_path_factory.mktemp(protocol)
        arguments = ("--ground-truth", ground_truth, "--protocol", protocol, *SMALL)
        ran(celeba_encoder, *arguments, out=folders[protocol])
    return folders


@pytest.fixture(autouse=True)
def without_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What test_inference.py tests takes longer than all trainings here."""
    of_joint = [run for run in RUNS if run[1] is celeba_joint.main]
    runs = [(*run[:2], replace(run[2], evidence_images=0), run[3]) for run in of_joint]
    monkeypatch.setattr(celeba_joint, "RUNS", runs)


def read(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_bytes())


def small_vae(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    encoder = Encoder(5, 2)
    nn.init.normal_(encoder.head.weight, std=0.1)
    truth, decoder = dcgan.Generator(5, 2), dcgan.Generator(5, 2)
    with torch.no_grad():
        for layer in (*truth, *decoder):
            if isinstance(layer, nn.ConvTranspose2d):
                layer.weight *= 10  # or all images would be grey
    return VAE(truth, encoder, 0.05, decoder)


class LinearDecoder(nn.Module):
    """g(z) = W z, so that evidence and posterior are known."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, z: Tensor) -> Tensor:
        return (z @ self.weight.T.to(z.dtype)).unflatten(1, SHAPE)

    def with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self(z), self.weight.T.to(z.dtype).unflatten(1, SHAPE).expand(len(z), -1, *SHAPE)


class LinearEncoder(nn.Module):
    """q = N(A x, diag s^2)."""

    def __init__(self, weight: Tensor, variance: Tensor):
        super().__init__()
        self.nz = len(weight)
        self.weight = nn.Parameter(weight)
        self.log_s = nn.Parameter(0.5 * variance.log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = x.to(self.weight.dtype).flatten(1) @ self.weight.T
        return mu, self.log_s.expand_as(mu)


def linear_vae(orthogonal: bool) -> tuple[VAE, Tensor, Tensor]:
    """The VAE with the best factorized encoder (exact for orthogonal W), W, and the precision."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    if orthogonal:
        weight = torch.linalg.qr(weight)[0] * torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    precision = torch.eye(3, dtype=torch.float64) + weight.T @ weight / SIGMA**2
    of_mean = torch.linalg.solve(precision, weight.T) / SIGMA**2
    encoder = LinearEncoder(of_mean, 1 / precision.diagonal())
    decoder = LinearDecoder(weight)
    return VAE(decoder, encoder, SIGMA).double(), weight, precision


def settings(**changes: object) -> SimpleNamespace:
    return SimpleNamespace(**{"seed": 0, "batch_size": 50, "laplace_images": 200} | changes)


def test_encoder_begins_at_the_prior() -> None:
    encoder = Encoder(100, 64)
    mu, log_s = encoder(torch.randn(2, 3, 64, 64))
    assert mu.shape == log_s.shape == (2, 100)
    assert not mu.any()
    assert not log_s.any()
    trunk = sum(p.numel() for p in dcgan.Discriminator(64).trunk.parameters())
    assert sum(p.numel() for p in encoder.parameters()) == trunk + 512 * 4 * 4 * 200 + 200


def test_elbo_is_a_hand_computation() -> None:
    vae = small_vae().double().eval()
    x, noise = torch.randn(4, 3, 64, 64, dtype=torch.float64), torch.Generator().manual_seed(1)
    state = noise.get_state()
    found = vae.elbo(x, noise)
    mu, log_s = vae.encoder(x)
    epsilon = torch.randn(4, 5, generator=torch.Generator().manual_seed(0).set_state(state))
    for i in range(4):
        m, s, e = mu[i].tolist(), log_s[i].tolist(), epsilon[i].tolist()
        z = [m[j] + math.exp(s[j]) * e[j] for j in range(5)]
        decoded = vae.decoder(torch.tensor([z], dtype=torch.float64))[0]
        squares = ((x[i] - decoded) ** 2).sum().item()
        data = -squares / (2 * 0.05**2) - 12288 * (math.log(0.05) + 0.5 * math.log(2 * math.pi))
        kl = sum(0.5 * (m[j] ** 2 + math.exp(2 * s[j]) - 1) - s[j] for j in range(5))
        assert found["data"][i].item() == pytest.approx(data, rel=1e-6)
        assert found["kl"][i].item() == pytest.approx(kl, rel=1e-5)
        assert found["elbo"][i].item() == pytest.approx(data - kl, rel=1e-6)


def test_log_normal_and_kl_are_those_of_torch() -> None:
    mu, log_s, x = torch.randn(3, 7, 5, dtype=torch.float64)
    q, p = torch.distributions.Normal(mu, log_s.exp()), torch.distributions.Normal(0.0 * mu, 1.0)
    torch.testing.assert_close(evidence.log_normal(x, mu, log_s), q.log_prob(x).sum(1))
    kl = torch.distributions.kl_divergence(q, p).sum(1)
    torch.testing.assert_close(evidence.kl_to_prior(mu, log_s), kl)


def test_elbo_gradients_equal_finite_differences() -> None:
    vae, _, _ = linear_vae(orthogonal=False)
    vae.truth.requires_grad_(True)
    vae.log_sigma.requires_grad_(True)
    x = torch.randn(3, *SHAPE, dtype=torch.float64)

    def loss(*_: Tensor) -> Tensor:
        return vae.elbo(x, torch.Generator().manual_seed(2))["elbo"].mean()

    assert torch.autograd.gradcheck(loss, list(vae.parameters()))


def test_noise_surplus_has_mean_zero_and_takes_the_noise_away() -> None:
    vae, _, _ = linear_vae(orthogonal=True)
    noise = torch.Generator().manual_seed(0)
    clean, x = vae.sample(torch.randn(20_000, 3, generator=noise), noise)
    surplus = noise_surplus(x, clean, SIGMA)
    assert abs(surplus.mean()) < 4 * surplus.std() / math.sqrt(len(surplus))
    truth = evidence.log_normal(x, clean, torch.tensor(math.log(SIGMA)))
    assert (truth + surplus).std() < 1e-3 * truth.std()


def test_laplace_is_exact_for_a_linear_decoder() -> None:
    vae, weight, _ = linear_vae(orthogonal=True)
    covariance = weight @ weight.T + SIGMA**2 * torch.eye(12, dtype=torch.float64)
    of_x = torch.distributions.MultivariateNormal(torch.zeros(12).double(), covariance)
    with modes(vae):
        local = laplace(vae, settings(laplace_images=2000), CPU)
    assert local["factorization"] == pytest.approx(0, abs=1e-6)
    assert local["evidence"] == pytest.approx(-of_x.entropy().item(), abs=0.15)


def test_laplace_knows_what_a_factorized_posterior_loses() -> None:
    vae, _, precision = linear_vae(orthogonal=False)
    with modes(vae), torch.no_grad():
        local = laplace(vae, settings(laplace_images=3000), CPU)
        elbo = mean_elbo(vae, 20_000, settings(), CPU)["elbo"]
    lost = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision)).item()
    assert lost > 0.15
    assert local["factorization"] == pytest.approx(lost, rel=1e-5)
    # The encoder is the best factorized one: its ELBO is the evidence less that.
    assert local["evidence"] - elbo == pytest.approx(lost, abs=0.15)


def test_modes_leave_running_statistics_alone_unless_learning() -> None:
    vae = small_vae()
    z, noise = torch.randn(6, 5), torch.Generator().manual_seed(0)

    def buffers(network: nn.Module) -> list[Tensor]:
        return [b.clone() for name, b in network.named_buffers() if "running" in name]

    def same(a: list[Tensor], b: list[Tensor]) -> bool:
        return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))

    before = {name: buffers(getattr(vae, name)) for name in celeba_encoder.NETWORKS}
    for learning in (False, True):
        with modes(vae, *celeba_encoder.NETWORKS, learning=learning):
            clean, x = vae.sample(z, noise)
            vae.elbo(x, noise)
        assert same(buffers(vae.truth), before["truth"])
        assert same(buffers(vae.encoder), before["encoder"]) is not learning
        assert same(buffers(vae.decoder), before["decoder"]) is not learning
    assert not any(module.training for module in vae.modules())
    with modes(vae):
        together, alone = vae.sample(z, noise)[0][:1], vae.sample(z[:1], noise)[0]
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    with modes(vae, "truth"):
        assert (vae.sample(z, noise)[0][:1] - clean[:1]).abs().max() < 1e-6
        assert (vae.sample(z, noise)[0][:1] - vae.sample(z[:1], noise)[0]).abs().max() > 1e-3


def test_streams_of_images() -> None:
    vae = small_vae()
    streams = Images(vae, settings(batch_size=4, protocol="report"), 10, CPU)
    made: list[Tensor] = []
    vae.truth.register_forward_pre_hook(lambda _, arguments: made.append(arguments[0]))
    latents = {}
    for kind in ("truth", "noisy", "decoded", "noisy_decoded"):
        made.clear()
        list(streams(kind))
        latents[kind] = torch.cat(made)
    for z in latents.values():  # batch for batch, all kinds are of the same x*
        assert torch.equal(z, latents["truth"])
    found = {kind: torch.cat(list(streams(kind))) for kind in (*latents, "prior")}
    assert {len(images) for images in found.values()} == {10}
    assert (found["noisy"] - found["truth"]).std() == pytest.approx(0.05, rel=0.02)
    assert (found["noisy_decoded"] - found["decoded"]).std() == pytest.approx(0.05, rel=0.02)
    torch.testing.assert_close(found["truth"], torch.cat(list(streams("truth"))), rtol=0, atol=0)
    # One by one, an image does not depend on those it is made with.
    one_by_one = [settings(batch_size=n, protocol="released") for n in (1, 5)]
    alone, pairs = (torch.cat(list(Images(vae, o, 10, CPU)("truth"))) for o in one_by_one)
    z = torch.randn(5, 5, generator=torch.Generator().manual_seed(4_000_037))
    with modes(vae, "truth"), torch.no_grad():
        expected = torch.cat([vae.truth(row[None]) for row in z])
    torch.testing.assert_close(pairs[:5], expected)
    assert len(alone) == 10


def test_frozen_run_reports_everything(encoders: dict[str, Path]) -> None:
    for protocol, folder in encoders.items():
        result = read(folder)
        metrics = result["metrics"]
        assert metrics["elbo"] == pytest.approx(metrics["data"] - metrics["kl"])
        assert set(metrics["frechet"]) == {"discriminator"}
        assert set(metrics["frechet"]["discriminator"]) == set(celeba_encoder.FROZEN_DISTANCES)
        assert ("batch_statistics" in metrics) == (protocol == "released")
        assert result["history"]["iteration"] == [0, 2, 4, 6]
        assert result["history"]["loss"][0] is None
        assert (folder / "training.png").stat().st_size > 5000


@pytest.mark.parametrize("protocol", ["report", "released"])
def test_joint_run_goes_on_from_the_encoder(
    encoders: dict[str, Path], tmp_path: Path, protocol: str
) -> None:
    arguments = (*SMALL, "--learn-sigma", "--encoder")
    joint = ran(celeba_joint, *arguments, encoders[protocol] / "model.pt", out=tmp_path)
    frozen = read(encoders[protocol])
    assert joint["config"]["protocol"] == protocol
    assert set(joint["metrics"]["frechet"]["discriminator"]) == set(celeba_encoder.DISTANCES)
    assert joint["metrics"]["sigma"] != pytest.approx(0.05, abs=1e-6)
    found = [result["metrics"]["frechet"]["discriminator"] for result in (joint, frozen)]
    for key in ("noise_alone", "floor"):  # of the ground truth, as in the encoder's run
        assert found[0][key] == found[1][key]


def test_training_raises_what_it_should(ground_truth: Path, tmp_path: Path) -> None:
    kept = torch.load(ground_truth, weights_only=True)
    for values in kept["generator"].values():  # a generator whose images differ, as trained ones do
        if values.ndim == 4:
            values *= 10
    torch.save(kept, tmp_path / "ground_truth.pt")
    run = (*SMALL, "--batch-size 32 --lr 0.003 --track-images 64 --checkpoint-every 1000")
    truth = ("--ground-truth", tmp_path / "ground_truth.pt", "--iterations", 100)
    loss = ran(celeba_encoder, *run, *truth, out=tmp_path / "encoder")["history"]["loss"]
    assert loss[-1] < loss[1] - 0.3  # of 5 latents, nats
    encoder = ("--encoder", tmp_path / "encoder" / "model.pt", "--iterations", 60)
    elbo = ran(celeba_joint, *run, *encoder, out=tmp_path / "joint")["history"]["elbo"]
    assert elbo[-1] > elbo[0] + 1000


def test_a_frozen_decoder_stays(encoders: dict[str, Path], tmp_path: Path) -> None:
    encoder = encoders["report"] / "model.pt"
    arguments = ("--encoder", encoder, *SMALL, "--freeze-decoder --out", tmp_path)
    done = good(celeba_joint, *arguments)
    assert "frozen, ELBO" in done.stdout
    assert "-19072" not in done.stdout
    before = torch.load(encoder, weights_only=True)
    after = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, values in before["ground_truth"]["generator"].items():
        assert torch.equal(after["decoder"][name], values), name
    same = (torch.equal(after["encoder"][name], part) for name, part in before["encoder"].items())
    assert not all(same)
    distances = read(tmp_path)["metrics"]["frechet"]["discriminator"]
    assert set(distances) == set(celeba_encoder.FROZEN_DISTANCES)
    again = main(celeba_joint, "--like", tmp_path / "result.json", "--out", tmp_path / "again")
    assert "are equal, bit by bit" in again.stdout
    wide = main(celeba_joint, *arguments[:-1], tmp_path / "wide", "--sigma", 0.2)
    assert "--sigma goes with --weight" in the_one_line(wide)


@pytest.mark.parametrize("protocol", ["report", "released"])
@pytest.mark.parametrize("joint", [False, True])
def test_resume_is_bitwise(
    ground_truth: Path, encoders: dict[str, Path], tmp_path: Path, joint: bool, protocol: str
) -> None:
    module = celeba_joint if joint else celeba_encoder
    source = ("--ground-truth", ground_truth, "--protocol", protocol)
    if joint:
        source = ("--encoder", encoders[protocol] / "model.pt")
    run = (*source, *SMALL)
    whole = ran(module, *run, out=tmp_path / "whole")
    with interrupted(module, "step", 3):
        assert main(module, *run, "--out", tmp_path / "parts").returncode == 130
    again = (module, *run, "--out", tmp_path / "parts")
    assert "go on with --resume" in the_one_line(main(*again))
    assert "0.0002" in the_one_line(main(*again, "--lr", 0.0002, "--resume"))
    parts = ran(module, *run, "--resume", out=tmp_path / "parts")
    for key in ("history", "metrics"):
        assert whole[key] == parts[key]


def test_resume_refuses_another_ground_truth(ground_truth: Path, tmp_path: Path) -> None:
    kept = torch.load(ground_truth, weights_only=True)
    torch.save(kept, tmp_path / "truth.pt")
    run = ("--ground-truth", tmp_path / "truth.pt", *SMALL, "--out", tmp_path / "run")
    good(celeba_encoder, *run)
    kept["generator"]["0.weight"] += 1
    torch.save(kept, tmp_path / "truth.pt")
    assert "another ground truth" in the_one_line(main(celeba_encoder, *run, "--resume"))
    kept["width"]["ngf"] = 4
    torch.save(kept, tmp_path / "truth.pt")
    assert "is no ground truth" in the_one_line(main(celeba_encoder, *run, "--resume"))


@pytest.mark.usefixtures("no_network")
def test_without_weights_the_rest_is_still_written(ground_truth: Path, tmp_path: Path) -> None:
    arguments = ("--ground-truth", ground_truth, *SMALL, "--fid-dims 64 --out", tmp_path)
    done = good(celeba_encoder, *arguments)
    assert "no weights" in done.stdout
    assert "TORCH_HOME" in done.stdout
    assert set(read(tmp_path)["metrics"]["frechet"]) == {"discriminator"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--iterations", 0), "--iterations: must be >=1"),
        (("--fid-images", 1), "--fid-images: must be >=2"),
        (("--lr", -1), "--lr: must be >0"),
        (("--seed", -1), "--seed: must be >=0"),
        (("--fid-dims", 5), "5"),
        (("--device", "abacus"), "no device 'abacus'"),
    ],
)
@pytest.mark.parametrize("module", [celeba_encoder, celeba_joint])
def test_bad_options_are_refused(module: object, change: tuple, said: str, tmp_path: Path) -> None:
    assert said in complaint(main(module, *SMALL, *change, "--out", tmp_path))


def test_bad_files_are_one_line(ground_truth: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"

    def said(module: ModuleType, name: str, path: Path = broken) -> str:
        return the_one_line(main(module, *SMALL, name, path, "--out", tmp_path))

    for data in (None, b"text", ground_truth.read_bytes()[:500]):
        if data is not None:
            broken.write_bytes(data)
        expected = "no " if data is None else "is no "
        assert expected in said(celeba_encoder, "--ground-truth")
        assert expected in said(celeba_joint, "--encoder")
    torch.save({"something": 1}, broken)
    assert "is no ground truth" in said(celeba_encoder, "--ground-truth")
    assert "is no encoder" in said(celeba_joint, "--encoder", ground_truth)


def test_table1_says_what_was_not_run(encoders: dict[str, Path], tmp_path: Path) -> None:
    results = {"encoder_report": read(encoders["report"])}
    section4.write_table1({"images": 40, "data": "drawn faces"}, results, tmp_path)
    text = (tmp_path / "table1.md").read_text(encoding="utf-8")
    assert text.startswith("Reduced run")
    assert "not run" in text
    assert "no FID" in text
    assert f"{results['encoder_report']['metrics']['elbo']:.1f}" in text
    assert "-19072.746" in text
    assert (tmp_path / "table1.tex").exists()
