"""fold-focus: moves the rearrangement of pixels into channels from the graph into the Conv behind it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Builder, Model, Node, Tensor, constant, consumers, producer
from onnxq.pipeline import Facts, Rewrite

_SPATIAL = (2, 3)
"""Axes of height and width."""


class FoldFocus(Rewrite):
    """Turns Conv(rearranged(x)) into one Conv of x with `block` times the kernel and the stride.

    The rearrangement puts the pixels of each block of x into channels, half as high and half as wide for blocks of 2:
    the first step of YOLOX and of YOLOv5 before its version 6.0 (Focus), and of networks with pixel_unshuffle. Each
    output is the sum of the same products, so the arithmetic is equal but for the order of its sum. Without the copies
    runtimes need less time, and the Conv reads the image itself.

    - strided Slices of height and width, and the Concat of their results along the channels
    - SpaceToDepth (ONNX, opset 13); Reshape, Transpose, Reshape, as PyTorch exports pixel_unshuffle
    - in front of a Conv without groups and dilations, whose channels are all pixels of the block, each once

    The rearrangement stays if another node reads it too, or if it makes an output of the model.
    """

    name = "fold-focus"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Convs that read x instead."""
        builder, edits = Builder(model), 0
        for conv in model.graph.nodes:
            if conv.op != "Conv" or not _can_fold(conv) or conv.inputs[0].name in model.output_names:
                continue
            planes = _planes(conv.inputs[0])
            if planes is not None and planes.is_whole and all(map(_can_fold, consumers(conv.inputs[0]))):
                _fold(conv, planes, builder)
                edits += 1
        if edits:
            model.graph.cleanup()
        return edits


@dataclass(frozen=True)
class _Planes:
    """Channels that are pixels of another tensor: channel n at (y, x) is pixel (y * block + row, x * block + column).

    Attributes:
        source: the tensor with these pixels, (batch, channels, height, width).
        block: distance of neighbouring pixels of a channel, along both axes.
        pixels: for each channel its channel in the source, row and column, int64 (n, 3).
    """

    source: Tensor
    block: int
    pixels: NDArray[np.int64]

    @property
    def is_whole(self) -> bool:
        """Whether each pixel of the block is one of the channels, once, for all channels of the source."""
        shape = self.source.shape
        if self.block < 2 or shape is None or not isinstance(shape[1], int):
            return False
        whole = np.indices((shape[1], self.block, self.block)).reshape(3, -1).T
        order = np.lexsort(self.pixels.T[::-1])
        return np.array_equal(self.pixels[order], whole)


def _can_fold(node: Node) -> bool:
    """Return whether a node is a Conv of two axes with constant weights, without groups, dilations or auto_pad."""
    if node.op != "Conv" or node.attrs.get("group", 1) != 1 or set(node.attrs.get("dilations", [1])) != {1}:
        return False
    weight = constant(node.inputs[1])
    return weight is not None and weight.ndim == 4 and node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")


def _fold(conv: Node, planes: _Planes, builder: Builder) -> None:
    """Make a Conv read the source of its planes."""
    weight, block = np.asarray(constant(conv.inputs[1])), planes.block
    kernel = [block * size for size in weight.shape[2:]]
    whole = np.zeros((weight.shape[0], planes.source.shape[1], *kernel), weight.dtype)
    for channel, (source, row, column) in enumerate(planes.pixels):
        whole[:, source, row::block, column::block] = weight[:, channel]
    conv.inputs[0] = planes.source
    conv.inputs[1] = builder.constant(f"{conv.inputs[1].name}_unfocused", whole)
    conv.attrs.pop("auto_pad", None)
    conv.attrs["kernel_shape"] = kernel
    conv.attrs["strides"] = [block * stride for stride in conv.attrs.get("strides", [1, 1])]
    conv.attrs["pads"] = [block * margin for margin in conv.attrs.get("pads", [0] * 4)]


# How a tensor is made of the pixels of another


