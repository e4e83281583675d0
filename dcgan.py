"""A DCGAN on faces (Section 4): its generator is the ground truth g* that the VAEs start from.

Networks and hyper-parameters are those of the PyTorch DCGAN tutorial, as in the report: 64x64
images in [-1, 1], 100 latents, batches of 128, Adam 2e-4 with betas (0.5, 0.999), 100 epochs. The
losses are computed from logits.

The report takes the generator of "one epoch before mode collapse", found by eye (epoch 44 in its
code). Here a number finds it: after each epoch, the Fréchet distance between images from fixed
latents, the generator in evaluation mode, and real images that are held out of the training, in the
feature space of --features. Its smallest value selects the epoch; a collapse shows in its curve.

  inception    pytorch-fid's Inception network; the distance is the FID, at --fid-dims
  thumbnails   the images at 16x16, 768 numbers each: coarse, but the same on every machine, with
               nothing to download

--out gets a grid of images from fixed noise each epoch, the networks of each epoch (25 MB at the
full width), `ground_truth.pt` with those of the selected one, which `celeba_encoder.py` starts
from, and `result.json`.

    uv run dcgan.py --images img_align_celeba.zip     the report's GAN, on your copy of CelebA
    uv run dcgan.py --ngf 32 --ndf 32 --epochs 50     half as wide, half as long
    uv run dcgan.py quick                             drawn faces, a minute or two
"""

import base64
import io
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from data import celeba, faces, write_aside
from figures import cli, run
from figures.frechet import Features, as_bytes, frechet_distance, inception, moments, thumbnails

GRID = 64  # images in a grid
FREE_ON_RESUME = {"epochs", "resume", "images", "out"}


@dataclass(frozen=True)
class Options:
    data: Literal["celeba", "faces"] = "celeba"
    """CelebA, or drawn faces for machines without it"""
    images: Path | None = None
    """img_align_celeba.zip or a folder of images; None: $CELEBA_IMAGES, else data/"""
    faces: cli.Count = 10_000
    """faces drawn with --data faces"""
    held_out: cli.Several = 1000
    """images, the last, held out of training to select the epoch; as many are made to compare"""
    ngf: cli.Count = 64
    """channels of the generator's last hidden layer; those before have 2, 4 and 8 times as many"""
    ndf: cli.Count = 64
    """channels of the discriminator's first layer; those after have 2, 4 and 8 times as many"""
    nz: cli.Count = 100
    """latents"""
    epochs: cli.Count = 100
    """passes over the images"""
    batch_size: cli.Count = 128
    """images per step; what is left of an epoch below that is a smaller step"""
    lr: cli.Positive = 2e-4
    """learning rate of both Adams"""
    features: Literal["inception", "thumbnails"] = "inception"
    """space of the distance that selects the epoch; thumbnails without Inception's weights"""
    fid_dims: Literal[64, 192, 768, 2048] = 2048
    """which of Inception's features"""
    precision: cli.Precision | None = None
    """arithmetic of training and of Inception, tf32 on NVIDIA's GPUs only; None: bfloat16 on a CPU
    with instructions for it, else float32
    """
    seed: cli.Natural = 0
    """seed of initialisation, data order, latents and drawn faces"""
    device: str | None = None
    """where to train; None: the accelerator if there is one, else the CPU"""
    resume: bool = False
    """go on from --out, on the CPU bit by bit as if never stopped; measure a finished run again"""
    out: Path = Path("runs/dcgan")
    """folder for networks, grids, curves and result.json"""


# Smaller batches and a higher rate: narrow networks learn more slowly, and here there are few
# epochs.
QUICK = Options(data="faces", faces=3500, held_out=500, features="thumbnails", ngf=16, ndf=16)
QUICK = replace(QUICK, nz=16, epochs=6, batch_size=32, lr=1e-3)


# --- networks -------------------------------------------------------------------------------------


