"""Fréchet distances of sets of images: moments of features, Inception, thumbnails (Section 4)."""

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from figures.cli import RunError

Features = Callable[[Tensor], Tensor]  # images (N, 3, 64, 64) in [-1, 1] -> (N, dims)


def as_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1], or a little out of it, as uint8."""
    return ((images * 127.5 + 128).clamp(0, 255)).byte()


@dataclass(eq=False)
class Moments:
    """Mean and covariance of features (N, dims), accumulated in float64 batch by batch."""

    count: int = 0
    sum: Any = 0.0
    products: Any = 0.0

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
    """Moments of features of images, rounded to 8 bits first as in pytorch-fid's PNG files."""
    result = Moments()
    for images in batches:
        result.add(features(as_bytes(images).float() / 127.5 - 1))
    return result


def frechet_distance(a: Moments, b: Moments) -> float:
    """Fréchet distance of two Gaussians with these moments (Heusel et al. 2017, equation 6).

    The trace of the square root of the covariances' product is the sum of the singular values of
    the product of their own square roots, which are real however few the images. Raises RunError
    for moments that are not finite.
    """
    import scipy.linalg

    (mean, covariance), (other_mean, other) = a.statistics(), b.statistics()
    roots = []
    try:
        for matrix in (covariance, other):  # R R' of no negative eigenvalues, but for rounding
            eigenvalues, vectors = scipy.linalg.eigh(matrix)
            roots.append(vectors * np.sqrt(eigenvalues.clip(0)))
        overlap = scipy.linalg.svdvals(roots[0].T @ roots[1]).sum()
    except ValueError as error:
        counts = f"{a.count} and {b.count} images"
        raise RunError(f"no Fréchet distance of {counts}: {error}; take more images") from error
    apart = ((mean - other_mean) ** 2).sum()
    return float(apart + np.trace(covariance) + np.trace(other) - 2 * overlap)


def inception(dims: int, device: torch.device, precision: str = "float32") -> Features:
    """pytorch-fid's network up to the features of `dims` numbers; it is downloaded at first use.

    precision: of its convolutions. bfloat16 moves FIDs by about one per cent, and is twice as fast
    where it is native.

    Raises RunError, one line, if the weights cannot be had.
    """
    from pytorch_fid import inception as package
    from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3

    # pytorch-fid would run code that stands in the weights, and does not look at the digest in
    # their name.
    load = functools.partial(package.load_state_dict_from_url, weights_only=True)
    weights = Path(torch.hub.get_dir()) / "checkpoints" / FID_WEIGHTS_URL.rpartition("/")[2]
    try:
        with mock.patch.object(package, "load_state_dict_from_url", load):
            network = InceptionV3([InceptionV3.BLOCK_INDEX_BY_DIM[dims]])
    except Exception as error:  # no network; or, of a broken file, TypeError to UnpicklingError
        reason = (str(error) or type(error).__name__).splitlines()[0]
        place = f"get {FID_WEIGHTS_URL} as {weights}, which TORCH_HOME can move"
        raise RunError(f"no Inception weights ({reason}): {place}") from error
    digest = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""
    if not digest.startswith(weights.stem.rpartition("-")[2]):
        print(f"{weights} has the digest {digest[:8]}: not pytorch-fid's weights, nor its FID")
    network = network.eval().requires_grad_(False).to(device)
    network.to(memory_format=torch.channels_last)

    def features(images: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            planes = network((images / 2 + 0.5).contiguous(memory_format=torch.channels_last))[0]
        return planes.float().mean((2, 3))

    return features


def thumbnails(images: Tensor) -> Tensor:
    """Images at 16x16, as vectors: (N, 768)."""
    return F.avg_pool2d(images, 4).flatten(1)