def _planes(tensor: Tensor) -> _Planes | None:
    """Return the planes that a tensor consists of, or None if it is no rearrangement."""
    node = producer(tensor)
    match node.op if node is not None else None:
        case "Concat":
            return _joined(node)
        case "SpaceToDepth":
            return _blocks(node)
        case "Reshape":
            return _unshuffled(node)
    return None


def _joined(concat: Node) -> _Planes | None:
    """Return the planes of a Concat of strided Slices."""
    parts = [_sliced(t) for t in concat.inputs]
    first = parts[0]
    if concat.attrs["axis"] not in (1, -3) or first is None:
        return None
    pixels = []
    for part in parts:
        if part is None or part.source is not first.source or part.block != first.block:
            return None
        pixels.append(part.pixels)
    return _Planes(first.source, first.block, np.concatenate(pixels))


def _sliced(tensor: Tensor) -> _Planes | None:
    """Return the planes of one or two Slices, which take each n-th row and column of all channels."""
    starts, steps = {2: 0, 3: 0}, {2: 1, 3: 1}
    while (node := producer(tensor)) is not None and (strides := _strides(node)) is not None:
        if any(steps[axis] != 1 for axis in strides):
            break
        for axis, (start, step) in strides.items():
            starts[axis], steps[axis] = start, step
        tensor = node.inputs[0]
    shape = tensor.shape
    if shape is None or len(shape) != 4 or not isinstance(shape[1], int) or steps[2] != steps[3]:
        return None
    pixels = np.array([(channel, starts[2], starts[3]) for channel in range(shape[1])], np.int64)
    return _Planes(tensor, steps[2], pixels)


def _strides(node: Node) -> dict[int, tuple[int, int]] | None:
    """Return axis -> start and step of a Slice that takes each n-th row, column or both to the end; else None."""
    found = [constant(t) for t in node.inputs[1:]] if node.op == "Slice" else []
    shape = node.inputs[0].shape if found else None
    settings = [np.ravel(values).tolist() for values in found if values is not None]
    if len(settings) != 4 or shape is None or len(shape) != 4:
        return None
    strides = {}
    for start, end, axis, step in zip(*settings, strict=True):
        length = shape[axis] if isinstance(shape[axis], int) else np.iinfo(np.int32).max
        if axis % 4 not in _SPATIAL or not 0 <= start < step or end < length:
            return None
        strides[axis % 4] = int(start), int(step)
    return strides or None


def _blocks(node: Node) -> _Planes | None:
    """Return the planes of a SpaceToDepth: row, column, channel, from the slowest to the fastest."""
    shape, block = node.inputs[0].shape, node.attrs["blocksize"]
    if shape is None or not isinstance(shape[1], int):
        return None
    rows, columns, channels = np.indices((block, block, shape[1])).reshape(3, -1)
    return _Planes(node.inputs[0], block, np.stack([channels, rows, columns], axis=1))


def _unshuffled(node: Node) -> _Planes | None:
    """Return the planes of a Reshape into blocks, a Transpose that puts them into the channels, and a Reshape."""
    transpose = producer(node.inputs[0])
    split = producer(transpose.inputs[0]) if transpose is not None and transpose.op == "Transpose" else None
    if transpose is None or split is None or split.op != "Reshape":
        return None
    source, blocks, joined = split.inputs[0], split.outputs[0].shape, node.outputs[0].shape
    if source.shape is None or blocks is None or joined is None or len(source.shape) != 4 or len(blocks) != 6:
        return None
    batch, channels, height, width = source.shape
    block, order = blocks[3], transpose.attrs["perm"]
    if not all(isinstance(size, int) for size in (channels, height, width, block)) or block < 1:
        return None
    expected = [batch, channels, height // block, block, width // block, block]
    made = [batch, channels * block * block, height // block, width // block]
    if [*blocks] != expected or [*joined] != made or order[0] != 0 or [*order[4:]] != [2, 4]:
        return None
    sizes = {1: channels, 3: block, 5: block}
    found = np.indices([sizes[axis] for axis in order[1:4]]).reshape(3, -1)
    by_axis = dict(zip(order[1:4], found, strict=True))
    return _Planes(source, block, np.stack([by_axis[1], by_axis[3], by_axis[5]], axis=1))
