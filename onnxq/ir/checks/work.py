"""The work that a run takes, estimated from shapes before anything runs: a small file may ask for hours."""

import logging
import math
from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.checks.tensors import node_text

log = logging.getLogger(__name__)

PER_SECOND = 5 * 10**10
"""Products that two cores add in a second."""

TOLD = 10**13
"""Products of a run from which on it is told how long it takes; those of the largest detectors are a tenth of it."""

MOST = 10**15
"""Products of a run that is refused: hours for each picture."""

_LEAST = 10**5
"""What a node takes at least, in products: to call it costs microseconds."""

_WEIGHTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Operator with a kernel at each place of its output -> index of the kernel among its inputs."""

_PRODUCTS = frozenset({"Gemm", "MatMul", "MatMulInteger", "QLinearMatMul"})

_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})

Shape = tuple[int, ...]


@dataclass(frozen=True)
class _Scope:
    """What is known of the tensors that a graph can read.

    Attributes:
        shapes: name -> lengths; those that are not known are 1.
        constants: name -> tensor, of small constants.
    """

    shapes: ChainMap[str, Shape]
    constants: ChainMap[str, onnx.TensorProto]

    def inside(self, graph: onnx.GraphProto) -> "_Scope":
        """Return the scope of a graph within this one."""
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        for value in (*graph.input, *graph.value_info, *graph.output):
            shapes[value.name] = tuple(max(1, dim.dim_value) for dim in value.type.tensor_type.shape.dim)
        constants = {tensor.name: tensor for tensor in graph.initializer}
        constants |= {
            node.output[0]: attribute.t
            for node in graph.node
            if node.op_type == "Constant" and node.output
            for attribute in node.attribute
            if attribute.name == "value"
        }
        return _Scope(self.shapes.new_child(shapes), self.constants.new_child(constants))

    def size(self, name: str) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self.shapes.get(name, ()))

    def number(self, name: str) -> int | None:
        """Return the value of a constant of one element; None if it is not known."""
        tensor = self.constants.get(name)
        if tensor is None or math.prod(tensor.dims) != 1:
            return None
        return int(np.reshape(numpy_helper.to_array(tensor), -1)[0])


_NOTHING = _Scope(ChainMap(), ChainMap())


def check_work(graph: onnx.GraphProto) -> None:
    """Tell how long a run takes if it takes minutes, and refuse one that takes hours.

    Products of Convs and matrices are counted, and elements of other tensors. A loop is counted as often as it runs,
    if that is constant, else once.

    Args:
        graph: with the shapes of a run; those that are absent count as one element.

    Raises:
        ModelError: the run takes hours.
    """
    nodes = list(_work(graph, _NOTHING))
    total = sum(work for work, _ in nodes)
    if total < TOLD:
        return
    most, node = max(nodes, key=lambda each: each[0])
    said = (
        f"a run of the model takes some {total:.0e} products, {100 * most / total:.0f} % of them in {node_text(node)}, "
        f"which is {_duration(total / PER_SECOND)} for a picture on two cores"
    )
    if total >= MOST:
        raise ModelError(f"{said}; give a smaller --image-size, or export the model again")
    log.warning("%s; a smaller --image-size takes less", said)


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * length:
            number = seconds / length
            return f"{number:,.0f} {unit}" if number < 10**6 else f"over a million {unit}"
    return f"{seconds / 60:.0f} minutes"


def _work(graph: onnx.GraphProto, outer: _Scope) -> Iterator[tuple[int, onnx.NodeProto]]:
    """Yield the products of each node."""
    scope = outer.inside(graph)
    for node in graph.node:
        bodies = {a.name: a.g for a in node.attribute if a.HasField("g")}
        inner = max((sum(work for work, _ in _work(body, scope)) for body in bodies.values()), default=0)
        if node.op_type == "Loop" and "body" in bodies:
            inner *= _times(node, bodies["body"], scope)
        elif node.op_type == "Scan":
            inner *= max((length for name in node.input for length in scope.shapes.get(name, ())), default=1)
        yield max(_LEAST, inner, _products(node, scope)), node


def _times(loop: onnx.NodeProto, body: onnx.GraphProto, scope: _Scope) -> int:
    """Return how often a Loop (ONNX, opset 1) runs, if nothing but a constant number ends it, else 1."""
    count, condition = (loop.input[k] if k < len(loop.input) else "" for k in (0, 1))
    goes_on = not condition or scope.number(condition) == 1
    if not goes_on or not body.output or len(body.input) < 2:
        return 1
    last, inner = body.output[0].name, scope.inside(body)
    is_kept = any(
        n.op_type == "Identity" and [*n.input] == [body.input[1].name] and last in n.output for n in body.node
    )
    if not (last == body.input[1].name or is_kept or inner.number(last) == 1):
        return 1
    return max(1, scope.number(count) or 1)


def _products(node: onnx.NodeProto, scope: _Scope) -> int:
    """Return the products of a node, or the elements that it reads and writes."""
    made = sum(map(scope.size, node.output))
    shapes = [scope.shapes.get(name, ()) for name in node.input]
    first = shapes[0] if shapes else ()
    kernel = shapes[place] if (place := _WEIGHTS.get(node.op_type, len(shapes))) < len(shapes) else ()
    if kernel:
        return made * math.prod(kernel[1:])
    if node.op_type == "ConvTranspose" and len(shapes) > 1:
        return math.prod(first) * math.prod(shapes[1][1:])
    if node.op_type in _PRODUCTS and first:
        return made * first[0 if _attribute(node, "transA") else -1]
    if node.op_type in _RECURRENT and len(shapes) > 2:
        return math.prod(first[:2]) * sum(map(math.prod, shapes[1:3]))
    if window := _lengths(node, "kernel_shape"):
        return made * math.prod(window)
    return max(made, *map(math.prod, shapes), 0)


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _lengths(node: onnx.NodeProto, name: str) -> Sequence[int]:
    return next((attribute.ints for attribute in node.attribute if attribute.name == name), ())
