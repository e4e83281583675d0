"""A DCGAN on faces, whose generator is the ground truth of Section 4: the decoder g* that the VAEs start from.

Networks and hyper-parameters are those of the PyTorch DCGAN tutorial, as in the report: 64x64 images in [-1, 1], 100
latents, batches of 128, Adam 2e-4 with betas (0.5, 0.999), 100 epochs. The losses are computed from logits.

The report takes the generator of "one epoch before mode collapse", found by eye (epoch 44 in its code). Here a number
finds it: after each epoch, the Fréchet distance between images from fixed latents, the generator in evaluation mode,
and real images that are held out of the training, in the feature space of --features. Its smallest value selects the
epoch; a collapse shows in its curve.

  inception    pytorch-fid's Inception network; the distance is the FID, at --fid-dims
  thumbnails   the images at 16x16, 768 numbers each: coarse, but the same on every machine, with nothing to download

--out gets a grid of images from fixed noise each epoch, the networks of each epoch (25 MB at the full width),
`ground_truth.pt` with those of the selected one, which `celeba_encoder.py` starts from, and `result.json`.
"""

import base64
import contextlib
import io
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pytorch_fid.fid_score import calculate_frechet_distance
from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.utils import make_grid, save_image
from tqdm import tqdm

from data import celeba, faces, write_aside
from figures import published, section4
from figures.run import (
    RunError,
    as_config,
    begin,
    cli,
    load_torch,
    native_precision,
    same_options,
    save_result,
    save_torch,
    table,
)

GRID = 64  # images in a grid
FREE_ON_RESUME = {"epochs", "resume", "images", "tensorboard", "out"}
GENERATORS = ("order", "noise")  # data order and latents: random streams kept in checkpoints

Features = Callable[[Tensor], Tensor]  # images (N, 3, 64, 64) in [-1, 1] -> (N, dims)


@dataclass(frozen=True)
class Options:
    data: Literal["celeba", "faces"] = "celeba"
    """CelebA, or drawn faces for machines without it"""
    images: Path | None = None
    """img_align_celeba.zip or a folder of images; default: $CELEBA_IMAGES, else data/, else it is downloaded there"""
    faces: int = 10_000
    """faces drawn with --data faces"""
    held_out: int = 1000
    """number of images, the last, held out of the training to select the epoch; as many are generated to compare"""
    ngf: int = 64
    """channels of the generator's last hidden layer; those before have 2, 4 and 8 times as many"""
    ndf: int = 64
    """channels of the discriminator's first layer; those after have 2, 4 and 8 times as many"""
    nz: int = 100
    """latents"""
    epochs: int = 100
    """passes over the images"""
    batch_size: int = 128
    """images a step; what is left of an epoch below that is a smaller step"""
    lr: float = 2e-4
    """learning rate of both Adams"""
    beta1: float = 0.5
    """first beta of both Adams"""
    features: Literal["inception", "thumbnails"] = "inception"
    """space of the Fréchet distance that selects the epoch; without Inception's weights: thumbnails"""
    fid_dims: Literal[64, 192, 768, 2048] = 2048
    """which of Inception's features"""
    precision: Literal["float32", "bfloat16"] | None = None
    """arithmetic of training and of Inception; default: bfloat16 on a CPU with instructions for it, else float32"""
    tensorboard: bool = False
    """log losses, distance and grids to --out, for `tensorboard --logdir`; needs `pip install tensorboard`"""
    seed: int = 0
    """seed of initialisation, data order, latents and drawn faces"""
    device: str | None = None
    """where to train; default: the accelerator if there is one, else the CPU"""
    resume: bool = False
    """go on from the checkpoint in --out, bit by bit as if never stopped (on the CPU)"""
    out: Path = Path("runs/dcgan")
    """folder for networks, grids, curves and result.json"""

    GROUPS: ClassVar = {
        "images": "data images faces held-out",
        "networks": "ngf ndf nz",
        "training": "epochs batch-size lr beta1 precision",
        "choice of the epoch": "features fid-dims",
        "run": "tensorboard seed device resume out",
    }
    EXAMPLES: ClassVar = (
        ("--images img_align_celeba.zip", "the report's GAN, on your copy of CelebA"),
        ("--ngf 32 --ndf 32 --epochs 50 --fid-dims 192", "half as wide, half as long"),
    )

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed must be at least 0, not {self.seed}")
        for name in ("faces", "ngf", "ndf", "nz", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(self, name)}")
        if self.held_out < 2:
            raise ValueError(f"--held-out must be at least 2 for a covariance, not {self.held_out}")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"--lr must be a positive number, not {self.lr}")
        if not 0 <= self.beta1 < 1:
            raise ValueError(f"--beta1 must be in [0, 1), not {self.beta1}")


