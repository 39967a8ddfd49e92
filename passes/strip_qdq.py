"""strip-qdq: a model that is quantized already becomes a float one again, to be quantized anew."""

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.graph import INTEGER_OPS, QDQ_OPS, Constant, Model, Node, Tensor, constant, producer, remove, replace_uses
from onnxq.pipeline import Facts, Rewrite

_BETWEEN = frozenset({"Clip", "Cast"})
"""What may stand in front of a DequantizeLinear: the limits of narrow activations, or the type that int4 is cast to."""


class StripQdq(Rewrite):
    """Takes QuantizeLinear and DequantizeLinear (ONNX, opset 10 to 25) out of a graph.

    - a pair on the way of data goes, with a Clip between the two; one that makes an output becomes an Identity
    - a DequantizeLinear of integer constants becomes the floats that it gives: weights keep the values that they were
      rounded to, per tensor, per channel or per block, and int32 biases become float ones
    - a pair behind a float constant gives back the constant, as it was before rounding

    Raises:
        ModelError: a node computes on integers, or only one half of a pair is there: then the float arithmetic that was
            meant is not known.
    """

    name = "strip-qdq"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes that went or became others."""
        graph = model.graph
        for node in graph.nodes:
            if node.op in INTEGER_OPS:
                raise _without_float_form(node)
        outputs = {id(tensor) for tensor in graph.outputs}
        chains = {id(node): node for end in graph.nodes if end.op == "DequantizeLinear" for node in _chain(end)}
        ends = [node for node in chains.values() if node.op == "DequantizeLinear"]
        for end in ends:
            _bypass(end, outputs)
        remove(graph, (end for end in ends if end.op == "DequantizeLinear"))
        # From the last to the first, so that those that others read come behind these.
        for node in reversed(graph.nodes):
            is_read = any(tensor.outputs or id(tensor) in outputs for tensor in node.outputs)
            if id(node) in chains and node.op != "Identity" and not is_read:
                node.inputs.clear()
                node.outputs.clear()
        graph.nodes = [node for node in graph.nodes if node.outputs]
        for node in graph.nodes:
            if node.op in QDQ_OPS:
                raise _without_float_form(node)
        return len(chains)


def _without_float_form(node: Node) -> ModelError:
    return ModelError(
        f"node {node.name!r} is a {node.op} whose float form is not known; give the float model that it was made from"
    )


def _chain(end: Node) -> list[Node]:
    """A DequantizeLinear and what made its integers, back to a constant or a QuantizeLinear."""
    chain = [end]
    while (made_by := producer(chain[-1].inputs[0])) is not None and made_by.op in _BETWEEN:
        chain.append(made_by)
    if made_by is not None and made_by.op == "QuantizeLinear":
        chain.append(made_by)
    elif constant(chain[-1].inputs[0]) is None:
        raise _without_float_form(end)
    return chain


def _bypass(end: Node, outputs: set[int]) -> None:
    """Let the readers of a DequantizeLinear read the floats that it stands for."""
    first = _chain(end)[-1]
    values = constant(first.inputs[0])
    floats: Tensor = first.inputs[0]
    if first.op != "QuantizeLinear" and values is not None:
        floats = Constant(f"{end.outputs[0].name}_float", _dequantized(end, values))
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
