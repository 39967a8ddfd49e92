"""Guesses how images become the input of a model: by its family, its metadata and the operators at its beginning."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
from onnx import numpy_helper

from onnxq.errors import ModelError
from onnxq.ir import MOVES_VALUES, ProtoIndex
from onnxq.runtime.session import Feed
from onnxq.yolo.inputs.first_layer import first_conv, is_of_trained_network, spread
from onnxq.yolo.inputs.front import InputFront, find_front
from onnxq.yolo.inputs.image_input import COLOURS, is_channels_last, planes_of, shape_of
from onnxq.yolo.output_layout import Clues, OutputLayout
from onnxq.yolo.preprocess import (
    IMAGENET,
    LEVELS,
    SIGNED,
    STRETCH,
    UNIT,
    YOLO,
    YOLO_CROP,
    Change,
    Preprocess,
    Values,
    is_order_said,
    is_scale_said,
)

log = logging.getLogger(__name__)

_DOES: dict[Values, str] = {
    LEVELS: "scales 0-255 itself",
    UNIT: "scales 0-1 itself",
    IMAGENET: "undoes ImageNet's mean and deviation",
    SIGNED: "undoes the scale of -1 to 1",
}
"""Values of the image -> what the graph does to them, where the family alone would tell others."""


class Guess(NamedTuple):
    """The preprocessing that a model takes as far as is known.

    Attributes:
        preprocess: the preprocessing.
        why: the evidence for it and the family.
        front: what the graph does to the image before the first layer.
    """

    preprocess: Preprocess
    why: str
    front: InputFront

    def warnings(self, said: Change, assumed: Preprocess) -> tuple[str, ...]:
        """Return what the graph leaves open and `--preprocess` does not say, a sentence each.

        Args:
            said: makes what `--preprocess` says of what was recognized.
            assumed: the preprocessing that is used.
        """
        order, values = "BGR" if assumed.bgr else "RGB", assumed.values.name
        found = []
        if self.front.mixes and not is_order_said(said):
            found.append(
                "the graph mixes the planes of its image before the first layer, as a change from YUV to RGB does, so "
                f"that its colours cannot be told: {order} is assumed. Say --preprocess rgb or bgr if the model takes "
                "one of them; for other colours calibrate with arrays (.npy), as images cannot measure such a model"
            )
        if self.front.undoes and not is_scale_said(said):
            found.append(
                "the graph adds a mean to its image before the first layer, as if it undid a normalization that no "
                f"word of --preprocess names: {values} is assumed. Say --preprocess {values} if that is right; else "
                "calibrate with arrays (.npy), as images cannot measure such a model"
            )
        return tuple(found)


def guess_preprocess(
    model: onnx.ModelProto,
    image: onnx.ValueInfoProto,
    clues: Clues,
    layout: OutputLayout,
    is_stretched: bool,
) -> Guess:
    """Return the preprocessing that the model takes as far as is known.

    PaddleDetection and Ultralytics' RT-DETR train on stretched images.
    """
    why, scales, size = layout.why, _scales_levels(model.graph, image.name), clues.size
    front = InputFront()
    if planes_of(image) == COLOURS:
        shape = YOLO.shape(size, (shape_of(image) or (0,))[0] or 1)
        if is_channels_last(image):
            shape = (shape[0], *size, COLOURS)
        front = find_front(model, image.name, shape, is_channels_last(image))
    if layout.record.preprocess is not None:
        guess = layout.record.preprocess
    elif layout.task == "classify":
        guess = YOLO_CROP
    else:
        guess = STRETCH if is_stretched else YOLO
    takes = front.takes
    if takes is None and layout.record.preprocess is None and (scales or front.scales_levels):
        takes = LEVELS
    if takes is not None and takes != guess.values:
        guess, why = replace(guess, values=takes), f"{why}, and the graph {_DOES[takes]}"
    bgr = guess.bgr != front.reverses if front.bgr is None else front.bgr
    if front.reverses and bgr != guess.bgr:
        why = f"{why}, and the graph reverses the order of the planes"
    elif bgr != guess.bgr:
        why = f"{why}, and its constants are in the order {'BGR' if bgr else 'RGB'}"
    return Guess(replace(guess, bgr=bgr), why, front)


def scale_by_first_layer(
    model: onnx.ModelProto,
    image: str,
    guess: Preprocess,
    usual: Preprocess | None,
    painted: Callable[[Preprocess], Feed],
) -> Preprocess:
    """Return the preprocessing with 0-1 for 0-255 or the reverse, if the first layer fits a painted image only then.

    YOLOX was once trained on RGB of 0 to 1, and other tools train its head so.

    Args:
        model: weights may be absent; then nothing is known.
        image: the image input.
        guess: the preprocessing as far as is known.
        usual: the one that the family takes, if it has one of its own.
        painted: returns the feed of the painted image by a preprocessing.
    """
    other = {UNIT: LEVELS, LEVELS: UNIT}.get(guess.values)
    layer = first_conv(ProtoIndex(model.graph), image)
    if other is None or guess.levels or guess.planes != COLOURS or layer is None:
        return guess
    becomes_rgb = usual is not None and usual.bgr and other == UNIT
    mended = replace(guess, values=other, bgr=guess.bgr != becomes_rgb)
    try:
        for each in (guess, mended):
            if is_of_trained_network(spread(model, layer, [painted(each)])):
                return each
    except ModelError as error:
        log.info("the first layer does not tell the scale of the image: %s", error)
    return guess


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
