"""Queries on tensors and nodes of a graph: constants, producers, consumers, ancestors, types."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon import Constant, Node, Tensor, Variable


def constant(tensor: Tensor) -> NDArray[np.generic] | None:
    """Return the values of a constant tensor, or None for any other tensor."""
    return np.asarray(tensor.values) if isinstance(tensor, Constant) else None


def producer(tensor: Tensor) -> Node | None:
    """Return the node that produces a tensor, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: Tensor) -> list[Node]:
    """Return the nodes that read a tensor, each once, including nodes of subgraphs."""
    return list({id(node): node for node in tensor.outputs}.values())


def data_inputs(node: Node) -> list[Tensor]:
    """Return the inputs of a node that are neither constant nor left out."""
    return [t for t in node.inputs if isinstance(t, Variable) and t.name]


def ancestors(nodes: Iterable[Node]) -> Iterator[Node]:
    """Yield the nodes and all nodes that they depend on, each once, also through the bodies of subgraphs."""
    stack, seen = list(nodes), set()
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node
        stack.extend(p for t in node.inputs for p in t.inputs)
        for subgraph in node.attrs.values():
            if isinstance(subgraph, gs.Graph):
                stack.extend(subgraph.nodes)


def with_subgraphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """Yield a graph and all its subgraphs."""
    yield graph
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from with_subgraphs(value)


def downstream(nodes: Iterable[Node], is_start: Callable[[Node], bool]) -> set[str]:
    """Return the names of all nodes downstream of a node that satisfies `is_start`.

    Args:
        nodes: in topological order.
        is_start: called with nodes.
    """
    found: set[str] = set()
    for node in nodes:
        if any(is_start(p) or p.name in found for t in node.inputs for p in t.inputs):
            found.add(node.name)
    return found


def dtype_of(tensor: Tensor) -> "np.dtype[np.generic] | None":
    """Return the element type, or None if it is unknown; graphsurgeon stores types that numpy lacks as numbers."""
    kind = tensor.dtype
    if kind is None:
        return None
    return onnx.helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else np.dtype(kind)


def is_float(tensor: Tensor) -> bool:
    """Return whether the tensor is float32; a tensor of unknown type is not."""
    return dtype_of(tensor) == np.dtype(np.float32)
