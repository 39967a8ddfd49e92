"""find-decode: where the network ends and decoding begins, from the structure of the graph alone."""

import math

from onnxq.errors import ModelError
from onnxq.facts import DecodeBoundary
from onnxq.ir import LAYERS, MOVES_VALUES, QDQ_OPS, Model, Node, ancestors, constant, data_inputs, producer
from onnxq.pipeline import Analysis, Facts

_SOFTMAX_CARRIERS = MOVES_VALUES - QDQ_OPS - {"Concat", "Gather"}
"""Between a Softmax and its projection: each value of the output comes from one input, so the way back is one way."""

_SMALL_MATRIX = 64
"""Elements up to which a constant factor of a MatMul is a change of coordinates (4 x 4 for boxes), not a layer."""


class FindDecode(Analysis[DecodeBoundary]):
    """Finds the last layers of every branch; all that is not needed by any layer is the decode behind them.

    A layer is a Conv, ConvTranspose, Gemm or MatMul, but not a projection of the decode: one whose data comes from a
    Softmax (the integral of box distributions, "DFL"), or a product with a small constant matrix. Walking back from
    the outputs to the first Conv would instead stop at these, and could leave the head through shape arithmetic.

    Raises:
        ModelError: the graph has no Conv.
    """

    name = "find-decode"
    gives = DecodeBoundary

    def run(self, model: Model, facts: Facts) -> DecodeBoundary:
        """Find the fact; the graph is not touched."""
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
    """Whether the node belongs to a decode although it multiplies by weights."""
    data = data_inputs(node)
    weights = [values for t in node.inputs[:2] if (values := constant(t)) is not None]
    if len(data) != 1 or not weights:
        return False
    if node.op in ("MatMul", "Gemm") and math.prod(weights[0].shape) <= _SMALL_MATRIX:
        return True
    made_by = producer(data[0])
    while made_by is not None and made_by.op in _SOFTMAX_CARRIERS:
        made_by = producer(made_by.inputs[0])
    return made_by is not None and made_by.op == "Softmax"
