"""What a model does to its image before the first layer: the operators there run on plain images.

Exporters put the change from BGR to RGB, the division by 255, and mean and deviation into the graph, in many spellings.
Others undo a mean and deviation there, or turn YUV into RGB. All of them show in the values that reach the first layer.
"""

import logging
from dataclasses import dataclass
from itertools import permutations, product

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.ir import LAYERS, ProtoIndex
from onnxq.runtime.session import open_session, run
from onnxq.yolo.inputs.first_layer import is_of_colours, part_before, unrounded
from onnxq.yolo.preprocess import IMAGENET, LEVELS, SIGNED, UNIT, Values

log = logging.getLogger(__name__)

_FIRST_LAYERS = LAYERS | {"ConvInteger", "QLinearConv", "QLinearMatMul"}

_MIXED = 0.02
"""Share of the greatest response below which a plane does not depend on another one; float16 rounds."""

_PLANES = 3

_LEVELS_GAIN = 0.05
"""Gain of a plane below which the input is levels of 0 to 255: 1 / 255, or that over a deviation of 0.225, is far
below; a mean and deviation of inputs of 0 to 1 is far above."""

_STEPS = (64.0, 0.25)
"""Value of all planes, and what one of them is raised by. The smaller one is for graphs that clip what is above 1."""

_USUAL = (UNIT, LEVELS, IMAGENET, SIGNED)
"""Values that an image is given in, and that networks are trained on."""

_INEXACT = 0.01
"""Share of the range of values by which a value may be another one; 127.5 is spelled 128 too."""

_LUMAS = (np.array([0.299, 0.587, 0.114]), np.array([0.2126, 0.7152, 0.0722]))
"""Shares of red, green and blue in the brightness of a pixel, by ITU-R BT.601 and BT.709."""


@dataclass(frozen=True)
class InputFront:
    """What the operators before the first layer do to the planes of the image.

    Attributes:
        reverses: the planes arrive in reverse order: the graph makes RGB of BGR, or BGR of RGB.
        scales_levels: the values are scaled as only levels of 0 to 255 need it.
        takes: the values of the image, of which the graph makes other usual ones; None if it does not.
        bgr: the planes of the image are blue, green, red; None if the constants are the same for both orders.
        mixes: a plane is made of several, in shares that do not tell which.
        undoes: a mean is added that no usual values lack.
    """

    reverses: bool = False
    scales_levels: bool = False
    takes: Values | None = None
    bgr: bool | None = None
    mixes: bool = False
    undoes: bool = False


def find_front(model: onnx.ModelProto, image: str, shape: tuple[int, ...], channels_last: bool) -> InputFront:
    """Run the operators between the image input and the first layer.

    A 1x1 Conv or a MatMul that makes at most three planes of three counts as such an operator, not as the first layer.
    A front that cannot be run alone, or that mixes the planes, does nothing as far as is known.

    Args:
        model: weights of layers may be absent.
        image: the image input.
        shape: of the image input, for one image, with three planes.
        channels_last: the planes are the last axis of the image input.
    """
    index = ProtoIndex(model.graph)
    read = _first_layer_input(index, image)
    tensor = unrounded(index, read) if read is not None else None
    if tensor is None or tensor == image:
        return InputFront()
    try:
        gains, offsets = _affine(part_before(model, index, tensor, given=image), image, shape, channels_last)
    except ModelError as error:
        log.info("what the graph does to its image cannot be found: %s", error)
        return InputFront()
    return _judged(gains, offsets)


