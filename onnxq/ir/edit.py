"""Edits of a graph: other inputs, other biases, nodes replaced or removed."""

from collections.abc import Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs
from onnx_graphsurgeon import Constant, Node, Tensor


def replace_uses(old: Tensor, new: Tensor, users: Iterable[Node] | None = None) -> int:
    """Make the consumers of `old`, or only those in `users`, read `new`; return the number of inputs changed."""
    edits = 0
    for node in {id(n): n for n in (old.outputs if users is None else users)}.values():
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
                edits += 1
    return edits


def set_bias(conv: Node, bias: Constant) -> None:
    """Set the bias of a Conv, ConvTranspose or Gemm, whether it has one or not."""
    if len(conv.inputs) > 2:
        conv.inputs[2] = bias
    else:
        conv.inputs.append(bias)


def replace_nodes(graph: gs.Graph, replacements: Mapping[int, Sequence[Node]]) -> None:
    """Replace nodes by others, or by none, at the same places.

    Args:
        graph: edited in place.
        replacements: id() of a node -> the nodes in its place. The old node must have no inputs and outputs any more.
    """
    graph.nodes = [new for node in graph.nodes for new in replacements.get(id(node), [node])]


def remove(graph: gs.Graph, nodes: Iterable[Node]) -> int:
    """Remove nodes from the graph and disconnect them from their tensors; return their number."""
    removed = {id(node): node for node in nodes}
    for node in removed.values():
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if id(node) not in removed]
    return len(removed)
