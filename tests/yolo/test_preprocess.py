from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import ConfigError, DataError
from onnxq.yolo import preprocess
from onnxq.yolo.preprocess import (
    IMAGENET,
    LEVELS,
    PADDING,
    PREPROCESSES,
    SIGNED,
    STRETCH,
    YOLO,
    YOLO_255,
    YOLO_CROP,
    YOLOX,
    Preprocess,
    crop,
    letterbox,
    parse_preprocess,
    stretch,
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

    @pytest.mark.parametrize("picture", [(80, 60), (300, 401)])
    def test_planes_one_by_one_give_what_the_whole_gives(
        self, picture: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole, _ = letterbox(noise(*picture), (96, 128), centred=True)
        monkeypatch.setattr(preprocess, "_WHOLE", 100)
        parts, _ = letterbox(noise(*picture), (96, 128), centred=True)
        np.testing.assert_array_equal(parts, whole)

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
            (STRETCH, "RGB, 0-1, stretched", (0.0, 1.0)),
            (replace(YOLO, values=SIGNED), "RGB, -1 to 1, letterbox centred", (-1.0, 1.0)),
            (replace(YOLO, planes=1), "grey, 0-1, letterbox centred", (0.0, 1.0)),
            (replace(YOLO, planes=4), "4 planes, 0-1, letterbox centred", (0.0, 1.0)),
            (
                replace(STRETCH, values=IMAGENET),
                "RGB, 0-1 less ImageNet's mean, by its deviation, stretched",
                ((0 - 0.485) / 0.229, (1 - 0.406) / 0.225),
            ),
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

    @pytest.mark.parametrize("bgr", [False, True])
    @pytest.mark.parametrize("channels_last", [False, True])
    def test_mean_and_deviation_belong_to_colours(self, bgr: bool, channels_last: bool) -> None:
        image = noise(32, 32)
        feed, _ = replace(YOLO, bgr=bgr, values=IMAGENET, channels_last=channels_last)(image, (32, 32))
        expected = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
        expected = expected[:, :, ::-1] if bgr else expected
        assert feed.dtype == np.float32
        np.testing.assert_allclose(feed[0] if channels_last else feed[0].transpose(1, 2, 0), expected, atol=1e-5)

    @pytest.mark.parametrize("bgr", [False, True])
    def test_one_plane_is_grey(self, bgr: bool) -> None:
        feed, placed = replace(YOLO_255, planes=1, bgr=bgr)(noise(16, 32), (32, 32))
        assert (feed.dtype, feed.shape, placed.top) == (np.float32, (1, 1, 32, 32), 8)
        grey = noise(16, 32) @ [0.299, 0.587, 0.114]
        assert np.abs(feed[0, 0, 8:24] - grey).max() <= 1
        last = replace(YOLO, planes=1, levels=True, channels_last=True)(noise(16, 32), (32, 32))[0]
        assert (last.dtype, last.shape) == (np.uint8, (1, 32, 32, 1))

    @pytest.mark.parametrize("planes", [2, 4, 6])
    def test_images_have_no_other_number_of_planes(self, planes: int) -> None:
        assert replace(YOLO, planes=planes).shape((32, 64)) == (1, planes, 32, 64)
        with pytest.raises(DataError, match=rf"has {planes} planes, and an image has 3: calibrate with arrays .*\.npy"):
            replace(YOLO, planes=planes)(noise(16, 32), (32, 32))

    @pytest.mark.parametrize("said", ["yolo", "yolox", "yolo-255", "bgr,imagenet", "signed"])
    @pytest.mark.parametrize("layout", [{}, {"channels_last": True}, {"planes": 1}, {"levels": True}], ids=str)
    def test_a_plain_value_is_that_of_a_grey_image(self, said: str, layout: dict[str, object]) -> None:
        preprocess = replace(parse_preprocess(said)(YOLO), **layout)
        made, _ = preprocess(np.full((4, 6, 3), 114, np.uint8), (4, 6))
        np.testing.assert_allclose(np.broadcast_to(preprocess.plain(114), made.shape), made, rtol=1e-5)


class TestStretch:
    @given(sizes, sizes)
    def test_undo_undoes(self, picture: tuple[int, int], canvas: tuple[int, int]) -> None:
        stretched, placed = stretch(noise(*picture), canvas)
        assert stretched.shape == (*canvas, 3)
        whole = np.array([[0, 0, canvas[1], canvas[0]]], np.float32)
        np.testing.assert_allclose(placed.undo(whole), [[0, 0, picture[1], picture[0]]], rtol=1e-5)

    def test_resizes_each_axis(self) -> None:
        image = noise(20, 60)
        stretched, placed = stretch(image, (40, 40))
        assert np.abs(stretched - bilinear(image, (40, 40))).max() < 1.001
        assert (placed.ratio, placed.ratio_across, placed.left, placed.top) == (2, pytest.approx(2 / 3), 0, 0)
        feed, _ = STRETCH(image, (40, 40))
        np.testing.assert_array_equal(feed[0], (stretched / np.float32(255)).transpose(2, 0, 1))


class TestParse:
    def test_names(self) -> None:
        assert {"yolo": YOLO, "yolo-255": YOLO_255, "yolo-crop": YOLO_CROP, "yolox": YOLOX} == PREPROCESSES
        for name, each in PREPROCESSES.items():
            assert each.name == name
            assert parse_preprocess(name)(STRETCH) == each

    @pytest.mark.parametrize(
        ("text", "guess", "expected"),
        [
            ("auto", YOLOX, YOLOX),
            ("stretch", YOLO, STRETCH),
            ("stretch", YOLOX, replace(YOLOX, place="stretch")),
            ("rgb,0-1,top-left", YOLOX, replace(YOLO, place="top-left")),
            ("yolox,rgb", YOLO, replace(YOLOX, bgr=False)),
            ("auto,bgr", YOLO, replace(YOLO, bgr=True)),
            ("imagenet,stretch", YOLO, replace(STRETCH, values=IMAGENET)),
            ("signed", YOLO, replace(YOLO, values=SIGNED)),
            ("0-255,crop", YOLO, replace(YOLO_CROP, values=LEVELS)),
        ],
    )
    def test_words_change_what_was_guessed(self, text: str, guess: Preprocess, expected: Preprocess) -> None:
        found = parse_preprocess(text)(guess)
        assert found == expected
        assert parse_preprocess(found.name)(YOLO_255) == expected

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("caffe", "'caffe' is unknown; give one of auto, yolo, .* top-left, stretch, crop joined by commas"),
            ("stretch,yolo", "'yolo' is unknown"),
            ("", "'' is unknown"),
            ("rgb,bgr", "two words of 'rgb,bgr' decide the same; leave one out"),
            ("yolo,0-1,imagenet", "decide the same"),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            parse_preprocess(text)


@pytest.mark.parametrize("place", ["centred", "stretch", "crop"])
def test_boxes_on_a_picture_that_was_decoded_at_a_smaller_scale(place):
    small, canvas = np.zeros((30, 41, 3), np.uint8), np.float32([[5, 6, 20, 30]])
    _, placed = replace(YOLO, place=place)(small, (64, 64))
    whole = placed.of_size((30, 41), (120, 163))
    np.testing.assert_allclose(
        whole.undo(canvas), placed.undo(canvas) * np.float32([163 / 41, 4, 163 / 41, 4]), rtol=1e-5
    )
