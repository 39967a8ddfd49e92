"""Heads without an objectness."""

import pytest
from tables import declared

from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN


@pytest.mark.parametrize(
    ("shape", "names", "why"),
    [
        ((1, 8, 84), 0, "has one box per cell and no objectness"),
        ((1, 84, 8), 4, "has one box per cell and no objectness"),  # transposed, with no room for an objectness
        ((1, 8, 777), 4, "has 4 classes and no objectness"),  # grids of other strides
    ],
)
def test_is_recognized(shape, names, why):
    found = detect(declared(shape, **named(names)))
    assert (found.family, found.why) == ("v8", f"output {shape} {why}")


@pytest.mark.parametrize(
    ("shape", "names", "family"),
    [
        ((1, 4, 84), 0, UNKNOWN),  # no class
        ((1, 8, 84), 5, UNKNOWN),
        ((1, 8, 777), 0, UNKNOWN),
        ((1, 84, 8), 3, "v5"),
        ((1, 5, 6), 1, "end2end"),
    ],
)
def test_is_not_recognized(shape, names, family):
    assert detect(declared(shape, **named(names))).family == family


def named(count):
    return {"names": str([f"class {k}" for k in range(count)])} if count else {}
