import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import BOX, detector, table_of

from onnxq.evaluation.agreement import Agreement, agree, masks, match
from onnxq.yolo.detections import Detections


def objects(*rows, extras=()):
    """Return the detections of these (box, score, class), with the extras of a task."""
    boxes, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.intp),
        np.array(extras, np.float32).reshape(len(rows), -1) if rows else np.zeros((0, 0), np.float32),
    )


def outputs(*boxes, extras=0.0, **others):
    """A v8's with three classes: these boxes, (x1, y1, x2, y2, score, class), with these numbers below each."""
    table = table_of(list(boxes), "v8", 3)
    below = np.zeros((np.size(extras), table.shape[1]), np.float32) + np.reshape(extras, (-1, 1))
    return {"out": np.concatenate([table, below.astype(np.float32)])[np.newaxis], **others}


def compared(expected, actual, **head):
    known = detector("v8", names=3, **head)
    agreed = agree(expected, actual, known, 0.25, 0.65)
    return agreed, agreed.numbers(known.outputs.task)


AWAY = (40, 40, 60, 60)


class TestMatch:
    def test_each_has_one_partner_and_the_best_score_chooses_first(self):
        wanted = objects(((0, 0, 10, 10), 0.9, 0), ((0, 0, 10, 9), 0.8, 0))
        found = objects(((0, 0, 10, 9.5), 0.5, 0), ((0, 0, 10, 6), 0.9, 0))
        rows, others, overlaps = match(wanted, found)
        assert (rows.tolist(), others.tolist()) == ([0, 1], [0, 1])
        assert overlaps.tolist() == pytest.approx([0.95, 6 / 9])

    def test_of_another_class_or_elsewhere_is_another_object(self):
        wanted = objects(((0, 0, 10, 10), 0.9, 0), ((0, 0, 10, 10), 0.8, 1))
        found = objects(((0, 0, 10, 10), 0.9, 2), ((0, 0, 10, 4.9), 0.9, 1))
        assert [len(each) for each in match(wanted, found)] == [0, 0, 0]

    def test_half_is_enough(self):
        assert len(match(objects((BOX, 0.9, 0)), objects(((8, 16, 32, 24), 0.9, 0)))[0]) == 1

    def test_rotated_boxes_are_matched_as_they_are_rotated(self):
        long, upright = (20, 30, 40, 34), (28, 22, 32, 42)
        wanted, found = objects((long, 0.9, 0), extras=[[math.pi / 2]]), objects((upright, 0.9, 0), extras=[[0]])
        assert [len(match(wanted, found, rotated)[0]) for rotated in (False, True)] == [0, 1]

    @given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 1)), max_size=8), st.data())
    def test_every_object_finds_itself(self, places, data):
        rows = [((x, y, x + 8, y + 8), 0.9 - k / 100, label) for k, (x, y, label) in enumerate(dict.fromkeys(places))]
        wanted, order = objects(*rows), np.array(data.draw(st.permutations(range(len(rows)))), np.intp)
        mine, theirs, overlaps = match(wanted, wanted.take(order))
        assert mine.tolist() == order[theirs].tolist() == list(range(len(rows)))
        assert overlaps.tolist() == [1] * len(rows)

    @pytest.mark.parametrize("rotated", [False, True])
    def test_nothing_matches_nothing(self, rotated):
        one = objects((BOX, 0.9, 0), extras=[[0]])
        none = one.take(np.zeros(0, np.intp))
        for wanted, found in ((one, none), (none, one), (none, none)):
            assert [each.tolist() for each in match(wanted, found, rotated)] == [[], [], []]


class TestObjects:
    def test_numbers(self):
        expected = outputs((*BOX, 0.9, 1), (*AWAY, 0.6, 0), (0, 0, 8, 8, 0.2, 0))
        actual = outputs((8, 16, 32, 28, 0.8, 1), (*AWAY, 0.5, 2), (0, 0, 8, 8, 0.3, 0))
        agreed, numbers = compared(expected, actual)
        assert (agreed.expected, agreed.matched, agreed.new) == (2, 1, 2)
        assert numbers == {
            "objects": 2, "found_again": 0.5, "iou": pytest.approx(0.75), "score_difference": pytest.approx(0.1),
            "new": 2,
        }  # fmt: skip

    def test_over_images_matched_objects_count_alike_wherever_they_are(self):
        one, _ = compared(outputs((*BOX, 0.9, 1), (*AWAY, 0.6, 0)), outputs((*BOX, 0.9, 1), (*AWAY, 0.6, 0)))
        other, _ = compared(outputs((*BOX, 0.9, 1)), outputs((8, 16, 32, 25, 0.6, 1)))
        numbers = (Agreement() + one + other).numbers("detect")
        assert numbers["objects"] == 3
        assert numbers["iou"] == pytest.approx((1 + 1 + 9 / 16) / 3)
        assert numbers["score_difference"] == pytest.approx(0.1)

    def test_where_nothing_is_found_there_is_no_mean(self):
        _, numbers = compared(outputs(), outputs((*BOX, 0.9, 1)))
        assert (numbers["objects"], numbers["new"]) == (0, 1)
        assert all(math.isnan(numbers[key]) for key in ("found_again", "iou", "score_difference"))


