"""Builders of small graphs with the heads of exported YOLO detectors, and the graphs of real exporters.

Nodes of the decode after the last layers are named `decode_...`; layers that tests look up have fixed names.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from net import CLASSES, Net
from onnx import TensorProto


def _anchor_convs(net: Net, act: str) -> list[str]:
    return [net.conv(x, 3 * (5 + CLASSES), name=f"detect{k}") for k, x in enumerate(net.pyramid(act))]


def _anchor_decode(net: Net, convs: Sequence[str]) -> str:
    """[1, N, 5 + classes]: xy = (2 s - 0.5 + grid) stride, wh = (2 s)^2 anchor."""
    levels = []
    for x, side, stride in zip(convs, net.cells(), (8, 16, 32), strict=True):
        x = net.add("Transpose", net.reshape(x, 1, 3, 5 + CLASSES, side, side), perm=[0, 1, 3, 4, 2])
        xy, wh, rest = net.split(net.add("Sigmoid", x), 2, 2, 1 + CLASSES, axis=4)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)[None, None] - 0.5
        xy = net.add("Add", net.add("Mul", xy, net.const(2)), net.const(grid))
        xy = net.add("Mul", xy, net.const(stride))
        wh = net.add("Pow", net.add("Mul", wh, net.const(2)), net.const(2))
        anchors = net.const(stride * np.array([[1, 2], [2, 1], [2, 2]]).reshape(1, 3, 1, 1, 2))
        wh = net.add("Mul", wh, anchors)
        levels.append(net.reshape(net.concat(xy, wh, rest, axis=4), 1, -1, 5 + CLASSES))
    return net.concat(*levels, axis=1)


def v5(act: str = "silu", **options: object) -> onnx.ModelProto:
    """A head with anchors; output [1, N, 5 + classes]."""
    net = Net(**options)
    convs = _anchor_convs(net, act)
    net.prefix = "decode_"
    return net.model(_anchor_decode(net, convs))


def v5_raw(cells: bool = False, activated: bool = False, **options: object) -> onnx.ModelProto:
    """Without decode: the outputs of the three last Convs are outputs of the model.

    With `cells` they are [1, 3, H, W, 5 + classes], as in YOLOv7; with `activated` a Sigmoid follows.
    """
    net = Net(**options)
    grids = _anchor_convs(net, "silu")
    if cells:
        shaped = [net.reshape(x, 1, 3, 5 + CLASSES, side, side) for x, side in zip(grids, net.cells(), strict=True)]
        grids = [net.add("Transpose", x, perm=[0, 1, 3, 4, 2]) for x in shaped]
    return net.model(*(net.add("Sigmoid", x) if activated else x for x in grids))


def _anchor_nms(net: Net) -> tuple[str, str, str]:
    """Return boxes times a constant matrix, scores times objectness, and the picks of NonMaxSuppression, [n, 3]."""
    convs = _anchor_convs(net, "LeakyRelu")
    net.prefix = "decode_"
    boxes, objectness, scores = net.split(_anchor_decode(net, convs), 4, 1, CLASSES, axis=2)
    corners = net.const([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], name="convert_matrix")
    boxes = net.add("MatMul", boxes, corners)
    scores = net.add("Transpose", net.add("Mul", objectness, scores), perm=[0, 2, 1])
    settings = (net.ints(10), net.const(0.5), net.const(0.2))
    return boxes, scores, net.add("NonMaxSuppression", boxes, scores, *settings)


def v7_end2end(**options: object) -> onnx.ModelProto:
    """`v5` followed by NonMaxSuppression, whose indices are the output [n, 3]."""
    net = Net(**options)
    _, _, picked = _anchor_nms(net)
    return net.model(picked, types={picked: TensorProto.INT64})


def v7_rows(score_first: bool = False, **options: object) -> onnx.ModelProto:
    """`v7_end2end` followed by the rows of the picks; output [n, 7]: picture, corners, class, score."""
    net = Net(**options)
    boxes, scores, picked = _anchor_nms(net)
    picture, label = (net.slice(picked, 1, start, end=start + 1) for start in (0, 1))
    place = net.concat(picture, net.slice(picked, 1, 2), axis=1)
    boxes = net.add("GatherND", boxes, place)
    score = net.unsqueeze(net.add("GatherND", scores, picked), 1)
    picture, label = (net.add("Cast", x, to=TensorProto.FLOAT) for x in (picture, label))
    return net.model(net.concat(picture, boxes, *((score, label) if score_first else (label, score)), axis=1))


def _point_convs(net: Net, reg_max: int = 16, act: str = "silu", head: str = "") -> list[tuple[str, str]]:
    """Return the outputs of the box and class Convs of three scales."""
    convs = []
    for k, x in enumerate(net.pyramid(act)):
        box = net.conv(net.block(x, 8, act=act), 4 * reg_max, name=f"{head}box{k}")
        scores = net.conv(net.block(x, 8, act=act), CLASSES, name=f"{head}cls{k}")
        convs.append((box, scores))
    return convs


def _dfl(net: Net, box: str, reg_max: int) -> str:
    """Return the expected values of the distributions of the four sides: [1, 4 reg_max, N] -> [1, 4, N]."""
    x = net.add("Transpose", net.reshape(box, 1, 4, reg_max, -1), perm=[0, 2, 1, 3])
    x = net.softmax(x, axis=1)
    weight = net.const(np.arange(reg_max).reshape(1, reg_max, 1, 1), name="dfl_weight")
    return net.reshape(net.add("Conv", x, weight, name="decode_dfl", kernel_shape=[1, 1]), 1, 4, -1)


def _point_decode(net: Net, convs: Sequence[tuple[str, str]], reg_max: int = 16) -> tuple[str, str]:
    """Return boxes [1, 4, N] in pixels and scores [1, classes, N]."""
    width = 4 * reg_max + CLASSES
    flat = [net.reshape(net.concat(box, scores), 1, width, -1) for box, scores in convs]
    box, scores = net.split(net.concat(*flat, axis=2), 4 * reg_max, CLASSES)
    sides = _dfl(net, box, reg_max) if reg_max > 1 else box
    centres = [
        np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)).reshape(2, -1) for side in net.cells()
    ]
    strides = np.concatenate([np.full(c.shape[1], s) for c, s in zip(centres, (8, 16, 32), strict=True)])
    anchors = net.const(np.concatenate(centres, axis=1)[None])
    low = net.add("Sub", anchors, net.slice(sides, axis=1, start=0, end=2))
    high = net.add("Add", anchors, net.slice(sides, axis=1, start=2, end=4))
    centre = net.add("Div", net.add("Add", low, high), net.const(2))
    boxes = net.add("Mul", net.concat(centre, net.add("Sub", high, low)), net.const(strides[None]))
    return boxes, net.add("Sigmoid", scores)


def v8(
    masks: bool = False, reg_max: int = 16, keypoints: int = 0, angle: bool = False, **options: object
) -> onnx.ModelProto:
    """Boxes as distributions (plain with reg_max 1, as in v26); output [1, 4 + classes, N].

    With `masks`, as in v8-seg, the coefficients of three more Convs follow, and the prototypes are a second output.
    With `keypoints`, as in v8-pose, x, y and visibility of each follow. With `angle`, as in v8-obb, one more row does.
    """
    net = Net(**options)
    convs = _point_convs(net, reg_max)
    width = 2 if masks else 3 * keypoints or int(angle)
    name = "mask" if masks else "keypoints" if keypoints else "angle"
    extras = [net.conv(x, width, name=f"{name}{k}") for k, (_, x) in enumerate(_inputs_of(net, convs)) if width]
    prototypes = net.conv(net.upsample("mul2_out"), 2, name="proto") if masks else ""
    net.prefix = "decode_"
    parts = list(_point_decode(net, convs, reg_max))
    if extras:
        parts.append(net.concat(*(net.reshape(x, 1, width, -1) for x in extras), axis=2))
    if keypoints:
        parts[2] = net.add("Mul", net.add("Sigmoid", parts[2]), net.const(np.resize([32, 32, 1], (1, width, 1))))
    return net.model(net.concat(*parts), *([net.silu(prototypes)] if masks else []))


def _inputs_of(net: Net, convs: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Return the inputs of these Convs."""
    made_by = {node.output[0]: node for node in net.nodes}
    return [tuple(made_by[x].input[0] for x in row) for row in convs]


