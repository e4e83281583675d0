"""CelebA as files on disk, and drawn faces."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from toy import posix

from data import DataError, celeba, faces

COUNT = 12
REAL = os.environ.get(celeba.ENVIRONMENT_VARIABLE)


@pytest.fixture(autouse=True)
def _no_images_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(celeba.ENVIRONMENT_VARIABLE, raising=False)


def jpegs() -> dict[str, bytes]:
    """Drawn faces as JPEG files of CelebA's shape, at half its size."""
    files = {}
    for i, face in enumerate(faces.draw(COUNT, seed=5).transpose(0, 2, 3, 1)):
        buffer = io.BytesIO()
        Image.fromarray(face).resize((89, 109)).save(buffer, "JPEG")
        files[f"img_align_celeba/{i + 1:06d}.jpg"] = buffer.getvalue()
    return files


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def unpacked(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_zip_and_folder_give_the_tutorials_images(tmp_path: Path) -> None:
    files = jpegs()
    junk = {
        "__MACOSX/img_align_celeba/._000001.jpg": b"?",
        "img_align_celeba/.hidden.jpg": b"?",
        "README.txt": b"?",
    }
    from_zip = celeba.load(zipped(tmp_path / "a.zip", files | junk), tmp_path)
    from_folder = celeba.load(unpacked(tmp_path / "unpacked", files | junk), tmp_path)
    tutorial = transforms.Compose(
        [transforms.Resize(64), transforms.CenterCrop(64), transforms.ToTensor()]
    )
    expected = torch.stack([tutorial(Image.open(io.BytesIO(data))) for data in files.values()])
    assert from_zip.shape == (COUNT, 3, 64, 64)
    np.testing.assert_array_equal(from_zip, (expected * 255).round().byte().numpy())
    np.testing.assert_array_equal(from_zip, from_folder)


def test_images_are_decoded_once_and_memory_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", jpegs())
    first = celeba.load(archive, tmp_path)
    monkeypatch.setattr(celeba, "_decode", None)
    again = celeba.load(archive, tmp_path)
    assert isinstance(again, np.memmap)
    np.testing.assert_array_equal(first, again)


def test_other_images_in_the_same_place_are_decoded_anew(tmp_path: Path) -> None:
    files = jpegs()
    before = celeba.load(zipped(tmp_path / "a.zip", files), tmp_path)
    files.popitem()
    assert len(before) == COUNT
    assert len(celeba.load(zipped(tmp_path / "a.zip", files), tmp_path)) == COUNT - 1


@pytest.mark.parametrize("packed", [True, False])
def test_corrupt_images_are_named_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture, packed: bool
) -> None:
    files = jpegs()
    names = list(files)
    files[names[2]] = b"no image"
    files[names[7]] = files[names[7]][:300]
    images = celeba.load(
        (zipped if packed else unpacked)(tmp_path / "images", files), tmp_path / "cache"
    )
    said = capsys.readouterr().out
    assert len(images) == COUNT - 2
    assert f"2 of {COUNT} images cannot be read" in said
    assert names[2] in said
    assert names[7] in said
    rest = {name: data for name, data in files.items() if name not in (names[2], names[7])}
    np.testing.assert_array_equal(
        images, celeba.load(zipped(tmp_path / "b.zip", rest), tmp_path / "cache")
    )


@pytest.mark.parametrize(("offset", "value"), [(10, 9), (8, 1)])
def test_images_of_zips_that_python_does_not_read_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture, offset: int, value: int
) -> None:
    """Deflate64 and encryption: the first member is marked so, in the directory."""
    archive = zipped(tmp_path / "a.zip", jpegs())
    data = bytearray(archive.read_bytes())
    data[data.index(b"PK\x01\x02") + offset] = value
    archive.write_bytes(data)
    assert len(celeba.load(archive, tmp_path / "cache")) == COUNT - 1
    assert f"1 of {COUNT} images cannot be read" in capsys.readouterr().out