PRESETS = {
    "quick": (  # smaller batches and a higher rate: narrow networks learn more slowly, and here there are few epochs
        Options(
            data="faces",
            faces=4500,
            held_out=500,
            features="thumbnails",
            ngf=16,
            ndf=16,
            epochs=15,
            batch_size=32,
            lr=1e-3,
            nz=16,
        ),
        "drawn faces, narrow networks, a minute or two on two cores",
    )
}


# --- networks -------------------------------------------------------------------------------------------------------


def initialise(module: nn.Module) -> None:
    """DCGAN's initial weights: convolutions N(0, 0.02), scales of batch norm N(1, 0.02), its shifts 0."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class Generator(nn.Sequential):
    """Latents (N, nz) -> images (N, 3, 64, 64) in [-1, 1]."""

    def __init__(self, nz: int, ngf: int):
        layers: list[nn.Module] = []
        channels = (nz, 8 * ngf, 4 * ngf, 2 * ngf, ngf)
        for i, (before, after) in enumerate(itertools.pairwise(channels)):
            stride, padding = (2, 1) if i else (1, 0)
            layers += [
                nn.ConvTranspose2d(before, after, 4, stride, padding, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers, nn.ConvTranspose2d(ngf, 3, 4, 2, 1, bias=False), nn.Tanh())
        self.apply(initialise)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z[:, :, None, None])


def trunk(ndf: int) -> nn.Sequential:
    """The discriminator without its last layer: images (N, 3, 64, 64) -> (N, 8 ndf, 4, 4)."""
    layers: list[nn.Module] = [nn.Conv2d(3, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for before in (ndf, 2 * ndf, 4 * ndf):
        layers += [
            nn.Conv2d(before, 2 * before, 4, 2, 1, bias=False),
            nn.BatchNorm2d(2 * before),
            nn.LeakyReLU(0.2, inplace=True),
        ]
    return nn.Sequential(*layers)


class Discriminator(nn.Module):
    """Images (N, 3, 64, 64) -> logits (N,) of being real."""

    def __init__(self, ndf: int):
        super().__init__()
        self.trunk = trunk(ndf)
        self.head = nn.Conv2d(8 * ndf, 1, 4, bias=False)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x)).flatten()

    def features(self, x: Tensor) -> Tensor:
        """The trunk's output averaged over places, (N, 8 ndf)."""
        return self.trunk(x).mean((2, 3))


# --- Fréchet distance -----------------------------------------------------------------------------------------------


class Moments:
    """Mean and covariance of features (N, dims), accumulated in float64 batch by batch."""

    def __init__(self) -> None:
        self.count: int = 0
        self.sum: Any = 0.0
        self.products: Any = 0.0

    def add(self, features: Tensor) -> None:
        features = features.double()
        self.count += len(features)
        self.sum = self.sum + features.sum(0)
        self.products = self.products + features.T @ features

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (dims,) and unbiased covariance (dims, dims)."""
        mean = self.sum / self.count
        covariance = (self.products - self.count * mean[:, None] * mean) / (self.count - 1)
        return mean.cpu().numpy(), covariance.cpu().numpy()


@torch.no_grad()
def moments(features: Features, batches: Iterable[Tensor]) -> Moments:
    """Moments of the features of images, rounded to 8 bits first, as they would be in the PNG files of pytorch-fid."""
    result = Moments()
    for images in batches:
        result.add(features(as_bytes(images).float() / 127.5 - 1))
    return result


def frechet_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians with these moments (Heusel et al. 2017, equation 6).

    Raises RunError where pytorch-fid finds no real square root of the covariances' product: too few images.
    """
    try:
        # Of fewer images than dimensions the product is singular: it warns, or prints that it adds 1e-6.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            return float(calculate_frechet_distance(*a.statistics(), *b.statistics()))
    except ValueError as error:
        raise RunError(f"no Fréchet distance of {a.count} and {b.count} images: {error}; take more images") from error


