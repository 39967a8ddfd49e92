"""What the demo model gives on halves of real pictures, and the same in other layouts."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxq.calibration import demo
from onnxq.runtime.session import open_session, run
from onnxq.yolo.boxes import box_iou
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detections import Detections, to_corners
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.evidence import Look
from onnxq.yolo.looks import MOST_LOOKS, look
from onnxq.yolo.nms import suppress

SIZE = (160, 160)

Columns = Mapping[str, np.ndarray]
"""For each row x1, y1, x2, y2, cx, cy, w, h, score and label, each float32 (rows,); and scores, (rows, classes)."""

Layout = Callable[[Columns], Mapping[str, np.ndarray]]
"""Returns the outputs of a model, given the columns."""


@cache
def demo_looks() -> tuple[Look, ...]:
    """Return the looks at halves of demo scenes."""
    model = onnx.load(demo.model_path())
    detector, session = detect(model), open_session(model)
    names = [output.name for output in model.graph.output]
    looks = []
    for number in range(MOST_LOOKS):
        array, _ = detector.preprocess(demo.scene("calibration", number).picture, detector.size)
        looks.append(
            look(lambda feed: dict(zip(names, run(session, feed), strict=True)), detector, detector.feed(array), number)
        )
    return tuple(looks)


def columns_of(one: Look, unit: str = "px", classes: int = 6, finished: int = 0) -> Columns:
    """Return the columns of the demo's rows.

    Args:
        one: the look.
        unit: "px" or "shares".
        classes: only the first ones are kept.
        finished: 0: every candidate; else the best without duplicates, by falling score, and rows of zeros up to this.
    """
    [raw] = one.outputs.values()
    boxes, scores = np.asarray(raw)[0, :4].T, np.asarray(raw)[0, 4 : 4 + classes].T
    rows = np.arange(len(boxes))
    if finished:
        rows = suppress(to_corners(boxes), scores.max(axis=1), scores.argmax(axis=1), 0.65)[:finished]
        rows = rows[scores.max(axis=1)[rows] > 0.01]
    boxes, scores = boxes[rows] / (160 if unit == "shares" else 1), scores[rows]
    short = ((0, max(finished - len(rows), 0)), (0, 0))
    boxes, scores = np.pad(boxes, short), np.pad(scores, short)
    corners = to_corners(boxes)
    return {
        **dict(zip(("cx", "cy", "w", "h"), boxes.T, strict=True)),
        **dict(zip(("x1", "y1", "x2", "y2"), corners.T, strict=True)),
        "score": scores.max(axis=1),
        "label": scores.argmax(axis=1).astype(np.float32),
        "scores": scores,
        "rows": np.array([len(rows)]),
    }


def stacked(words: str) -> Layout:
    """Return the layout of one output (1, rows, columns) with these columns."""
    return lambda columns: {"out": block(words)(columns)[np.newaxis]}


def block(words: str) -> Callable[[Columns], np.ndarray]:
    """Return a function that puts columns side by side, float32 (rows, columns)."""

    def build(columns: Columns) -> np.ndarray:
        parts = [columns[word] for word in words.split()]
        wide = [part[:, np.newaxis] if part.ndim == 1 else part for part in parts]
        return np.concatenate(wide, axis=1).astype(np.float32)

    return build


def looks_in(layout: Layout, **kind: object) -> list[Look]:
    """Return the demo's looks with their outputs in another layout."""
    return [Look(layout(columns_of(one, **kind)), one.region) for one in demo_looks()]


def declaring(outputs: Mapping[str, np.ndarray], nms: bool = False, **metadata: str) -> onnx.ModelProto:
    """Return a model that declares outputs of these types, and of shapes that are not known."""
    nodes = [helper.make_node("Identity", ["images"], ["inner"])]
    if nms:
        nodes.append(helper.make_node("NonMaxSuppression", ["inner", "inner"], ["picked"]))
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim)
        for name, array in outputs.items()
    ]
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, *SIZE))
    made = helper.make_model(
        helper.make_graph(nodes, "g", [image], values), opset_imports=[helper.make_opsetid("", 17)]
    )
    helper.set_model_props(made, metadata)
    return made


def recognized(looks: Sequence[Look], **kind: object) -> tuple[onnx.ModelProto, Detector]:
    """Return a model with these outputs, and what the shapes show of it."""
    model = declaring(looks[0].outputs, **kind)
    return model, detect(model, output_shapes={name: array.shape for name, array in looks[0].outputs.items()})


def at(looks: Sequence[Look]) -> Callable[[Sequence[int]], list[Look]]:
    """Return the function that looks at pictures by their numbers."""
    return partial(_taken, looks)


def _taken(looks: Sequence[Look], numbers: Sequence[int]) -> list[Look]:
    return [looks[number] for number in numbers]