def _best(net: Net, top: int) -> tuple[str, str, str]:
    """Return the best boxes without NMS: boxes [1, top, 4] (center, size), scores and classes [1, top]."""
    convs = _point_convs(net, head="one2one_")
    net.prefix = "decode_"
    both = net.add("Transpose", net.concat(*_point_decode(net, convs)), perm=[0, 2, 1])
    boxes, scores = net.split(both, 4, CLASSES, axis=2)
    best = net.add("ReduceMax", scores, axes=[-1], keepdims=0)
    index = net.unsqueeze(net.add_many("TopK", best, net.ints(top), outputs=2, axis=-1)[1], 2)
    boxes = net.add("GatherElements", boxes, net.add("Tile", index, net.ints(1, 1, 4)), axis=1)
    scores = net.add("GatherElements", scores, net.add("Tile", index, net.ints(1, 1, CLASSES)), axis=1)
    score, place = net.add_many("TopK", net.add("Flatten", scores), net.ints(top), outputs=2, axis=-1)
    row = net.unsqueeze(net.add("Div", place, net.ints(CLASSES)), 2)
    boxes = net.add("GatherElements", boxes, net.add("Tile", row, net.ints(1, 1, 4)), axis=1)
    return boxes, score, net.add("Mod", place, net.ints(CLASSES))


