"""Recognizes what kind of detector an ONNX model is: the image that it takes, and how its outputs are read.

The evidence for the input is its shape, the first operators of the graph and the metadata that Ultralytics documents
(`names`, `imgsz`, `stride`, `task`), never the names of nodes or tensors; for the outputs see `output_layout`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq import memory
from onnxq.errors import ConfigError, ModelError
from onnxq.ir import ProtoIndex, inferred_graph, with_weight_inputs
from onnxq.ir.checks.activations import check_run
from onnxq.runtime.session import Feed
from onnxq.yolo.class_names import parse_names
from onnxq.yolo.columns import parse_layout
from onnxq.yolo.families import family_names, read_as, recognize
from onnxq.yolo.families.columns import columns_layout
from onnxq.yolo.inputs.first_layer import painted_image
from onnxq.yolo.inputs.guess import guess_preprocess, scale_by_first_layer
from onnxq.yolo.inputs.image_input import (
    image_input,
    image_size_of,
    is_channels_last,
    laid_out,
    literal,
    planes_of,
    shape_of,
)
from onnxq.yolo.output_layout import GIVEN_LAYOUT, Clues, OutputLayout, Shape
from onnxq.yolo.preprocess import Preprocess, is_scale_said, parse_preprocess

_FLOAT = 4
"""Bytes of a value of an image as it is prepared."""


@dataclass(frozen=True)
class Detector:
    """The image input of a model, and how its outputs are read.

    Attributes:
        input_name: the image input, as `preprocess` makes it, or in float16.
        size: (height, width) of the input in px.
        outputs: how the outputs are read.
        preprocess: how images become that input; a guess if the family is unknown.
        names: class names in the metadata; may be none, and empty for a class that it does not name.
        why: the phrase that names the evidence for the family and the preprocessing.
        companions: values of the other inputs for each image: the size, or the scale.
        types: types of all inputs.
        warnings: what of the image cannot be told, a sentence each.
    """

    input_name: str
    size: tuple[int, int]
    outputs: OutputLayout
    preprocess: Preprocess
    names: tuple[str, ...]
    why: str
    companions: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    types: Mapping[str, "np.dtype[Any]"] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

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
        preprocess: what `preprocess.parse_preprocess` takes.
        family: one of `families.family_names()`, or "auto".
        layout: words that state the columns of the outputs, as `columns.parse_layout` takes them; none: the family's.
        output_shapes: shapes of the outputs by name, known from a run; None: those of the graph.

    Raises:
        ModelError: the model does not have exactly one image input: float32, float16 or uint8, (batch, 3, height,
            width) or (batch, height, width, 3); it or a run does not fit into memory, or a run takes hours; or the
            outputs cannot be read as those of the given family.
        ConfigError: an option has an unknown value, or the image size is unknown or does not fit the model.
    """
    said = parse_preprocess(preprocess)
    if family != "auto" and family not in family_names():
        raise ConfigError(f"family: {family!r} is unknown; give one of auto, {', '.join(family_names())}")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    image = image_input(model.graph)
    size = image_size_of(image, image_size, metadata)
    companions = _companions(model.graph, image.name, size)
    _check_run(model, image, size, companions)
    names = parse_names(metadata.get("names", ""))
    clues = clues_of(model, size, output_shapes)
    recognized = recognize(clues) if family == "auto" else read_as(family, clues)
    outputs = columns_layout(parse_layout(layout), clues, GIVEN_LAYOUT) if layout else recognized
    is_stretched = bool(companions) or "rtdetr" in metadata.get("description", "").lower()
    guess = guess_preprocess(model, image, clues, recognized, is_stretched)
    why = outputs.why + guess.why.removeprefix(recognized.why)
    preprocessed = laid_out(said(guess.preprocess), image)
    found = Detector(image.name, size, outputs, preprocessed, names, why, companions, _types(model.graph))
    if not is_scale_said(said):
        found = _with_scale_of_first_layer(model, found)
    return replace(found, warnings=guess.warnings(said, found.preprocess))