def same_objects(looks: Sequence[Look], detector: Detector, classes: int = 6, best_class: bool = True) -> bool:
    """Return whether the objects that a detector reads are those of the demo, to a hundredth of IoU."""
    for one, raw in zip(looks, demo_looks(), strict=True):
        found = find_objects(one.outputs, detector, 0.1, 0.65)
        expected = _expected(columns_of(raw, classes=classes), best_class)
        if len(found) != len(expected) or not np.allclose(np.sort(found.scores), np.sort(expected.scores), atol=1e-4):
            return False
        overlaps = box_iou(expected.boxes, found.boxes) * (expected.labels[:, None] == found.labels)
        if len(found) and overlaps.max(axis=1).min() < 0.99:
            return False
    return True


def _expected(columns: Columns, best_class: bool) -> Detections:
    scores = (
        np.where(columns["scores"] >= columns["score"][:, None], columns["scores"], 0)
        if best_class
        else columns["scores"]
    )
    rows, labels = np.nonzero(scores > np.float32(0.1))
    boxes = block("x1 y1 x2 y2")(columns)[rows]
    found = Detections(boxes, scores[rows, labels], labels, np.zeros((len(rows), 0), np.float32))
    return found.take(suppress(found.boxes, found.scores, found.labels, 0.65))


def demo_with(end: str, names: bool) -> onnx.ModelProto:
    """Return the demo model with another end.

    Args:
        end: "shares": boxes as shares; "apart": centres beside scores; "corners": corners and scores in one table;
            "pairs": the same as y1 x1 y2 x2; "yolo-v4": shares (1, N, 1, 4) and scores; "logits": shares and logits;
            "sized": boxes times the input `target_sizes`, and scores.
        names: keep the metadata.
    """
    model = onnx.load(demo.model_path())
    graph, raw = model.graph, model.graph.output[0].name
    if not names:
        del model.metadata_props[:]
    constants = {
        "factors": np.array([1 / 160] * 4 + [1] * 6, np.float32).reshape(1, 10, 1),
        "side": np.float32(1 / 160), "half": np.float32(0.5), "one": np.float32(1),
        "sizes": np.array([2, 2, 6], np.int64), "two": np.array([2], np.int64), "middle": np.array([1], np.int64),
        "order": np.array([1, 0, 3, 2], np.int64), "least": np.float32(1e-6), "most": np.float32(1 - 1e-6),
    }  # fmt: skip
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    graph.node.extend([
        helper.make_node("Split", [raw, "sizes"], ["centre", "size", "scores_t"], axis=1),
        helper.make_node("Mul", ["size", "half"], ["halves"]),
        helper.make_node("Sub", ["centre", "halves"], ["low"]),
        helper.make_node("Add", ["centre", "halves"], ["high"]),
        helper.make_node("Concat", ["centre", "size"], ["centred_t"], axis=1),
        helper.make_node("Concat", ["low", "high"], ["corners_t"], axis=1),
        *(helper.make_node("Transpose", [f"{n}_t"], [n], perm=[0, 2, 1]) for n in ("centred", "corners", "scores")),
    ])  # fmt: skip
    nodes, outputs = _ENDS[end]
    graph.node.extend(
        helper.make_node(op, [each.replace("RAW", raw) for each in ins], [out], **more) for op, ins, out, more in nodes
    )
    if end == "sized":
        graph.input.append(helper.make_tensor_value_info("target_sizes", TensorProto.INT64, (1, 2)))
    del graph.output[:]
    graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()
    )
    onnx.checker.check_model(model)
    return model


_APART = {"scores": (1, 500, 6)}

_ENDS: Mapping[str, tuple[list[tuple[str, list[str], str, dict[str, object]]], dict[str, tuple[int, ...]]]] = {
    "shares": ([("Mul", ["RAW", "factors"], "out", {})], {"out": (1, 10, 500)}),
    "apart": ([], {"centred": (1, 500, 4), **_APART}),
    "corners": ([("Concat", ["corners", "scores"], "out", {"axis": 2})], {"out": (1, 500, 10)}),
    "pairs": (
        [
            ("Gather", ["corners_t", "order"], "turned", {"axis": 1}),
            ("Concat", ["turned", "scores_t"], "out", {"axis": 1}),
        ],
        {"out": (1, 10, 500)},
    ),
    "yolo-v4": (
        [("Mul", ["corners", "side"], "shares", {}), ("Unsqueeze", ["shares", "two"], "boxes", {})],
        {"boxes": (1, 500, 1, 4), **_APART},
    ),
    "logits": (
        [
            ("Mul", ["centred", "side"], "boxes", {}),
            ("Clip", ["scores", "least", "most"], "clipped", {}),
            ("Sub", ["one", "clipped"], "rest", {}),
            ("Div", ["clipped", "rest"], "odds", {}),
            ("Log", ["odds"], "logits", {}),
        ],
        {"boxes": (1, 500, 4), "logits": (1, 500, 6)},
    ),
    "sized": (
        [
            ("Cast", ["target_sizes"], "lengths", {"to": TensorProto.FLOAT}),
            ("Concat", ["lengths", "lengths"], "four", {"axis": 1}),
            ("Unsqueeze", ["four", "middle"], "scales", {}),
            ("Mul", ["corners", "side"], "shares", {}),
            ("Mul", ["shares", "scales"], "boxes", {}),
        ],
        {"boxes": (1, 500, 4), **_APART},
    ),
}
