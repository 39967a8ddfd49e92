"""Recognition of small graphs with the structure of exported models."""

import pytest
from graphs import (
    ULTRALYTICS,
    classifier,
    exported,
    nms_tables,
    quantized,
    separate,
    v5,
    v5_raw,
    v7_rows,
    v8,
    v10,
    with_metadata,
    with_random_names,
)
from tables import layout_of

from onnxq.errors import ModelError
from onnxq.yolo.detector import detect
from onnxq.yolo.families import family_names
from onnxq.yolo.output_layout import UNKNOWN

HEADS = {
    "v5": (v5, "v5", "detect", ("output",)),
    "v5 raw": (v5_raw, "v5-raw", "detect", ("output0", "output1", "output2")),
    "v5 raw, cells": (lambda: v5_raw(cells=True), "v5-raw", "detect", ("output0", "output1", "output2")),
    "v5 raw, Sigmoid": (lambda: v5_raw(activated=True), "v5-raw", "detect", ("output0", "output1", "output2")),
    "v7, rows": (v7_rows, "nms-rows", "detect", ("output",)),
    "v8": (v8, "v8", "detect", ("output",)),
    "v8 seg": (lambda: v8(masks=True), "v8", "segment", ("output0", "output1")),
    "tables of NMS": (nms_tables, "nms-tables", "detect", ("output0", "output1", "output2", "output3")),
    "apart": (separate, "separate", "detect", ("output0", "output1")),
    "apart, classes first": (lambda: separate(classes_first=True), "separate", "detect", ("output0", "output1")),
    "apart, scores first": (lambda: separate(scores_first=True), "separate", "detect", ("output1", "output0")),
    "v10": (v10, "end2end", "detect", ("output",)),
    "cls": (classifier, "classes", "classify", ("output",)),
}


@pytest.mark.parametrize("name", HEADS)
class TestStructure:
    def test_tells_the_head(self, name):
        build, *expected = HEADS[name]
        assert layout_of(build()) == tuple(expected)

    def test_is_not_told_by_names(self, name):
        build, *expected = HEADS[name]
        assert layout_of(with_random_names(build())) == tuple(expected)


def test_the_metadata_names_as_many_classes_as_there_are_scores():
    for model in (separate(), separate(classes_first=True), v5_raw(), classifier()):
        assert detect(with_metadata(model, {"names": ULTRALYTICS["names"]})).outputs == detect(model).outputs


@pytest.mark.slow
@pytest.mark.parametrize("build", [v5_raw, separate, lambda: v8(masks=True), classifier])
def test_a_quantized_model_has_the_head_of_the_float_one(build):
    model = build()
    assert detect(quantized(model)[0]).outputs == detect(model).outputs


@pytest.mark.parametrize(
    ("model", "metadata", "family", "keypoints"),
    [
        (lambda: v8(keypoints=4), {"task": "pose", "kpt_shape": "[4, 3]"}, "v8", (4, 3)),
        (lambda: v8(angle=True), {"task": "obb"}, "v8", (0, 0)),
        (lambda: v10(top=9, angle=True), {"task": "obb"}, "end2end", (0, 0)),
        (classifier, {"task": "classify"}, "classes", (0, 0)),
    ],
)
def test_metadata_tells_the_task(model, metadata, family, keypoints):
    head = detect(with_metadata(model(), ULTRALYTICS | metadata)).outputs
    assert (head.family, head.task, head.keypoints) == (family, metadata["task"], keypoints)


@pytest.mark.parametrize(
    ("model", "metadata"),
    [
        (classifier, {"task": "detect"}),
        (lambda: classifier(classes=5), {"task": "classify"}),  # the metadata names three
        (v5_raw, {"names": "['a', 'b', 'c', 'd']"}),
        (separate, {"names": "['a', 'b', 'c', 'd']"}),
        (lambda: v10(top=9, angle=True), {"task": "detect"}),
    ],
)
def test_outputs_that_contradict_the_metadata_are_not_understood(model, metadata):
    assert detect(with_metadata(model(), ULTRALYTICS | metadata)).family == UNKNOWN


@pytest.mark.parametrize(
    "family", [f for f in family_names() if f not in ("v5", "v8", "yolox", "yolox-raw", "end2end")]
)
def test_a_family_that_is_given_and_does_not_fit(family):
    message = rf"outputs \(1, 7, 21\) are not those of family {family}: give --family auto, or another one"
    with pytest.raises(ModelError, match=message):
        detect(v8(), family=family)


REAL = {
    "yolov5n": ("v5", "detect"),
    "yolov7": ("v5", "detect"),
    "yolov6n": ("v8", "detect"),
    "yolov8n-nms": ("end2end", "detect"),
    "yolov8n-seg": ("v8", "segment"),
    "yolov8n-pose": ("v8", "pose"),
    "yolov8n-cls": ("classes", "classify"),
    "yolov10n": ("v8", "detect"),
    "yolo26n": ("v8", "detect"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_real_exports_without_their_metadata(name):
    model = exported(name)
    task = detect(model).outputs.task
    assert (detect(model).family, task) == REAL[name]
    del model.metadata_props[:]
    if task != "pose":  # whose keypoints look like classes
        assert (detect(model).family, detect(model).outputs.task) == REAL[name]
