"""Recognizes what kind of detector an ONNX model is: the image that it takes, and how its outputs are read.

The evidence for the input is its shape, the first operators of the graph and the metadata that Ultralytics documents
(`names`, `imgsz`, `stride`, `task`), never the names of nodes or tensors; for the outputs see `output_layout`.
"""

import ast
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq._text import shape_text, size_text
from onnxq.errors import ConfigError, ModelError
from onnxq.ir import MOVES_VALUES, ProtoIndex, inferred_graph, with_weight_inputs
from onnxq.yolo.families import family_names, read_as, recognize
from onnxq.yolo.first_layer import first_conv, is_of_trained_network, painted_image, spread
from onnxq.yolo.input_front import InputFront, find_front
from onnxq.yolo.output_layout import Clues, OutputLayout, Shape
from onnxq.yolo.preprocess import LEVELS, STRETCH, UNIT, YOLO, YOLO_255, YOLO_CROP, Preprocess, parse_preprocess

log = logging.getLogger(__name__)

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.UINT8: "uint8",
}
"""Types that an image input may have."""

_COLOURS = 3

_MOST_PLANES = 16
"""Planes of an image input at most; a greater axis is a side of the image."""


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
        companions: values of the other inputs for each image: two floats, by PaddleDetection's names.
    """

    input_name: str
    size: tuple[int, int]
    outputs: OutputLayout
    preprocess: Preprocess
    names: tuple[str, ...]
    why: str
    companions: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def feed(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return arrays for all inputs, given images as `preprocess` makes them, (batch, ...)."""
        rows = {name: np.array([values] * len(images), np.float32) for name, values in self.companions.items()}
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
    output_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Detector:
    """Recognize what kind of detector a model is.

    Args:
        model: the model; weights may be absent or external.
        image_size: (height, width) in px; needed if the input's are dynamic and the metadata has no `imgsz`.
        preprocess: what `preprocess.parse_preprocess` takes.
        family: one of `families.family_names()`, or "auto".
        output_shapes: shapes of the outputs by name, known from a run; None: those of the graph.

    Raises:
        ModelError: the model does not have exactly one image input: float32, float16 or uint8, (batch, 3, height,
            width) or (batch, height, width, 3); or the outputs cannot be read as those of the given family.
        ConfigError: an option has an unknown value, or the image size is unknown or does not fit the model.
    """
    said = parse_preprocess(preprocess)
    if family != "auto" and family not in family_names():
        raise ConfigError(f"family: {family!r} is unknown; give one of auto, {', '.join(family_names())}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    image = _image_input(model.graph)
    size = _image_size(image, image_size, metadata)
    names = _class_names(metadata)
    clues = Clues(
        model.graph,
        output_shapes if output_shapes is not None else _output_shapes(model, image.name, size),
        size,
        batch=(_shape_of(image) or (0,))[0],
        classes=len(names),
        task=metadata.get("task", ""),
        keypoints=_keypoints(metadata),
    )
    layout = recognize(clues) if family == "auto" else read_as(family, clues)
    companions = _companions(model.graph, size)
    is_stretched = bool(companions) or "rtdetr" in metadata.get("description", "").lower()
    guess, why = _guess(model, image, size, layout, is_stretched)
    chosen = _laid_out(said(guess), image)
    found = Detector(image.name, size, layout, chosen, names, why, companions)
    is_scale_said = said(YOLO).values == said(YOLO_255).values
    return found if is_scale_said else _with_scale_of_first_layer(model, found)


def _with_scale_of_first_layer(model: onnx.ModelProto, detector: Detector) -> Detector:
    """Return the detector with 0-1 for 0-255 or the reverse, if the first layer fits a painted image only then.

    YOLOX was once trained on RGB of 0 to 1, and other tools train its head so.
    """
    guess, other = detector.preprocess, {UNIT: LEVELS, LEVELS: UNIT}.get(detector.preprocess.values)
    layer = first_conv(ProtoIndex(model.graph), detector.input_name)
    if other is None or guess.levels or guess.planes != _COLOURS or layer is None:
        return detector
    usual = detector.outputs.record.preprocess
    becomes_rgb = usual is not None and usual.bgr and other == UNIT
    mended = replace(guess, values=other, bgr=guess.bgr != becomes_rgb)
    image = painted_image(detector.size)
    try:
        as_guessed, as_mended = (
            spread(model, layer, [detector.feed(each(image, detector.size)[0])]) for each in (guess, mended)
        )
    except ModelError as error:
        log.info("the first layer does not tell the scale of the image: %s", error)
        return detector
    if is_of_trained_network(as_guessed) or not is_of_trained_network(as_mended):
        return detector
    why = f"{detector.why}, and the first layer is scaled for {other.name}"
    return replace(detector, preprocess=mended, why=why)


def _guess(
    model: onnx.ModelProto,
    image: onnx.ValueInfoProto,
    size: tuple[int, int],
    layout: OutputLayout,
    is_stretched: bool,
) -> tuple[Preprocess, str]:
    """Return the preprocessing that the model takes as far as is known, and the evidence for it and the family.

    PaddleDetection and Ultralytics' RT-DETR train on stretched images.
    """
    why, scales = layout.why, _scales_levels(model.graph, image.name)
    front = InputFront()
    if _planes(image) == _COLOURS:
        shape = YOLO.shape(size, (_shape_of(image) or (0,))[0] or 1)
        if _is_channels_last(image):
            shape = (shape[0], *size, _COLOURS)
        front = find_front(model, image.name, shape, _is_channels_last(image))
    if layout.record.preprocess is not None:
        guess = layout.record.preprocess
    elif layout.task == "classify":
        guess = YOLO_CROP
    else:
        guess = STRETCH if is_stretched else YOLO
    if layout.record.preprocess is None and (scales or front.scales_levels):
        guess, why = replace(guess, values=LEVELS), f"{why}, and the graph scales 0-255 itself"
    if front.reverses:
        guess, why = replace(guess, bgr=not guess.bgr), f"{why}, and the graph reverses the order of the planes"
    return guess, why


# The input


def _image_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    inputs = ProtoIndex(graph).inputs
    images: list[onnx.ValueInfoProto] = [value for value in inputs if _planes(value) == _COLOURS]
    images = images or [value for value in inputs if _planes(value)]
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


def _planes(value: onnx.ValueInfoProto) -> int:
    """Return the number of planes of an image input, which is 3 if it is not stated; 0 for other inputs."""
    shape = _shape_of(value)
    if shape is None or len(shape) != 4 or value.type.tensor_type.elem_type not in _TYPES:
        return 0
    is_last = _is_channels_last(value)
    planes, sides = (shape[3], shape[1:3]) if is_last else (shape[1] or _COLOURS, shape[2:])
    fits = planes == _COLOURS or (planes <= _MOST_PLANES and all(not side or side > planes for side in sides))
    return planes if fits else 0


def _is_channels_last(image: onnx.ValueInfoProto) -> bool:
    """Whether the planes are the last axis: 3 are unless they are the second axis, other numbers if they are fewer."""
    _, first, _, last = _shape_of(image) or (0, 0, 0, 0)
    if _COLOURS in (first, last):
        return first != _COLOURS
    return bool(0 < last <= _MOST_PLANES and first and last < first)


def _laid_out(preprocess: Preprocess, image: onnx.ValueInfoProto) -> Preprocess:
    """Return the preprocessing with the type, planes and order of axes of the input; uint8 holds levels of 0 to 255."""
    levels = image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    return replace(
        preprocess,
        values=LEVELS if levels else preprocess.values,
        planes=_planes(image),
        levels=levels,
        channels_last=_is_channels_last(image),
    )


def _companions(graph: onnx.GraphProto, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Values that PaddleDetection's exports take beside an image that fills the input."""
    known = {"im_shape": (float(size[0]), float(size[1])), "scale_factor": (1.0, 1.0)}
    pairs = {value.name for value in graph.input if (_shape_of(value) or ())[1:] == (2,)}
    return {name: values for name, values in known.items() if name in pairs}


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
            planes = _planes(value)
            known = (1, *size, planes) if _is_channels_last(value) else (1, planes, *size)
            for dim, number in zip(value.type.tensor_type.shape.dim, known):
                dim.dim_value = dim.dim_value or number
    for output in sketch.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = inferred_graph(sketch)
    except ModelError:
        return {}
    return {output.name: shape for output in inferred.output if (shape := _shape_of(output)) is not None}
