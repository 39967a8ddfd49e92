"""Finished boxes of a batch in rows of seven."""

import numpy as np
import pytest
from graphs import classifier, v7_end2end
from tables import BOX, detector, layout_of

from onnxq.yolo.decode import decode
from onnxq.yolo.output_layout import UNKNOWN


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 6, 5]])
def test_rows_of_a_whole_batch(order: list[int]) -> None:
    rows = np.array([[0, *BOX, 2, 0.9], [1, *BOX, 0, 0.8], [1, 0, 0, 5, 5, 1, 0.1]], np.float32)[:, order]
    known = detector("nms-rows")
    first, second = (decode({"out": rows}, known, 0.2, picture) for picture in (0, 1))
    assert (first.boxes.tolist(), first.labels.tolist()) == ([list(BOX)], [2])
    assert (second.labels.tolist(), second.scores.tolist()) == ([0], [pytest.approx(0.8)])
    assert len(decode({"out": rows[:0]}, known, 0.2)) == 0


def test_seven_classes_are_no_rows_of_nms():
    assert layout_of(classifier(classes=7)) == ("classes", "classify", ("output",))


def test_indices_that_nms_picked_are_no_detections():
    assert layout_of(v7_end2end()) == (UNKNOWN, "detect", ())
