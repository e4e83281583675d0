"""An encoder fitted to a GAN's generator taken as ground truth (Section 4): Table 1, first row.

Ground truth: z ~ N(0, I) in R^100, x ~ N(g*(z), sigma^2 I), sigma = 0.05, with g* the generator
that `dcgan.py` selected. Encoder: q(z given x) = N(mu(x), diag s(x)^2), the discriminator's trunk
and a 4x4 convolution to (mu, log s) that begins at zero. It is trained by maximising log q(z given
x) on fresh pairs. What the report's text and its released code do differently is --protocol:

                     report (default)                released
  batch norm of g*   evaluation mode: a fixed        training mode: an image depends on its batch
                     function
  ... in the tests   evaluation mode                 ELBO in both modes; images for FID in training
                                                     mode, one at a time
  Adam               2e-4                            2e-5, betas (0.5, 0.999)

The evaluation at the end is shared with `celeba_joint.py`. On fresh samples of the ground truth:
ELBO with its parts, and Fréchet distances of x* = g*(z) from its re-decoding g(z'), z' ~ q(z given
x), from x* with noise, and from other x*. And without an encoder, from the Jacobian of g* at the
true z (Laplace): log p(x), and what the best factorized Gaussian would lose of it.

All quantities are in nats per image, of 12,288 dimensions.

    uv run celeba_encoder.py                         after dcgan.py
    uv run celeba_encoder.py --iterations 10000 --fid-images 5000     a hundredth of the training
    uv run celeba_encoder.py quick                   after `dcgan.py quick`; no FID
"""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import dcgan
from figures import cli, run
from figures.evidence import kl_to_prior, laplace, log_normal, noise_surplus, normal
from figures.frechet import Features, Moments, frechet_distance, inception, moments

Protocol = Literal["report", "released"]
Spaces = Mapping[str, Features]  # in which Fréchet distances are taken, by name
ADAM = {"report": (2e-4, (0.9, 0.999)), "released": (2e-5, (0.5, 0.999))}  # learning rate, betas
FREE_ON_RESUME = {"resume", "checkpoint_every", "out"}
NETWORKS = ("truth", "encoder", "decoder")  # of a VAE
# Batches, a quarter of the iterations at most, from which the encoder's batch norm takes its
# statistics anew at the end, under the report's protocol.
CALIBRATION = 200


@dataclass(frozen=True)
class TrainingOptions:
    """What this script and celeba_joint.py have in common."""

    iterations: cli.Count = 1_000_000
    """steps of Adam"""
    batch_size: cli.Count = 128
    """fresh samples per step"""
    lr: cli.OptionalPositive = None
    """learning rate; None: the protocol's, 2e-4 or 2e-5, in celeba_joint.py 2e-4 or 1e-5"""
    test_images: cli.Several = 10_000
    """fresh samples for the ELBO"""
    laplace_images: cli.Count = 64
    """fresh samples for log p(x) from the Jacobian"""
    fid_images: cli.Several = 200_000
    """images per side for Fréchet distances"""
    fid_dims: Literal[0, 64, 192, 768, 2048] = 2048
    """which of Inception's features; 0: no FID"""
    track: cli.Count = 20
    """points of the curves after the first, at the start: ELBO and Fréchet distances"""
    track_images: cli.Several = 1000
    """images for these"""
    precision: cli.Precision | None = None
    """arithmetic of training and of Inception, tf32 on NVIDIA's GPUs only; None: bfloat16 on a CPU
    with instructions for it, else float32
    """
    checkpoint_every: cli.Count = 1000
    """steps between checkpoints"""
    seed: cli.Natural = 0
    """seed of initialisation and samples"""
    device: str | None = None
    """where to train; None: the accelerator if there is one, else the CPU"""
    resume: bool = False
    """go on from --out, on the CPU bit by bit as if never stopped; measure a finished run again"""


@dataclass(frozen=True)
class Options(TrainingOptions):
    ground_truth: Path = Path("runs/dcgan/ground_truth.pt")
    """generator and discriminator kept by dcgan.py"""
    protocol: Protocol = "report"
    """batch norm and Adam as the report's text says, or as its released code does"""
    sigma: cli.Positive = 0.05
    """standard deviation of a pixel about g*(z), images being in [-1, 1]"""
    out: Path = Path("runs/celeba_encoder")
    """folder for model.pt, the figure and result.json"""


