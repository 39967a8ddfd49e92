"""find-decode: finds where the network ends and the decode begins, from the structure of the graph."""

import math

from onnxq.errors import ModelError
from onnxq.facts import DecodeBoundary
from onnxq.ir import LAYERS, MOVES_VALUES, QDQ_OPS, Model, Node, ancestors, constant, data_inputs, producer
from onnxq.pipeline import Analysis, Facts

_SOFTMAX_CARRIERS = MOVES_VALUES - QDQ_OPS - {"Concat", "Gather"}
"""Operators between a Softmax and its projection; each has a single data input, so the path back is unique."""

_SMALL_MATRIX = 64
"""Elements up to which a constant matrix is a change of coordinates (4 x 4 for boxes) rather than a layer."""


class FindDecode(Analysis[DecodeBoundary]):
    """Finds the last layers of every branch; all nodes on which no layer depends are the decode.

    A layer is a Conv, ConvTranspose, Gemm or MatMul, except projections of the decode: a product of a Softmax with
    constants (the integral of box distributions, "DFL"), or a product with a small constant matrix. A search from the
    outputs back to the first Conv would stop at these projections, and could leave the decode through shape arithmetic.

    Raises:
        ModelError: the graph has no Conv.
    """

    name = "find-decode"
    gives = DecodeBoundary

    def run(self, model: Model, facts: Facts) -> DecodeBoundary:
        """Return the fact."""
        layers = [node for node in model.graph.nodes if node.op in LAYERS and not _is_projection(node)]
        if not any(node.op == "Conv" for node in layers):
            raise ModelError("the model has no Conv: there is nothing here that onnxq could quantize")
        body = {node.name for node in ancestors(layers)}
        deeper = {node.name for node in ancestors(p for layer in layers for t in layer.inputs for p in t.inputs)}
        return DecodeBoundary(
            body=frozenset(body),
            last=tuple(node.name for node in layers if node.name not in deeper),
            tail=frozenset(node.name for node in model.graph.nodes if node.name not in body),
        )


def _is_projection(node: Node) -> bool:
    """Return whether the node is a projection of the decode, although it multiplies by constants."""
    data = data_inputs(node)
    weights = [values for t in node.inputs[:2] if (values := constant(t)) is not None]
    if len(data) != 1 or not weights:
        return False
    if node.op in ("MatMul", "Gemm") and math.prod(weights[0].shape) <= _SMALL_MATRIX:
        return True
    before = producer(data[0])
    while before is not None and before.op in _SOFTMAX_CARRIERS:
        before = producer(before.inputs[0])
    return before is not None and before.op == "Softmax"