class TestMasks:
    PROTOTYPES = np.zeros((2, 16, 16), np.float32)
    PROTOTYPES[0], PROTOTYPES[1, :, :8] = 1, 1  # everywhere; the left half

    def test_are_prototypes_by_coefficients_within_the_box(self):
        seen = masks(objects((BOX, 0.9, 0), extras=[[-1, 2]]), self.PROTOTYPES, (64, 64))[0]
        expected = np.zeros((16, 16), bool)
        expected[4:8, 2:8] = True  # the box covers columns 2 to 8 and rows 4 to 8
        assert np.array_equal(seen, expected)
        seen = masks(objects((BOX, 0.9, 0), extras=[[1, -2]]), self.PROTOTYPES, (64, 64))
        assert not seen.any()
        assert masks(objects((AWAY, 0.9, 0), extras=[[1, -2]]), self.PROTOTYPES, (64, 64)).sum() == 25

    def test_a_canvas_that_is_not_square(self):
        seen = masks(objects(((0, 0, 64, 16), 0.9, 0), extras=[[1, 0]]), self.PROTOTYPES, (32, 64))[0]
        assert seen[:8].all()
        assert not seen[8:].any()

    def test_overlap_of_the_found(self):
        head = {"task": "segment", "prototypes": "protos"}
        box, protos = (0, 0, 64, 64), self.PROTOTYPES[np.newaxis]
        whole = outputs((*box, 0.9, 1), extras=[1, 0], protos=protos)
        half = outputs((*box, 0.9, 1), extras=[-1, 2], protos=protos)
        assert compared(whole, half, **head)[1]["mask_iou"] == pytest.approx(0.5)
        assert compared(half, half, **head)[1]["mask_iou"] == 1
        empty = outputs((*box, 0.9, 1), extras=[-1, 0], protos=protos)
        assert compared(empty, empty, **head)[1]["mask_iou"] == 1
        assert compared(empty, whole, **head)[1]["mask_iou"] == 0

    def test_each_model_has_prototypes_of_its_own(self):
        box, protos = (0, 0, 64, 64), self.PROTOTYPES[np.newaxis]
        expected = outputs((*box, 0.9, 1), extras=[1, 0], protos=protos)
        actual = outputs((*box, 0.9, 1), extras=[1, 0], protos=-protos)
        head = {"task": "segment", "prototypes": "protos"}
        assert compared(expected, actual, **head)[1]["mask_iou"] == 0


class TestPoses:
    HEAD = partial(compared, task="pose", keypoints=(2, 3))
    BOX = (16, 16, 36, 41)  # an area of 500

    def test_distance_is_in_sizes_of_the_box(self):
        expected = outputs((*self.BOX, 0.9, 0), extras=[20, 20, 0.9, 30, 30, 0.9])
        actual = outputs((*self.BOX, 0.9, 0), extras=[23, 24, 0.9, 30, 30, 0.9])
        _, numbers = self.HEAD(expected, actual)
        share = 5 / math.sqrt(500)
        assert numbers["keypoint_distance"] == pytest.approx(share / 2)
        assert numbers["keypoint_similarity"] == pytest.approx((1 + math.exp(-((share / 0.134) ** 2) / 2)) / 2)

    def test_only_keypoints_that_the_float_model_sees_count(self):
        expected = outputs((*self.BOX, 0.9, 0), extras=[20, 20, 0.1, 30, 30, 0.9])
        actual = outputs((*self.BOX, 0.9, 0), extras=[60, 60, 0.9, 30, 30, 0.1])
        assert self.HEAD(expected, actual)[1]["keypoint_distance"] == 0
        hidden = outputs((*self.BOX, 0.9, 0), extras=[20, 20, 0.1, 30, 30, 0.1])
        assert math.isnan(self.HEAD(hidden, actual)[1]["keypoint_distance"])

    def test_keypoints_without_a_visibility_all_count(self):
        expected = outputs((*self.BOX, 0.9, 0), extras=[20, 20, 30, 30])
        actual = outputs((*self.BOX, 0.9, 0), extras=[23, 24, 30, 35])
        _, numbers = compared(expected, actual, task="pose", keypoints=(2, 2))
        assert numbers["keypoint_distance"] == pytest.approx(5 / math.sqrt(500))


@pytest.mark.parametrize(
    ("actual", "first", "among"),
    [([9, 8, 7, 6, 5, 4, 3], 0, 0), ([9, 8, 7, 6, 4, 5, 3], 0, 1), ([0, 0, 0, 0, 0, 9, 0], 1, 1)],
)
def test_classes(actual, first, among):
    known = detector("classes", task="classify")
    expected = {"out": np.array([[0, 0, 0, 0, 0, 1, 0]], np.float32)}
    agreed = agree(expected, {"out": np.array([actual], np.float32)}, known, 0.25, 0.65)
    assert (agreed + agreed).numbers("classify") == {"top1": first, "top5": among}