QUICK = Options(iterations=400, batch_size=64, lr=1e-3, track=2, track_images=200)
QUICK = replace(QUICK, test_images=500, laplace_images=8, fid_images=1000, fid_dims=0)


# --- model ----------------------------------------------------------------------------------------


class Encoder(nn.Module):
    """Images (N, 3, 64, 64) -> mu, log s, each (N, nz)."""

    def __init__(self, nz: int, ndf: int):
        super().__init__()
        self.nz = nz
        self.trunk = dcgan.trunk(ndf).apply(dcgan.initialise)
        self.head = nn.Conv2d(8 * ndf, 2 * nz, 4)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, log_s = widened(self.head(self.trunk(x))).flatten(1).chunk(2, 1)
        return mu, log_s


def widened(x: Tensor) -> Tensor:
    """What autocast left in bfloat16, as float32."""
    return x.float() if x.dtype == torch.bfloat16 else x


class VAE(nn.Module):
    """Ground truth g*, encoder, and the decoder g, which is g* itself until joint training.

    sigma: of the ground truth. log_sigma: of the decoder, a scalar; apart from it only with
    --learn-sigma.
    """

    def __init__(self, truth: dcgan.Generator, encoder: Encoder, sigma: float, decoder=None):
        super().__init__()
        self.truth = truth.requires_grad_(False)
        self.encoder = encoder
        self.decoder: dcgan.Generator = decoder or truth
        self.nz, self.sigma = encoder.nz, sigma
        self.log_sigma = nn.Parameter(torch.tensor(math.log(sigma)), requires_grad=False)

    def sample(self, z: Tensor, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents (N, nz) -> x* = g*(z) and x ~ N(x*, sigma^2 I), float32."""
        with torch.no_grad():
            clean = widened(self.truth(z))
            return clean, clean + self.sigma * normal(clean.shape, noise)

    def elbo(self, x: Tensor, noise: torch.Generator) -> dict[str, Tensor]:
        """Images (N, 3, 64, 64) -> ELBO, data term and KL, (N,), nats: from one z ~ q(z given x),
        log N(x; g(z), sigma^2 I) - KL(q(z given x) || N(0, I)), the report's equation 1 rearranged.

        Only measured in this script (`step` has its loss); celeba_joint.py maximises it.
        """
        mu, log_s = self.encoder(x)
        z = mu + log_s.exp() * normal(mu.shape, noise)
        data = log_normal(x, widened(self.decoder(z)), self.log_sigma)
        kl = kl_to_prior(mu, log_s)
        return {"elbo": data - kl, "data": data, "kl": kl}


@contextlib.contextmanager
def modes(vae: VAE, *batch_statistics: str, learning: bool = False) -> Generator[None]:
    """The named networks of `vae` normalise each batch by its own statistics; the others are in
    evaluation mode.

    learning: whether running statistics follow the batches. Those of g* never do.
    """
    vae.eval()
    fixed = set(vae.truth.modules())
    modules = [module for name in batch_statistics for module in getattr(vae, name).modules()]
    layers = [layer for layer in modules if isinstance(layer, nn.BatchNorm2d)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.train()
        if layer in fixed or not learning:
            layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        vae.eval()


# --- training -------------------------------------------------------------------------------------


class Trainer:
    """What a checkpoint holds of a training by Adam on fresh samples, and what it is tracked with.

    adam: learning rate and betas. kinds: which distances are tracked, frechet, prior, or both.
    also: what else a checkpoint holds.
    """

    KEPT = ("vae", "optimizer", "noise", "history", "iteration", "loss_sum", "seconds", "also")

    def __init__(
        self, vae: VAE, adam: tuple, options: Any, spaces: Spaces, kinds=("frechet",), **also: Any
    ):
        self.vae, self.options, self.spaces = vae, options, spaces
        self.device = device = vae.log_sigma.device
        self.also = also
        self.tested = vae  # what is tracked; in celeba_joint.py its decoder may be an average
        parameters = [p for p in vae.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, options.lr or adam[0], adam[1], fused=True)
        self.noise = torch.Generator(device).manual_seed(options.seed)
        keys = ["iteration", "loss", "elbo", "data", "kl", "sigma"]
        keys += [f"{kind}_{space}" for space in spaces for kind in kinds]
        self.history: dict[str, list] = {key: [] for key in keys}
        self.iteration, self.loss_sum, self.seconds = 0, torch.zeros((), device=device), 0.0
        self.known: dict[str, Moments] = {}  # of x*, by feature space

    def autocast(self) -> torch.autocast:
        """Inside, products are of the precision that the options want."""
        rounded = self.options.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=rounded)


def step(trainer: Trainer) -> Tensor:
    """One step of Adam on -log q(z given x) of fresh pairs."""
    vae, noise = trainer.vae, trainer.noise
    with trainer.autocast():
        z = normal((trainer.options.batch_size, vae.nz), noise)
        x = vae.sample(z, noise)[1]
        loss = -log_normal(z, *vae.encoder(x)).mean()  # of z under N(mu(x), diag s(x)^2)
    trainer.optimizer.zero_grad()
    loss.backward()
    trainer.optimizer.step()
    return loss.detach()


def measure(trainer: Trainer) -> dict[str, Any]:
    """The ELBO of fresh samples, with its parts."""
    options, vae = trainer.options, trainer.tested
    with modes(vae, *(NETWORKS if options.protocol == "released" else ())):
        return mean_elbo(vae, options.track_images, options, trainer.device)


Step = Callable[[Trainer], Tensor]  # of Adam; returns the loss, nats per image
Measure = Callable[[Trainer], dict[str, Any]]  # elbo, data, kl, and what else is tracked


def train(
    trainer: Trainer, step: Step, measure: Measure, by_batch: tuple[str, ...], checkpoint: Path
) -> None:
    """Train to --iterations, from the checkpoint if there is one: in turns track, save, and train
    until either is due. The networks `by_batch` normalise each batch by its own statistics.
    """
    total, options = trainer.options.iterations, trainer.options
    points = {round(total * i / options.track) for i in range(options.track + 1)}
    if checkpoint.exists():
        resume(trainer, checkpoint)
    run.take_back(options.out, "iteration", trainer.iteration)
    every = options.checkpoint_every
    with (
        run.saving_at_sigterm() as told,
        tqdm(total=total, initial=trainer.iteration, desc="training", unit="step") as bar,
    ):
        while True:
            left = points.difference(trainer.history["iteration"])
            if trainer.iteration in left:
                track(trainer, measure(trainer))
                bar.set_postfix_str(f"ELBO {trainer.history['elbo'][-1]:.0f}")
            due = trainer.iteration % every == 0 or trainer.iteration == total
            if trainer.iteration and (due or told()):
                run.save_trainer(checkpoint, trainer)
            if trainer.iteration == total or told():
                return
            start = time.perf_counter()
            checkpoint_at = (trainer.iteration // every + 1) * every
            stop = min([total, checkpoint_at, *(i for i in left if i > trainer.iteration)])
            with modes(trainer.vae, *by_batch, learning=True):
                while trainer.iteration < stop and not told():
                    trainer.loss_sum = trainer.loss_sum + step(trainer)
                    trainer.iteration += 1
                    bar.update()
            trainer.seconds += time.perf_counter() - start


def track(trainer: Trainer, measured: dict[str, Any]) -> None:
    """Add a point to the curves."""
    options, vae, history = trainer.options, trainer.tested, trainer.history
    images = Images(vae, options, options.track_images, trainer.device)
    for name, features in trainer.spaces.items():
        if name not in trainer.known:
            trainer.known[name] = moments(features, images("truth"))
        for key, stream in ((f"frechet_{name}", "decoded"), (f"prior_{name}", "prior")):
            if key in history:
                found = moments(features, images(stream))
                history[key].append(frechet_distance(trainer.known[name], found))
    since = trainer.iteration - (history["iteration"][-1] if history["iteration"] else 0)
    loss = float(trainer.loss_sum) / since if since else None
    values = {"iteration": trainer.iteration, "loss": loss} | measured
    values["sigma"] = vae.log_sigma.exp().item()
    run.check_finite(values, f"at iteration {trainer.iteration}")
    for key, value in values.items():
        history[key].append(value)
    trainer.loss_sum = torch.zeros((), device=trainer.device)
    run.note(options.out, **{key: h[-1] for key, h in history.items() if h})


def resume(trainer: Trainer, path: Path) -> None:
    """Go on from a checkpoint. Raises RunError if it is none, or one of another run."""
    with run.reading(path, "checkpoint of such a run") as state:
        run.same_options(path, state["config"], run.as_config(trainer.options), FREE_ON_RESUME)
        if other := sorted(state["history"].keys() ^ trainer.history.keys()):
            # Such as frechet_inception, with Inception's weights at one time and not at the other.
            raise cli.RunError(f"--resume: {path} has other curves, apart in {', '.join(other)}")
        truth = trainer.vae.truth.named_parameters()
        if not all(torch.equal(state["vae"][f"truth.{name}"], p.cpu()) for name, p in truth):
            raise cli.RunError(f"--resume: {path} is of another ground truth")
        run.restore(trainer, state)


def networks_of(
    state: Mapping, device: torch.device
) -> tuple[dcgan.Generator, dcgan.Discriminator, dict[str, Any]]:
    """Generator and discriminator of dcgan.py in evaluation mode, and what it said of them."""
    width = state["width"]
    generator = dcgan.Generator(width["nz"], width["ngf"])
    discriminator = dcgan.Discriminator(width["ndf"])
    generator.load_state_dict(state["generator"])
    discriminator.load_state_dict(state["discriminator"])
    for network in (generator, discriminator):
        network.to(device).eval().requires_grad_(False)
    origin = {key: state[key] for key in ("width", "epoch", "data", "seed", "images")}
    return generator, discriminator, origin


def main(options: Options) -> None:
    device, checkpoint = run.begin(options)
    options = run.precise(options, device)
    with run.reading(options.ground_truth, "ground truth of dcgan.py") as ground_truth:
        truth, discriminator, origin = networks_of(ground_truth, device)
    torch.manual_seed(options.seed)
    encoder = Encoder(origin["width"]["nz"], origin["width"]["ndf"])
    vae = VAE(truth, encoder.to(device), options.sigma).to(device)
    spaces = feature_spaces(options, discriminator, device)
    trainer = Trainer(vae, ADAM[options.protocol], options, spaces)
    by_batch = NETWORKS if options.protocol == "released" else ("encoder",)
    train(trainer, step, measure, by_batch, checkpoint)
    if options.protocol == "report":  # the encoder is tested by statistics of its last weights
        noise = torch.Generator(device).manual_seed(5_000_003 + options.seed)
        batches = min(CALIBRATION, math.ceil(options.iterations / 4))
        latents = (normal((options.batch_size, vae.nz), noise) for _ in range(batches))
        update_bn((vae.sample(z, noise)[1] for z in latents), vae.encoder)
    metrics = evaluate(vae, options, spaces, device)
    model = {"encoder": vae.encoder.state_dict(), "config": run.as_config(options)}
    run.save_torch(options.out / "model.pt", model | {"ground_truth": ground_truth})
    finish(trainer, metrics, origin, "frozen")


def finish(trainer: Trainer, metrics: dict, origin: Mapping, stage: str) -> None:
    """Write and print the result of a training, and its figure; stage: a row of Table 1."""
    options, seconds = trainer.options, trainer.seconds + metrics.pop("seconds")
    metrics |= {"iterations": trainer.iteration}
    result = run.save_result(
        *(options, trainer.device, seconds, metrics, trainer.history),
        data=origin["images"],
        ground_truth=dict(origin),
    )
    from figures import section4

    section4.report_training(result, options.out, stage)


# --- evaluation, shared with celeba_joint.py ------------------------------------------------------


@torch.no_grad()
def mean_elbo(vae: VAE, count: int, options: Any, device: torch.device) -> dict[str, Any]:
    """Means over `count` fresh samples, the same at each call, nats: kl, and elbo and data with
    `noise_surplus` added, for less variance. The networks' modes are the caller's.
    """
    noise = torch.Generator(device).manual_seed(1_000_003 + options.seed)
    sums: dict[str, Any] = dict.fromkeys(("elbo", "data", "kl"), 0.0)
    for start in range(0, count, options.batch_size):
        z = normal((min(options.batch_size, count - start), vae.nz), noise)
        clean, x = vae.sample(z, noise)
        parts, surplus = vae.elbo(x, noise), noise_surplus(x, clean, vae.sigma)
        for key, value in parts.items():
            value = value if key == "kl" else value + surplus
            sums[key] += value.double().sum()
    return {key: (value / count).item() for key, value in sums.items()}


class Images:
    """Streams of images for Fréchet distances; each call of one begins the same stream anew.

    Under the released code's protocol the networks are in training mode, and images are made one at
    a time, as it makes those for FID.
    """

    def __init__(self, vae: VAE, options: Any, count: int, device: torch.device):
        self.vae, self.count, self.device = vae, count, device
        self.one_by_one = options.protocol == "released"
        self.batch_size, self.seed = options.batch_size, options.seed

    @torch.no_grad()
    def __call__(self, kind: str) -> Iterator[Tensor]:
        """Batches of `kind`: truth (x*), noisy (x), decoded (g(z'), z' ~ q), noisy_decoded (with
        the truth's sigma), prior (g(z) of other z), truth_prior (g*(z) of the same other z).
        """
        prior = kind.endswith("prior")
        # All kinds see the same noise: of z and pixels 0 (priors: 1, other z), of q 2, of decoded
        # images 3.
        seeds = (self.seed + 4_000_037 + i for i in (1 if prior else 0, 2, 3))
        noise, of_q, of_decoded = (torch.Generator(self.device).manual_seed(s) for s in seeds)
        vae = self.vae
        with modes(vae, *(NETWORKS if self.one_by_one else ())):
            for start in range(0, self.count, self.batch_size):
                z = normal((min(self.batch_size, self.count - start), vae.nz), noise)
                if prior:
                    yield self.each(vae.decoder if kind == "prior" else vae.truth, z)
                    continue
                clean = self.each(vae.truth, z)
                x = clean + vae.sigma * normal(clean.shape, noise)
                if kind in ("truth", "noisy"):
                    yield clean if kind == "truth" else x
                    continue
                of_pieces = zip(*map(vae.encoder, self.pieces(x)), strict=True)
                mu, log_s = map(torch.cat, of_pieces)
                decoded = self.each(vae.decoder, mu + log_s.exp() * normal(mu.shape, of_q))
                if kind == "noisy_decoded":
                    decoded += vae.sigma * normal(clean.shape, of_decoded)
                yield decoded

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(1) if self.one_by_one else (x,)

    def each(self, network: nn.Module, x: Tensor) -> Tensor:
        return torch.cat([network(piece) for piece in self.pieces(x)])


# Which two of `Images` a distance in result.json is of; "means" are re-decodings without noise.
FROZEN_DISTANCES = {
    "means": ("truth", "decoded"),
    "noise_alone": ("truth", "noisy"),
    "floor": ("truth", "truth_prior"),
}
DISTANCES = FROZEN_DISTANCES | {
    "noise_on_one_side": ("truth", "noisy_decoded"),
    "prior": ("truth", "prior"),
}


def distances(features: Features, images: Images) -> dict[str, float]:
    """The Fréchet distances of one of the tables above in one feature space."""
    pairs = FROZEN_DISTANCES if images.vae.decoder is images.vae.truth else DISTANCES
    kinds = dict.fromkeys(kind for pair in pairs.values() for kind in pair)
    bar = tqdm(kinds, desc="features", leave=False)
    known = {kind: moments(features, images(kind)) for kind in bar}
    return {name: frechet_distance(known[a], known[b]) for name, (a, b) in pairs.items()}


def feature_spaces(options: Any, network: dcgan.Discriminator, device: torch.device) -> Spaces:
    """The discriminator's features; and Inception's, if they can be had and --fid-dims is not 0."""
    spaces: dict[str, Features] = {"discriminator": network.features}
    if options.fid_dims:
        try:
            spaces["inception"] = inception(options.fid_dims, device, options.precision)
        except cli.RunError as error:
            print(f"{error}. FID: no weights")
    return spaces


def evaluate(vae: VAE, options: Any, spaces: Spaces, device: torch.device) -> dict[str, Any]:
    """All of the evaluation, and the seconds it took."""
    start = time.perf_counter()
    with modes(vae):
        metrics = mean_elbo(vae, options.test_images, options, device)
        metrics["laplace"] = laplace(vae, options, device)
    if options.protocol == "released":
        with modes(vae, *NETWORKS):
            metrics["batch_statistics"] = mean_elbo(vae, options.test_images, options, device)
    images = Images(vae, options, options.fid_images, device)
    metrics["frechet"] = {name: distances(f, images) for name, f in spaces.items()}
    metrics["sigma"] = vae.log_sigma.exp().item()
    metrics["seconds"] = time.perf_counter() - start
    return metrics


RUNS = (
    ("report", main, Options(), "the report's encoder, the default"),
    ("quick", main, QUICK, "after `dcgan.py quick`: minutes on two cores, no FID"),
)

if __name__ == "__main__":
    cli.main(__doc__, *RUNS)
