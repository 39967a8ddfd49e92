import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor
from tables import detector, table_of

from onnxq.evaluation.captions import PAPER, Sizes
from onnxq.evaluation.drawing import FOUND, LOST, NEW, DetectedMasks, classes_beside, draw_outputs, side_by_side
from onnxq.yolo.detections import Detections
from onnxq.yolo.detector import Detector
from onnxq.yolo.preprocess import YOLO, Letterbox, letterbox

SIDE, MODEL = 640, 64
TENTH = Letterbox(MODEL / SIDE, 0, 0)
BLACK = np.zeros((SIDE, SIDE, 3), np.uint8)


def objects(*rows: tuple[float, ...], columns: int = 0) -> Detections:
    """Return the detections of rows (x1, y1, x2, y2, score, class, extras ...), px of the model's input."""
    table = np.array(rows, np.float32).reshape(-1, 6 + columns)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.intp), table[:, 6:])


def halves(canvas: Image.Image, size: tuple[int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the parts below the two titles, of images that are drawn in a size, (width, height)."""
    sizes, pixels = Sizes.on(size), np.asarray(canvas)
    width = (pixels.shape[1] - sizes.margin) // 2
    return pixels[sizes.strip :, :width], pixels[sizes.strip :, width + sizes.margin :]


def pixels(
    first: Detections, second: Detections, known: Detector | None = None, image: NDArray[np.uint8] = BLACK,
    placed: Letterbox = TENTH, drawn: tuple[int, int] = (SIDE, SIDE),
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:  # fmt: skip
    """The two pictures, without their titles."""
    canvas = side_by_side(image, placed, DetectedMasks(first), DetectedMasks(second), known or detector("v8", names=3))
    return halves(canvas, drawn)


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
    left, _ = pixels(objects(), objects(), image=image, drawn=drawn)
    assert (left.shape[1], left.shape[0]) == drawn
    ratio = MODEL / max(size)
    width = drawn[0] * 0.5
    left, _ = pixels(
        objects((0, 0, size[0] * ratio / 2, 20, 0.9, 0)), objects(), image=image, placed=Letterbox(ratio, 0, 0),
        drawn=drawn,
    )  # fmt: skip
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


def test_the_label_of_a_rotated_box_is_at_its_uppermost_corner() -> None:
    turned = (16, 24, 48, 40, 0.9, 0, np.pi / 4)  # between 150 and 490 px, with the uppermost corner at (263, 150)
    left, _ = pixels(objects(turned, columns=1), objects(columns=1), detector("v8", task="obb"))
    assert is_colour(left, 266, 135, LOST)
    assert not is_colour(left, 153, 135, LOST)


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
    first, second = DetectedMasks(objects(SHARED)), DetectedMasks(objects())
    known, plain = (side_by_side(BLACK, TENTH, first, second, detector("v8", names=n)) for n in (3, 0))
    assert np.array_equal(known, plain)  # "class 1" either way: named so, or by its number
    other: Any = Detector("images", (MODEL, MODEL), detector("v8").outputs, YOLO, ("a", "parrot"), "")
    assert not np.array_equal(side_by_side(BLACK, TENTH, first, second, other), plain)


def test_a_narrow_picture_has_room_for_its_title_and_labels() -> None:
    image = np.full((400, 40, 3), 200, np.uint8)
    left, right = pixels(objects(SHARED), objects(), image=image, placed=Letterbox(0.16, 0, 0), drawn=(64, 640))
    assert left.shape == right.shape
    assert left.shape[1] > 200
    assert has(left[:, 64:], LOST)  # the end of the label
    assert not (left[:, 64:] == 200).all(axis=2).any()


def test_boxes_that_reach_beyond_the_picture_end_at_its_edge() -> None:
    left, _ = pixels(objects((-50, -50, 120, 120, 0.9, 0)), objects())
    for x, y in ((3, 320), (SIDE - 4, 320), (320, SIDE - 4)):
        assert is_colour(left, x, y, LOST)


class TestMasks:
    FLAT = np.full((SIDE, SIDE, 3), 100, np.uint8)
    # Everywhere; left of px 24 of the model's input; below px 16.
    PROTOTYPES = np.zeros((3, 16, 16), np.float32)
    PROTOTYPES[0], PROTOTYPES[1, :, :6], PROTOTYPES[2, 4:] = 1, 1, 1
    ALL, LEFT, BELOW = (1, 0, 0), (-1, 2, 0), (-1, 0, 2)
    KNOWN = detector("v8", names=3, task="segment", prototypes="protos")

    def tinted(
        self, box: tuple[float, ...], mask: tuple[int, ...], placed: Letterbox, image: NDArray[np.uint8] = FLAT,
        drawn: tuple[int, int] = (SIDE, SIDE), known: Detector = KNOWN, prototypes: NDArray[np.float32] = PROTOTYPES,
    ) -> NDArray[np.bool_]:  # fmt: skip
        """Return the pixels that only the mask of a lost object tints."""
        one, none = objects((*box, 0.9, 0, *mask), columns=3), objects(columns=3)
        with_mask, without = (
            halves(side_by_side(image, placed, DetectedMasks(one, protos), DetectedMasks(none, protos), known), drawn)
            for protos in (prototypes, None)
        )
        assert np.array_equal(with_mask[1], without[1])
        return np.asarray((with_mask[0] != without[0]).any(axis=2))

    def test_what_the_mask_covers_is_tinted_within_the_box(self) -> None:
        seen = self.tinted((8, 16, 56, 48), self.LEFT, TENTH)
        expected = np.zeros((SIDE, SIDE), bool)
        expected[160:480, 80:240] = True
        assert not seen[~expected].any()
        inside = (slice(170, 470), slice(90, 550))  # of the outline
        assert np.array_equal(seen[inside], expected[inside])

    @pytest.mark.slow
    @pytest.mark.parametrize("centred", [True, False])
    @pytest.mark.parametrize(
        ("size", "drawn"),
        [((640, 320), (640, 320)), ((320, 640), (320, 640)), ((64, 40), (640, 400)), ((1000, 2000), (640, 1280))],
    )
    @pytest.mark.parametrize("model", [(64, 64), (32, 64)])
    def test_masks_go_back_through_the_letterbox(
        self, size: tuple[int, int], drawn: tuple[int, int], centred: bool, model: tuple[int, int]
    ) -> None:
        image = np.full((size[1], size[0], 3), 100, np.uint8)
        known = replace(self.KNOWN, size=model)
        _, placed = letterbox(image, model, centred)
        scale = drawn[0] / size[0] / placed.ratio
        whole = (0, 0, model[1], model[0])
        prototypes = self.PROTOTYPES[:, :: 64 // model[0]]
        for mask, place in ((self.LEFT, 24 - placed.left), (self.BELOW, 16 * model[0] // 64 - placed.top)):
            seen = self.tinted(whole, mask, placed, image, drawn, known, prototypes)
            expected = np.zeros(drawn[::-1], bool)
            end = max(0, round(place * scale))
            expected[(slice(None), slice(end)) if mask == self.LEFT else slice(end, None)] = True
            inside = (slice(80, -20), slice(20, -20))  # of the outline, below the label
            assert np.array_equal(seen[:, : drawn[0]][inside], expected[inside])

    def test_the_picture_is_seen_through_it(self) -> None:
        noise = np.asarray(Image.effect_noise((SIDE, SIDE), 50).convert("RGB"))
        one = DetectedMasks(objects((8, 16, 56, 48, 0.9, 0, *self.ALL), columns=3), self.PROTOTYPES)
        left, _ = halves(side_by_side(noise, TENTH, one, DetectedMasks(objects(columns=3)), self.KNOWN), (SIDE, SIDE))
        inside = (slice(200, 440), slice(120, 520))
        share = 90 / 255
        expected = noise[inside] * (1 - share) + np.array(ImageColor.getrgb(LOST)) * share
        np.testing.assert_allclose(left[inside], expected, atol=1)

    def test_each_model_has_prototypes_of_its_own(self) -> None:
        seen = objects((8, 16, 56, 48, 0.9, 0, *self.LEFT), columns=3)
        first, second = DetectedMasks(seen, self.PROTOTYPES), DetectedMasks(seen, -self.PROTOTYPES)
        left, right = halves(side_by_side(BLACK, TENTH, first, second, self.KNOWN), (SIDE, SIDE))
        assert [bool(picture[320, 150].any()) for picture in (left, right)] == [True, False]
        assert [bool(picture[320, 400].any()) for picture in (left, right)] == [False, True]

    def test_the_mask_of_what_is_lost_is_not_covered(self) -> None:
        shared, lost = (8, 8, 56, 56, 0.9, 1, *self.ALL), (12, 12, 52, 52, 0.3, 0, *self.ALL)
        first, second = objects(shared, lost, columns=3), objects(shared, columns=3)
        left, right = halves(
            side_by_side(
                BLACK, TENTH, DetectedMasks(first, self.PROTOTYPES), DetectedMasks(second, self.PROTOTYPES), self.KNOWN
            ),
            (SIDE, SIDE),
        )
        for picture, colour in ((left, LOST), (right, FOUND)):
            np.testing.assert_allclose(picture[320, 320], np.array(ImageColor.getrgb(colour)) * 90 / 255, atol=1)

    @pytest.mark.parametrize("box", [(-40, -40, -8, -8), (70, 70, 90, 90), (20, 20, 20, 40), (30, 30, 20, 20)])
    def test_a_mask_that_is_not_on_the_picture(self, box: tuple[float, ...]) -> None:
        assert not self.tinted(box, self.ALL, TENTH).any()

    @pytest.mark.parametrize("family", ["v5", "v8", "end2end"])
    def test_of_every_head_that_has_masks(self, family: str) -> None:
        box = (8, 16, 56, 48, 0.9, 1)
        if family == "end2end":
            table = np.array([[*box, *self.LEFT]], np.float32)
        else:
            plain = table_of([box], family, 3)
            below = np.tile(np.array(self.LEFT, np.float32)[:, None], (1, max(plain.shape)))
            table = np.concatenate([plain, below]) if family == "v8" else np.hstack([plain, below.T])
        outputs = {"out": table[np.newaxis], "protos": self.PROTOTYPES[np.newaxis].astype(np.float16)}
        known = detector(family, names=3, task="segment", prototypes="protos")
        left, right = halves(draw_outputs(BLACK, TENTH, outputs, outputs, known, 0.25, 0.65), (SIDE, SIDE))
        for picture in (left, right):
            np.testing.assert_allclose(picture[320, 150], np.array(ImageColor.getrgb(FOUND)) * 90 / 255, atol=1)
            assert not picture[320, 400].any()

    def test_there_is_one_mask_in_memory_at_a_time(self) -> None:
        prototypes = np.ones((3, 200, 200), np.float32)

        def peak(count: int) -> int:
            many = objects(*[(8, 8, 12, 12, 0.5, 0, *self.ALL)] * count, columns=3)
            tracemalloc.start()
            try:
                side_by_side(BLACK, TENTH, DetectedMasks(many, prototypes), DetectedMasks(many, prototypes), self.KNOWN)
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

        peak(1)  # what is loaded once
        assert peak(100) - peak(5) < 10 * prototypes[0].nbytes


class TestClasses:
    NAMES = ("ant", "bee", "cat", "dog", "eel", "fox")
    KNOWN = replace(detector("classes", task="classify"), names=NAMES)

    def columns(
        self, expected: list[float], actual: list[float], image: NDArray[np.uint8] = BLACK
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the parts beside the image, below the titles."""
        first, second = np.array(expected, np.float32), np.array(actual, np.float32)
        canvas = np.asarray(classes_beside(image, first, second, self.KNOWN))
        assert np.array_equal(canvas[:SIDE, :SIDE], image)
        sizes = Sizes.on((SIDE, SIDE))
        width = (canvas.shape[1] - SIDE - 2 * sizes.margin) // 2
        left = SIDE + sizes.margin
        below = canvas[sizes.strip :]
        return below[:, left : left + width], below[:, left + width + sizes.margin :]

    def bars(self, column: NDArray[np.uint8]) -> list[tuple[float, str]]:
        """The share of the width that each bar has, and its colour."""
        found = []
        margin, height = Sizes.on((SIDE, SIDE)).margin, Sizes.on((SIDE, SIDE)).letters
        for top in range(height + 3 * margin, 5 * (height + 5 * margin), height + 5 * margin):
            line = column[top, margin:]
            length = int((line != np.array(ImageColor.getrgb(PAPER))).any(axis=1).sum())
            colour = "#" + bytes(line[0].tolist()).hex()
            found.append((length / (column.shape[1] - 2 * margin), colour))
        return found

    def test_the_likeliest_class_is_the_same(self) -> None:
        left, right = self.columns([0.05, 0.6, 0.2, 0.15, 0, 0], [0.1, 0.5, 0.3, 0.05, 0.05, 0])
        assert left.shape == right.shape
        shares, colours = zip(*self.bars(left), strict=True)
        np.testing.assert_allclose(shares, [0.6, 0.2, 0.15, 0.05, 0], atol=0.015)
        assert colours[0] == FOUND
        assert len(set(colours[1:])) == 1
        shares, colours = zip(*self.bars(right), strict=True)
        np.testing.assert_allclose(shares, [0.5, 0.3, 0.1, 0.05, 0.05], atol=0.015)
        assert colours[0] == FOUND

    def test_another_class_is_the_likeliest(self) -> None:
        left, right = self.columns([0.05, 0.6, 0.2, 0.15, 0, 0], [0.05, 0.2, 0.6, 0.15, 0, 0])
        assert [self.bars(column)[0][1] for column in (left, right)] == [LOST, NEW]

    def test_scores_that_are_no_probabilities(self) -> None:
        left, _ = self.columns([1.0, 3.0, 2.0, -1.0, 0.0, -2.0], [1.0, 3.0, 2.0, -1.0, 0.0, -2.0])
        powers = np.exp([3, 2, 1, 0, -1])
        expected = powers / (powers.sum() + np.exp(-2))
        np.testing.assert_allclose([share for share, _ in self.bars(left)], expected, atol=0.015)

    def test_quantized_scores_a_little_beyond_their_bounds(self) -> None:
        _, right = self.columns([0.9, 0.1, 0, 0, 0, 0], [1.02, -0.01, -0.02, -0.03, -0.04, -0.05])
        shares = [share for share, _ in self.bars(right)]
        np.testing.assert_allclose(shares, [1, 0, 0, 0, 0], atol=0.015)

    def test_names_are_told(self) -> None:
        scores, other = [0.05, 0.6, 0.2, 0.15, 0, 0], [0.6, 0.05, 0.2, 0.15, 0, 0]
        left, right = self.columns(scores, scores)
        assert np.array_equal(left, right)
        left, right = self.columns(scores, other)
        assert not np.array_equal(left[: 14 + 4], right[: 14 + 4])  # another name before the same number
        assert np.array_equal(left[40:100], right[40:100])

    def test_fewer_classes_than_five(self) -> None:
        known = replace(self.KNOWN, names=("yes", "no"))
        scores = np.array([0.3, 0.7], np.float16)
        drawn = draw_outputs(BLACK, TENTH, {"out": scores[np.newaxis]}, {"out": scores[np.newaxis]}, known, 0.25, 0.65)
        assert has(np.asarray(drawn), FOUND)
