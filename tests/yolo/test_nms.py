"""Non-maximum suppression of upright and of rotated boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import BOX, detector, table_of

from onnxq.yolo.decode import find_objects
from onnxq.yolo.nms import suppress


class TestSuppress:
    @staticmethod
    def slow(boxes: np.ndarray, confidences: np.ndarray, labels: np.ndarray, iou: float) -> list[int]:
        def overlap(a: np.ndarray, b: np.ndarray) -> float:
            width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
            height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
            return width * height / union if union else 0.0

        kept: list[int] = []
        for here in sorted(range(len(boxes)), key=lambda index: -confidences[index]):
            if all(labels[here] != labels[k] or overlap(boxes[here], boxes[k]) <= iou for k in kept):
                kept.append(here)
        return kept

    @pytest.mark.slow
    @given(st.data())
    def test_as_a_plain_loop_does(self, data: st.DataObject) -> None:
        corner, side = st.integers(0, 12), st.integers(0, 12)
        rows = data.draw(st.lists(st.tuples(corner, corner, side, side, st.integers(0, 2)), max_size=30))
        order = data.draw(st.permutations(range(len(rows))))
        boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float32).reshape(-1, 4)
        labels = np.array([row[4] for row in rows], np.intp)
        confidences = (np.array(order, np.float32) + 1) / 100
        assert suppress(boxes, confidences, labels, 0.5).tolist() == self.slow(boxes, confidences, labels, 0.5)

    def test_at_most_so_many(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes = np.arange(10, dtype=np.float32)[:, None] * 10 + np.array([0, 0, 5, 5], np.float32)
        confidences, labels = np.linspace(0.1, 0.9, 10, dtype=np.float32), np.arange(10) % 2
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        assert suppress(boxes, confidences, labels, 0.5, 3).tolist() == [9, 8, 7]
        monkeypatch.setattr("onnxq.yolo.nms.MOST_CANDIDATES", 2)
        assert suppress(boxes, confidences, labels, 0.5, 3).tolist() == [9, 8]

    def test_the_last_box_of_a_class_may_be_a_duplicate(self) -> None:
        boxes, labels = np.array([(0, 0, 10, 10)] * 3, np.float32), np.array([0, 0, 1], np.intp)
        assert suppress(boxes, np.array([0.5, 0.4, 0.3], np.float32), labels, 0.5).tolist() == [0, 2]

    def test_a_box_on_the_threshold_stays(self) -> None:
        boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)
        kept = suppress(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.intp), 0.5)
        assert kept.tolist() == [0, 1]


def test_rotated_boxes_are_duplicates_by_what_they_cover_when_rotated() -> None:
    flat, upright = (20, 30, 40, 34), (28, 22, 32, 42)  # long and thin, across each other
    table = np.zeros((84, 8), np.float32)
    for row, (box, score, angle) in enumerate([(flat, 0.9, 0), (flat, 0.8, np.pi / 2), (upright, 0.7, np.pi / 2)]):
        table[row] = (*table_of([(*box, score, 1)], "v8", 3)[:, -1], angle)
    known = detector("v8", task="obb")
    found = find_objects({"out": table.T[np.newaxis]}, known, 0.1, 0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8])  # the third is where the first is
    other = find_objects({"out": table.T[np.newaxis]}, detector("v8", names=3), 0.1, 0.5)
    assert other.scores.tolist() == pytest.approx([0.9, 0.7])  # as straight boxes, the second is


def test_rotated_boxes_that_reach_far_are_duplicates_too() -> None:
    table = np.zeros((84, 8), np.float32)
    for row, shift in enumerate((0, 12, 24)):
        table[row] = (*table_of([(4 + shift, 30, 44 + shift, 34, 0.9 - 0.1 * row, 1)], "v8", 3)[:, -1], 0)
    found = find_objects({"out": table.T[np.newaxis]}, detector("v8", task="obb"), 0.1, 0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.7])  # 28 of 52 in common, and then 16 of 64


def test_rotated_boxes_of_other_classes_are_no_duplicates() -> None:
    table = np.zeros((84, 8), np.float32)
    for row, label in enumerate((0, 1, 1)):
        table[row] = (*table_of([(*BOX, 0.9 - 0.1 * row, label)], "v8", 3)[:, -1], 1.0)
    found = find_objects({"out": table.T[np.newaxis]}, detector("v8", task="obb"), 0.1, 0.5)
    assert found.labels.tolist() == [0, 1]
