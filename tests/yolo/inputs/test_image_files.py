import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from onnxq.errors import DataError
from onnxq.yolo.inputs import image_files
from onnxq.yolo.inputs.image_files import ImageReader, orientation, read_image, stored_size


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


class TestReadImage:
    def test_rgb_is_read_as_it_is(self, tmp_path: Path) -> None:
        image = noise(5, 7)
        Image.fromarray(image).save(tmp_path / "a.png")
        read = read_image(tmp_path / "a.png")
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, image)

    @pytest.mark.parametrize(
        ("mode", "suffix"), [("L", "png"), ("1", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("CMYK", "tif")]
    )
    def test_other_modes_become_rgb(self, tmp_path: Path, mode: str, suffix: str) -> None:
        colour = Image.new("RGB", (6, 4), (255, 255, 255))
        path = tmp_path / f"a.{suffix}"
        colour.convert(mode).save(path)
        np.testing.assert_array_equal(read_image(path), np.full((4, 6, 3), 255))

    def test_palette_with_transparency(self, tmp_path: Path) -> None:
        palette = Image.new("RGB", (6, 4), (51, 102, 255)).convert("P")
        palette.save(tmp_path / "a.png", transparency=bytes([0, 128, 255]))
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.full((4, 6, 3), (51, 102, 255)))

    @pytest.mark.parametrize("suffix", ["png", "eps"])
    def test_a_program_that_draws_a_picture_is_not_started(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(noise(5, 7)).save(path, "EPS")
        with pytest.raises(DataError, match="cannot identify image file"):
            read_image(path)

    def test_exif_orientation_turns_it_upright(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: rotate a quarter clockwise to show
        image = noise(4, 6)
        Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(image, -1))

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"a\.png: no such image"):
            read_image(tmp_path / "a.png")

    def test_not_an_image(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_text("hello")
        with pytest.raises(DataError, match=r"a\.png: cannot be read as an image: cannot identify"):
            read_image(tmp_path / "a.png")

    def test_cut_short(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jpg"
        Image.fromarray(noise(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[:-500])
        with pytest.raises(DataError, match=r"a\.jpg: cannot be read as an image: .*truncated"):
            read_image(path)

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="cannot be read as an image"):
            read_image(tmp_path)

    def test_the_limit_of_pillow_stays_as_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        Image.fromarray(noise(9, 9)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png"), noise(9, 9))
        assert Image.MAX_IMAGE_PIXELS == 10


def save_deep(path: Path, values: np.ndarray) -> Path:
    """Save grey values, (height, width), with their type."""
    Image.fromarray(values).save(path)
    return path


def ramp(white: float, dtype: type) -> np.ndarray:
    """Return 256 values from 0 to white in two rows."""
    return np.stack([np.linspace(0, white, 256)] * 2).astype(dtype)


class TestDeepPictures:
    @pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
    @pytest.mark.parametrize(("suffix", "dtype"), [("png", np.uint16), ("tif", np.uint16), ("tif", np.int32)])
    def test_integers_are_scaled_by_the_bits_in_use(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, bits: int, suffix: str, dtype: type
    ) -> None:
        path = save_deep(tmp_path / f"a.{suffix}", ramp(2**bits - 1, dtype))
        np.testing.assert_allclose(read_image(path)[..., 1], ramp(255, np.float64), atol=1)
        assert (f"{2**bits - 1} is taken for white" in caplog.text) == (bits != 16)

    def test_16_bits_keep_the_high_byte(self, tmp_path: Path) -> None:
        path = save_deep(tmp_path / "a.png", np.array([[0, 256, 65535]], np.uint16))
        np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 1, 255])

    @pytest.mark.parametrize("white", [1.0, 255.0, 1023.0, 4095.0, 65535.0])
    def test_floats_are_scaled_by_their_range(self, tmp_path: Path, white: float) -> None:
        path = save_deep(tmp_path / "a.tif", ramp(white, np.float32))
        np.testing.assert_array_equal(read_image(path)[..., 2], ramp(255, np.float64).round())

    def test_floats_of_0_to_1_are_read_without_a_word(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        read_image(save_deep(tmp_path / "a.tif", ramp(1.02, np.float32)))
        assert caplog.text == ""

    @pytest.mark.parametrize("suffix", ["tif", "png"])
    def test_the_data_set_decides(self, tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str) -> None:
        dtype, bright = (np.float32, 200) if suffix == "tif" else (np.uint16, 16320)
        dark = save_deep(tmp_path / f"dark.{suffix}", ramp(bright / 64, np.float64).astype(dtype))
        light = save_deep(tmp_path / f"light.{suffix}", ramp(bright, np.float64).astype(dtype))
        plain = tmp_path / "plain.png"
        Image.fromarray(noise(4, 4)).save(plain)
        reader = ImageReader([plain, dark, light, tmp_path / "missing.png"])
        np.testing.assert_array_equal(reader(plain), noise(4, 4))
        assert caplog.text == ""
        assert (reader(dark).max(), reader(light).max()) == ((3, 200) if suffix == "tif" else (3, 255))
        assert caplog.text.count("2 pictures of more than 8 bits use levels up to") == 1

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            (ramp(3.7, np.float32), r"a\.tif: the pictures of floats hold values up to 3.7, which are neither 0 to 1"),
            (ramp(1, np.float32) - 0.5, r"hold values from -0.5, below 0, to 0.5; save the pictures with 8 bits, or"),
            (ramp(np.nan, np.float32), "holds values that are NaN or infinite; repair it or leave it out"),
            (ramp(100, np.int32) - 20, r"the pictures of integers hold values from -20, below 0; save the pictures"),
        ],
    )
    def test_values_without_a_scale_are_refused(self, tmp_path: Path, values: np.ndarray, message: str) -> None:
        path = save_deep(tmp_path / "a.tif", values)
        with pytest.raises(DataError, match=message):
            read_image(path)

    def test_a_broken_picture_spoils_no_other(self, tmp_path: Path) -> None:
        good = save_deep(tmp_path / "good.tif", ramp(1, np.float32))
        bad = save_deep(tmp_path / "bad.tif", np.full((2, 2), np.inf, np.float32))
        assert ImageReader([bad, good])(good).max() == 255

    @pytest.mark.parametrize(("bits", "greatest"), [(10, 255), (12, 255), (14, 255), (16, 255)])
    def test_colours_of_16_bits(self, tmp_path: Path, bits: int, greatest: int) -> None:
        path = save_colours(tmp_path / "a.png", 2**bits - 1)
        found = read_image(path)
        assert found.shape == (2, 256, 3)
        step = 2 ** (16 - bits)
        np.testing.assert_allclose(found[..., 0], ramp(255, np.float64), atol=step)
        assert found.max() >= greatest - step

    def test_colours_that_are_lost_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="colours of 16 bits use 8 of them, which are lost in reading; save"):
            read_image(save_colours(tmp_path / "a.png", 255))


