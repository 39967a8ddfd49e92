"""Pictures that are too large to be decoded whole, with limits that small ones exceed."""

import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq import memory
from onnxq.errors import DataError
from onnxq.yolo.inputs import image_files, large_pictures
from onnxq.yolo.inputs.image_files import ImageReader, read_image
from onnxq.yolo.inputs.large_pictures import to_array

SAVES: dict[str, Callable[[Image.Image, Path], None]] = {
    "jpg": lambda image, path: image.save(path.with_suffix(".jpg"), quality=95),
    "progressive": lambda image, path: image.save(path.with_suffix(".jpg"), quality=95, progressive=True),
    "png": lambda image, path: image.save(path.with_suffix(".png")),
    "palette": lambda image, path: image.convert("P", palette=Image.Palette.ADAPTIVE).save(path.with_suffix(".png")),
    "grey": lambda image, path: image.convert("L").save(path.with_suffix(".png")),
    "grey and alpha": lambda image, path: image.convert("LA").save(path.with_suffix(".png")),
    "alpha": lambda image, path: image.convert("RGBA").save(path.with_suffix(".png")),
    "bits": lambda image, path: image.convert("1").save(path.with_suffix(".png")),
    "tif": lambda image, path: image.save(path.with_suffix(".tif")),
    "webp": lambda image, path: image.save(path.with_suffix(".webp"), quality=95),
}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "LARGE", 5_000)
    monkeypatch.setattr(large_pictures, "LARGE", 5_000)
    monkeypatch.setattr(large_pictures, "REDUCED", 1_000)
    monkeypatch.setattr(large_pictures, "_BAND", 500)
    monkeypatch.setattr(large_pictures, "_PIECE", 100)


def picture(height: int = 91, width: int = 120) -> Image.Image:
    """A ramp with some noise."""
    rng = np.random.default_rng(0)
    across = np.linspace(40, 200, width)[None, :, None] + rng.normal(0, 5, (height, width, 3))
    return Image.fromarray(across.clip(0, 255).astype(np.uint8))


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES.keys())
def test_are_scaled_down(tmp_path: Path, save: Callable[[Image.Image, Path], None]) -> None:
    save(picture(), tmp_path / "a")
    [path] = tmp_path.iterdir()
    small = read_image(path)
    assert small.shape[0] * small.shape[1] <= 1_200
    assert small.shape[1] / small.shape[0] == pytest.approx(120 / 91, rel=0.1)
    if path.stem != "bits":
        expected = np.linspace(40, 200, small.shape[1])
        assert np.abs(small[:, :, 0].mean(axis=0) - expected).max() < 12


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["png", "palette", "grey", "grey and alpha", "alpha"])
def test_bands_give_what_the_whole_gives(tmp_path: Path, kind: str) -> None:
    SAVES[kind](picture(), tmp_path / "a")
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.convert("RGB").reduce(4))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_are_turned_upright(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().save(tmp_path / f"a.{kind}", exif=exif)
    small = read_image(tmp_path / f"a.{kind}")
    assert small.shape[0] > small.shape[1]
    assert small[0].mean() < small[-1].mean()


@pytest.mark.usefixtures("small_limits")
def test_smaller_pictures_stay_as_they_are(tmp_path: Path) -> None:
    picture(70, 70).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.asarray(picture(70, 70)))


@pytest.mark.usefixtures("small_limits")
def test_damaged_pixels_are_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    picture().save(buffer, "png")
    for at in range(60, len(buffer.getvalue()), 1000):
        content = bytearray(buffer.getvalue())
        content[at] ^= 255
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png: cannot be read as an image: "):
            read_image(tmp_path / "a.png")
        (tmp_path / "a.png").write_bytes(buffer.getvalue()[:at])
        with pytest.raises(DataError, match=r"a\.png: cannot be read as an image: "):
            read_image(tmp_path / "a.png")


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize(
    ("kind", "size", "remedy"),
    [
        ("progressive", "32.8 KB", "save it as a JPEG that is not progressive, or cut it into tiles"),
        ("tif", "43.7 KB", "save it as JPEG or as PNG of 8 bits, which are decoded at a smaller scale, or cut it into"),
        ("webp", "87.4 KB", "save it as JPEG or as PNG of 8 bits"),
    ],
)
def test_what_is_decoded_whole_must_fit_into_memory(tmp_path: Path, kind: str, size: str, remedy: str) -> None:
    SAVES[kind](picture(), tmp_path / "a")
    [path] = tmp_path.iterdir()
    with memory.limited_to(30_000), pytest.raises(DataError, match=re.escape(remedy)) as raised:
        read_image(path)
    assert f"{path.name}: decoding its 120 x 91 pixels would take {size} of memory" in str(raised.value)
    with memory.limited_to(10**6):
        assert read_image(path).size


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_what_is_decoded_in_parts_needs_little(tmp_path: Path, kind: str) -> None:
    SAVES[kind](picture(), tmp_path / "a")
    with memory.limited_to(30_000):
        assert read_image(tmp_path / f"a.{kind}").size


def test_pictures_take_half_a_gigabyte_unless_more_is_allowed(tmp_path: Path) -> None:
    # A header without pixels: nothing is decoded.
    Image.new("I;16", (1, 1)).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[16:24] = (9000).to_bytes(4) + (9000).to_bytes(4)
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"9000 x 9000 pixels would take 1\.1 GB of memory, and the limit is 500\.0 MB"):
        read_image(tmp_path / "a.png")
    with memory.limited_to(2 * 10**9), pytest.raises(DataError, match="cannot be read as an image"):
        read_image(tmp_path / "a.png")


@pytest.mark.usefixtures("small_limits")
def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    for name in "abc":
        SAVES["png"](picture(), tmp_path / name)
    reader = ImageReader([])
    first = reader(tmp_path / "a.png")
    assert reader(tmp_path / "a.png") is first
    for name in "bc":
        reader(tmp_path / f"{name}.png")
    assert reader(tmp_path / "a.png") is not first


def test_an_array_without_copies_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_pictures, "_BAND", 500)
    np.testing.assert_array_equal(to_array(picture()), np.asarray(picture()))
