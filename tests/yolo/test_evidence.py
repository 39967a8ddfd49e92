import numpy as np
import pytest

from onnxq.yolo.columns import CENTRES, CORNERS, SIZES
from onnxq.yolo.evidence import (
    Best,
    are_shares,
    box_fits,
    duplicates,
    falls,
    has_objectness,
    is_unit,
    is_whole,
    objectness_told,
    share_inside,
    shares_inside,
)

SIZE = (100, 200)

LEFT, TOP = (0, 0, 100, 100), (0, 0, 200, 50)
"""Halves of the input."""


def best(boxes: list[list[float]], regions: list[tuple[int, ...]], scores: list[float] | None = None, **more) -> Best:
    count = len(boxes)
    return Best(
        np.array(boxes, np.float32),
        np.array(scores or [0.5] * count, np.float32),
        more.pop("labels", np.zeros(count, np.intp)),
        more.pop("looks", np.arange(count)),
        np.array(regions, np.float32),
        SIZE,
        **more,
    )


@pytest.mark.parametrize(
    ("check", "holds", "fails"),
    [
        (is_whole, [-1, 0, 3], [0, 0.5]),
        (is_unit, [0, 1.0005, 0.5], [0.2, 1.1]),
        (is_unit, [], [-0.2]),
        (falls, [0.9, 0.9, 0.1], [0.1, 0.2]),
        (are_shares, [[0.1, -0.2, 1.1, 0.9]], [[0.1, 0.1, 7, 0.9]]),
    ],
)
def test_what_all_values_share(check, holds: list, fails: list) -> None:
    assert check(np.array(holds, np.float32)) is True
    assert check(np.array(fails, np.float32)) is False


def test_share_of_a_box_in_its_region() -> None:
    boxes = np.array([[0, 0, 10, 10], [95, 0, 105, 10], [150, 0, 160, 10], [10, 0, 0, 10]], np.float32)
    assert shares_inside(boxes, np.array([LEFT], np.float32)).tolist() == [1, 0.5, 0, 0]


class TestWeights:
    def test_of_a_look_add_up_to_its_best_score(self) -> None:
        rows = best([[0, 0, 9, 9]] * 3, [LEFT] * 3, [0.8, 0.4, 0.6], looks=np.array([0, 0, 1]))
        assert rows.weights.tolist() == pytest.approx([0.64, 0.16, 0.6])
        assert rows.objects == pytest.approx(1.4)

    def test_noise_is_no_object(self) -> None:
        assert best([[0, 0, 9, 9]] * 2, [LEFT] * 2, [0.09, 0.3]).objects == pytest.approx(0.3)

    def test_decide(self) -> None:
        rows = best([[10, 10, 30, 30], [150, 10, 170, 30]], [LEFT] * 2, [0.9, 0.1])
        assert share_inside(rows, CORNERS, False) == pytest.approx(0.9)


class TestOrder:
    @pytest.mark.parametrize(
        ("words", "boxes"),
        [
            (CORNERS, [[60, 40, 90, 80], [120, 5, 190, 45]]),
            (CENTRES, [[75, 60, 30, 40], [155, 25, 70, 40]]),
            (SIZES, [[70, 50, 30, 50], [150, 10, 50, 40]]),
            (("y1", "x1", "y2", "x2"), [[40, 60, 80, 90], [5, 120, 45, 190]]),
            (("x1", "x2", "y1", "y2"), [[60, 90, 40, 80], [120, 190, 5, 45]]),
            (("w", "h", "cx", "cy"), [[30, 40, 75, 60], [70, 40, 155, 25]]),
        ],
    )
    @pytest.mark.parametrize("shares", [False, True])
    def test_is_the_one_that_puts_the_boxes_into_the_halves(self, words, boxes: list, shares: bool) -> None:
        table = np.array(boxes, np.float32)
        if shares:
            table = table / [200 if word in ("x1", "x2", "cx", "w") else 100 for word in words]
        fits = box_fits(best(table.tolist(), [LEFT, TOP], others=table.astype(np.float32)), True, 0.1)
        assert (fits[0].words, fits[0].shares) == (words, shares)
        assert fits[0].share == pytest.approx(1, abs=1e-6)

    def test_usual_orders_come_first_and_others_are_left_out_unless_they_explain_more(self) -> None:
        rows = best([[60, 40, 90, 80]], [(0, 0, 200, 100)])
        assert [each.words for each in box_fits(rows, True, 0.1)][:1] == [CORNERS]
        assert len(box_fits(rows, True, 0.1)) == len(box_fits(rows, False, 0.1))

    def test_boxes_of_any_score_must_lie_on_the_input(self) -> None:
        centred = [100, 50, 160, 90]  # as corners, too, it is a box on the input
        others = np.array([[30, 50, 60, 20], [170, 20, 40, 30]], np.float32)
        fits = {each.words: each for each in box_fits(best([centred], [(0, 0, 200, 100)], others=others), False, 0.1)}
        assert fits[CENTRES].valid == 1
        assert fits[CORNERS].valid < 0.5


def test_duplicates_are_of_one_class_and_picture() -> None:
    boxes = [[0, 0, 10, 10]] * 4 + [[50, 50, 60, 60]]
    rows = best(
        boxes, [LEFT] * 5, [0.9, 0.8, 0.7, 0.6, 0.5], labels=np.array([0, 0, 1, 0, 0]), looks=np.array([0, 0, 0, 1, 0])
    )
    assert duplicates(rows, CORNERS, False) == pytest.approx(1 / 5)


def test_boxes_of_low_score_are_no_duplicates() -> None:
    rows = best([[0, 0, 10, 10]] * 3, [LEFT] * 3, [0.9, 0.15, 0.1], looks=np.zeros(3, np.intp))
    assert duplicates(rows, CORNERS, False) == 0


class TestObjectness:
    def test_is_great_where_a_class_is(self) -> None:
        assert has_objectness(np.array([0.9, 0.8, 0.01]), np.array([0.8, 0.6, 0.9])) is True

    def test_the_score_of_a_class_is_great_where_no_other_is(self) -> None:
        assert has_objectness(np.array([0.9, 0.8, 0.01]), np.array([0.01, 0.02, 0.9])) is False

    def test_the_score_of_a_class_that_is_nowhere(self) -> None:
        assert has_objectness(np.array([0.01, 0.01, 0.01]), np.array([0.8, 0.1, 0.9])) is False

    @pytest.mark.parametrize("greatest", [[0.1, 0.1], [0.3, 0.2]])
    def test_nothing_tells_it_without_objects(self, greatest: list[float]) -> None:
        assert has_objectness(np.array([0.1, 0.05]), np.array(greatest)) is None
        assert has_objectness(np.zeros(0), np.zeros(0)) is None

    @pytest.mark.parametrize("first", [0.9, 0.3, 0.1, 0.001])
    @pytest.mark.parametrize("others", [0.9, 0.3, 0.001])
    @pytest.mark.parametrize("together", [True, False])
    def test_few_rows_tell_what_all_tell(self, first: float, others: float, together: bool) -> None:
        rng = np.random.default_rng(0)
        looks = []
        for _ in range(3):
            table = rng.uniform(0, 1e-3, (40, 9)).astype(np.float32)
            table[:3, 4] = first
            table[slice(0, 3) if together else slice(3, 6), 6] = others
            looks.append(table)
        every = np.concatenate(looks)
        expected = has_objectness(every[:, 4], every[:, 5:].max(axis=1))
        assert objectness_told(looks, 4, range(5, 9)) is expected
