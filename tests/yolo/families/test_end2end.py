"""Finished boxes in one table."""

import numpy as np
import pytest
from tables import BOX, declared, decoded, detector

from onnxq.yolo.decode import find_objects
from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN


def test_end2end() -> None:
    table = np.array([[1, 2, 3, 4, 0.5, 7], [0, 0, 0, 0, 0, 0]], np.float32)
    found = decoded(table, detector("end2end"))
    assert (found.boxes.tolist(), found.scores.tolist(), found.labels.tolist()) == ([[1, 2, 3, 4]], [0.5], [7])


def test_finished_boxes_are_found_best_first() -> None:
    table = np.array([[*BOX, 0.5, 7], [*BOX, 0.9, 7], [*BOX, 0.01, 7]], np.float32)
    found = find_objects({"out": table[np.newaxis]}, detector("end2end"), 0.2, 0.5)
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])


def test_rotated_boxes_of_a_finished_table_begin_with_their_centre() -> None:
    row = np.array([[20, 24, 24, 16, 0.9, 2, 0.5]], np.float32)
    found = decoded(row, detector("end2end", task="obb"))
    np.testing.assert_allclose(found.rotated(), [[8, 16, 32, 32, 0.5]])


@pytest.mark.parametrize(
    ("shapes", "metadata"),
    [
        (((1, 300, 6),), {}),
        (((1, 1, 6),), {}),
        (((1, 300, 10), (1, 4, 16, 16)), {}),  # with coefficients of masks
        (((1, 300, 7),), {"task": "obb"}),
        (((1, 300, 12),), {"task": "pose", "kpt_shape": "[2, 3]"}),
    ],
)
def test_is_recognized(shapes, metadata):
    found = detect(declared(*shapes, **metadata))
    assert (found.family, found.outputs.outputs) == ("end2end", ("out0",))


@pytest.mark.parametrize("shape", [(1, 300, 7), (1, 300, 5), (1, 7, 300)])
def test_is_not_recognized(shape):
    assert detect(declared(shape)).family == UNKNOWN
