"""What kind of detector an ONNX model is: the picture it takes and the boxes it gives.

Told by the shapes of its input and outputs, by the operators at both ends of its graph and by the metadata that
Ultralytics documents (`names`, `imgsz`, `stride`, `task`); never by the names of nodes or tensors.
N is the number of boxes, nc the number of classes, K a number of finished detections:

    family      output                 a box and its scores
    v5          (batch, N, 5 + nc)     centre x, y, width, height in px, objectness, class scores; YOLOv5, v6, v7
    v8          (batch, 4 + nc, N)     the same without objectness; YOLOv8 and later
    yolox       (batch, N, 5 + nc)     as v5
    yolox-raw   (batch, N, 5 + nc)     as v5 before the decode: boxes are in units of their cells, sizes logarithms
    end2end     (batch, K, 6)          x1, y1, x2, y2 in px, score, class; duplicates are already removed

The last axis may go on with mask or keypoint columns, and either order of the last two axes is understood.
"""

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.errors import ConfigError, ModelError
from onnxq.images import PREPROCESSES, YOLO, YOLO_255, YOLOX, Preprocess

FAMILIES = ("v5", "v8", "yolox", "yolox-raw", "end2end")
UNKNOWN = "unknown"
RAW_STRIDES = (8, 16, 32)
"""Px of a cell's side on each of YOLOX's scales, in the order in which their boxes stand."""

