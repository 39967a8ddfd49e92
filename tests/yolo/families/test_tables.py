"""Families whose boxes are one table: their decode, and the extras of each task."""

import numpy as np
import pytest
from graphs import ULTRALYTICS, v8, with_metadata
from tables import BOX, CELLS, declared, decoded, detector, table_of

from onnxq.errors import ModelError
from onnxq.yolo.decode import class_count, decode
from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN


@pytest.mark.parametrize("family", ["v5", "v8", "yolox", "yolox-raw"])
def test_boxes_come_back(family: str) -> None:
    boxes = [(8, 16, 32, 32, 0.6, 1), (1, 2, 50, 60, 0.3, 0), (5, 5, 7, 6, 0.001, 2)]
    found = decoded(table_of(boxes, family, 3), detector(family))
    np.testing.assert_allclose(found.boxes, [box[:4] for box in boxes[:2]], atol=1e-4)
    np.testing.assert_allclose(found.scores, [0.6, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(found.labels, [1, 0])
    assert (found.boxes.dtype, found.scores.dtype, found.extras.shape) == (np.float32, np.float32, (2, 0))


def test_a_box_counts_once_for_each_class_above_the_threshold() -> None:
    table = table_of([(*BOX, 0.6, 1)], "v8", 3)
    table[4, -1] = 0.5
    found = decoded(table, detector("v8"))
    np.testing.assert_allclose(found.boxes, [BOX, BOX])
    assert sorted(zip(found.labels.tolist(), found.scores.tolist())) == [(0, 0.5), (1, pytest.approx(0.6))]


def test_mask_columns_are_no_classes() -> None:
    table = np.concatenate([table_of([(*BOX, 0.6, 1)], "v8", 3), np.full((32, CELLS), 9, np.float32)])
    np.testing.assert_allclose(decoded(table, detector("v8", names=3)).scores, [0.6])


def test_what_follows_the_classes_comes_along() -> None:
    table = table_of([(*BOX, 0.6, 1), (*BOX, 0.01, 1)], "v8", 3)
    table = np.concatenate([table, np.arange(2 * CELLS, dtype=np.float32).reshape(2, CELLS)])
    protos = np.zeros((1, 2, 16, 16), np.float32)
    for known in (detector("v8", names=3), detector("v8", task="segment", prototypes="protos")):
        found = decode({"out": table[np.newaxis], "protos": protos}, known, 0.2)
        assert found.labels.tolist() == [1]
        assert found.extras.tolist() == [[CELLS - 2, 2 * CELLS - 2]]


@pytest.mark.parametrize(
    ("head", "extras"),
    [({"task": "pose", "keypoints": (2, 3)}, 6), ({"task": "pose", "keypoints": (2, 2)}, 4), ({"task": "obb"}, 1)],
)
def test_columns_of_a_task_are_no_classes(head: dict[str, object], extras: int) -> None:
    assert class_count(detector("v8", **head), {"out": (1, 4 + 3 + extras, CELLS)}) == 3
    with pytest.raises(ModelError, match=r"output out \(1, \d+, 84\) is not one of family v8"):
        class_count(detector("v8", **head), {"out": (1, 4 + extras, CELLS)})


@pytest.mark.parametrize(
    ("shapes", "prototypes"),
    [
        (((1, 9, 84), (1, 4, 16, 16)), "out1"),
        (((1, 4, 16, 16), (1, 9, 84)), "out0"),
        (((1, 9, 84), (1, 4, 4, 4)), "out1"),
        (((1, 300, 10), (1, 4, 16, 16)), "out1"),
        (((1, 252, 10), (1, 4, 16, 16)), "out1"),
        (((1, 9, 84), (1, 9, 16, 16)), ""),  # more than the columns that there are
        (((1, 9, 84), (1, 4, 2, 2)), ""),  # features rather than a picture
        (((1, 9, 84), (1, 4, 16, 8)), ""),  # of another form than the input
        (((1, 9, 84), (1, 4, 16, 16), (1, 4, 8, 8)), ""),  # which of them?
    ],
)
def test_prototypes_of_masks(shapes, prototypes):
    head = detect(declared(*shapes)).outputs
    assert (head.prototypes, head.task) == (prototypes, "segment" if prototypes else "detect")
    assert head.family != UNKNOWN


@pytest.mark.parametrize(
    ("shapes", "prototypes"),
    [
        (((1, 10, 84), (1, 4, 16, 16)), "out1"),  # 4 + 2 + 4
        (((1, 252, 11), (1, 4, 16, 16)), "out1"),  # 5 + 2 + 4
        (((1, 300, 10), (1, 4, 16, 16)), "out1"),  # 6 + 4
        (((1, 6, 84), (1, 3, 64, 64)), ""),  # the picture itself
        (((1, 9, 84), (1, 4, 16, 16)), ""),
    ],
)
def test_prototypes_leave_columns_for_the_classes_that_are_named(shapes, prototypes):
    head = detect(declared(*shapes, names="{0: 'a', 1: 'b'}")).outputs
    assert (head.prototypes, head.task) == (prototypes, "segment" if prototypes else "detect")
    assert head.family != UNKNOWN


@pytest.mark.parametrize("shape", [{}, {"kpt_shape": "[4, 5]"}, {"kpt_shape": "4"}])
def test_poses_of_unknown_keypoints_are_boxes(shape):
    head = detect(with_metadata(v8(keypoints=4), ULTRALYTICS | {"task": "pose"} | shape)).outputs
    assert (head.family, head.task) == ("v8", "detect")
