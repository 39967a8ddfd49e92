import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import BOX, CELLS, detector, table_of

from onnxq import decode as decode_module
from onnxq.decode import Detections, decode, suppress
from onnxq.detector import Detector


def decoded(table: np.ndarray, known: Detector, confidence: float = 0.01) -> Detections:
    """Of the only output of a model for one picture."""
    return decode({"out": table[np.newaxis]}, known, confidence)


class TestDecode:
    @pytest.mark.parametrize("family", ["v5", "v8", "yolox", "yolox-raw"])
    def test_boxes_come_back(self, family: str) -> None:
        boxes = [(8, 16, 32, 32, 0.6, 1), (1, 2, 50, 60, 0.3, 0), (5, 5, 7, 6, 0.001, 2)]
        found = decoded(table_of(boxes, family, 3), detector(family))
        np.testing.assert_allclose(found.boxes, [box[:4] for box in boxes[:2]], atol=1e-4)
        np.testing.assert_allclose(found.scores, [0.6, 0.3], rtol=1e-6)
        np.testing.assert_array_equal(found.labels, [1, 0])
        assert (found.boxes.dtype, found.scores.dtype, found.extras.shape) == (np.float32, np.float32, (2, 0))

    def test_a_box_counts_once_for_each_class_above_the_threshold(self) -> None:
        table = table_of([(*BOX, 0.6, 1)], "v8", 3)
        table[4, -1] = 0.5
        found = decoded(table, detector("v8"))
        np.testing.assert_allclose(found.boxes, [BOX, BOX])
        assert sorted(zip(found.labels.tolist(), found.scores.tolist())) == [(0, 0.5), (1, pytest.approx(0.6))]

    def test_mask_columns_are_no_classes(self) -> None:
        table = np.concatenate([table_of([(*BOX, 0.6, 1)], "v8", 3), np.full((32, CELLS), 9, np.float32)])
        np.testing.assert_allclose(decoded(table, detector("v8", names=3)).scores, [0.6])

    def test_end2end(self) -> None:
        table = np.array([[1, 2, 3, 4, 0.5, 7], [0, 0, 0, 0, 0, 0]], np.float32)
        found = decoded(table, detector("end2end"))
        assert (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()) == ([[1, 2, 3, 4]], [0.5], [7])

    def test_sizes_beyond_measure_stay_finite(self) -> None:
        table = table_of([(*BOX, 0.6, 1)], "yolox-raw", 3)
        table[-1, 2:4] = 1000
        assert np.isfinite(decoded(table, detector("yolox-raw")).boxes).all()


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
        monkeypatch.setattr(decode_module, "MOST_DETECTIONS", 3)
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8, 7]
        monkeypatch.setattr(decode_module, "MOST_CANDIDATES", 2)
        assert suppress(boxes, confidences, labels, 0.5).tolist() == [9, 8]

    def test_a_box_on_the_threshold_stays(self) -> None:
        boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)
        kept = suppress(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.intp), 0.5)
        assert kept.tolist() == [0, 1]
