"""What small graphs with the structures of exported models are taken for."""

import numpy as np
import onnx
import pytest
from graphs import (
    ULTRALYTICS,
    Net,
    classifier,
    exported,
    nms_tables,
    quantized,
    separate,
    v5,
    v5_raw,
    v7_end2end,
    v7_rows,
    v8,
    v10,
    with_constant_nodes,
    with_metadata,
    with_random_names,
)
from onnx import helper
from tables import giving

from onnxq.errors import ModelError
from onnxq.yolo.detector import detect
from onnxq.yolo.families import family_names
from onnxq.yolo.output_layout import UNKNOWN
from onnxq.yolo.preprocess import YOLO, YOLO_CROP

# family, task, outputs that are read, keypoints
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


def told(model: onnx.ModelProto) -> tuple[str, str, tuple[str, ...]]:
    head = detect(model).outputs
    return head.family, head.task, head.tensors


@pytest.mark.parametrize("name", HEADS)
class TestStructure:
    def test_tells_the_head(self, name):
        build, *expected = HEADS[name]
        assert told(build()) == tuple(expected)

    def test_is_not_told_by_names(self, name):
        build, *expected = HEADS[name]
        assert told(with_random_names(build())) == tuple(expected)


def declared(*shapes: tuple[int, ...], last: str = "Sigmoid", **metadata: str) -> onnx.ModelProto:
    """A graph for pictures of 64 x 64 whose outputs are declared to have these shapes, each behind a Conv."""
    nodes, outputs = [], []
    for number, shape in enumerate(shapes):
        nodes.append(helper.make_node("Conv", ["images", "w"], [f"layer{number}"]))
        nodes.append(helper.make_node(last, [f"layer{number}"], [f"out{number}"]))
        outputs.append(helper.make_tensor_value_info(f"out{number}", onnx.TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, (1, 3, 64, 64))
    weight = helper.make_tensor("w", onnx.TensorProto.FLOAT, (1, 3, 1, 1), [1, 1, 1])
    return with_metadata(helper.make_model(helper.make_graph(nodes, "g", [image], outputs, [weight])), metadata)


GRIDS = ((1, 3, 8, 8, 7), (1, 3, 4, 4, 7), (1, 3, 2, 2, 7))


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


def test_raw_grids_come_in_the_order_of_their_strides():
    assert told(declared(*GRIDS)) == ("v5-raw", "detect", ("out0", "out1", "out2"))
    assert told(declared(*GRIDS[::-1])) == ("v5-raw", "detect", ("out2", "out1", "out0"))
    assert told(declared(*GRIDS[1:])) == ("v5-raw", "detect", ("out0", "out1"))


@pytest.mark.parametrize(
    ("shapes", "last"),
    [
        (GRIDS, "Exp"),  # part of a decode
        ((*GRIDS[:2], (1, 3, 2, 2, 8)), "Sigmoid"),
        (GRIDS[:2], "Sigmoid"),  # of strides 8 and 16
        (((1, 3, 8, 8, 5), (1, 3, 4, 4, 5), (1, 3, 2, 2, 5)), "Sigmoid"),  # no classes
        (((1, 2, 8, 8, 7), (1, 2, 4, 4, 7), (1, 2, 2, 2, 7)), "Sigmoid"),
        (((1, 22, 8, 8), (1, 22, 4, 4), (1, 22, 2, 2)), "Sigmoid"),
    ],
)
def test_no_raw_grids(shapes, last):
    assert told(declared(*shapes, last=last)) == (UNKNOWN, "detect", ())


def test_scales_that_several_layers_give_are_no_raw_grids():
    net = Net()
    scales = [net.concat(net.conv(x, 16), net.conv(x, 8)) for x in net.pyramid()]
    assert told(net.model(*scales)) == (UNKNOWN, "detect", ())


def test_constants_in_nodes_are_no_arithmetic():
    assert detect(with_constant_nodes(v5_raw(cells=True))).outputs == detect(v5_raw(cells=True)).outputs


def test_boxes_beside_logits_are_not_understood():
    assert told(separate(logits=True)) == (UNKNOWN, "detect", ())


def test_the_metadata_names_as_many_classes_as_there_are_scores():
    for model in (separate(), separate(classes_first=True), v5_raw(), classifier()):
        assert detect(with_metadata(model, {"names": ULTRALYTICS["names"]})).outputs == detect(model).outputs


def test_rows_of_six_need_to_say_how_many_each_picture_has():
    rows, counts = np.zeros((4, 6), np.float32), np.zeros(1, np.int32)
    assert told(giving({"rows": rows, "counts": counts}, nms=True)) == ("nms-counted", "detect", ("counts", "rows"))
    assert told(giving({"rows": rows, "other": counts.astype(np.float32)}, nms=True)) == (UNKNOWN, "detect", ())
    assert told(giving({"rows": rows, "counts": counts})) == (UNKNOWN, "detect", ())


def test_seven_classes_are_no_rows_of_nms():
    assert told(classifier(classes=7)) == ("classes", "classify", ("output",))


@pytest.mark.parametrize("build", [v5_raw, separate, lambda: v8(masks=True), classifier])
def test_a_quantized_model_has_the_head_of_the_float_one(build):
    model = build()
    assert detect(quantized(model)[0]).outputs == detect(model).outputs


def test_indices_that_nms_picked_are_no_detections():
    assert told(v7_end2end()) == (UNKNOWN, "detect", ())


def test_raw_grids_say_whether_they_are_behind_their_sigmoid_and_that_anchors_are_missing():
    plain, activated = detect(v5_raw()).outputs, detect(v5_raw(cells=True, activated=True)).outputs
    assert (plain.activated, activated.activated) == (False, True)
    assert "anchors" in plain.assumed
    assert plain.why_no_precision == plain.assumed
    given = detect(v5_raw(), family="v7-raw").outputs
    assert (given.family, given.assumed, given.why_no_precision) == ("v7-raw", "", "")


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


@pytest.mark.parametrize("shape", [{}, {"kpt_shape": "[4, 5]"}, {"kpt_shape": "4"}])
def test_poses_of_unknown_keypoints_are_boxes(shape):
    head = detect(with_metadata(v8(keypoints=4), ULTRALYTICS | {"task": "pose"} | shape)).outputs
    assert (head.family, head.task) == ("v8", "detect")


def test_classifiers_take_the_middle_of_a_picture_in_place_of_a_letterbox():
    assert detect(classifier()).preprocess == YOLO_CROP
    assert detect(v8()).preprocess == YOLO


@pytest.mark.parametrize(
    "family", [f for f in family_names() if f not in ("v5", "v8", "yolox", "yolox-raw", "end2end")]
)
def test_a_family_that_is_given_and_does_not_fit(family):
    message = rf"outputs \(1, 7, 21\) are not those of family {family}: give --family auto, or another one"
    with pytest.raises(ModelError, match=message):
        detect(v8(), family=family)


def test_a_family_that_is_given_and_fits():
    head = detect(separate(), family="separate").outputs
    assert (head.outputs, head.why) == (("output0", "output1"), "the family was given")


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


@pytest.mark.parametrize("name", REAL)
def test_real_exports_without_their_metadata(name):
    model = exported(name)
    task = detect(model).outputs.task
    assert (detect(model).family, task) == REAL[name]
    del model.metadata_props[:]
    if task != "pose":  # whose keypoints look like classes
        assert (detect(model).family, detect(model).outputs.task) == REAL[name]
