"""Finished boxes of a batch in rows of six, and how many each image has."""

import numpy as np
import pytest
from tables import BOX, detector, giving, layout_of

from onnxq.yolo.decode import decode
from onnxq.yolo.output_layout import UNKNOWN


def test_rows_of_a_batch_and_how_many_each_picture_has() -> None:
    outputs = {
        "counts": np.array([2, 1], np.int32),
        "rows": np.array([[2, 0.9, *BOX], [1, 0.1, *BOX], [5, 0.8, *BOX]], np.float32),
    }
    known = detector("nms-counted", outputs=("counts", "rows"))
    first, second = (decode(outputs, known, 0.2, picture) for picture in (0, 1))
    assert (first.boxes.tolist(), first.labels.tolist(), first.scores.tolist()) == (
        [list(BOX)], [2], [pytest.approx(0.9)],
    )  # fmt: skip
    assert second.labels.tolist() == [5]
    nothing = {"counts": np.zeros(1, np.int32), "rows": np.full((1, 6), -1, np.float32)}
    assert len(decode(nothing, known, 0.2)) == 0


def test_rows_of_six_need_to_say_how_many_each_picture_has():
    rows, counts = np.zeros((4, 6), np.float32), np.zeros(1, np.int32)
    assert layout_of(giving({"rows": rows, "counts": counts}, nms=True)) == (
        "nms-counted",
        "detect",
        ("counts", "rows"),
    )
    assert layout_of(giving({"rows": rows, "other": counts.astype(np.float32)}, nms=True)) == (UNKNOWN, "detect", ())
    assert layout_of(giving({"rows": rows, "counts": counts})) == (UNKNOWN, "detect", ())