def test_grey_of_16_bits_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = unpacked(tmp_path / "images", jpegs())
    Image.fromarray(np.full((70, 70), 32_768, np.uint16)).save(folder / "grey.png")
    assert len(celeba.load(folder, tmp_path / "cache")) == COUNT
    assert "images cannot be read and are left out: grey.png" in capsys.readouterr().out


@pytest.mark.parametrize(
    "what", ["nothing there", "empty folder", "no zip", "empty zip", "only broken", "named"]
)
def test_no_images_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    path = tmp_path / "here"
    if what == "empty folder":
        path.mkdir()
    elif what == "no zip":
        path.write_bytes(b"text")
    elif what == "empty zip":
        zipped(path, {"README": b""})
    elif what == "only broken":
        zipped(path, {"1.jpg": b"?", "2.png": b"?"})
    elif what == "named":
        monkeypatch.setenv(celeba.ENVIRONMENT_VARIABLE, str(path))
    with pytest.raises(DataError) as error:
        celeba.load(None if what == "named" else path, tmp_path / "cache")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.npy*"))


def test_images_that_are_nowhere_are_one_line(tmp_path: Path) -> None:
    assert celeba.find(None, tmp_path) is None
    with pytest.raises(DataError, match=r"img_align_celeba\.zip from .*--images .*--data faces"):
        celeba.load(None, tmp_path)


def test_an_interrupted_decoding_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zipped(tmp_path / "a.zip", jpegs())

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(celeba, "_rgb", stop)
        with pytest.raises(KeyboardInterrupt):
            celeba.load(archive, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]
    assert len(celeba.load(archive, tmp_path)) == COUNT


@pytest.mark.real
def test_the_real_images(tmp_path: Path) -> None:
    if not REAL:
        pytest.skip("CELEBA_IMAGES does not name the real images")
    images = celeba.load(Path(REAL), tmp_path)
    assert images.shape[1:] == (3, 64, 64)
    assert 60 < images[:1000].mean() < 160


def test_drawn_faces_are_the_same_by_seed_and_differ() -> None:
    some, more = faces.draw(40), faces.draw(70)
    assert some.dtype == np.uint8
    assert some.shape == (40, 3, 64, 64)
    np.testing.assert_array_equal(some, more[:40])
    assert (faces.draw(40, seed=1) != some).any(axis=(1, 2, 3)).all()
    pixels = more.reshape(70, -1).astype(float)
    distances = np.linalg.norm(pixels[:, None] - pixels[None], axis=2) / np.sqrt(pixels.shape[1])
    assert distances[~np.eye(70, dtype=bool)].min() > 10  # levels of 255: no two are alike
    assert pixels.std(0).min() > 15  # and no pixel is the same in all


def test_a_cache_that_was_changed_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    archive = zipped(tmp_path / "a.zip", jpegs())
    first = np.array(celeba.load(archive, tmp_path))
    (cache,) = tmp_path.glob("*.npy")
    data = bytearray(cache.read_bytes())
    data[-1000:] = bytes(1000)  # of another process that wrote into it, say
    cache.write_bytes(data)
    np.testing.assert_array_equal(celeba.load(archive, tmp_path), first)
    assert "digest is another" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_images_of_one_name_are_two_and_a_bomb_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(celeba, "LARGEST", 100_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for grey in (10, 250):
            buffer = io.BytesIO()
            Image.new("RGB", (89, 109), (grey, grey, grey)).save(buffer, "png")
            archive.writestr("a/1.png", buffer.getvalue())
        archive.writestr("a/2.jpg", bytes(200_000))
    images = celeba.load(tmp_path / "a.zip", tmp_path)
    assert images[:, 0, 0, 0].tolist() == [10, 250]
    assert "1 of 3 images cannot be read" in capsys.readouterr().out


@posix
def test_pipes_in_a_folder_are_no_images(tmp_path: Path) -> None:
    folder = unpacked(tmp_path / "images", jpegs())
    os.mkfifo(folder / "pipe.jpg")
    assert len(celeba.load(folder, tmp_path / "cache")) == COUNT
