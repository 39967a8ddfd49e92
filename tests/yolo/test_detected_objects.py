import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import detector

from onnxq.yolo.detected_objects import DetectedObjects, matched_score, read_objects, tensors_read
from onnxq.yolo.output_layout import UNKNOWN

DETECTOR = detector("v8", (64, 128))


def objects(*rows):
    """Return the objects of rows (box, score, class)."""
    boxes, scores, labels = zip(*rows, strict=True)
    return DetectedObjects(np.array(boxes, np.float32), np.array(scores, np.float32), np.array(labels))


NOTHING = DetectedObjects(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp))


def table(*rows):
    """An output of v8 with two classes, float32 (6, 8): these boxes, and others without a score."""
    return np.array([*rows, *np.zeros((8 - len(rows), 6))], np.float32).T


# --- cells ------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 100), st.integers(1, 40), st.integers(1, 40))
def test_cells_are_on_objects(seed, rows, columns):
    seen = objects(((0.1, 0.5, 0.3, 0.9), 0.9, 0), ((0.7, 0.0, 1.0, 0.2), 0.2, 1))
    y, x = np.divmod(seen.draw(np.random.default_rng(seed), (rows, columns), 50), columns)
    left = (x + 1 > 0.1 * columns) & (x <= 0.3 * columns) & (y + 1 > 0.5 * rows) & (y <= 0.9 * rows)
    right = (x + 1 > 0.7 * columns) & (y <= 0.2 * rows)
    assert (left | right).all()
    assert x.max() < columns
    assert y.max() < rows


def test_boxes_that_reach_beyond_the_picture_give_cells_within_it():
    seen = objects(((-1.0, -1.0, -0.1, 0.1), 1, 0), ((0.9, 0.9, 5.0, 5.0), 1, 0))
    cells = seen.draw(np.random.default_rng(0), (4, 5), 500)
    assert cells.min() >= 0
    assert cells.max() < 20


def test_objects_are_drawn_by_their_scores_whatever_their_size():
    seen = objects(((0.0, 0.0, 0.5, 1.0), 0.8, 0), ((0.9, 0.9, 0.92, 0.92), 0.2, 0))
    cells = seen.draw(np.random.default_rng(0), (100, 100), 10_000)
    assert np.mean(cells % 100 < 50) == pytest.approx(0.8, abs=0.02)


def test_more_are_drawn_near_the_middle():
    seen = objects(((0.0, 0.0, 1.0, 1.0), 1, 0))
    y, x = np.divmod(seen.draw(np.random.default_rng(0), (8, 8), 4000), 8)
    inner = (abs(x - 3.5) < 2) & (abs(y - 3.5) < 2)
    assert inner.mean() > 0.5  # a quarter, if all were alike


def test_without_objects_there_are_no_cells():
    assert NOTHING.draw(np.random.default_rng(0), (8, 8), 10).shape == (0,)


# --- objects found again ----------------------------------------------------------------------------------------------


def test_the_same_boxes_cover_each_other_whole():
    seen = objects(((0.1, 0.1, 0.4, 0.5), 0.9, 0), ((0.5, 0.5, 0.7, 0.9), 0.3, 1))
    assert matched_score(seen, seen) == pytest.approx((1.2, 1.2))


def test_intersection_over_union_counts_by_the_score():
    wanted = objects(((0.0, 0.0, 0.2, 0.2), 0.5, 0), ((0.5, 0.5, 0.7, 0.7), 0.25, 0))
    found = objects(((0.0, 0.0, 0.2, 0.1), 0.9, 0), ((0.5, 0.5, 0.7, 0.7), 0.01, 0))
    assert matched_score(wanted, found) == pytest.approx((0.5 * 0.5 + 0.25, 0.75))


def test_a_box_of_another_class_covers_nothing():
    assert matched_score(objects(((0, 0, 1, 1), 0.5, 0)), objects(((0, 0, 1, 1), 0.5, 1))) == (0, 0.5)


def test_faint_objects_need_not_be_found_but_faint_boxes_may_find():
    wanted = objects(((0, 0, 1, 1), 0.05, 0), ((0, 0, 1, 1), 0.5, 1))
    assert matched_score(wanted, objects(((0, 0, 1, 1), 0.02, 1))) == (0.5, 0.5)


def test_nothing_is_found_by_nothing():
    assert matched_score(objects(((0, 0, 1, 1), 0.5, 0)), NOTHING) == (0, 0.5)
    assert matched_score(NOTHING, objects(((0, 0, 1, 1), 0.5, 0))) == (0, 0)


# --- outputs ----------------------------------------------------------------------------------------------------------


def test_outputs_become_shares_of_the_picture_without_duplicates():
    [seen] = read_objects(
        {"out": table([64, 32, 32, 16, 0.9, 0], [65, 32, 32, 16, 0.5, 0], [10, 10, 4, 4, 0, 0.005])[None]}, DETECTOR
    )
    assert seen.boxes == pytest.approx(np.array([[0.375, 0.375, 0.625, 0.625]]))
    assert seen.scores == pytest.approx([0.9])
    assert seen.labels.tolist() == [0]


def test_every_picture_of_a_batch():
    seen = read_objects({"out": np.stack([table([64, 32, 32, 16, s, 0]) for s in (0.9, 0.8)])}, DETECTOR)
    assert [each.scores.tolist() for each in seen] == [pytest.approx([0.9]), pytest.approx([0.8])]


def test_rows_of_a_batch_do_not_tell_how_many_pictures_it_has():
    assert read_objects({"out": np.ones((4, 7), np.float32)}, detector("nms-rows")) == []


@pytest.mark.parametrize("family", [UNKNOWN, "v8", "v5"])
def test_outputs_that_are_not_understood_show_nothing(family):
    assert read_objects({"out": np.zeros((1, 10), np.float32)}, detector(family)) == []


def test_the_tensors_that_are_read_are_those_of_outputs_that_are_understood():
    assert tensors_read(DETECTOR) == ("out",)
    assert tensors_read(None) == tensors_read(detector("nms-rows")) == tensors_read(detector(UNKNOWN)) == ()
