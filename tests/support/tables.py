"""Models with constant outputs, output tables of each head family, and COCO files with their pictures."""

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw

from onnxq.yolo.decode import decode
from onnxq.yolo.detections import Detections
from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.families import family_of
from onnxq.yolo.output_layout import OutputLayout
from onnxq.yolo.preprocess import YOLO

SIZE = (64, 64)
CELLS = 84  # 64 + 16 + 4 of strides 8, 16 and 32

# Models


def build(nodes: list[onnx.NodeProto], shape: list[object], image: list[object], **metadata: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(made, metadata)
    return made


def constant(name: str, value: object, dtype: type = np.float32) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value, dtype)))


def always(table: np.ndarray, tail: str = "", batch: int = 1, **metadata: str) -> onnx.ModelProto:
    """Return a model that gives the same table, float32 (rows, columns) or (batch, rows, columns), for any picture.

    Args:
        tail: how the table is made: "raw" by a layer, "exp" by a product with Exp of zero, "" by an addition.
    """
    nodes = [
        constant("zero", 0),
        constant("table", table if table.ndim == 3 else table[np.newaxis]),
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
    ]
    if tail == "raw":
        nodes += [
            constant("one", [[1]]),
            constant("shape", [1, *table.shape], np.int64),
            constant("flat", table.reshape(1, -1)),
            helper.make_node("Add", ["one", "nothing"], ["column"]),
            helper.make_node("MatMul", ["column", "flat"], ["row"]),
            helper.make_node("Reshape", ["row", "shape"], ["out"]),
        ]
    elif tail == "exp":
        nodes += [
            helper.make_node("Exp", ["nothing"], ["unity"]),
            helper.make_node("Mul", ["table", "unity"], ["out"]),
        ]
    else:
        nodes.append(helper.make_node("Add", ["table", "nothing"], ["out"]))
    return build(nodes, [batch, *table.shape[-2:]], [batch, 3, *SIZE], **metadata)


def giving(outputs: dict[str, np.ndarray], nms: bool = False, **metadata: str) -> onnx.ModelProto:
    """Return a model that gives these outputs for any picture; with `nms` it has an unread NonMaxSuppression too."""
    nodes = [
        constant("none", 0),
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "none"], ["nothing"]),
    ]
    for name, array in outputs.items():
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        nodes += [
            constant(f"{name}_table", array, array.dtype),
            helper.make_node("Cast", ["nothing"], [f"{name}_nothing"], to=kind),
            helper.make_node("Add", [f"{name}_table", f"{name}_nothing"], [name]),
        ]
    if nms:
        nodes += [constant("b", np.zeros((1, 1, 4))), constant("s", np.zeros((1, 1, 1)))]
        nodes.append(helper.make_node("NonMaxSuppression", ["b", "s"], ["picked"]))
    made = build(nodes, [1], [1, 3, *SIZE], **metadata)
    del made.graph.output[:]
    made.graph.output.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in outputs.items()
    )
    return made


def bright_rectangle(image: list[object], **metadata: str) -> onnx.ModelProto:
    """Return an end-to-end detector that boxes the pixels brighter than 0.5, with score 0.9 and class 0."""
    nodes = [
        constant("half", 0.5),
        constant("one", 1),
        constant("nine", 0.9),
        constant("zero", 0),
        constant("middle", [1], np.int64),
        helper.make_node("Greater", ["images", "half"], ["bright"]),
        helper.make_node("Cast", ["bright"], ["mask"], to=TensorProto.FLOAT),
    ]
    for axis, first, last in ((2, "x1", "x2"), (3, "y1", "y2")):
        nodes += [
            helper.make_node("ReduceMax", ["mask"], [f"line{axis}"], axes=[1, axis], keepdims=0),
            helper.make_node("ArgMax", [f"line{axis}"], [f"{first}i"], axis=1),
            helper.make_node("ArgMax", [f"line{axis}"], [f"{last}i"], axis=1, select_last_index=1),
            helper.make_node("Cast", [f"{first}i"], [first], to=TensorProto.FLOAT),
            helper.make_node("Cast", [f"{last}i"], [f"{last}f"], to=TensorProto.FLOAT),
            helper.make_node("Add", [f"{last}f", "one"], [last]),
        ]
    nodes += [
        helper.make_node("Mul", ["x1", "zero"], ["class"]),
        helper.make_node("Add", ["class", "nine"], ["score"]),
        helper.make_node("Concat", ["x1", "y1", "x2", "y2", "score", "class"], ["rows"], axis=1),
        helper.make_node("Unsqueeze", ["rows", "middle"], ["out"]),
    ]
    return build(nodes, [image[0], 1, 6], image, **metadata)


