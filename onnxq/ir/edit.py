"""Edits of a graph."""

from collections.abc import Iterable, Mapping, Sequence

import onnx_graphsurgeon as gs
from onnx_graphsurgeon import Constant, Node, Tensor


def replace_uses(old: Tensor, new: Tensor, users: Iterable[Node] | None = None) -> int:
    """Let the nodes that read `old` (or only those in `users`) read `new`; returns how many inputs changed."""
    edits = 0
    for node in {id(n): n for n in (old.outputs if users is None else users)}.values():
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
                edits += 1
    return edits


def set_bias(conv: Node, bias: Constant) -> None:
    """Give a Conv, ConvTranspose or Gemm another bias, or its first."""
    if len(conv.inputs) > 2:
        conv.inputs[2] = bias
    else:
        conv.inputs.append(bias)


def replace_nodes(graph: gs.Graph, replacements: Mapping[int, Sequence[Node]]) -> None:
    """Put other nodes, or none, in the places of nodes, given by their id() and cut from their tensors already."""
    graph.nodes = [new for node in graph.nodes for new in replacements.get(id(node), [node])]


def remove(graph: gs.Graph, nodes: Iterable[Node]) -> int:
    """Take nodes out of the graph and cut them from their tensors; returns how many there were."""
    gone = {id(node): node for node in nodes}
    for node in gone.values():
        node.inputs.clear()
        node.outputs.clear()
    graph.nodes = [node for node in graph.nodes if id(node) not in gone]
    return len(gone)