def save_colours(path: Path, white: int) -> Path:
    """Save a PNG with three planes of 16 bits, which Pillow does not write."""
    rows = np.repeat(ramp(white, np.float64).round().astype(">u2")[:, :, None], 3, axis=2)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 256, 2, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(body)), (b"IEND", b"")]
    packed = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    return path


def test_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "_LARGEST", 100_000)
    Image.new("L", (400, 300)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="has 400 x 300 pixels, more than can be decoded; cut it into tiles"):
        read_image(tmp_path / "a.png")


def test_the_orientation_is_found_without_decoding(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with Image.open(tmp_path / "a.png") as image:
        assert orientation(image) == 1


@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("turn", range(9))
def test_all_orientations(tmp_path: Path, turn: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = Image.fromarray(noise(20, 30))
    lossless = {"lossless": True} if kind == "webp" else {}
    stored.save(tmp_path / f"plain.{kind}", **lossless)
    stored.save(tmp_path / f"a.{kind}", exif=exif, **lossless)
    plain = Image.fromarray(read_image(tmp_path / f"plain.{kind}"))
    plain.getexif()[0x0112] = turn
    expected = np.asarray(ImageOps.exif_transpose(plain))
    np.testing.assert_array_equal(read_image(tmp_path / f"a.{kind}"), expected)
    with Image.open(tmp_path / f"a.{kind}") as image:
        assert stored_size(image) == (30, 20)


@pytest.mark.parametrize("white", [0, 1])
def test_a_tiff_of_16_bits_may_have_its_white_at_zero(tmp_path: Path, white: int) -> None:
    levels = (noise(20, 30)[..., 0].astype(np.uint16) << 8) | 255
    tags = {256: 30, 257: 20, 258: 16, 259: 1, 262: white, 273: 8 + 2 + 9 * 12 + 4, 277: 1, 278: 20, 279: levels.nbytes}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    stored = levels if white else 65535 - levels
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    (tmp_path / "a.tif").write_bytes(header + stored.astype("<u2").tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), np.stack([levels >> 8] * 3, axis=-1))
