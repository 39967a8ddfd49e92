"""Questions about tensors and nodes of a graph."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon import Constant, Node, Tensor, Variable


def constant(tensor: Tensor) -> NDArray[np.generic] | None:
    """The values of a constant tensor, or None for any other."""
    return np.asarray(tensor.values) if isinstance(tensor, Constant) else None


def producer(tensor: Tensor) -> Node | None:
    """The node that makes a tensor, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def consumers(tensor: Tensor) -> list[Node]:
    """The nodes that read a tensor, each once; those of subgraphs among them."""
    return list({id(node): node for node in tensor.outputs}.values())


def data_inputs(node: Node) -> list[Tensor]:
    """Inputs that are computed, not constant and not left out."""
    return [t for t in node.inputs if isinstance(t, Variable) and t.name]


def ancestors(nodes: Iterable[Node]) -> Iterator[Node]:
    """The nodes themselves and every node they depend on, through data edges and through the bodies of subgraphs."""
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


def downstream(nodes: Iterable[Node], is_start: Callable[[Node], bool]) -> set[str]:
    """Names of the nodes, given in topological order, that depend on one for which `is_start` holds."""
    found: set[str] = set()
    for node in nodes:
        if any(is_start(p) or p.name in found for t in node.inputs for p in t.inputs):
            found.add(node.name)
    return found


def dtype_of(tensor: Tensor) -> "np.dtype[np.generic] | None":
    """Element type, or None where it is unknown; graphsurgeon has types that numpy lacks as ONNX's numbers."""
    kind = tensor.dtype
    if kind is None:
        return None
    return onnx.helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else np.dtype(kind)


def is_float(tensor: Tensor) -> bool:
    """Whether the tensor is float32; tensors of unknown type are not."""
    return dtype_of(tensor) == np.dtype(np.float32)
