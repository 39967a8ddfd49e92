"""Classifiers."""

import pytest
from graphs import classifier, v8
from tables import declared, layout_of

from onnxq.yolo.decode import class_count
from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN
from onnxq.yolo.preprocess import YOLO, YOLO_CROP


def test_classifiers_take_the_middle_of_a_picture_in_place_of_a_letterbox():
    assert detect(classifier()).preprocess == YOLO_CROP
    assert detect(v8()).preprocess == YOLO


@pytest.mark.parametrize("shape", [(1, 5), (1, 1000)])
def test_is_recognized(shape):
    assert layout_of(declared(shape)) == ("classes", "classify", ("out0",))


@pytest.mark.parametrize("shapes", [((2, 5),), ((1, 1),), ((5,),), ((1, 5), (1, 5))])
def test_is_not_recognized(shapes):
    assert layout_of(declared(*shapes))[0] == UNKNOWN


def test_a_list_of_boxes_behind_a_suppression_is_no_classifier():
    model = declared((1, 6))
    assert layout_of(model)[0] == "classes"
    model.graph.node.add(op_type="NonMaxSuppression", output=["picked"])
    assert layout_of(model)[0] == UNKNOWN


def test_has_classes_and_no_boxes():
    layout = detect(classifier(classes=7)).outputs
    assert not layout.has_boxes
    assert class_count(detect(classifier(classes=7)), {"output": (1, 7)}) == 7
    assert "AP is measured of boxes" in layout.why_no_precision
