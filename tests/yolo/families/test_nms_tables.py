"""Finished boxes in four tables."""

import numpy as np
import pytest
from tables import BOX, detector, giving, layout_of

from onnxq.yolo.decode import decode
from onnxq.yolo.output_layout import UNKNOWN


def test_of_tables_of_nms_only_so_many_count() -> None:
    known = detector("nms-tables", outputs=("count", "boxes", "scores", "labels"))
    outputs = {
        "count": np.array([[2]], np.int32),
        "boxes": np.tile(np.array(BOX, np.float32), (1, 4, 1)),
        "scores": np.array([[0.9, 0.1, 0.8, 0.8]], np.float32),
        "labels": np.array([[5, 6, 7, 8]], np.int32),
    }
    found = decode(outputs, known, 0.2)
    assert (found.boxes.tolist(), found.labels.tolist(), found.boxes.dtype) == ([list(BOX)], [5], np.float32)


def four(boxes=(1, 10, 4), scores=(1, 10), labels=(1, 10), count=(1, 1), count_type=np.int32):
    """A model with a NonMaxSuppression and these outputs, in the order of EfficientNMS."""
    return giving({
        "count": np.zeros(count, count_type),
        "boxes": np.zeros(boxes, np.float32),
        "scores": np.zeros(scores, np.float32),
        "labels": np.zeros(labels, np.int32),
    }, nms=True)  # fmt: skip


def test_is_recognized_also_where_scores_alone_would_pass_for_rows_of_seven():
    expected = ("nms-tables", "detect", ("count", "boxes", "scores", "labels"))
    assert layout_of(four()) == expected
    assert layout_of(four(count=(1,))) == expected
    assert layout_of(four(boxes=(1, 7, 4), scores=(1, 7), labels=(1, 7))) == expected


@pytest.mark.parametrize("change", [{"boxes": (1, 10, 5)}, {"scores": (1, 9)}, {"count_type": np.float32}])
def test_is_not_recognized(change):
    assert layout_of(four(**change))[0] == UNKNOWN
