"""Checks of local functions before they are inlined: a few that call others twice may stand for billions of nodes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

import onnx

from onnxq import memory
from onnxq.errors import ModelError
from onnxq.ir.proto import graphs_of

MOST_NODES = 50_000
"""Nodes after inlining; the largest detectors have some thousand."""

_REMEDY = "export the model again"

_Key = tuple[str, str, str]


def check_functions(model: onnx.ModelProto) -> None:
    """Check that the local functions of a model can be inlined.

    Raises:
        ModelError: two have the same name, one calls itself, or they stand for too many nodes or bytes.
    """
    found = Counter((function.domain, function.name, function.overload) for function in model.functions)
    for key, count in found.items():
        if count > 1:
            raise ModelError(f"the local function {_text(key)} is defined {count} times; {_REMEDY}")
    bodies = {key: list(_nodes(function.node)) for key, function in zip(found, model.functions, strict=True)}
    calls = {key: {_key(node) for node in nodes} & bodies.keys() for key, nodes in bodies.items()}
    try:
        order = list(TopologicalSorter(calls).static_order())
    except CycleError as error:
        raise ModelError(f"the local function {_text(error.args[1][0])} calls itself; {_REMEDY}") from None
    sizes: dict[_Key, tuple[int, int]] = {}
    for key in order:
        sizes[key] = _size(bodies[key], sizes)
    nodes, size = _size(_nodes(model.graph.node), sizes)
    if nodes > MOST_NODES and model.functions:
        raise ModelError(f"the model has over {MOST_NODES} nodes when its local functions are inlined; {_REMEDY}")
    memory.require(size, "the model, when its local functions are inlined,", _REMEDY, ModelError, memory.CONSTANT)


def calls_of(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a model, outside of its local functions, that call one of them."""
    names = {(function.domain, function.name, function.overload) for function in model.functions}
    return (node for node in _nodes(model.graph.node) if _key(node) in names)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yield nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in graphs_of(attribute):
                yield from _nodes(graph.node)


def _size(nodes: Iterable[onnx.NodeProto], functions: Mapping[_Key, tuple[int, int]]) -> tuple[int, int]:
    """Return the number of nodes and their bytes when the functions that they call are inlined."""
    sizes = [functions.get(_key(node)) or (1, _bytes(node)) for node in nodes]
    return sum(count for count, _ in sizes), sum(size for _, size in sizes)


def _bytes(node: onnx.NodeProto) -> int:
    """Return the bytes of a node without those of its subgraphs, whose nodes count for themselves."""
    inner = sum(graph.ByteSize() for attribute in node.attribute for graph in graphs_of(attribute))
    return int(node.ByteSize() - inner)


def _key(node: onnx.NodeProto) -> _Key:
    return node.domain, node.op_type, node.overload


def _text(key: _Key) -> str:
    return repr(".".join(filter(None, key)))