def declared(*shapes: tuple[int, ...], last: str = "Sigmoid", **metadata: str) -> onnx.ModelProto:
    """A graph for images of 64 x 64 whose outputs are declared to have these shapes, each behind a Conv and `last`."""
    nodes, outputs = [], []
    for number, shape in enumerate(shapes):
        nodes.append(helper.make_node("Conv", ["images", "w"], [f"layer{number}"]))
        nodes.append(helper.make_node(last, [f"layer{number}"], [f"out{number}"]))
        outputs.append(helper.make_tensor_value_info(f"out{number}", TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, (1, 3, 64, 64))
    weight = helper.make_tensor("w", TensorProto.FLOAT, (1, 3, 1, 1), [0.1, 0.1, 0.1])
    made = helper.make_model(helper.make_graph(nodes, "g", [image], outputs, [weight]))
    helper.set_model_props(made, metadata)
    return made


def layout_of(model: onnx.ModelProto) -> tuple[str, str, tuple[str, ...]]:
    """Family, task and the outputs that are read."""
    layout = detect(model).outputs
    return layout.family, layout.task, layout.tensors


def decoded(table: np.ndarray, known: Detector, confidence: float = 0.01) -> Detections:
    """Return the detections of a model with one output, for one image."""
    return decode({"out": table[np.newaxis]}, known, confidence)


def detector(
    family: str, size: tuple[int, int] = SIZE, *, outputs: tuple[str, ...] = ("out",), names: int = 0, **head: object
) -> Detector:
    """Return the detector that a model with such a head is recognized as, with names for so many classes."""
    known = OutputLayout(family_of(family), str(head.pop("task", "detect")), outputs, "", **head)
    return Detector("images", size, known, YOLO, tuple(f"class {n}" for n in range(names)), "")


def table_of(boxes: list[tuple[float, ...]], family: str, classes: int, objectness: float = 0.8) -> np.ndarray:
    """Return a model's output with these boxes, (x1, y1, x2, y2, score, class) in px of the input, in its last rows."""
    first = 4 if family == "v8" else 5
    rows = {"v5": 3 * CELLS}.get(family, CELLS)
    table = np.zeros((rows, first + classes), np.float32)
    for row, (x1, y1, x2, y2, score, label) in enumerate(boxes, rows - len(boxes)):
        table[row, :4] = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
        if first == 5:
            table[row, 4] = objectness
            score /= objectness
        table[row, first + int(label)] = score
    if family == "yolox-raw":
        cells = [(x, y, s) for s in (8, 16, 32) for y in range(64 // s) for x in range(64 // s)]
        column, line, stride = np.array(cells, np.float32).T
        table[:, 0], table[:, 1] = table[:, 0] / stride - column, table[:, 1] / stride - line
        with np.errstate(divide="ignore"):
            table[:, 2:4] = np.maximum(np.log(table[:, 2:4] / stride[:, None]), -50)
    return table.T if family == "v8" else table


# Data

Boxes = list[tuple[float, float, float, float, int]]  # x, y, width, height in px, category id


def write_coco(
    folder: Path, pictures: dict[str, tuple[tuple[int, int], Boxes]], categories: dict[int, str], **extra: object
) -> tuple[Path, Path]:
    """Write pictures of (width, height) with white rectangles and their annotations; return the paths of both."""
    dataset: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": []}
    (folder / "images").mkdir()
    for image_id, (name, (size, boxes)) in enumerate(pictures.items(), 100):
        picture = Image.new("RGB", size)
        draw = ImageDraw.Draw(picture)
        for x, y, width, height, category in boxes:
            draw.rectangle((x, y, x + width - 1, y + height - 1), (255, 255, 255))
            dataset["annotations"].append({
                "id": len(dataset["annotations"]), "image_id": image_id, "category_id": category,
                "bbox": [x, y, width, height], "area": width * height, "iscrowd": 0, **extra,
            })  # fmt: skip
        picture.save(folder / "images" / name)
        dataset["images"].append({"id": image_id, "file_name": name})
    dataset["categories"] = [{"id": number, "name": name} for number, name in categories.items()]
    (folder / "annotations.json").write_text(json.dumps(dataset))
    return folder / "annotations.json", folder / "images"


TWO = {"a.png": ((64, 64), [(8, 16, 24, 16, 3)]), "b.png": ((64, 64), [(8, 16, 24, 16, 3)])}
BOX = (8, 16, 32, 32)  # the same, xyxy