def initialise(module: nn.Module) -> None:
    """DCGAN's first weights: convolutions N(0, 0.02), batch norm's scales N(1, 0.02), shifts 0."""
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

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input[:, :, None, None])

    @torch.no_grad()
    def with_jacobian(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Images of latents (N, nz), and their derivatives, (N, nz, 3, 64, 64), in evaluation mode.

        Along each of the nz directions a tangent goes through the layers beside the image. Batch
        norm's scale waits for the activation's slope, so that tangents are multiplied once.
        """
        x, scale = z[:, :, None, None], z.new_ones(())
        directions = torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        tangents = directions.repeat(len(z), 1)[:, :, None, None]
        for layer in self:
            x = layer(x)
            if isinstance(layer, nn.ConvTranspose2d):
                tangents = layer(tangents)
            elif isinstance(layer, nn.BatchNorm2d):
                assert layer.running_var is not None
                scale = (layer.weight * (layer.running_var + layer.eps).rsqrt())[:, None, None]
            else:
                slope = (x > 0) * scale if isinstance(layer, nn.ReLU) else 1 - x**2
                tangents.unflatten(0, (len(z), -1)).mul_(slope[:, None])
        return x, tangents.unflatten(0, (len(z), -1))


def trunk(ndf: int) -> nn.Sequential:
    """The discriminator without its last layer: images (N, 3, 64, 64) -> (N, 8 ndf, 4, 4)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, ndf, 4, 2, 1, bias=False),
        nn.LeakyReLU(0.2, inplace=True),
    ]
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


# --- images ---------------------------------------------------------------------------------------


def load_images(options: Options) -> np.ndarray:
    """uint8, (N, 3, 64, 64). Raises RunError if --held-out leaves none to train on."""
    if options.data == "faces" and options.images is not None:
        raise cli.RunError("--images is of CelebA; it does not go with --data faces")
    drawn = options.data == "faces"
    images = faces.draw(options.faces, options.seed) if drawn else celeba.load(options.images)
    if options.held_out >= len(images):
        raise cli.RunError(f"--held-out {options.held_out} of {len(images)} images leaves none")
    return images


def png(images: Tensor) -> bytes:
    """Images (N, 3, 64, 64) in [-1, 1] in rows of eight, as one PNG."""
    from torchvision.utils import save_image

    buffer = io.BytesIO()
    save_image(as_bytes(images).float() / 255, buffer, format="png", padding=1, pad_value=1.0)
    return buffer.getvalue()


# --- training -------------------------------------------------------------------------------------


class Trainer:
    """Both networks, their optimisers, random streams and history: all that a checkpoint holds."""

    KEPT = ("count", "space", "networks", "optimizers", "generators", "history", "wall_seconds")

    def __init__(self, options: Options, images: np.ndarray, device: torch.device, space: str):
        self.options = options
        self.device, self.count, self.space = device, len(images), space
        self.images, self.held_out = images[: -options.held_out], images[-options.held_out :]
        if device.type != "cpu":  # all lie there, as bytes
            self.images = torch.from_numpy(np.array(self.images)).to(device)
        torch.manual_seed(options.seed)
        self.generator = Generator(options.nz, options.ngf)
        self.discriminator = Discriminator(options.ndf)
        self.fixed = torch.randn(max(GRID, options.held_out), options.nz).to(device)
        self.networks = {"generator": self.generator, "discriminator": self.discriminator}
        self.optimizers = {}
        for name, network in self.networks.items():
            network.to(device)
            adam = torch.optim.Adam(network.parameters(), options.lr, (0.5, 0.999), fused=True)
            self.optimizers[name] = adam
        # Data order and latents: each has a random stream of its own.
        self.generators = {
            "order": torch.Generator("cpu").manual_seed(2 * options.seed),
            "noise": torch.Generator(device).manual_seed(2 * options.seed + 1),
        }
        keys = ("discriminator_loss", "generator_loss", "d_real", "d_fake", "frechet")
        self.history: dict[str, list[float]] = {key: [] for key in keys}
        self.wall_seconds = 0.0

    @property
    def epoch(self) -> int:
        """Epochs so far."""
        return len(self.history["frechet"])

    @property
    def selected_epoch(self) -> int:
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
        """A step of discriminator, then generator; both losses, D(real), D(fake), shape (4,)."""
        device, noise = self.device, self.generators["noise"]
        rounded = self.options.precision == "bfloat16"
        autocast = torch.autocast(device.type, torch.bfloat16, enabled=rounded)
        z = torch.randn((len(real), self.options.nz), generator=noise, device=device)
        with autocast:
            fake = self.generator(z)
            on_real = self.discriminator(real).float()
            on_fake = self.discriminator(fake.detach()).float()
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

    def load(self, path: Path) -> None:
        """Go on from a checkpoint. Raises RunError if it is none, or of other options or images."""
        with run.reading(path, "checkpoint of dcgan.py") as state:
            run.same_options(path, state["config"], run.as_config(self.options), FREE_ON_RESUME)
            for what, key in (("images", "count"), ("selection by", "space")):
                if state[key] != (now := getattr(self, key)):
                    changed = f"{what} {state[key]} before, {now} now"
                    raise cli.RunError(f"--resume: {path}: {changed}")
            run.restore(self, state)


