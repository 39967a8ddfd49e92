"""strip-qdq: a model that is quantized already becomes a float one again, to be quantized anew."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.ir import (
    INTEGER_OPS,
    MOVES_VALUES,
    QDQ_OPS,
    Builder,
    Model,
    Node,
    Tensor,
    constant,
    consumers,
    dtype_of,
    producer,
    remove,
    replace_uses,
)
from onnxq.pipeline import Facts, Rewrite

_LIMITS = frozenset({"Clip", "Cast"})
"""What goes where it stands between the two of a pair: the limits of narrow activations, and the type of int4."""

_MOVES = (MOVES_VALUES - QDQ_OPS - {"Cast"}) | {
    "DepthToSpace", "Expand", "MaxPool", "Resize", "SpaceToDepth", "Tile",
}  # fmt: skip
"""Operators that do the same to integers as to the floats that they stand for: a Cast would change the integers; the
others copy or select values, whatever these stand for."""


class StripQdq(Rewrite):
    """Takes QuantizeLinear and DequantizeLinear (ONNX, opset 10 to 25) out of a graph.

    - a pair on the way of data goes, with a Clip between the two; what only moves integers there moves floats instead
    - one that makes an output becomes an Identity
    - a DequantizeLinear of integer constants becomes the floats that it gives: weights keep the values that they were
      rounded to, per tensor, per channel or per block, and int32 biases become float ones
    - a pair behind a float constant gives back the constant, as it was before rounding

    Raises:
        ModelError: a node computes on integers, or only one half of a pair is there, or the halves are of different
            grids: then the float arithmetic that was meant is not known.
    """

    name = "strip-qdq"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes that went, or became others."""
        graph = model.graph
        for node in graph.nodes:
            if node.op in INTEGER_OPS:
                raise _without_float_form(node)
        ends = [node for node in graph.nodes if node.op == "DequantizeLinear"]
        outputs = {id(tensor) for tensor in graph.outputs}
        inner = {id(node): node for end in ends for node in _inner(end)}
        starts = [node for node in graph.nodes if node.op == "QuantizeLinear" and id(node) not in inner]
        _check_closed([*starts, *inner.values()], inner, outputs)
        fresh = Builder(model)
        for end in ends:
            _bypass(end, outputs, fresh)
        gone = [node for node in inner.values() if node.op not in _MOVES]
        for node in gone:
            replace_uses(node.outputs[0], node.inputs[0])
        remove(graph, [*gone, *(end for end in ends if end.op == "DequantizeLinear")])
        return len(gone) + len(ends)


def _without_float_form(node: Node) -> ModelError:
    return ModelError(
        f"node {node.name!r} is a {node.op} whose float form is not known; give the float model that it was made from"
    )


def _inner(end: Node) -> list[Node]:
    """What lies between a DequantizeLinear and the integers that it reads, be they constant or of QuantizeLinears."""
    found: dict[int, Node] = {}
    stack = [end.inputs[0]]
    while stack:
        tensor = stack.pop()
        node = producer(tensor)
        if node is None:
            if constant(tensor) is None or any(other.op not in _LIMITS for other in found.values()):
                raise _without_float_form(end)
        elif node.op == "QuantizeLinear" and _is_same_grid(node, end):
            found[id(node)] = node
        elif node.op in _LIMITS | _MOVES:
            found[id(node)] = node
            stack += node.inputs if node.op == "Concat" else node.inputs[:1]
        else:
            raise _without_float_form(end)
    return list(found.values())


def _is_same_grid(start: Node, end: Node) -> bool:
    """Whether a pair has one scale and zero point; it may have one tensor for both, or two constants that are equal."""
    return all(_is_same(a, b) for a, b in zip_longest(start.inputs[1:], end.inputs[1:]))


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Of parameters of Q and DQ; a zero point that is left out is 0."""
    given = [t for t in (a, b) if t is not None and t.name]
    values = [np.asarray(constant(t)) for t in given if constant(t) is not None]
    if len(given) == 2:
        return a is b or (len(values) == 2 and np.array_equal(values[0], values[1]))
    return len(values) == len(given) and not any(value.any() for value in values)


def _check_closed(nodes: Sequence[Node], inner: Mapping[int, Node], outputs: set[int]) -> None:
    """Refuse integers that others than a DequantizeLinear at the end read."""
    for node in nodes:
        for tensor in node.outputs:
            is_open = any(id(reader) not in inner and reader.op != "DequantizeLinear" for reader in consumers(tensor))
            if id(node) not in inner or is_open or id(tensor) in outputs:
                raise _without_float_form(node)


def _bypass(end: Node, outputs: set[int], fresh: Builder) -> None:
    """Let the readers of a DequantizeLinear read the floats that it stands for, or what will be these."""
    floats, stored = end.inputs[0], end.inputs[0]
    while (made_by := producer(stored)) is not None and made_by.op in _LIMITS:
        stored = made_by.inputs[0]
    values = constant(stored)
    if values is not None:
        floats = fresh.constant(f"{end.outputs[0].name}_float", _dequantized(end, values))
    for node in _inner(end):
        if node.op in _MOVES:
            for tensor in node.outputs:
                tensor.dtype = dtype_of(end.inputs[1])
    if id(end.outputs[0]) in outputs:
        end.op, end.inputs = "Identity", [floats]
        end.attrs.clear()
    else:
        replace_uses(end.outputs[0], floats)


def _dequantized(end: Node, integers: NDArray[np.generic]) -> NDArray[np.generic]:
    """(integers - zero point) * scale; a scale is for all, for an index of an axis, or for a block of it."""
    axis, block = end.attrs.get("axis", 1), end.attrs.get("block_size", 0)

    def spread(parameter: NDArray[np.generic]) -> NDArray[np.float32]:
        floats = parameter.astype(np.float32)
        if block:
            floats = np.take(floats, np.arange(integers.shape[axis]) // block, axis)
        elif floats.size == 1:
            floats = floats.reshape(())
        else:
            floats = floats.reshape([-1 if k == axis % integers.ndim else 1 for k in range(integers.ndim)])
        return floats

    scale, *zero_point = (np.asarray(values) for t in end.inputs[1:] if (values := constant(t)) is not None)
    shift = spread(zero_point[0]) if zero_point else np.float32(0)
    return ((integers.astype(np.float32) - shift) * spread(scale)).astype(scale.dtype)
