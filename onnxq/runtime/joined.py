"""Outputs that join values of several kinds, such as boxes in pixels and scores: which channels are of one kind."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import onnx

from onnxq.errors import ModelError
from onnxq.ir.proto import DEFAULT_DOMAINS
from onnxq.ir.shape_inference import declared_shape, inferred_graph
from onnxq.numerics.arrays import AnyArray, NamedArrays

_KEEPING = frozenset({"Identity", "Cast"})

_MOVING = _KEEPING | {"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"}

_MAP_RANK = 4

_MOST_PARTS = 16
"""Parts of an output up to which they are told apart."""

_Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class Parts:
    """How an output is cut into values of one kind each.

    Attributes:
        axis: that it is cut along, from 0.
        lengths: of the parts along this axis.
    """

    axis: int
    lengths: tuple[int, ...]

    def named(self, output: str) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """Yield the name of each part, such as `output0[:, 4:84]`, and the slices that take it."""
        for start, stop in pairwise((0, *accumulate(self.lengths))):
            yield f"{output}[{':, ' * self.axis}{start}:{stop}]", (*[slice(None)] * self.axis, slice(start, stop))


def joined_outputs(model: onnx.ModelProto) -> dict[str, Parts]:
    """Return the outputs that a Concat along the channels makes, maybe of each level, and how they are cut.

    Transpose, Reshape and Concats along other axes may follow it. The second axis of maps, (n, c, h, w), is that of
    channels, and elsewhere one that is shorter than the others together, but for the first.

    Args:
        model: with nodes in topological order; not changed. Where no shapes can be inferred, no output is cut.
    """
    try:
        graph = inferred_graph(model)
    except ModelError:
        return {}
    shapes = {value.name: declared_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    found: dict[str, Parts] = {}
    for node in model.graph.node:
        is_known = node.domain in DEFAULT_DOMAINS and node.output
        parts = _parts(node, shapes, found) if is_known else None
        if parts is not None:
            found[node.output[0]] = parts
    outputs = (output.name for output in model.graph.output)
    return {name: found[name] for name in outputs if name in found and 1 < len(found[name].lengths) <= _MOST_PARTS}


def with_parts(outputs: NamedArrays, joined: Mapping[str, Parts]) -> dict[str, AnyArray]:
    """Return outputs of a run, and views of the parts of those that join several.

    Args:
        outputs: by name.
        joined: as from `joined_outputs`. An output of another shape has no parts.
    """
    found = dict(outputs)
    for name, parts in joined.items():
        array = outputs.get(name)
        if array is not None and array.ndim > parts.axis and array.shape[parts.axis] == sum(parts.lengths):
            found |= {part: array[slices] for part, slices in parts.named(name)}
    return found


def _parts(node: onnx.NodeProto, shapes: Mapping[str, _Shape | None], found: Mapping[str, Parts]) -> Parts | None:
    """Return how the output of a node is cut, by how its inputs are; None if it is of one kind, or nobody knows."""
    shape = shapes.get(node.output[0])
    if not shape:
        return None
    if node.op_type == "Concat":
        return _joined(node, shape, shapes, found)
    before = found.get(node.input[0]) if node.op_type in _MOVING else None
    if before is None or node.op_type in _KEEPING:
        return before
    if node.op_type == "Transpose":
        order = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), tuple(reversed(range(len(shape)))))
        return Parts(order.index(before.axis), before.lengths)
    return _reshaped(before, shapes.get(node.input[0]), shape)


def _joined(
    node: onnx.NodeProto, shape: _Shape, shapes: Mapping[str, _Shape | None], found: Mapping[str, Parts]
) -> Parts | None:
    """Return how the output of a Concat is cut: at its inputs, if it joins channels; else as all of these are."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % len(shape)
    inner = [found.get(name) for name in node.input]
    length, others = shape[axis], [other for place, other in enumerate(shape) if place not in (0, axis)]
    is_map = len(shape) == _MAP_RANK and axis == 1
    is_short = length is not None and (None in others or length < math.prod(filter(None, others)))
    if length is None or not (axis and (is_map or is_short)):
        first = inner[0]
        return first if first is not None and first.axis != axis and all(each == first for each in inner) else None
    lengths: list[int] = []
    for name, parts in zip(node.input, inner, strict=True):
        own = (shapes.get(name) or shape)[axis]
        if parts is not None and parts.axis == axis:
            lengths += parts.lengths
        elif own is not None:
            lengths.append(own)
    return Parts(axis, tuple(lengths)) if sum(lengths) == length else None


def _reshaped(parts: Parts, before: _Shape | None, after: _Shape) -> Parts | None:
    """Return the parts of a tensor of another shape, if their axis stays the last one, or at its place."""
    length = sum(parts.lengths)
    if before is None or not after:
        return None
    if parts.axis == len(before) - 1 and after[-1] == length:
        return Parts(len(after) - 1, parts.lengths)
    stays = len(after) > parts.axis and after[parts.axis] == length and before[: parts.axis] == after[: parts.axis]
    return parts if stays else None
