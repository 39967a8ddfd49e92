"""Heads with an objectness, decoded without Exp."""

import numpy as np
import pytest
from tables import declared, decoded, detector

from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN


@pytest.mark.parametrize(
    ("last", "shape", "why"),
    [
        ("Sigmoid", (1, 252, 8), "has three boxes per cell"),
        ("Exp", (1, 252, 8), "has three boxes per cell"),
        ("Sigmoid", (1, 255, 6), "has three boxes per cell"),  # a fourth grid, stride 64
        ("Sigmoid", (1, 84, 6), "has one box per cell and objectness, decoded without Exp"),
    ],
)
def test_is_recognized(last, shape, why):
    found = detect(declared(shape, last=last))
    assert (found.family, found.why) == ("v5", f"output {shape} {why}")


@pytest.mark.parametrize(
    ("last", "shape"),
    [
        ("Reshape", (1, 252, 8)),  # three boxes per cell without a decode
        ("Sigmoid", (1, 252, 5)),  # no class
        ("Sigmoid", (1, 100, 8)),  # no grids
    ],
)
def test_is_not_recognized(last, shape):
    assert detect(declared(shape, last=last)).family == UNKNOWN


def test_needs_a_column_for_each_class_that_is_named():
    assert detect(declared((1, 252, 8), names="['a', 'b', 'c']")).family == "v5"
    assert detect(declared((1, 252, 8), names="['a', 'b', 'c', 'd']")).family == UNKNOWN


def test_a_score_is_the_product_with_the_objectness():
    table = np.zeros((252, 7), np.float32)
    table[5] = 32, 32, 8, 8, 0.5, 0.8, 0.1
    found = decoded(table, detector("v5"), 0.3)
    assert (found.scores.tolist(), found.labels.tolist()) == ([pytest.approx(0.4)], [0])
