"""Recognizes what kind of detector an ONNX model is: the image that it takes, and how its outputs are read.

The evidence for the input is its shape, the first operators of the graph and the metadata that Ultralytics documents
(`names`, `imgsz`, `stride`, `task`), never the names of nodes or tensors; for the outputs see `output_layout`.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq._text import shape_text, size_text
from onnxq.errors import ConfigError, ModelError
from onnxq.ir import MOVES_VALUES, ProtoIndex, inferred_graph, with_weight_inputs
from onnxq.yolo.columns import parse_layout
from onnxq.yolo.families import family_names, read_as, recognize
from onnxq.yolo.families.columns import columns_layout
from onnxq.yolo.output_layout import GIVEN_LAYOUT, Clues, OutputLayout, Shape
from onnxq.yolo.preprocess import PREPROCESSES, YOLO, YOLO_255, YOLO_CROP, Preprocess

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}
"""Types that an image input may have."""


@dataclass(frozen=True)
class Detector:
    """The image input of a model, and how its outputs are read.

    Attributes:
        input_name: the image input, as `preprocess` makes it, or in float16.
        size: (height, width) of the input in px.
        outputs: how the outputs are read.
        preprocess: how images become that input; a guess if the family is unknown.
        names: class names in the metadata; may be empty.
        why: the phrase that names the evidence for the family and the preprocessing.
        companions: values of the other inputs for each image: the size, or the scale.
        types: types of all inputs.
    """

    input_name: str
    size: tuple[int, int]
    outputs: OutputLayout
    preprocess: Preprocess
    names: tuple[str, ...]
    why: str
    companions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    types: Mapping[str, "np.dtype[Any]"] = field(default_factory=dict)

    def feed(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return arrays for all inputs, given images as `preprocess` makes them, (batch, ...)."""
        rows = {
            name: np.array([pair] * len(images), self.types.get(name, np.float32))
            for name, pair in self.companions.items()
        }
        return {self.input_name: images, **rows}

    @property
    def family(self) -> str:
        """Name of the head family, or "unknown"."""
        return self.outputs.family

    @property
    def title(self) -> str:
        """Family and task; detection and classification go without saying."""
        return self.family if self.outputs.task in ("detect", "classify") else f"{self.family} {self.outputs.task}"