def _check_run(
    model: onnx.ModelProto, image: onnx.ValueInfoProto, size: tuple[int, int], companions: Iterable[str]
) -> None:
    """Refuse a model whose input or run does not fit into memory, or takes hours, before a part of it runs.

    Raises:
        ModelError: it does not.
    """
    batch, planes = (shape_of(image) or (0,))[0] or 1, planes_of(image)
    what = f"the input {image.name!r} of {batch} x {planes} x {size[0]} x {size[1]} values"
    memory.require(_FLOAT * math.prod((batch, planes, *size)), what, "give a smaller --image-size", ModelError)
    shape = (batch, *size, planes) if is_channels_last(image) else (batch, planes, *size)
    check_run(model, {image.name: shape, **dict.fromkeys(companions, (batch, 2))})


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
    image = image_input(model.graph)
    return Clues(
        model.graph,
        output_shapes if output_shapes is not None else _output_shapes(model, image.name, size),
        size,
        batch=(shape_of(image) or (0,))[0],
        classes=len(parse_names(metadata.get("names", ""))),
        task=metadata.get("task", ""),
        keypoints=_keypoints(metadata),
    )


def _with_scale_of_first_layer(model: onnx.ModelProto, detector: Detector) -> Detector:
    def painted(preprocess: Preprocess) -> Feed:
        return detector.feed(preprocess(painted_image(detector.size), detector.size)[0])

    guess, usual = detector.preprocess, detector.outputs.record.preprocess
    chosen = scale_by_first_layer(model, detector.input_name, guess, usual, painted)
    if chosen == guess:
        return detector
    return replace(
        detector, preprocess=chosen, why=f"{detector.why}, and the first layer is scaled for {chosen.values.name}"
    )


# The inputs and the metadata


def _companions(graph: onnx.GraphProto, image: str, size: tuple[int, int]) -> dict[str, tuple[float, float]]:
    """Values that models take beside an image that fills the input, by the names of the inputs.

    PaddleDetection's have the size as height and width, and the scale. Two whole numbers are width and height of the
    picture that the boxes are in px of, as RT-DETR, D-FINE and DEIM take them.
    """
    height, width = size
    known = {"im_shape": (float(height), float(width)), "scale_factor": (1.0, 1.0)}
    found: dict[str, tuple[float, float]] = {}
    for value in ProtoIndex(graph).inputs:
        if value.name == image or (shape_of(value) or ())[1:] != (2,):
            continue
        if value.name in known:
            found[value.name] = known[value.name]
        elif value.type.tensor_type.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            found[value.name] = (width, height)
    return found


def _types(graph: onnx.GraphProto) -> "dict[str, np.dtype[Any]]":
    types = {value.name: value.type.tensor_type.elem_type for value in ProtoIndex(graph).inputs}
    return {name: onnx.helper.tensor_dtype_to_np_dtype(kind) for name, kind in types.items()}


def _keypoints(metadata: Mapping[str, str]) -> tuple[int, int]:
    match literal(metadata.get("kpt_shape", "")):
        case [int(count), (2 | 3) as numbers] if count > 0:
            return count, numbers
    return 0, 0


# The outputs


def _output_shapes(model: onnx.ModelProto, image: str, size: tuple[int, int]) -> dict[str, Shape]:
    """The outputs' shapes by name, as declared, else as inferred for one image of the given size."""
    declared = {output.name: shape_of(output) for output in model.graph.output}
    if not all(shape and all(shape) for shape in declared.values()):
        declared = {**declared, **_inferred_shapes(model, image, size)}
    return {name: shape for name, shape in declared.items() if shape is not None}


def _inferred_shapes(model: onnx.ModelProto, image: str, size: tuple[int, int]) -> dict[str, Shape]:
    sketch = with_weight_inputs(model)
    for value in sketch.graph.input:
        if value.name == image:
            planes = planes_of(value)
            known = (1, *size, planes) if is_channels_last(value) else (1, planes, *size)
            for dim, number in zip(value.type.tensor_type.shape.dim, known):
                dim.dim_value = dim.dim_value or number
    for output in sketch.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = inferred_graph(sketch)
    except ModelError:
        return {}
    return {output.name: shape for output in inferred.output if (shape := shape_of(output)) is not None}
