"""Heads of YOLOX."""

import numpy as np
import pytest
from tables import BOX, CELLS, declared, decoded, detector, table_of

from onnxq.errors import ModelError
from onnxq.yolo.decode import class_count
from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN
from onnxq.yolo.preprocess import YOLOX


def test_sizes_beyond_measure_stay_finite() -> None:
    table = table_of([(*BOX, 0.6, 1)], "yolox-raw", 3)
    table[-1, 2:4] = 1000
    assert np.isfinite(decoded(table, detector("yolox-raw")).boxes).all()


@pytest.mark.parametrize(
    ("last", "shape", "family"),
    [
        ("Exp", (1, 84, 8), "yolox"),
        ("Reshape", (1, 84, 8), "yolox-raw"),
        ("Sigmoid", (1, 84, 8), "v5"),
        ("Exp", (1, 8, 84), "v8"),
        ("Reshape", (1, 84, 5), UNKNOWN),  # no class
    ],
)
def test_one_box_per_cell_with_an_objectness_is_told_by_its_decode(last, shape, family):
    assert detect(declared(shape, last=last)).family == family


def test_takes_the_preprocessing_of_yolox():
    for last in ("Exp", "Reshape"):
        assert detect(declared((1, 84, 8), last=last)).preprocess == YOLOX


def test_raw_boxes_must_fill_the_grids():
    assert class_count(detector("yolox-raw"), {"out": (1, CELLS, 8)}) == 3
    with pytest.raises(ModelError, match=r"output out \(1, 83, 8\) is not one of family yolox-raw: give --family auto"):
        class_count(detector("yolox-raw"), {"out": (1, 83, 8)})