def _judged(gains: NDArray[np.float64], offsets: NDArray[np.float64]) -> InputFront:
    """Judge by the gain from each plane of the image (rows) to each plane before the first layer (columns)."""
    size = np.abs(gains)
    greatest = size.max(axis=0)
    if not size.size or not np.isfinite(size).all() or not greatest.all():
        return InputFront()
    scales = bool(greatest.max() < _LEVELS_GAIN)
    if (size > _MIXED * greatest).sum() > size.shape[1]:
        bgr, is_told = _order_in_brightness(gains)
        return InputFront(scales_levels=scales, bgr=bgr, mixes=not is_told)
    sources = size.argmax(axis=0)
    reverses = list(dict.fromkeys(sources.tolist())) == list(reversed(range(_PLANES)))
    own = gains[sources, np.arange(len(sources))]
    for (takes, gives), bgr in product(permutations(_USUAL, 2), (False, True)):
        if _makes(own, offsets, sources, takes, gives, bgr):
            is_either = _makes(own, offsets, sources, takes, gives, not bgr)
            return InputFront(reverses, scales, takes, None if is_either else bgr)
    white = LEVELS.of(255)[0] if scales else 1.0
    return InputFront(reverses, scales, undoes=bool((offsets > _MIXED * white * own).all() and (own > 0).all()))


def _makes(
    gains: NDArray[np.float64],
    offsets: NDArray[np.float64],
    sources: NDArray[np.intp],
    takes: Values,
    gives: Values,
    bgr: bool,
) -> bool:
    """Whether gains and offsets make the values `gives` of an image in the values `takes`.

    Args:
        gains, offsets: of each plane before the first layer.
        sources: the plane of the image that each of them is made of.
        takes, gives: usual values.
        bgr: the planes of the image are blue, green, red.
    """
    colours = _PLANES - 1 - sources if bgr else sources
    black, white = (np.array(gives.of(level))[colours] for level in (0, 255))
    found = (gains * np.array(takes.of(level))[colours] + offsets for level in (0, 255))
    errors = [np.abs(made - wanted) for made, wanted in zip(found, (black, white), strict=True)]
    return bool((np.array(errors) < _INEXACT * (white - black)).all())


def _order_in_brightness(gains: NDArray[np.float64]) -> tuple[bool | None, bool]:
    """Whether the planes are blue, green, red, as a plane of brightness shows, and whether their order is known.

    All planes in equal shares are grey in either order.
    """
    sums = gains.sum(axis=0)
    bright = np.abs(sums) > _MIXED * np.abs(gains).max(axis=0)
    shares = (gains[:, bright] / sums[bright]).T
    for luma in _LUMAS:
        for bgr in (False, True):
            if (np.abs(shares - (luma[::-1] if bgr else luma)) < _INEXACT).all(axis=1).any():
                return bgr, True
    return None, bool(bright.all() and (np.abs(shares - 1 / _PLANES) < _INEXACT).all())


def _first_layer_input(index: ProtoIndex, image: str) -> str | None:
    """Return the tensor that the first layer on the image reads; None if there is none."""
    made_of_image = {image}
    for node in index.nodes:
        if made_of_image.intersection(node.input):
            if node.op_type in _FIRST_LAYERS and node.input[0] in made_of_image and not is_of_colours(node, index):
                return str(node.input[0])
            made_of_image.update(node.output)
    return None


def _affine(
    front: onnx.ModelProto, image: str, shape: tuple[int, ...], channels_last: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the gain from each plane of the image to each plane of the output, and what black gives.

    Returns:
        The gains, (planes, planes of the output), and the offsets, (planes of the output,).
    """
    [value] = [value for value in front.graph.input if value.name == image]
    if len(front.graph.input) > 1:
        raise ModelError(f"it depends on {len(front.graph.input)} inputs")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    session = open_session(front, threads=1)

    def seen(step: float, raised: int | None = None) -> NDArray[np.float64]:
        planes = np.full(shape, step, dtype)
        if raised is not None:
            planes[(..., raised) if channels_last else (slice(None), raised)] += dtype.type(step)
        [found] = run(session, {image: planes})
        if found.ndim != len(shape):
            raise ModelError("its output is no image")
        return np.asarray(found.astype(np.float64).mean(axis=(0, 2, 3)))

    for step in _STEPS if dtype.kind == "f" else _STEPS[:1]:
        base = seen(step)
        gains = np.stack([seen(step, plane) - base for plane in range(_PLANES)]) / step
        if gains.any(axis=1).all():
            break
    return gains, seen(0.0)