def detect(
    model: onnx.ModelProto,
    *,
    image_size: tuple[int, int] | None = None,
    preprocess: str = "auto",
    family: str = "auto",
    layout: Sequence[str] = (),
    output_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Detector:
    """Recognize what kind of detector a model is.

    Args:
        model: the model; weights may be absent or external.
        image_size: (height, width) in px; needed if the input's are dynamic and the metadata has no `imgsz`.
        preprocess: a key of `PREPROCESSES`, or "auto".
        family: one of `families.family_names()`, or "auto".
        layout: words that state the columns of the outputs, as `columns.parse_layout` takes them; none: the family's.
        output_shapes: shapes of the outputs by name, known from a run; None: those of the graph.

    Raises:
        ModelError: the model does not have exactly one image input: float32, float16 or uint8, (batch, 3, height,
            width) or (batch, height, width, 3); or the outputs cannot be read as those of the given family.
        ConfigError: an option has an unknown value, or the image size is unknown or does not fit the model.
    """
    _check_choice("preprocess", preprocess, tuple(PREPROCESSES))
    _check_choice("family", family, family_names())
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    image = _image_input(model.graph)
    size = _image_size(image, image_size, metadata)
    clues = clues_of(model, size, output_shapes)
    recognized = recognize(clues) if family == "auto" else read_as(family, clues)
    outputs = columns_layout(parse_layout(layout), clues, GIVEN_LAYOUT) if layout else recognized
    why = outputs.why
    if preprocess != "auto":
        chosen = PREPROCESSES[preprocess]
    elif recognized.record.preprocess is not None:
        chosen = recognized.record.preprocess
    elif _scales_levels(model.graph, image.name):
        chosen, why = YOLO_255, f"{why}, and the graph scales 0-255 itself"
    else:
        chosen = YOLO_CROP if outputs.task == "classify" else YOLO
    names, companions = _class_names(metadata), _companions(model.graph, image.name, size)
    return Detector(image.name, size, outputs, _laid_out(chosen, image), names, why, companions, _types(model.graph))


def clues_of(
    model: onnx.ModelProto, size: tuple[int, int], output_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Clues:
    """Return what is known of a model's outputs.

    Args:
        model: the model; weights may be absent or external.
        size: the input, (height, width) in px.
        output_shapes: shapes of the outputs by name, known from a run; None: those of the graph.
    """
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    image = _image_input(model.graph)
    return Clues(
        model.graph,
        output_shapes if output_shapes is not None else _output_shapes(model, image.name, size),
        size,
        batch=(_shape_of(image) or (0,))[0],
        classes=len(_class_names(metadata)),
        task=metadata.get("task", ""),
        keypoints=_keypoints(metadata),
    )


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value != "auto" and value not in choices:
        raise ConfigError(f"{option}: {value!r} is unknown; give one of auto, {', '.join(choices)}")


# The input


def _image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    inputs = ProtoIndex(graph).inputs
    images: list[onnx.ValueInfoProto] = [value for value in inputs if _is_image(value)]
    if len(images) == 1:
        [image] = images
        return image
    if len(inputs) == 1:
        raise ModelError(
            f"the model's input {_describe(inputs[0])} is not an image: "
            "expected float32, float16 or uint8, (batch, 3, height, width) or (batch, height, width, 3)"
        )
    listed = ", ".join(_describe(value) for value in inputs) or "none"
    raise ModelError(f"the model has {len(inputs)} inputs ({listed}): expected exactly one image")


def _is_image(value: onnx.ValueInfoProto) -> bool:
    shape = _shape_of(value)
    if shape is None or len(shape) != 4 or value.type.tensor_type.elem_type not in _TYPES:
        return False
    return shape[1] in (0, 3) or shape[3] == 3


def _is_channels_last(image: onnx.ValueInfoProto) -> bool:
    _, first, _, last = image.type.tensor_type.shape.dim
    return bool(last.dim_value == 3 and first.dim_value != 3)


def _laid_out(preprocess: Preprocess, image: onnx.ValueInfoProto) -> Preprocess:
    """Return the preprocessing with the type and order of axes of the input; uint8 holds levels of 0 to 255 only."""
    levels = image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    divisor = 1.0 if levels else preprocess.divisor
    return replace(preprocess, divisor=divisor, levels=levels, channels_last=_is_channels_last(image))


def _companions(graph: onnx.GraphProto, image: str, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Values that models take beside an image that fills the input, by the names of the inputs.

    PaddleDetection's have the size as height and width, and the scale. Two whole numbers are width and height of the
    picture that the boxes are in px of, as RT-DETR, D-FINE and DEIM take them.
    """
    height, width = size
    known = {"im_shape": (float(height), float(width)), "scale_factor": (1.0, 1.0)}
    found: dict[str, tuple[float, float]] = {}
    for value in ProtoIndex(graph).inputs:
        if value.name == image or (_shape_of(value) or ())[1:] != (2,):
            continue
        if value.name in known:
            found[value.name] = known[value.name]
        elif value.type.tensor_type.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            found[value.name] = (width, height)
    return found


def _types(graph: onnx.GraphProto) -> "dict[str, np.dtype[Any]]":
    types = {value.name: value.type.tensor_type.elem_type for value in ProtoIndex(graph).inputs}
    return {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in types.items()}


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = _TYPES.get(tensor.elem_type) or onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} {shape_text([dim.dim_value or dim.dim_param for dim in tensor.shape.dim])}"


def _shape_of(value: onnx.ValueInfoProto) -> Shape | None:
    tensor = value.type.tensor_type
    return tuple(dim.dim_value for dim in tensor.shape.dim) if tensor.HasField("shape") else None


def _image_size(
    image: onnx.ValueInfoProto, given: tuple[int, int] | None, metadata: Mapping[str, str]
) -> tuple[int, int]:
    """Return (height, width) of the input: as given, else as declared, else as in the metadata."""
    first = 1 if _is_channels_last(image) else 2
    height, width = (_shape_of(image) or ())[first : first + 2]
    if given is not None:
        _check_image_size(given, (height, width), metadata)
        return given
    if height and width:
        return height, width
    exported = _exported_size(metadata)
    return height or exported[0], width or exported[1]


def _check_image_size(given: tuple[int, int], declared: tuple[int, int], metadata: Mapping[str, str]) -> None:
    """Raise ConfigError if a given size is not the declared one (0: any), or no multiple of the metadata's stride."""
    if min(given) < 1:
        raise ConfigError(f"the image size {size_text(given)} is not positive")
    if any(fixed not in (0, side) for side, fixed in zip(given, declared, strict=True)):
        height, width = declared
        raise ConfigError(
            f"the image size {size_text(given)} was given, but the model's input is {height or '?'}x{width or '?'}"
        )
    stride = _literal(metadata.get("stride", ""))
    if isinstance(stride, int) and stride > 0 and any(side % stride for side in given):
        raise ConfigError(f"the image size {size_text(given)} is not a multiple of the model's stride {stride}")


def _exported_size(metadata: Mapping[str, str]) -> tuple[int, int]:
    match _literal(metadata.get("imgsz", "")):
        case [int(height), int(width)] if min(height, width) > 0:
            return height, width
        case int(side) if side > 0:
            return side, side
    raise ConfigError("the model's height and width are dynamic, and it has no imgsz metadata: give --image-size 640")


def _class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    match _literal(metadata.get("names", "")):
        case dict(names) if set(names) == set(range(len(names))):
            return tuple(str(names[index]) for index in range(len(names)))
        case list(names) | tuple(names):
            return tuple(str(name) for name in names)
    return ()


def _keypoints(metadata: Mapping[str, str]) -> tuple[int, int]:
    match _literal(metadata.get("kpt_shape", "")):
        case [int(count), (2 | 3) as numbers] if count > 0:
            return count, numbers
    return 0, 0


def _literal(source: str) -> object:
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _scales_levels(graph: onnx.GraphProto, image: str) -> bool:
    """Whether the first arithmetic on the image has a constant that only makes sense for levels of 0 to 255."""
    constants, consumers = _small_constants(graph), ProtoIndex(graph).consumers
    pending, seen = [image], {image}
    while pending:
        tensor = pending.pop()
        for node in consumers.get(tensor, ()):
            if node.op_type in MOVES_VALUES:
                pending += [name for name in node.output if name not in seen]
                seen.update(node.output)
            operand = max((constants[name] for name in node.input if name in constants), default=None)
            if operand is not None and (
                (node.op_type in ("Div", "Sub", "Add") and operand > 10) or (node.op_type == "Mul" and operand < 0.1)
            ):
                return True
    return False


def _small_constants(graph: onnx.GraphProto) -> dict[str, float]:
    """The greatest magnitude in each constant of at most three values, which may be a scale or an offset."""
    return {
        name: float(np.abs(numpy_helper.to_array(tensor)).max())
        for name, tensor in ProtoIndex(graph).constants.items()
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        and 0 < np.prod(tensor.dims, dtype=np.int64) <= 3
        and tensor.data_location != onnx.TensorProto.EXTERNAL
    }


# The outputs


def _output_shapes(model: onnx.ModelProto, image: str, size: tuple[int, int]) -> dict[str, Shape]:
    """The outputs' shapes by name, as declared, else as inferred for one image of the given size."""
    declared = {output.name: _shape_of(output) for output in model.graph.output}
    if not all(shape and all(shape) for shape in declared.values()):
        declared = {**declared, **_inferred_shapes(model, image, size)}
    return {name: shape for name, shape in declared.items() if shape is not None}


def _inferred_shapes(model: onnx.ModelProto, image: str, size: tuple[int, int]) -> dict[str, Shape]:
    sketch = with_weight_inputs(model)
    for value in sketch.graph.input:
        if value.name == image:
            known = (1, *size, 3) if _is_channels_last(value) else (1, 3, *size)
            for dim, number in zip(value.type.tensor_type.shape.dim, known):
                dim.dim_value = dim.dim_value or number
    for output in sketch.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = inferred_graph(sketch)
    except ModelError:
        return {}
    return {output.name: shape for output in inferred.output if (shape := _shape_of(output)) is not None}
