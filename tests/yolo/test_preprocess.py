from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxq.errors import DataError
from onnxq.yolo.preprocess import (
    PADDING,
    PREPROCESSES,
    YOLO,
    YOLO_255,
    YOLO_CROP,
    YOLOX,
    Preprocess,
    crop,
    letterbox,
    read_image,
)

sides = st.integers(1, 90)
sizes = st.tuples(sides, sides)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Sample at pixel centres and repeat the edges, as OpenCV documents INTER_LINEAR."""

    def taps(length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(count) + 0.5) * length / count - 0.5
        low = np.floor(at).astype(int)
        return low.clip(0, length - 1), (low + 1).clip(0, length - 1), at - low

    above, below, down = taps(image.shape[0], size[0])
    left, right, across = taps(image.shape[1], size[1])
    down, across = down[:, None, None], across[None, :, None]
    rows = image[above] * (1 - down) + image[below] * down
    return rows[:, left] * (1 - across) + rows[:, right] * across


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

    def test_16_bits_keep_the_high_byte(self, tmp_path: Path) -> None:
        Image.fromarray(np.array([[0, 256, 65535]], np.uint16)).save(tmp_path / "a.png")
        np.testing.assert_array_equal(read_image(tmp_path / "a.png")[0, :, 0], [0, 1, 255])

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


class TestLetterbox:
    @given(sizes, sizes, st.booleans())
    def test_undo_undoes(self, picture: tuple[int, int], canvas: tuple[int, int], centred: bool) -> None:
        _, placed = letterbox(noise(*picture), canvas, centred)
        box = np.array([[0.0, 0.0, picture[1], picture[0]], [0.5, 0.25, picture[1] / 2, picture[0] / 3]], np.float32)
        on_canvas = box * placed.ratio + [placed.left, placed.top, placed.left, placed.top]
        undone = placed.undo(on_canvas.astype(np.float32))
        assert undone.dtype == np.float32
        np.testing.assert_allclose(undone, box, atol=1e-3, rtol=1e-4)

    @given(sizes, sizes, st.booleans())
    def test_fits_and_fills_one_axis(self, picture: tuple[int, int], canvas: tuple[int, int], centred: bool) -> None:
        white = np.full((*picture, 3), 255, np.uint8)
        boxed, placed = letterbox(white, canvas, centred)
        assert boxed.shape == (*canvas, 3)
        rows, columns = (boxed[..., 0] == 255).any(1), (boxed[..., 0] == 255).any(0)
        assert (boxed[np.ix_(rows, columns)] == 255).all()
        assert (boxed[~rows] == PADDING).all()
        assert (boxed[:, ~columns] == PADDING).all()
        assert rows.all() or columns.all()
        assert (rows.argmax(), columns.argmax()) == (placed.top, placed.left)
        assert abs(rows.sum() - picture[0] * placed.ratio) <= 1
        assert abs(columns.sum() - picture[1] * placed.ratio) <= 1

    def test_centred_puts_the_odd_pixel_behind(self) -> None:
        _, placed = letterbox(noise(5, 10), (10, 10), centred=True)
        assert (placed.top, placed.left, placed.ratio) == (2, 0, 1.0)

    def test_top_left(self) -> None:
        boxed, placed = letterbox(noise(5, 10), (10, 10), centred=False)
        assert (placed.top, placed.left) == (0, 0)
        np.testing.assert_array_equal(boxed[:5], noise(5, 10))
        assert (boxed[5:] == PADDING).all()

    @pytest.mark.parametrize("picture", [(80, 60), (23, 31), (300, 400), (7, 300)])
    def test_resizes_bilinearly_without_antialias(self, picture: tuple[int, int]) -> None:
        boxed, placed = letterbox(noise(*picture), (96, 128), centred=True)
        height, width = (round(side * placed.ratio) for side in picture)
        inside = boxed[placed.top : placed.top + height, placed.left : placed.left + width]
        expected = bilinear(noise(*picture), (height, width))
        assert np.abs(inside - expected).max() < 1.001

    def test_a_thin_picture_keeps_a_row(self) -> None:
        boxed, placed = letterbox(np.full((1, 1000, 3), 255, np.uint8), (32, 32), centred=True)
        assert (boxed == 255).all(2).sum() == 32
        assert placed.ratio == 0.032


class TestCrop:
    def test_what_fits_stays_as_it_is(self) -> None:
        image = noise(32, 32)
        cropped, placed = crop(image, (32, 32))
        np.testing.assert_array_equal(cropped, image)
        assert (placed.ratio, placed.left, placed.top) == (1, 0, 0)

    @pytest.mark.parametrize(("shape", "rows", "columns"), [((32, 47), 0, 8), ((45, 32), 6, 0)])
    def test_the_middle_is_kept(self, shape: tuple[int, int], rows: int, columns: int) -> None:
        image = noise(*shape)
        cropped, placed = crop(image, (32, 32))
        np.testing.assert_array_equal(cropped, image[rows : rows + 32, columns : columns + 32])
        assert (placed.left, placed.top) == (-columns, -rows)

    def test_the_shorter_side_is_scaled_without_aliasing(self) -> None:
        stripes = np.zeros((64, 96, 3), np.uint8)
        stripes[:, ::2] = 200
        cropped, placed = crop(stripes, (16, 16))
        assert placed.ratio == 0.25
        assert abs(cropped.astype(int) - 100).max() <= 1
        assert placed.undo(np.array([[0, 0, 16, 16]], np.float32)).tolist() == [[16, 0, 80, 64]]

    def test_a_canvas_that_is_not_square_takes_all(self) -> None:
        image = np.zeros((64, 64, 3), np.uint8)
        image[:, 32:] = 255
        cropped, _ = crop(image, (16, 32))
        assert (cropped[:, :14] == 0).all()
        assert (cropped[:, 18:] == 255).all()

    @given(sizes, st.integers(1, 40))
    def test_the_canvas_is_filled(self, shape: tuple[int, int], side: int) -> None:
        cropped, placed = crop(np.full((*shape, 3), 7, np.uint8), (side, side))
        assert cropped.shape == (side, side, 3)
        assert (cropped == 7).all()
        assert placed.left <= 0
        assert placed.top <= 0


class TestPreprocess:
    def test_cropped(self) -> None:
        image = noise(32, 48)
        feed, placed = YOLO_CROP(image, (32, 32))
        assert feed.flags.c_contiguous
        np.testing.assert_array_equal(feed[0], (image[:, 8:40] / np.float32(255)).transpose(2, 0, 1))
        assert placed.left == -8

    def test_yolo(self) -> None:
        image = noise(32, 64)
        feed, placed = YOLO(image, (64, 64))
        assert feed.dtype == np.float32
        assert feed.shape == (1, 3, 64, 64)
        assert feed.flags.c_contiguous
        assert (placed.left, placed.top) == (0, 16)
        np.testing.assert_array_equal(feed[0, :, 16:48], (image / np.float32(255)).transpose(2, 0, 1))
        assert (feed[0, :, :16] == np.float32(PADDING) / np.float32(255)).all()

    def test_yolox(self) -> None:
        image = noise(32, 64)
        feed, placed = YOLOX(image, (64, 64))
        assert (placed.left, placed.top) == (0, 0)
        assert feed.flags.c_contiguous
        np.testing.assert_array_equal(feed[0, :, :32], image[:, :, ::-1].transpose(2, 0, 1))
        assert (feed[0, :, 32:] == PADDING).all()

    def test_levels_and_channels_last(self) -> None:
        image = noise(32, 64)
        levels = replace(YOLOX, levels=True)
        feed, _ = levels(image, (64, 64))
        assert (feed.dtype, feed.shape) == (levels.dtype, levels.shape((64, 64))) == (np.uint8, (1, 3, 64, 64))
        assert feed.flags.c_contiguous
        np.testing.assert_array_equal(feed[0, :, :32], image[:, :, ::-1].transpose(2, 0, 1))
        last = replace(YOLO, channels_last=True)
        feed, _ = last(image, (32, 64))
        assert (feed.dtype, feed.shape) == (last.dtype, last.shape((32, 64))) == (np.float32, (1, 32, 64, 3))
        assert feed.flags.c_contiguous
        np.testing.assert_array_equal(feed[0], image / np.float32(255))

    @pytest.mark.parametrize(
        ("preprocess", "text", "value_range"),
        [
            (YOLO, "RGB, 0-1, letterbox centred", (0.0, 1.0)),
            (YOLO_255, "RGB, 0-255, letterbox centred", (0.0, 255.0)),
            (YOLOX, "BGR, 0-255, letterbox top-left", (0.0, 255.0)),
            (YOLO_CROP, "RGB, 0-1, cropped to the middle", (0.0, 1.0)),
            (
                replace(YOLOX, levels=True, channels_last=True),
                "BGR, 0-255 in uint8, letterbox top-left, channels last",
                (0.0, 255.0),
            ),
        ],
    )
    def test_described(self, preprocess: Preprocess, text: str, value_range: tuple[float, float]) -> None:
        assert preprocess.describe() == text
        assert preprocess.value_range == value_range

    def test_chosen_by_name(self) -> None:
        assert {each.name: each for each in (YOLO, YOLO_255, YOLO_CROP, YOLOX)} == PREPROCESSES