def inception(dims: int, device: torch.device, precision: str = "float32") -> Features:
    """pytorch-fid's network up to the features of `dims` numbers; it is downloaded at first use.

    precision: of its convolutions. bfloat16 moves FIDs by about one per cent, and is twice as fast where it is native.

    Raises RunError, one line, if the weights cannot be had.
    """
    try:
        network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
    except Exception as error:  # no network; or, of a broken file, anything from TypeError to UnpicklingError
        where = Path(torch.hub.get_dir()) / "checkpoints"
        raise RunError(
            f"no Inception weights ({(str(error) or type(error).__name__).splitlines()[0]}): get {FID_WEIGHTS_URL} and "
            f"put {FID_WEIGHTS_URL.rpartition('/')[2]} in {where}, which TORCH_HOME can move"
        ) from error
    network = network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)

    def features(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            planes = network((images / 2 + 0.5).contiguous(memory_format=torch.channels_last))[0]
        return planes.float().mean((2, 3))

    return features


def thumbnails(images: Tensor) -> Tensor:
    """Images at 16x16, as vectors: (N, 768)."""
    return F.avg_pool2d(images, 4).flatten(1)


# --- images ---------------------------------------------------------------------------------------------------------


def load_images(options: Options) -> np.ndarray:
    """uint8, (N, 3, 64, 64)."""
    if options.data == "faces":
        if options.images is not None:
            raise RunError("--images is of CelebA; it does not go with --data faces")
        return faces.draw(options.faces, options.seed)
    return celeba.load(options.images)


def as_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], or a little out of it, as uint8."""
    return ((images * 127.5 + 128).clamp(0, 255)).byte()


def png(images: Tensor, columns: int = 8) -> bytes:
    """Images (N, 3, 64, 64) in [-1, 1] in rows, as one PNG."""
    buffer = io.BytesIO()
    save_image(as_bytes(images).float() / 255, buffer, format="png", nrow=columns, padding=1, pad_value=1.0)
    return buffer.getvalue()


# --- training -------------------------------------------------------------------------------------------------------


class Trainer:
    """Both networks, their optimisers, random streams and history: all that a checkpoint holds."""

    def __init__(self, options: Options, images: np.ndarray, device: torch.device, space: str):
        if options.held_out >= len(images):
            raise RunError(f"--held-out {options.held_out} of {len(images)} images leaves none to train on")
        self.options = replace(options, precision=options.precision or native_precision(device))
        self.device, self.count, self.space = device, len(images), space
        train, self.held_out = images[: -options.held_out], images[-options.held_out :]
        # On an accelerator all images lie there, as bytes.
        self.images = train if device.type == "cpu" else torch.from_numpy(np.array(train)).to(device)
        torch.manual_seed(options.seed)
        self.generator, self.discriminator = Generator(options.nz, options.ngf), Discriminator(options.ndf)
        self.fixed = torch.randn(max(GRID, options.held_out), options.nz).to(device)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = {}
        for name, network in self.networks.items():
            network.to(device)
            adam = torch.optim.Adam(network.parameters(), options.lr, betas=(options.beta1, 0.999), fused=True)
            self.optimizers[name] = adam
        for i, name in enumerate(GENERATORS):
            generator = torch.Generator("cpu" if name == "order" else device)
            setattr(self, name, generator.manual_seed(len(GENERATORS) * options.seed + i))
        self.history = {key: [] for key in ("discriminator_loss", "generator_loss", "d_real", "d_fake", "frechet")}
        self.seconds = {"training": 0.0, "selecting": 0.0}

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history["frechet"])

    @property
    def selected(self) -> int:
        """The epoch with the smallest distance so far, counted from 1."""
        return int(np.argmin(self.history["frechet"])) + 1

    def batch(self, rows: Tensor) -> Tensor:
        """Images in [-1, 1], float32."""
        if isinstance(self.images, Tensor):
            images = self.images[rows.to(self.device)]
        else:
            images = torch.from_numpy(self.images[rows.numpy()])
        return images.float() / 127.5 - 1

    def step(self, real: Tensor) -> Tensor:
        """One step of the discriminator, then one of the generator; both losses, D(real), D(fake), shape (4,)."""
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bfloat16")
        z = torch.randn(len(real), self.options.nz, generator=self.noise, device=self.device)
        with autocast:
            fake = self.generator(z)
            on_real, on_fake = self.discriminator(real).float(), self.discriminator(fake.detach()).float()
        # -log D(real) - log(1 - D(fake)), then -log D(fake), each from logits.
        discriminator_loss = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
        self.optimizers["discriminator"].zero_grad()
        discriminator_loss.backward()
        self.optimizers["discriminator"].step()
        self.discriminator.requires_grad_(False)
        with autocast:
            generator_loss = F.softplus(-self.discriminator(fake).float()).mean()
        self.optimizers["generator"].zero_grad()
        generator_loss.backward()
        self.optimizers["generator"].step()
        self.discriminator.requires_grad_(True)
        probabilities = on_real.detach().sigmoid().mean(), on_fake.detach().sigmoid().mean()
        return torch.stack([discriminator_loss.detach(), generator_loss.detach(), *probabilities])

    @torch.no_grad()
    def generated(self, count: int) -> Iterator[Tensor]:
        """Batches of images from the fixed latents, the generator in evaluation mode."""
        self.generator.eval()
        for z in self.fixed[:count].split(self.options.batch_size):
            yield self.generator(z)
        self.generator.train()

    def run_epoch(self, features: Features, real: Moments, bar: tqdm) -> None:
        start = time.perf_counter()
        order = torch.randperm(len(self.images), generator=self.order).split(self.options.batch_size)
        sums, size = torch.zeros(4, device=self.device), 0
        for rows in order:
            sums += len(rows) * self.step(self.batch(rows))
            size += len(rows)
            bar.update()
        means = (sums / size).tolist()
        self.seconds["training"] += time.perf_counter() - start
        if not all(map(math.isfinite, means)):
            raise FloatingPointError(f"the losses are {means[:2]} in epoch {self.epoch + 1}; a smaller --lr may help")
        start = time.perf_counter()
        frechet = frechet_distance(real, moments(features, self.generated(self.options.held_out)))
        self.seconds["selecting"] += time.perf_counter() - start
        for key, value in zip(self.history, [*means, frechet], strict=True):
            self.history[key].append(value)

    def save(self, path: Path) -> None:
        state = {
            "config": as_config(self.options),
            "count": self.count,
            "space": self.space,
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "generators": {key: getattr(self, key).get_state() for key in GENERATORS},
            "history": self.history,
            "seconds": self.seconds,
        }
        save_torch(path, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises RunError if it is none, or one of a run with other options or images."""
        state = load_torch(path, "checkpoint")
        try:
            same_options(path, state["config"], as_config(self.options), FREE_ON_RESUME)
            if state["count"] != self.count:
                raise RunError(f"--resume: {path} was trained on {state['count']} images, not on {self.count}")
            if state["space"] != self.space:
                raise RunError(f"--resume: {path} selects by {state['space']}, which now would be {self.space}")
            for name in self.networks:
                self.networks[name].load_state_dict(state["networks"][name])
                self.optimizers[name].load_state_dict(state["optimizers"][name])
            for key in GENERATORS:
                getattr(self, key).set_state(state["generators"][key])
            self.history, self.seconds = state["history"], state["seconds"]
        except (KeyError, TypeError, RuntimeError) as error:
            raise RunError(f"{path} is no checkpoint of such a run: {str(error).splitlines()[0]}") from error


