"""strip-qdq: a quantized model becomes a float model, to be quantized again."""

import logging
from collections.abc import Iterable, Mapping
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.helper import tensor_dtype_to_np_dtype

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

log = logging.getLogger(__name__)

_LIMITS = frozenset({"Clip", "Cast"})
"""Operators between a Q and its DQ that are removed: limits of narrow activations, and the Cast from int4."""

_MOVES = (MOVES_VALUES - QDQ_OPS - {"Cast"}) | {
    "DepthToSpace", "Expand", "MaxPool", "Resize", "SpaceToDepth", "Tile",
}  # fmt: skip
"""Operators that act on integers as on the floats that these represent: they copy or select values. A Cast does not."""


_SIGNED = frozenset({"Add", "BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul", "Sub"})
"""Operators behind which a ReLU may have been left to a Q; the results of others are mostly positive by themselves."""

_RELU6 = 6.0


class StripQdq(Rewrite):
    """Removes QuantizeLinear and DequantizeLinear (ONNX, opset 10 to 25) from a graph.

    - a pair on an activation is removed, with a Clip between the two; operators in between that only move integers move
      floats instead
    - a QuantizeLinear whose lowest integer stands for 0 becomes a Relu behind a layer, an Add or a Sub, and a Clip from
      0 to 6 if its highest one stands for 6: onnxruntime's quantize_static leaves these to the integers, which clip too
    - a DequantizeLinear that makes an output becomes an Identity
    - a DequantizeLinear of integer constants becomes a float constant: weights keep their rounded values, per tensor,
      per channel or per block, and int32 biases become float
    - a pair behind a float constant is replaced by the constant, before rounding

    Raises:
        ModelError: a node computes on integers, half of a pair is missing, or its halves differ in scale or zero point:
            the float computation is unknown.
    """

    name = "strip-qdq"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes removed or replaced."""
        graph = model.graph
        _refuse_integer_ops(graph.nodes)
        ends = [node for node in graph.nodes if node.op == "DequantizeLinear"]
        if not ends:
            log.warning("the model has no Q/DQ, so --requantize has no effect")
        outputs = {id(tensor) for tensor in graph.outputs}
        inner = {id(node): node for end in ends for node in _inner(end)}
        _check_closed(graph.nodes, inner, outputs)
        builder = Builder(model)
        for end in ends:
            _bypass(end, outputs, builder)
        bypassed = _bypass_inner(inner.values(), builder)
        remove(graph, [*bypassed, *(end for end in ends if end.op == "DequantizeLinear")])
        return len(bypassed) + len(ends)


def _refuse_integer_ops(nodes: Iterable[Node]) -> None:
    for node in nodes:
        if node.op in INTEGER_OPS:
            raise _without_float_form(node)


def _without_float_form(node: Node) -> ModelError:
    return ModelError(
        f"node {node.name!r} is a {node.op} whose float form is unknown; give the float model from which it was made"
    )


def _inner(end: Node) -> list[Node]:
    """Return the nodes from a DequantizeLinear back to its QuantizeLinears or integer constants."""
    found: dict[int, Node] = {}
    stack = [end.inputs[0]]
    while stack:
        tensor = stack.pop()
        node = producer(tensor)
        if node is None:
            if constant(tensor) is None or any(other.op not in _LIMITS for other in found.values()):
                raise _without_float_form(end)
        elif node.op == "QuantizeLinear" and _has_same_qparams(node, end):
            found[id(node)] = node
        elif node.op in _LIMITS | _MOVES:
            found[id(node)] = node
            stack += node.inputs if node.op == "Concat" else node.inputs[:1]
        else:
            raise _without_float_form(end)
    return list(found.values())


def _has_same_qparams(start: Node, end: Node) -> bool:
    """Return whether a Q and a DQ have the same scale and zero point: one tensor, or two equal constants."""
    return all(_is_same(a, b) for a, b in zip_longest(start.inputs[1:], end.inputs[1:]))


def _is_same(a: Tensor | None, b: Tensor | None) -> bool:
    """Return whether two parameters of Q and DQ are equal; a zero point that is left out is 0."""
    given = [t for t in (a, b) if t is not None and t.name]
    values = [np.asarray(constant(t)) for t in given if constant(t) is not None]
    if len(given) == 2:
        return a is b or (len(values) == 2 and np.array_equal(values[0], values[1]))
    return len(values) == len(given) and not any(value.any() for value in values)


def _check_closed(nodes: Iterable[Node], inner: Mapping[int, Node], outputs: set[int]) -> None:
    """Refuse integers that are read by any node except inner ones and a DequantizeLinear at the end."""
    starts = (node for node in nodes if node.op == "QuantizeLinear" and id(node) not in inner)
    for node in (*starts, *inner.values()):
        for tensor in node.outputs:
            is_open = any(id(reader) not in inner and reader.op != "DequantizeLinear" for reader in consumers(tensor))
            if id(node) not in inner or is_open or id(tensor) in outputs:
                raise _without_float_form(node)


def _bypass_inner(inner: Iterable[Node], builder: Builder) -> list[Node]:
    """Make the readers of inner nodes that do not move values read the inputs of these; return these nodes.

    A Q that stands for an activation becomes the activation.
    """
    bypassed = [node for node in inner if node.op not in _MOVES and not _restore_activation(node, builder)]
    for node in bypassed:
        replace_uses(node.outputs[0], node.inputs[0])
    return bypassed


def _restore_activation(node: Node, builder: Builder) -> bool:
    """Make a Relu or a Clip from 0 to 6 of a Q that clips as these do; return whether it was done."""
    before = producer(node.inputs[0])
    if node.op != "QuantizeLinear" or before is None or before.op not in _SIGNED:
        return False
    scale, *given = map(constant, node.inputs[1:])
    kind = tensor_dtype_to_np_dtype(node.attrs.get("output_dtype") or TensorProto.UINT8)
    zero_point = given[0] if given else np.zeros((), kind)
    if scale is None or zero_point is None or zero_point.dtype.kind not in "iu":
        return False
    limits = np.iinfo(zero_point.dtype)
    if np.any(zero_point != limits.min):
        return False
    node.op, node.inputs = "Relu", node.inputs[:1]
    node.attrs.clear()
    node.outputs[0].dtype = scale.dtype
    if np.allclose(np.multiply(scale, float(limits.max - limits.min), dtype=np.float64), _RELU6, rtol=1e-3):
        node.op = "Clip"
        node.inputs += [
            builder.constant(f"{node.name}_{bound:.0f}", np.asarray(bound, scale.dtype)) for bound in (0, _RELU6)
        ]
    return True


def _bypass(end: Node, outputs: set[int], builder: Builder) -> None:
    """Make the readers of a DequantizeLinear read its constant in float, or the tensor whose integers become floats."""
    floats, stored = end.inputs[0], end.inputs[0]
    while (limit := producer(stored)) is not None and limit.op in _LIMITS:
        stored = limit.inputs[0]
    values = constant(stored)
    if values is not None:
        floats = builder.constant(f"{end.outputs[0].name}_float", _dequantized(end, values))
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
    """Return (integers - zero point) * scale; scales are per tensor, per channel or per block."""
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
