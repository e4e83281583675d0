"""The GAN of Section 4: networks, Fréchet distance, training, resume, and bad input."""

import copy
import json
import os
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_fid import inception as pytorch_fid_inception
from pytorch_fid.fid_score import calculate_activation_statistics
from pytorch_fid.inception import FID_WEIGHTS_URL
from torch import nn
from toy import complaint, good, interrupted, main, ran, the_one_line

import dcgan
from data import celeba, faces
from dcgan import Discriminator, Generator
from figures import frechet
from figures.cli import RunError
from figures.frechet import Moments, frechet_distance, inception, moments

CPU = torch.device("cpu")
TINY = ("--data faces --faces 60 --held-out 20 --ngf 2 --ndf 2 --nz 5", "--batch-size 16")
TINY += ("--features", "thumbnails", "--precision", "float32", "--device", "cpu")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Inception's weights are neither in the cache nor to be downloaded."""

    def fail(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def test_networks_are_the_tutorials() -> None:
    generator, discriminator = Generator(100, 64), Discriminator(64)
    assert sum(p.numel() for p in generator.parameters()) == 3_576_704
    assert sum(p.numel() for p in discriminator.parameters()) == 2_765_568
    shapes = [tuple(m.weight.shape) for m in generator if isinstance(m, nn.ConvTranspose2d)]
    assert {shape[2:] for shape in shapes} == {(4, 4)}
    channels = [shape[:2] for shape in shapes]
    assert channels == [(100, 512), (512, 256), (256, 128), (128, 64), (64, 3)]
    images = generator(torch.randn(3, 100))
    assert images.shape == (3, 3, 64, 64)
    assert images.abs().max() <= 1
    assert discriminator(images).shape == (3,)
    assert discriminator.features(images).shape == (3, 512)
    generator.requires_grad_(False)
    assert generator[0].weight.std() == pytest.approx(0.02, rel=0.01)
    assert generator[1].weight.mean() == pytest.approx(1.0, abs=0.01)
    assert generator[1].weight.std() == pytest.approx(0.02, rel=0.15)
    assert not generator[1].bias.any()


def test_generator_in_evaluation_mode_makes_an_image_alone_as_in_a_batch() -> None:
    torch.manual_seed(0)
    generator = Generator(10, 4)
    z = torch.randn(6, 10)
    for _ in range(3):
        generator(torch.randn(6, 10))
    generator.eval()
    torch.testing.assert_close(generator(z)[2:3], generator(z[2:3]), rtol=1e-4, atol=1e-6)
    generator.train()
    assert (generator(z)[2:3] - generator(z[2:3])).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's own use of torch.jit
@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_the_jacobian_is_that_of_autograd(form: torch.memory_format) -> None:
    torch.manual_seed(0)
    generator = dcgan.Generator(5, 2).double().to(memory_format=form)
    for layer in generator:
        if isinstance(layer, torch.nn.ConvTranspose2d):
            layer.weight.data *= 10
    generator(torch.randn(20, 5).double())  # running statistics
    generator.eval()
    z = torch.randn(3, 5).double()
    images, jacobian = generator.with_jacobian(z)
    torch.testing.assert_close(images, generator(z))
    for i, direction in enumerate(torch.eye(5).double()):
        expected = torch.func.jvp(generator, (z,), (direction.expand_as(z),))[1]
        torch.testing.assert_close(jacobian[:, i], expected)
    assert jacobian.abs().max() > 0.1
    assert not jacobian.requires_grad


def test_step_minimises_the_tutorials_losses() -> None:
    options = dcgan.Options(faces=40, held_out=20, ngf=2, ndf=2, nz=5, precision="float32")
    trainer = dcgan.Trainer(options, faces.draw(40), CPU, "thumbnails")
    real = trainer.batch(torch.arange(16))
    assert real.min() >= -1
    assert real.max() <= 1
    state = {name: copy.deepcopy(net.state_dict()) for name, net in trainer.networks.items()}
    noise = trainer.generators["noise"].get_state()
    losses = trainer.step(real)
    after = {k: v.clone() for k, v in trainer.discriminator.state_dict().items()}
    # The same by the book: probabilities, binary cross-entropy, two backward passes.
    for name, network in trainer.networks.items():
        network.load_state_dict(state[name])
    noise = torch.Generator().manual_seed(0).set_state(noise)
    fake = trainer.generator(torch.randn(16, 5, generator=noise))
    cross_entropy, one, zero = nn.BCELoss(), torch.ones(16), torch.zeros(16)
    on_real = trainer.discriminator(real).sigmoid()
    on_fake = trainer.discriminator(fake.detach()).sigmoid()
    expected = cross_entropy(on_real, one) + cross_entropy(on_fake, zero)
    trainer.discriminator.load_state_dict(after)
    expected_generator = cross_entropy(trainer.discriminator(fake).sigmoid(), one)
    by_the_book = torch.stack([expected, expected_generator, on_real.mean(), on_fake.mean()])
    torch.testing.assert_close(losses, by_the_book.detach())
    assert all(p.requires_grad for p in trainer.discriminator.parameters())


def of_gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    result = Moments()
    mean, covariance = torch.from_numpy(mean), torch.from_numpy(covariance)
    result.count, result.sum = 10, 10 * mean
    result.products = 9 * covariance + 10 * mean[:, None] * mean
    return result


def test_frechet_distance() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(3.0, 2.0, (500, 6)) @ rng.normal(size=(6, 6)))
    whole, parts = Moments(), Moments()
    whole.add(features)
    for part in features.split(64):
        parts.add(part)
    np.testing.assert_allclose(parts.statistics()[0], features.mean(0))
    np.testing.assert_allclose(parts.statistics()[1], np.cov(features.numpy(), rowvar=False))
    assert frechet_distance(whole, parts) == pytest.approx(0, abs=1e-6)
    # Covariances that commute: |m - n|^2 + sum (sqrt a - sqrt b)^2 over the common axes.
    axes = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    a, b = np.array([1.0, 4.0, 9.0, 0.25]), np.array([4.0, 1.0, 2.0, 0.5])
    m, n = rng.normal(size=(2, 4))
    for rank in (4, 2):  # also where both covariances are singular
        a[rank:] = b[rank:] = 0
        gaussians = of_gaussian(m, axes * a @ axes.T), of_gaussian(n, axes * b @ axes.T)
        expected = ((m - n) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
        assert frechet_distance(*gaussians) == pytest.approx(expected, rel=1e-5)


def test_fid_is_that_of_pytorch_fid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    weights = tmp_path / "hub" / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
    weights.parent.mkdir(parents=True)
    # Random weights, under the name that pytorch-fid looks for.
    with monkeypatch.context() as patch:
        patch.setattr(pytorch_fid_inception, "load_state_dict_from_url", lambda *_, **__: None)
        kept = {}
        patch.setattr(nn.Module, "load_state_dict", lambda self, _: kept.update(self.state_dict()))
        torch.manual_seed(0)
        pytorch_fid_inception.fid_inception_v3()
    torch.save(kept, weights)
    sets = faces.draw(8), faces.draw(8, seed=1)
    for i, images in enumerate(sets):
        (tmp_path / str(i)).mkdir()
        for j, image in enumerate(images):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / str(i) / f"{j}.png")
    network = pytorch_fid_inception.InceptionV3([0])
    folders = [sorted((tmp_path / str(i)).iterdir()) for i in range(2)]
    theirs = [calculate_activation_statistics(files, network, 8, 64, "cpu", 0) for files in folders]
    features = frechet.inception(64, CPU)
    scaled = [torch.from_numpy(images).float() / 127.5 - 1 for images in sets]
    ours = [moments(features, images.split(3)) for images in scaled]
    for (mean, covariance), found in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(found.statistics()[0], mean, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(found.statistics()[1], covariance, rtol=1e-2, atol=1e-6)
    assert frechet_distance(*ours) > 1e-6


def test_images_are_rounded_as_in_png_files() -> None:
    levels = torch.arange(256).byte()
    torch.testing.assert_close(frechet.as_bytes(levels.float() / 127.5 - 1), levels)
    assert frechet.as_bytes(torch.tensor([-1.2, -1.0, 1.0, 1.3])).tolist() == [0, 0, 255, 255]


def test_without_weights_one_line_says_what_to_do(no_network: Path) -> None:
    with pytest.raises(dcgan.cli.RunError) as error:
        frechet.inception(64, CPU)
    for part in ("TORCH_HOME", str(no_network), "pt_inception", "https://"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    features, space = dcgan.selecting_features(dcgan.Options(precision="float32"), CPU)
    assert features is frechet.thumbnails
    assert "thumbnails" in space


def test_a_run_keeps_what_it_selected(tmp_path: Path) -> None:
    result = ran(dcgan, *TINY, "--epochs", 3, out=tmp_path)
    history, selected = result["history"], result["metrics"]["selected_epoch"]
    assert {len(values) for values in history.values()} == {3}
    assert history["frechet"][selected - 1] == min(history["frechet"])
    assert result["images"] == 40
    kept = torch.load(tmp_path / "ground_truth.pt", weights_only=True)
    epoch = torch.load(tmp_path / "epochs" / f"{selected:03d}.pt", weights_only=True)
    assert kept["epoch"] == selected
    for name, values in epoch["generator"].items():
        torch.testing.assert_close(kept["generator"][name], values, rtol=0, atol=0)
    assert len(list((tmp_path / "grids").iterdir())) == 3
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.size == (8 * 65 + 1, 8 * 65 + 1)
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert "thumbnails" in result["space"]


def test_resume_is_bitwise(tmp_path: Path) -> None:
    good(dcgan, *TINY, "--epochs", 3, "--out", tmp_path / "whole")
    with interrupted(dcgan.Trainer, "step", 4):  # in the middle of the second epoch
        stopped = main(dcgan, *TINY, "--epochs", 3, "--out", tmp_path / "parts")
    assert stopped.returncode == 130
    assert "--resume" in the_one_line(stopped)
    refused = main(dcgan, *TINY, "--epochs", 3, "--out", tmp_path / "parts")
    assert "go on with --resume" in the_one_line(refused)
    good(dcgan, *TINY, "--epochs", 3, "--out", tmp_path / "parts", "--resume")
    results = (tmp_path / name / "result.json" for name in ("whole", "parts"))
    whole, parts = (json.loads(path.read_bytes()) for path in results)
    assert whole["history"] == parts["history"]
    assert whole["metrics"] == parts["metrics"]
    assert whole["grid"] == parts["grid"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("--epochs", 0), "--epochs: must be >=1"),
        (("--held-out", 1), "--held-out: must be >=2"),
        (("--held-out", 60), "leaves none"),
        (("--lr", "nan"), "--lr: must be >0"),
        (("--seed", -1), "--seed: must be >=0"),
        (("--images", "nowhere"), "--images is of CelebA"),
        (("--data", "celeba", "--images", "nowhere"), "no CelebA images at nowhere"),
        (("--data", "cats"), "cats"),
        (("--precision", "tf32"), "--precision tf32 is for NVIDIA's GPUs, not for cpu"),
        (("--fid-dims", 100), "100"),
    ],
)
def test_bad_options_are_refused(tmp_path: Path, change: tuple, said: str) -> None:
    assert said in complaint(main(dcgan, *TINY, "--epochs", 1, *change, "--out", tmp_path))
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize(
    "change", [("--images", "nowhere", "--data", "celeba"), ("--held-out", 60)]
)
def test_what_is_wrong_shows_before_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: tuple
) -> None:
    monkeypatch.setattr(dcgan, "inception", lambda *_: pytest.fail("fetched"))
    done = main(dcgan, *TINY, "--features", "inception", *change, "--out", tmp_path)
    assert complaint(done)


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    good(dcgan, *TINY, "--epochs", 1, "--out", tmp_path)
    again = (*TINY, "--epochs", 2, "--resume", "--out", tmp_path)
    assert "--lr 0.0002, not 0.1" in the_one_line(main(dcgan, *again, "--lr", 0.1))
    checkpoint = tmp_path / "checkpoint.pt"
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state | {"space": "FID"}, checkpoint)
    assert "selection by FID" in the_one_line(main(dcgan, *again))
    for data in (b"", b"text", checkpoint.read_bytes()[:1000]):
        checkpoint.write_bytes(data)
        assert "is no checkpoint" in the_one_line(main(dcgan, *again))
    for other in (
        {"config": {}},
        state | {"generators": {"order": state["networks"]["generator"]["0.weight"]}},
    ):
        torch.save(other, checkpoint)
        assert the_one_line(main(dcgan, *again))


def test_losses_that_are_not_finite_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcgan.Trainer, "step", lambda self, real: torch.full((4,), float("nan")))
    stopped = main(dcgan, *TINY, "--epochs", 1, "--out", tmp_path)
    assert "discriminator loss is nan in epoch 1; try a smaller" in the_one_line(stopped)


def test_weights_with_code_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Command:
        def __reduce__(self) -> tuple:
            return os.mkdir, (str(tmp_path / "was run"),)

    name = FID_WEIGHTS_URL.rpartition("/")[2]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save({"weight": Command()}, tmp_path / "hub/checkpoints" / name)
    with pytest.raises(RunError, match="no Inception weights"):
        inception(192, torch.device("cpu"))
    assert not (tmp_path / "was run").exists()


def test_other_images_are_called_what_they_are(tmp_path: Path) -> None:
    assert celeba.name_of(tmp_path / "cats") == "images of cats"
    assert celeba.name_of(tmp_path / celeba.ARCHIVE) == celeba.NAME
