from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor
from tables import detector

from onnxq.decode import Detections
from onnxq.detector import Detector
from onnxq.draw import FOUND, LOST, NEW, side_by_side
from onnxq.images import YOLO, Letterbox

SIDE, MODEL = 640, 64
TITLE, GAP = 26, 4
TENTH = Letterbox(MODEL / SIDE, 0, 0)
BLACK = np.zeros((SIDE, SIDE, 3), np.uint8)


def objects(*rows: tuple[float, ...], columns: int = 0) -> Detections:
    """Of (x1, y1, x2, y2, score, class, extras ...), px of the model's input."""
    table = np.array(rows, np.float32).reshape(-1, 6 + columns)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.intp), table[:, 6:])


def pixels(
    first: Detections, second: Detections, known: Detector | None = None, image: NDArray[np.uint8] = BLACK,
    placed: Letterbox = TENTH,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:  # fmt: skip
    """The two pictures, without their titles."""
    canvas = np.asarray(side_by_side(image, placed, first, second, known or detector("v8", names=3)))
    width = (canvas.shape[1] - GAP) // 2
    return canvas[TITLE:, :width], canvas[TITLE:, width + GAP :]


def is_colour(picture: NDArray[np.uint8], x: int, y: int, colour: str) -> bool:
    return tuple(picture[y, x]) == ImageColor.getrgb(colour)


def has(picture: NDArray[np.uint8], colour: str) -> bool:
    return bool((picture == np.array(ImageColor.getrgb(colour), np.uint8)).all(axis=2).any())


SHARED, ONLY_FIRST, ONLY_SECOND = (8, 16, 32, 32, 0.9, 1), (40, 40, 60, 60, 0.5, 0), (4, 40, 20, 60, 0.4, 2)


def test_what_both_find_and_what_one_finds_have_their_colours() -> None:
    left, right = pixels(objects(SHARED, ONLY_FIRST), objects(SHARED, ONLY_SECOND))
    assert left.shape == right.shape == (SIDE, SIDE, 3)
    for picture in (left, right):
        assert is_colour(picture, 200, 320, FOUND)  # the lower side of the box, ten times as large
        assert is_colour(picture, 320, 240, FOUND)
    assert is_colour(left, 500, 600, LOST)
    assert is_colour(right, 120, 600, NEW)
    assert not has(left, NEW)
    assert not has(right, LOST)


def test_a_box_of_another_class_is_another_object() -> None:
    left, right = pixels(objects(SHARED), objects((*SHARED[:5], 2)))
    assert has(left, LOST)
    assert has(right, NEW)
    assert not has(left, FOUND)
    assert not has(right, FOUND)


def test_what_is_lost_is_not_covered() -> None:
    inside = (8, 16, 32, 32, 0.3, 0)
    left, _ = pixels(objects(SHARED, inside), objects(SHARED))
    assert is_colour(left, 200, 320, LOST)


def test_boxes_go_back_through_the_letterbox() -> None:
    image = np.zeros((320, 640, 3), np.uint8)
    left, _ = pixels(objects((8, 16 + 8, 32, 16 + 20, 0.9, 1)), objects(), image=image, placed=Letterbox(0.1, 0, 16))
    assert left.shape[:2] == (320, 640)
    assert is_colour(left, 200, 200, LOST)


@pytest.mark.parametrize(
    ("size", "drawn"), [((2000, 1000), (1280, 640)), ((100, 50), (640, 320)), ((700, 900), (700, 900))]
)
def test_pictures_are_scaled_to_be_seen(size: tuple[int, int], drawn: tuple[int, int]) -> None:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    left, _ = pixels(objects(), objects(), image=image)
    assert (left.shape[1], left.shape[0]) == drawn
    ratio = MODEL / max(size)
    width = drawn[0] * 0.5
    left, _ = pixels(
        objects((0, 0, size[0] * ratio / 2, 20, 0.9, 0)), objects(), image=image, placed=Letterbox(ratio, 0, 0)
    )
    assert any(is_colour(left, round(width) + near, 50, LOST) for near in (-1, 0, 1))


def test_the_picture_itself_is_beneath() -> None:
    image = np.asarray(Image.effect_noise((SIDE, SIDE), 50).convert("RGB"))
    for picture in pixels(objects(), objects(), image=image):
        assert np.array_equal(picture, image)


def test_rotated_boxes() -> None:
    quarter = (8, 24, 56, 40, 0.9, 0, np.pi / 2)
    left, _ = pixels(objects(quarter, columns=1), objects(columns=1), detector("v8", task="obb"))
    assert is_colour(left, 320, 560, LOST)  # 48 high now
    assert is_colour(left, 400, 320, LOST)  # and 16 wide
    assert not is_colour(left, 80, 320, LOST)


def test_keypoints_that_are_seen() -> None:
    pose = (4, 4, 60, 60, 0.9, 0, 20, 30, 0.9, 40, 30, 0.1)
    known = detector("v8", task="pose", keypoints=(2, 3))
    left, _ = pixels(objects(pose, columns=6), objects(columns=6), known)
    assert is_colour(left, 200, 300, LOST)
    assert not is_colour(left, 400, 300, LOST)


def test_labels_stay_within_the_picture() -> None:
    boxes = objects((60, 0, 64, 6, 0.9, 0), (-20, -20, 4, 4, 0.8, 0), (62, 60, 90, 90, 0.7, 0))
    left, _ = pixels(boxes, objects())
    assert is_colour(left, SIDE - 3, 2, LOST)
    assert is_colour(left, 1, 2, LOST)


def test_names_of_classes_that_the_model_does_not_tell() -> None:
    known, plain = (side_by_side(BLACK, TENTH, objects(SHARED), objects(), detector("v8", names=n)) for n in (3, 0))
    assert np.array_equal(known, plain)  # "class 1" either way: named so, or by its number
    other: Any = Detector("images", (MODEL, MODEL), detector("v8").head, YOLO, ("a", "parrot"), "")
    assert not np.array_equal(side_by_side(BLACK, TENTH, objects(SHARED), objects(), other), plain)