_STRIDES = (RAW_STRIDES, (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
_LAYERS = {"Conv", "ConvTranspose", "Gemm", "MatMul", "ConvInteger", "QLinearConv", "QLinearMatMul"}
_MOVES = {
    "Cast", "Concat", "DequantizeLinear", "Flatten", "Gather", "Identity", "QuantizeLinear", "Reshape", "Slice",
    "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
_FLOATS: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.FLOAT16: "float16"}
_SMALL = 1024  # elements; shapes, indices and anchors have fewer, weights have more

_Shape = tuple[int, ...]  # 0 where an axis is not known


@dataclass(frozen=True)
class Detector:
    """What a model is taken for.

    Attributes:
        input_name: the image input, float32 or float16 (batch, 3, *size).
        size: (height, width) in px.
        family: one of `FAMILIES`, or "unknown".
        output_name: the output with the boxes; empty when the family is unknown.
        preprocess: how pictures become that input; a guess when the family is unknown.
        names: of the classes, as the metadata has them; may be empty.
        why: the phrase that tells what told the family.
        companions: what other inputs read beside each picture: two floats, by PaddleDetection's names.
    """

    input_name: str
    size: tuple[int, int]
    family: str
    output_name: str
    preprocess: Preprocess
    names: tuple[str, ...]
    why: str
    companions: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def feed(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """All inputs, for images of shape (batch, 3, *size)."""
        rows = {name: np.array([values] * len(images), np.float32) for name, values in self.companions.items()}
        return {self.input_name: images, **rows}


def detect(
    model: onnx.ModelProto,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: str = "auto",
    family: str = "auto",
    output_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Detector:
    """Tell what kind of detector a model is.

    Args:
        model: weights may be absent or external.
        image_size: (height, width) in px; needed where the input's are dynamic and the metadata has no `imgsz`.
        preprocess: a key of `PREPROCESSES`, or "auto".
        family: one of `FAMILIES`, or "auto".
        output_shapes: of each output by name, where a run has told them; else the graph's own are used.

    Raises:
        ModelError: the model has not exactly one input that is float32 or float16 (batch, 3, height, width).
        ConfigError: an option has an unknown value, or the image size is unknown or does not fit the model.
    """
    _check_choice("preprocess", preprocess, tuple(PREPROCESSES))
    _check_choice("family", family, FAMILIES)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    image = _image_input(model.graph)
    size = _image_size(image, image_size, metadata)
    names = _class_names(metadata)
    shapes = output_shapes if output_shapes is not None else _output_shapes(model, image.name, size)
    if family == "auto":
        family, output, why = _recognise(model.graph, shapes, size, len(names), metadata.get("task", ""))
    else:
        output, why = _likely_output(shapes, model.graph), "the family was given"
    if preprocess != "auto":
        chosen = PREPROCESSES[preprocess]
    elif family in ("yolox", "yolox-raw"):
        chosen = YOLOX
    elif _scales_levels(model.graph, image.name):
        chosen, why = YOLO_255, f"{why}, and the graph scales 0-255 itself"
    else:
        chosen = YOLO
    return Detector(image.name, size, family, output, chosen, names, why, _companions(model.graph, size))


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value != "auto" and value not in choices:
        raise ConfigError(f"{option} {value!r} is not known: give one of auto, {', '.join(choices)}")


# The input


def _image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    weights = {weight.name for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    images: list[onnx.ValueInfoProto] = [value for value in inputs if _is_image(value)]
    if len(images) == 1:
        [image] = images
        return image
    if len(inputs) == 1:
        raise ModelError(
            f"the model's input {_describe(inputs[0])} is no image: "
            "float32 or float16 (batch, 3, height, width) is needed"
        )
    listed = ", ".join(_describe(value) for value in inputs) or "none"
    raise ModelError(f"the model has {len(inputs)} inputs ({listed}) where one image is needed")


def _is_image(value: onnx.ValueInfoProto) -> bool:
    shape = _shape_of(value)
    return shape is not None and len(shape) == 4 and shape[1] in (0, 3) and value.type.tensor_type.elem_type in _FLOATS


def _companions(graph: onnx.GraphProto, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """What PaddleDetection's exports read beside a picture, for one that fills the input."""
    known = {"im_shape": (float(size[0]), float(size[1])), "scale_factor": (1.0, 1.0)}
    pairs = {value.name for value in graph.input if (_shape_of(value) or ())[1:] == (2,)}
    return {name: values for name, values in known.items() if name in pairs}


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = _FLOATS.get(tensor.elem_type) or onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} {_text([dim.dim_value or dim.dim_param for dim in tensor.shape.dim])}"


def _text(dims: Iterable[int | str]) -> str:
    return f"({', '.join(str(dim or '?') for dim in dims)})"


def _shape_of(value: onnx.ValueInfoProto) -> _Shape | None:
    tensor = value.type.tensor_type
    return tuple(dim.dim_value for dim in tensor.shape.dim) if tensor.HasField("shape") else None


def _image_size(
    image: onnx.ValueInfoProto, given: tuple[int, int] | None, metadata: Mapping[str, str]
) -> tuple[int, int]:
    height, width = (_shape_of(image) or ())[2:]
    if given is None:
        exported = _exported_size(metadata) if not (height and width) else (0, 0)
        return height or exported[0], width or exported[1]
    if min(given) < 1:
        raise ConfigError(f"the image size {_by(given)} is not positive")
    if (height and height != given[0]) or (width and width != given[1]):
        raise ConfigError(
            f"the image size {_by(given)} was given, but the model's input is {height or '?'}x{width or '?'}"
        )
    stride = _literal(metadata.get("stride", ""))
    if isinstance(stride, int) and stride > 0 and (given[0] % stride or given[1] % stride):
        raise ConfigError(f"the image size {_by(given)} is no multiple of the model's stride {stride}")
    return given


def _exported_size(metadata: Mapping[str, str]) -> tuple[int, int]:
    match _literal(metadata.get("imgsz", "")):
        case [int(height), int(width)] if min(height, width) > 0:
            return height, width
        case int(side) if side > 0:
            return side, side
    raise ConfigError("the model's height and width are dynamic, and it has no imgsz metadata: give --image-size 640")


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    match _literal(metadata.get("names", "")):
        case dict(names) if set(names) == set(range(len(names))):
            return tuple(str(names[index]) for index in range(len(names)))
        case list(names) | tuple(names):
            return tuple(str(name) for name in names)
    return ()


def _literal(text: str) -> object:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _scales_levels(graph: onnx.GraphProto, image: str) -> bool:
    """Whether the first arithmetic on the image is by a constant that only makes sense for levels of 0 to 255."""
    constants = _small_constants(graph)
    pending, seen = [image], {image}
    while pending:
        tensor = pending.pop()
        for node in graph.node:
            if tensor not in node.input:
                continue
            if node.op_type in _MOVES:
                pending += [name for name in node.output if name not in seen]
                seen.update(node.output)
            operand = max((constants[name] for name in node.input if name in constants), default=None)
            if operand is not None and (
                (node.op_type in ("Div", "Sub", "Add") and operand > 10) or (node.op_type == "Mul" and operand < 0.1)
            ):
                return True
    return False


def _small_constants(graph: onnx.GraphProto) -> dict[str, float]:
    """The greatest magnitude in each constant that is small enough to be a scale or an offset."""
    tensors = {weight.name: weight for weight in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].HasField("t"):
            tensors[node.output[0]] = node.attribute[0].t
    return {
        name: float(np.abs(numpy_helper.to_array(tensor)).max())
        for name, tensor in tensors.items()
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        and 0 < np.prod(tensor.dims, dtype=np.int64) <= 3
        and tensor.data_location != onnx.TensorProto.EXTERNAL
    }


# The outputs


def _output_shapes(model: onnx.ModelProto, image: str, size: tuple[int, int]) -> dict[str, _Shape]:
    """The outputs' shapes by name, as declared or else as inferred for one image of the given size."""
    declared = {output.name: _shape_of(output) for output in model.graph.output}
    if not all(shape and all(shape) for shape in declared.values()):
        declared = {**declared, **_inferred_shapes(model, image, size)}
    return {name: shape for name, shape in declared.items() if shape is not None}


def _inferred_shapes(model: onnx.ModelProto, image: str, size: tuple[int, int]) -> dict[str, _Shape]:
    sketch = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = sketch.graph
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    for value in graph.input:
        if value.name == image:
            for dim, known in zip(value.type.tensor_type.shape.dim, (1, 3, *size)):
                dim.dim_value = dim.dim_value or known
    for output in model.graph.output:
        graph.output.add(name=output.name).type.tensor_type.elem_type = output.type.tensor_type.elem_type
    for weight in model.graph.initializer:
        if np.prod(weight.dims, dtype=np.int64) <= _SMALL:
            graph.initializer.append(weight)
        else:
            graph.initializer.add(name=weight.name, data_type=weight.data_type, dims=weight.dims)
    try:
        inferred = onnx.shape_inference.infer_shapes(sketch, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    return {output.name: shape for output in inferred.graph.output if (shape := _shape_of(output)) is not None}


def _recognise(
    graph: onnx.GraphProto, shapes: Mapping[str, _Shape], size: tuple[int, int], classes: int, task: str
) -> tuple[str, str, str]:
    """The family, the output that has its boxes, and the phrase that tells why."""
    tables = {output.name: shapes.get(output.name, ()) for output in graph.output}
    tables = {name: shape for name, shape in tables.items() if len(shape) == 3}
    for name, shape in tables.items():
        found = _family_of(shape, size, classes, task, _tail(graph, name))
        if found is not None:
            return found[0], name, f"output {shape} {found[1]}"
    listed = ", ".join(_text(shape) for shape in tables.values())
    return UNKNOWN, "", f"outputs {listed} fit no family" if tables else "no output is a table of boxes"


def _family_of(
    shape: _Shape, size: tuple[int, int], classes: int, task: str, tail: "_Tail"
) -> tuple[str, str] | None:
    """The family that an output of shape (batch, rows, columns) has, and why; None where it fits none."""
    boxes, channels = max(shape[1:]), min(shape[1:])
    channels_first = shape[1] < shape[2]
    per_cell = _boxes_per_cell(boxes, size)
    if not per_cell:
        if shape[2] == 6 or (task in ("segment", "pose") and shape[2] > 6 and not channels_first):
            return "end2end", "has finished boxes with score and class"
        if channels_first and classes and channels >= 4 + classes:
            return "v8", f"has {classes} classes and no objectness"
        return None
    if per_cell == 1 and (channels_first or channels == 4 + classes):
        return ("v8", "has one box per cell and no objectness") if channels >= 4 + max(classes, 1) else None
    if channels < 5 + max(classes, 1):
        return None
    if per_cell == 3:
        return None if tail.is_raw else ("v5", "has three boxes per cell")
    if tail.has_exp:
        return "yolox", "has one box per cell, decoded with Exp"
    if tail.is_raw:
        return "yolox-raw", "has one box per cell and no decode"
    return "v5", "has one box per cell and objectness, decoded without Exp"


def _boxes_per_cell(boxes: int, size: tuple[int, int]) -> int:
    """1 or 3 where the boxes fill grids of the usual strides, else 0."""
    for strides in _STRIDES:
        cells = sum((size[0] // stride) * (size[1] // stride) for stride in strides)
        if cells and boxes in (cells, 3 * cells):
            return boxes // cells
    return 0


@dataclass(frozen=True)
class _Tail:
    """What stands between an output and the nearest layers before it."""

    is_raw: bool
    """Some layer's result comes out unchanged, only moved."""
    has_exp: bool


def _tail(graph: onnx.GraphProto, output: str) -> _Tail:
    producers = {name: node for node in graph.node for name in node.output}
    pending, seen = [(output, True)], set()
    is_raw = has_exp = False
    while pending:
        tensor, unchanged = step = pending.pop()
        node = producers.get(tensor)
        if step in seen or node is None or node.op_type == "Shape":
            continue
        seen.add(step)
        if node.op_type in _LAYERS or _is_bias(node, producers):
            is_raw |= unchanged
            continue
        has_exp |= node.op_type == "Exp"
        unchanged = unchanged and node.op_type in _MOVES
        pending += [(name, unchanged) for name in node.input]
    return _Tail(is_raw, has_exp)


def _is_bias(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the node adds its bias to a MatMul, which has no input for one."""
    made_by = [producers[name].op_type for name in node.input if name in producers]
    return node.op_type == "Add" and "MatMul" in made_by


def _likely_output(shapes: Mapping[str, _Shape], graph: onnx.GraphProto) -> str:
    outputs: list[str] = [output.name for output in graph.output]
    return next((name for name in outputs if len(shapes.get(name, (0, 0, 0))) == 3), outputs[0])
