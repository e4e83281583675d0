"""CelebA, aligned and cropped, as the 64x64 images of Section 4: shorter side to 64, then the
middle 64x64.

Source: Z. Liu, P. Luo, X. Wang, X. Tang, "Deep Learning Face Attributes in the Wild", ICCV 2015;
202,599 images for non-commercial research, https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html.

The images are decoded once, into one file of bytes beside this module that is memory-mapped
afterwards (2.5 GB for all of them). It is never held in memory as a whole.
"""

import contextlib
import hashlib
import io
import os
import threading
import zipfile
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from data import DataError, aside, write_aside

NAME = "CelebA"
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
ARCHIVE = "img_align_celeba.zip"
FOLDER = "img_align_celeba"
ENVIRONMENT_VARIABLE = "CELEBA_IMAGES"
SIZE = 64
SUFFIXES = {".jpg", ".jpeg", ".png"}
LARGEST = 64 << 20  # bytes of an image file; a photograph of CelebA has 10 kB
NAMED = 5  # unreadable images that are named; the others are counted


def load(images: Path | None = None, folder: Path = Path(__file__).parent) -> np.ndarray:
    """All images, uint8, shape (N, 3, 64, 64), red green blue, memory-mapped, in the order of their
    names.

    images: img_align_celeba.zip, or a folder with the images anywhere in it. None looks at the
        environment variable CELEBA_IMAGES, then for the zip or the folder img_align_celeba in
        `folder`.
    Unreadable images are left out, named and counted on the terminal. Raises DataError, one line,
    if there are no images.
    """
    source = find(images, folder)
    if source is None or not source.exists():
        raise DataError(
            f"no CelebA images at {source or folder / ARCHIVE}: get {ARCHIVE} from {PAGE} and put "
            f"it there, or name it with --images or {ENVIRONMENT_VARIABLE}; or do without, with "
            "--data faces"
        )
    with _opened(source) as (marks, read):
        if not marks:
            raise DataError(f"{source}: no image in it ({', '.join(sorted(SUFFIXES))})")
        path = folder / f"celeba-{SIZE}-{hashlib.sha256(repr(marks).encode()).hexdigest()[:12]}.npy"
        if path.is_file() and (kept := _cached(path)) is not None:
            return kept
        _decode(source, marks, read, path)
    return np.load(path, mmap_mode="r")


def find(images: Path | None = None, folder: Path = Path(__file__).parent) -> Path | None:
    """Where the images are or, if `images` or the environment says so, should be; None: nowhere."""
    named = images or os.environ.get(ENVIRONMENT_VARIABLE)
    places = (folder / part / name for part in ("", "celeba") for name in (ARCHIVE, FOLDER))
    return Path(named) if named else next((path for path in places if path.exists()), None)


def name_of(images: Path | None) -> str:
    """What results call the images."""
    source = find(images)
    usual = source is None or source.name in (ARCHIVE, FOLDER)
    return NAME if usual else f"images of {source.name}"


Mark = tuple[str, int, int]  # an image's name, size in bytes, and what else changes with it


@contextlib.contextmanager
def _opened(source: Path) -> Generator[tuple[list[Mark], Callable[[int], bytes]]]:
    """The marks of the images, by name, and what reads one by its number."""
    if source.is_dir():
        names = (path.relative_to(source) for path in source.rglob("*") if path.is_file())
        paths = [source / name for name in sorted(filter(_is_image, names))]
        stats = ((path, path.stat()) for path in paths)
        marks = [(str(p.relative_to(source)), s.st_size, s.st_mtime_ns) for p, s in stats]
        yield marks, lambda number: paths[number].read_bytes()
        return
    try:
        archive = zipfile.ZipFile(source)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{source} is no folder and no zip file: {error}") from error
    with archive:
        members = [member for member in archive.infolist() if _is_image(Path(member.filename))]
        members.sort(key=lambda member: member.filename)
        lock = threading.Lock()

        def read(number: int) -> bytes:
            with lock:  # one file position for all threads; by entry: a name may be there twice
                return archive.read(members[number])

        yield [(member.filename, member.file_size, member.CRC) for member in members], read


def _rgb(image: Image.Image) -> Image.Image:
    """With 8 bits per channel. Raises ValueError for more, which Pillow would clip to white."""
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}")
    return image.convert("RGB")


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".") or "__MACOSX" in path.parts
    return path.suffix.lower() in SUFFIXES and not hidden


def _decode(source: Path, marks: list[Mark], read: Callable[[int], bytes], path: Path) -> None:
    """Write the readable images of `source` to `path`, and their digest beside it."""
    from torchvision import transforms

    prepare = transforms.Compose([transforms.Resize(SIZE), transforms.CenterCrop(SIZE)])

    def decoded(number: int) -> np.ndarray | None:
        if marks[number][1] > LARGEST:
            return None
        try:
            with Image.open(io.BytesIO(read(number))) as image:
                return np.asarray(prepare(_rgb(image))).transpose(2, 0, 1)
        except Exception:  # of Pillow and zipfile, a dozen kinds
            return None

    unreadable, count = [], 0

    def write_header(file: BinaryIO, images: int) -> None:  # of one length, whatever their number
        form = {"descr": "|u1", "fortran_order": False, "shape": (images, 3, SIZE, SIZE)}
        np.lib.format.write_array_header_1_0(file, form)

    # Decoding and resizing let other threads run.
    with aside(path) as file, ThreadPoolExecutor() as pool:
        write_header(file, len(marks))
        images = pool.map(decoded, range(len(marks)))
        images = tqdm(images, total=len(marks), desc=f"decoding {source.name}", unit="image")
        for (name, *_), image in zip(marks, images, strict=True):
            if image is None:
                unreadable.append(name)
            else:
                file.write(image.tobytes())
                count += 1
        file.seek(0)
        write_header(file, count)
        if not count:
            hint = "" if source.is_dir() else "; unpack it, and name the folder"
            raise DataError(f"{source}: none of its {len(marks)} images can be read{hint}")
        if unreadable:
            shown = ", ".join(unreadable[:NAMED]) + ", ..." * (len(unreadable) > NAMED)
            left_out = f"{len(unreadable)} of {len(marks)} images cannot be read and are left out"
            print(f"{source}: {left_out}: {shown}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_aside(path.with_suffix(".sha256"), digest.encode())


def _cached(path: Path) -> np.ndarray | None:
    """The images at `path`, memory-mapped, if they are those that were decoded."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if path.with_suffix(".sha256").read_text(encoding="utf-8") != digest:
            raise ValueError("its digest is another")
        return np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        print(f"{path} cannot be read ({error}); making it again")
        return None