def selecting_features(options: Options, device: torch.device) -> tuple[Features, str]:
    """The feature space that selects the epoch, and its name."""
    if options.features == "inception":
        try:
            features = inception(options.fid_dims, device, options.precision or native_precision(device))
            return features, f"FID, {options.fid_dims} dimensions"
        except RunError as error:
            print(f"{error}. Selecting by thumbnails instead")
    return thumbnails, "Fréchet distance of 16x16 thumbnails"


def writer_to(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RunError("--tensorboard needs a library: pip install tensorboard") from error
    return SummaryWriter(str(folder))


def main(options: Options) -> None:
    device, checkpoint = begin(options)
    features, space = selecting_features(options, device)
    trainer = Trainer(options, load_images(options), device, space)
    if checkpoint.exists():
        trainer.load(checkpoint)
    writer = writer_to(options.out) if options.tensorboard else None
    held_out = torch.from_numpy(np.array(trainer.held_out))
    real = moments(features, (part.to(device).float() / 127.5 - 1 for part in held_out.split(options.batch_size)))
    steps = math.ceil(len(trainer.images) / options.batch_size)
    with tqdm(total=steps * options.epochs, initial=steps * trainer.epoch, desc="training", unit="step") as bar:
        while trainer.epoch < options.epochs:
            trainer.run_epoch(features, real, bar)
            epoch, history = trainer.epoch, trainer.history
            bar.set_postfix_str(
                f"epoch {epoch} Fréchet {history['frechet'][-1]:.1f}, smallest {min(history['frechet']):.1f}"
            )
            grid = torch.cat(list(trainer.generated(GRID)))
            write_aside(options.out / "grids" / f"epoch_{epoch:03d}.png", png(grid))
            networks = {name: network.state_dict() for name, network in trainer.networks.items()}
            save_torch(options.out / "epochs" / f"{epoch:03d}.pt", networks)
            trainer.save(checkpoint)
            if writer:
                for key, values in history.items():
                    writer.add_scalar(key, values[-1], epoch)
                writer.add_image("generated", make_grid(as_bytes(grid)), epoch)
    if writer:
        writer.close()
    selected, history = trainer.selected, trainer.history
    networks = load_torch(options.out / "epochs" / f"{selected:03d}.pt", "epoch of dcgan.py")
    width = {key: getattr(options, key) for key in ("nz", "ngf", "ndf")}
    kept = {"width": width, "epoch": selected, "data": options.data, "seed": options.seed}
    save_torch(options.out / "ground_truth.pt", kept | networks)
    trainer.generator.load_state_dict(networks["generator"])
    grid = png(torch.cat(list(trainer.generated(GRID))))
    write_aside(options.out / "grid.png", grid)
    metrics = {
        "selected_epoch": selected,
        "frechet_selected": history["frechet"][selected - 1],
        "frechet_last": history["frechet"][-1],
        "epochs": trainer.epoch,
    }
    result = save_result(
        options.out,
        trainer.options,
        device,
        sum(trainer.seconds.values()),
        metrics,
        history,
        images=len(trainer.images),
        data=celeba.NAME if options.data == "celeba" else faces.NAME,
        space=space,
        grid=base64.b64encode(grid).decode(),
        seconds_per_step=trainer.seconds["training"] / (steps * trainer.epoch),
    )
    section4.draw_dcgan(result, options.out)
    rows = [
        ("epoch selected", published.DCGAN_EPOCH, selected),
        (f"  {space}", None, metrics["frechet_selected"]),
        (f"  at the last epoch, {trainer.epoch}", None, metrics["frechet_last"]),
        ("images", published.CELEBA_IMAGES, len(trainer.images)),
        ("ngf, ndf", "64, 64", f"{options.ngf}, {options.ndf}"),
    ]
    print(table(("ground truth of Section 4", "published code", "ours"), rows, digits=2))
    print(f"{result['seconds']:.0f} s on {result['environment']['device']}; ground truth and figures in {options.out}")


if __name__ == "__main__":
    cli(Options, main, __doc__.splitlines()[0], PRESETS)