def selecting_features(options: Options, device: torch.device) -> tuple[Features, str]:
    """The feature space that selects the epoch, and its name."""
    if options.features == "inception":
        try:
            features = inception(options.fid_dims, device, options.precision or "float32")
            return features, f"FID, {options.fid_dims} dimensions"
        except cli.RunError as error:
            print(f"{error}. Selecting by thumbnails instead")
    return thumbnails, "Fréchet distance of 16x16 thumbnails"


def main(options: Options) -> None:
    device, checkpoint = run.begin(options)
    options = run.precise(options, device)
    images = load_images(options)  # before Inception's weights are fetched: what is wrong first
    features, space = selecting_features(options, device)
    trainer = Trainer(options, images, device, space)
    if checkpoint.exists():
        trainer.load(checkpoint)
    run.take_back(options.out, "epoch", trainer.epoch)
    held_out = torch.from_numpy(np.array(trainer.held_out)).split(options.batch_size)
    real = moments(features, (part.to(device).float() / 127.5 - 1 for part in held_out))
    steps = math.ceil(len(trainer.images) / options.batch_size)
    before, total = steps * trainer.epoch, steps * options.epochs
    with tqdm(total=total, initial=before, desc="training", unit="step") as bar:
        while trainer.epoch < options.epochs:
            start = time.perf_counter()
            order = torch.randperm(len(trainer.images), generator=trainer.generators["order"])
            sums = torch.zeros(4, device=device)
            for rows in order.split(options.batch_size):
                sums += len(rows) * trainer.step(trainer.batch(rows))
                bar.update()
            means = (sums / len(order)).tolist()
            losses = dict(zip(("discriminator loss", "generator loss"), means, strict=False))
            run.check_finite(losses, f"in epoch {trainer.epoch + 1}")
            generated = moments(features, trainer.generated(options.held_out))
            values = [*means, frechet_distance(real, generated)]
            for series, value in zip(trainer.history.values(), values, strict=True):
                series.append(value)
            trainer.wall_seconds += time.perf_counter() - start
            epoch, history = trainer.epoch, trainer.history
            run.note(options.out, epoch=epoch, **{key: h[-1] for key, h in history.items()})
            distances = history["frechet"]
            said = f"Fréchet {distances[-1]:.1f}, smallest {min(distances):.1f}"
            bar.set_postfix_str(f"epoch {epoch} {said}")
            grid = torch.cat(list(trainer.generated(GRID)))
            write_aside(options.out / "grids" / f"epoch_{epoch:03d}.png", png(grid))
            networks = {name: network.state_dict() for name, network in trainer.networks.items()}
            run.save_torch(options.out / "epochs" / f"{epoch:03d}.pt", networks)
            run.save_trainer(checkpoint, trainer)
    selected, history = trainer.selected_epoch, trainer.history
    path = options.out / "epochs" / f"{selected:03d}.pt"
    with run.reading(path, "epoch of dcgan.py") as networks:
        trainer.generator.load_state_dict(networks["generator"])
    width = {key: getattr(options, key) for key in ("nz", "ngf", "ndf")}
    name = faces.NAME if options.data == "faces" else celeba.name_of(options.images)
    origin = {"width": width, "epoch": selected, "data": options.data, "images": name}
    origin["seed"] = options.seed
    run.save_torch(options.out / "ground_truth.pt", origin | networks)
    grid = png(torch.cat(list(trainer.generated(GRID))))
    write_aside(options.out / "grid.png", grid)
    metrics = {
        "selected_epoch": selected,
        "frechet_selected": history["frechet"][selected - 1],
        "frechet_last": history["frechet"][-1],
        "epochs": trainer.epoch,
    }
    result = run.save_result(
        *(options, device, trainer.wall_seconds, metrics, history),
        images=len(trainer.images),
        data=name,
        space=space,
        grid=base64.b64encode(grid).decode(),
    )
    from figures import section4

    section4.report_dcgan(result, options.out)


RUNS = (
    ("report", main, Options(), "the report's GAN, the default"),
    ("quick", main, QUICK, "drawn faces, narrow networks, a minute or two on two cores"),
)

if __name__ == "__main__":
    cli.main(__doc__, *RUNS)