def v10(top: int = 5, angle: bool = False, **options: object) -> onnx.ModelProto:
    """`v8` followed by the best boxes without NMS; output [1, top, 6]: box, score, class; with `angle` one more."""
    net = Net(**options)
    boxes, score, label = _best(net, top)
    columns = [boxes, net.unsqueeze(score, 2), net.unsqueeze(net.add("Cast", label, to=TensorProto.FLOAT), 2)]
    if angle:
        columns.append(net.add("Sub", columns[1], net.const(0.25)))
    return net.model(net.concat(*columns, axis=2))


def nms_tables(top: int = 5, **options: object) -> onnx.ModelProto:
    """The layout of TensorRT's EfficientNMS: count [1, 1], boxes [1, top, 4], scores and classes [1, top]."""
    net = Net(**options)
    boxes, score, label = _best(net, top)
    zero = net.add("Cast", net.add("ReduceMin", score, axes=[1], keepdims=1), to=TensorProto.INT32)
    count = net.add("Add", zero, net.const([[top - 1]], np.int32))
    label = net.add("Cast", label, to=TensorProto.INT32)
    return net.model(count, boxes, score, label, types={count: TensorProto.INT32, label: TensorProto.INT32})


def separate(
    scores_first: bool = False, classes_first: bool = False, logits: bool = False, **options: object
) -> onnx.ModelProto:
    """Two outputs, as in YOLO-NAS and PP-YOLOE: boxes [1, N, 4] and scores [1, N, classes] or [1, classes, N].

    With `logits` the scores come straight from the last Convs.
    """
    net = Net(**options)
    convs = _point_convs(net)
    net.prefix = "decode_"
    boxes, scores = _point_decode(net, convs)
    centre, sides = net.split(boxes, 2, 2)
    half = net.add("Mul", sides, net.const(0.5))
    corners = net.concat(net.add("Sub", centre, half), net.add("Add", centre, half))
    if logits:
        scores = net.concat(*(net.reshape(x, 1, CLASSES, -1) for _, x in convs), axis=2)
    tables = [net.add("Transpose", corners, perm=[0, 2, 1])]
    tables.append(net.add("Identity", scores) if classes_first else net.add("Transpose", scores, perm=[0, 2, 1]))
    return net.model(*(reversed(tables) if scores_first else tables))


def classifier(classes: int = CLASSES, **options: object) -> onnx.ModelProto:
    """The mean of the last feature map, a Gemm and a Softmax, as in v8-cls; output [1, classes]."""
    net = Net(**options)
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.pyramid()[-1]))
    weight = net.const(net.normal(16, classes), name="linear_weight")
    logits = net.add("Gemm", pooled, weight, net.const(net.normal(classes), name="linear_bias"), name="linear")
    return net.model(net.add("Softmax", logits, axis=1))


def yolox(levels: bool = True, **options: object) -> onnx.ModelProto:
    """Focus slices, depthwise Convs, raw outputs [1, N, 5 + classes]; for images of 0 to 255, or of 0 to 1."""
    net = Net(**options)
    rows = [net.slice("images", 2, start, 2) for start in (0, 1)]
    x = net.concat(*(net.slice(row, 3, start, 2) for start in (0, 1) for row in rows))
    x = net.act(net.conv(x, 8, 3, gain=1 / 255 if levels else 1.0), "silu")
    maps = []
    for _ in range(4):
        x = net.block(net.block(x, 8, stride=2, group=8), 8, kernel=1)
        maps.append(x)
    convs = []
    for k, x in enumerate(maps[1:]):
        scores, boxes = net.block(x, 8, group=8), net.block(x, 8, group=8)
        convs.append(
            (
                net.conv(boxes, 4, name=f"reg{k}"),
                net.conv(boxes, 1, name=f"obj{k}"),
                net.conv(scores, CLASSES, name=f"cls{k}"),
            )
        )
    net.prefix = "decode_"
    levels = []
    for reg, obj, cls in convs:
        joined = net.concat(reg, net.add("Sigmoid", obj), net.add("Sigmoid", cls))
        levels.append(net.reshape(joined, 1, 5 + CLASSES, -1))
    return net.model(net.add("Transpose", net.concat(*levels, axis=2), perm=[0, 2, 1]))


