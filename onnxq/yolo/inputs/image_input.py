"""The image input of a model: which one it is, its planes, their order of axes, and its size."""

import ast
from collections.abc import Mapping
from dataclasses import replace

import onnx

from onnxq._text import shape_text, size_text
from onnxq.errors import ConfigError, ModelError
from onnxq.ir import ProtoIndex
from onnxq.yolo.preprocess import LEVELS, Preprocess

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}
"""Types that an image input may have."""

COLOURS = 3

_MOST_PLANES = 16
"""Planes of an image input at most; a greater axis is a side of the image."""


def image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    """Return the image input: the one of three planes, else the one of another number.

    Raises:
        ModelError: there is none, or more than one.
    """
    inputs = ProtoIndex(graph).inputs
    images: list[onnx.ValueInfoProto] = [value for value in inputs if planes_of(value) == COLOURS]
    images = images or [value for value in inputs if planes_of(value)]
    if len(images) == 1:
        [image] = images
        return image
    if len(inputs) == 1:
        raise ModelError(
            f"the model's input {_describe(inputs[0])} is not an image: expected float32, float16 or uint8, "
            f"(batch, 3, height, width) or (batch, height, width, 3){_decoding_remedy(graph, inputs[0].name)}"
        )
    listed = ", ".join(_describe(value) for value in inputs) or "none"
    raise ModelError(f"the model has {len(inputs)} inputs ({listed}): expected exactly one image")


def _decoding_remedy(graph: onnx.GraphProto, name: str) -> str:
    """Say where to cut a graph that decodes image files itself; empty for others."""
    for node in ProtoIndex(graph).consumers.get(name, ()):
        if "decode" in node.op_type.lower():
            return (
                f"; {node.op_type} decodes image files in the graph: cut it off with onnx.utils.Extractor, at the "
                f"tensor behind {node.output[0]} that is (batch, 3, height, width), and quantize the rest"
            )
    return ""


def planes_of(value: onnx.ValueInfoProto) -> int:
    """Return the number of planes of an image input, which is 3 if it is not stated; 0 for other inputs."""
    shape = shape_of(value)
    if shape is None or len(shape) != 4 or value.type.tensor_type.elem_type not in _TYPES:
        return 0
    is_last = is_channels_last(value)
    planes, sides = (shape[3], shape[1:3]) if is_last else (shape[1] or COLOURS, shape[2:])
    fits = planes == COLOURS or (planes <= _MOST_PLANES and all(not side or side > planes for side in sides))
    return planes if fits else 0


def is_channels_last(image: onnx.ValueInfoProto) -> bool:
    """Return whether the planes are the last axis: 3 are if they are not the second one, others if they are fewer."""
    _, first, _, last = shape_of(image) or (0, 0, 0, 0)
    if COLOURS in (first, last):
        return first != COLOURS
    return bool(0 < last <= _MOST_PLANES and first and last < first)


def laid_out(preprocess: Preprocess, image: onnx.ValueInfoProto) -> Preprocess:
    """Return the preprocessing with the type, planes and order of axes of the input; uint8 holds levels of 0 to 255."""
    levels = image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return replace(
        preprocess,
        values=LEVELS if levels else preprocess.values,
        planes=planes_of(image),
        levels=levels,
        channels_last=is_channels_last(image),
    )


def image_size_of(
    image: onnx.ValueInfoProto, given: tuple[int, int] | None, metadata: Mapping[str, str]
) -> tuple[int, int]:
    """Return (height, width) of the input: as given, else as declared, else as in the metadata.

    Raises:
        ConfigError: the size is unknown, or the given one does not fit the model.
    """
    first = 1 if is_channels_last(image) else 2
    height, width = (shape_of(image) or ())[first : first + 2]
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
    stride = literal(metadata.get("stride", ""))
    if isinstance(stride, int) and stride > 0 and any(side % stride for side in given):
        raise ConfigError(f"the image size {size_text(given)} is not a multiple of the model's stride {stride}")


def _exported_size(metadata: Mapping[str, str]) -> tuple[int, int]:
    match literal(metadata.get("imgsz", "")):
        case [int(height), int(width)] if min(height, width) > 0:
            return height, width
        case int(side) if side > 0:
            return side, side
    raise ConfigError("the model's height and width are dynamic, and it has no imgsz metadata: give --image-size 640")


def _describe(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    kind = _TYPES.get(tensor.elem_type) or onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return f"{value.name} {kind} {shape_text([dim.dim_value or dim.dim_param for dim in tensor.shape.dim])}"


def shape_of(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of a value, 0 for dynamic axes; None if it is not stated."""
    tensor = value.type.tensor_type
    return tuple(dim.dim_value for dim in tensor.shape.dim) if tensor.HasField("shape") else None


def literal(source: str) -> object:
    """Return the value of a Python literal in the metadata; None for any other text."""
    try:
        return ast.literal_eval(source)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