def v6(**options: object) -> onnx.ModelProto:
    """ReLU, and a projection Conv per scale after the Softmax; output [1, N, 4 + classes]."""
    net = Net(**options)
    convs = _point_convs(net, act="Relu")
    net.prefix = "decode_"
    weight = net.const(np.arange(16).reshape(1, 16, 1, 1))
    levels = []
    for k, (box, scores) in enumerate(convs):
        x = net.add("Transpose", net.reshape(box, 1, 4, 16, -1), perm=[0, 2, 1, 3])
        x = net.add("Conv", net.softmax(x, axis=1), weight, name=f"decode_projection{k}")
        scores = net.reshape(net.add("Sigmoid", scores), 1, CLASSES, -1)
        levels.append(net.concat(net.reshape(x, 1, 4, -1), scores))
    return net.model(net.add("Transpose", net.concat(*levels, axis=2), perm=[0, 2, 1]))


def _corner_boxes(net: Net, sides: str) -> str:
    """Return corners [1, N, 4] in pixels from the distances [1, N, 4] of the sides in cells."""
    centres = [np.stack(np.meshgrid(np.arange(n) + 0.5, np.arange(n) + 0.5), -1).reshape(-1, 2) for n in net.cells()]
    strides = np.concatenate([np.full((len(c), 1), s) for c, s in zip(centres, (8, 16, 32), strict=True)])
    points = net.const(np.concatenate(centres)[None])
    near, far = net.split(sides, 2, 2, axis=2)
    corners = net.concat(net.add("Sub", points, near), net.add("Add", points, far), axis=2)
    return net.add("Mul", corners, net.const(strides[None]))


def pp_yoloe(**options: object) -> onnx.ModelProto:
    """Features weighted by their means in the head, a projection per scale; boxes [1, N, 4], scores [1, classes, N]."""
    net = Net(**options)
    convs = []
    for k, x in enumerate(net.pyramid()):
        means = net.add("GlobalAveragePool", x)
        stems = [net.block(net.add("Mul", x, net.add("Sigmoid", net.conv(means, 16))), 16, kernel=1) for _ in range(2)]
        scores = net.conv(net.add("Add", stems[0], x), CLASSES, 3, name=f"cls{k}")
        convs.append((net.conv(stems[1], 4 * 17, 3, name=f"box{k}"), scores))
    net.prefix = "decode_"
    weight = net.const(np.arange(17).reshape(1, 17, 1, 1))
    sides, scores = [], []
    for box, score in convs:
        x = net.add("Transpose", net.reshape(box, 1, 4, 17, -1), perm=[0, 2, 3, 1])
        x = net.add("Conv", net.softmax(x, axis=1), weight)
        sides.append(net.reshape(x, 1, -1, 4))
        scores.append(net.reshape(net.add("Sigmoid", score), 1, CLASSES, -1))
    return net.model(_corner_boxes(net, net.concat(*sides, axis=1)), net.concat(*scores, axis=2))


def yolo_nas(**options: object) -> onnx.ModelProto:
    """Distributions weighted by a matrix; boxes [1, N, 4] and scores [1, N, classes]."""
    net = Net(**options)
    convs = _point_convs(net, act="Relu")
    net.prefix = "decode_"
    bins = net.const(np.arange(16).reshape(16, 1))
    sides, scores = [], []
    for box, score in convs:
        x = net.add("Transpose", net.reshape(box, 1, 4, 16, -1), perm=[0, 3, 1, 2])
        sides.append(net.reshape(net.add("MatMul", net.add("Softmax", x, axis=3), bins), 1, -1, 4))
        scores.append(net.add("Transpose", net.reshape(score, 1, CLASSES, -1), perm=[0, 2, 1]))
    scores = net.add("Sigmoid", net.concat(*scores, axis=1))
    return net.model(_corner_boxes(net, net.concat(*sides, axis=1)), scores)


DETECTORS: dict[str, Callable[..., onnx.ModelProto]] = {
    f.__name__: f for f in (v5, v5_raw, v6, v7_end2end, v8, v10, yolox, pp_yoloe, yolo_nas)
}

DATA = Path(os.environ.get("ONNXQ_DATA", Path(__file__).parents[4] / "shared"))


def exported(name: str) -> onnx.ModelProto:
    """Return the graph of a real exporter, with zeros for weights that were emptied; skip the test if it is absent."""
    path = DATA / "models" / "skeletons" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set ONNXQ_DATA to the folder that holds models/skeletons")
    model = onnx.load(path)
    for w in model.graph.initializer:
        if w.doc_string.startswith("emptied"):
            w.raw_data = bytes(4 * math.prod(w.dims))
    return model
