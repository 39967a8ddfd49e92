"""Parts of models: cut at tensors, behind nodes, or a node alone."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon import Constant, Node, Variable

from onnxq.ir.index import ProtoIndex
from onnxq.ir.operators import LAYERS
from onnxq.ir.proto import IR_VERSION, copy_fields, names_read
from onnxq.ir.weights.constants import keep_unusual


def ending_at(
    model: onnx.ModelProto, tensors: Iterable[str], types: Mapping[str, onnx.ValueInfoProto] | None = None
) -> onnx.ModelProto:
    """Return a copy of a model whose outputs are these tensors.

    The copy has only the nodes and initializers that the tensors depend on, in the same order; all inputs stay, so that
    it takes the same feeds. An output is described as in `types`, else as the model describes it, else only named:
    runtimes infer the rest.

    Args:
        model: not changed.
        tensors: names of tensors of the graph, in the order of the new outputs; each counts once.
        types: tensor -> description.
    """
    names, types = list(dict.fromkeys(tensors)), types or {}
    graph, index = model.graph, ProtoIndex(model.graph)
    nodes = [index.nodes[place] for place in sorted(index.ancestors(names))]
    produced = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in names_read(node)}.union(names)
    part = onnx.ModelProto()
    copy_fields(model, part, "graph")
    copy_fields(graph, part.graph, "node", "initializer", "output", "value_info")
    part.graph.node.extend(nodes)
    part.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    part.graph.value_info.extend(v for v in graph.value_info if v.name in produced and v.name not in names)
    part.graph.output.extend(
        types.get(name) or index.declared.get(name) or onnx.ValueInfoProto(name=name) for name in names
    )
    return part


@dataclass(frozen=True)
class Segment:
    """Some nodes of a model that make a model of their own.

    Attributes:
        nodes: in the graph's order.
        inputs: names of the tensors that it takes.
        outputs: names of its results.
    """

    nodes: tuple[onnx.NodeProto, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def model(self, source: onnx.ModelProto, runs: Sequence[Mapping[str, NDArray[np.generic]]]) -> onnx.ModelProto:
        """Return the part as a model.

        Args:
            source: the model that it is a part of.
            runs: values of its inputs and outputs in one or more runs, which give their types and shapes; a length that
                differs is left open. An input of the source stays as it is declared there. An output without values is
                only named: runtimes infer the rest.
        """
        read = {name for node in self.nodes for name in names_read(node)}
        part = onnx.ModelProto()
        copy_fields(source, part, "graph")
        part.graph.name = source.graph.name
        part.graph.node.extend(self.nodes)
        part.graph.initializer.extend(tensor for tensor in source.graph.initializer if tensor.name in read)
        taken = {value.name: value for value in source.graph.input}
        part.graph.input.extend(
            taken.get(name) or _typed(name, [values[name] for values in runs]) for name in self.inputs
        )
        part.graph.output.extend(
            _typed(name, [values[name] for values in runs if name in values]) for name in self.outputs
        )
        return part


def _typed(name: str, found: Sequence[NDArray[np.generic]]) -> onnx.ValueInfoProto:
    if not found:
        return onnx.ValueInfoProto(name=name)
    lengths = [sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*(v.shape for v in found), strict=True)]
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(found[0].dtype), lengths)


def segment_behind(graph: onnx.GraphProto, names: Collection[str], tensors: Iterable[str]) -> Segment:
    """Return the part of a graph that computes, of these tensors, those that depend on some nodes.

    Its inputs are what other nodes compute from the inputs of the graph, and those themselves. What depends on no input
    is computed in the part.

    Args:
        graph: of a model.
        names: of the nodes.
        tensors: names of tensors of the graph.
    """
    index = ProtoIndex(graph)
    computed, behind = {value.name for value in index.inputs}, set[str]()
    for node in index.nodes:
        taken = names_read(node)
        if computed.intersection(taken):
            computed.update(node.output)
        if node.name in names or behind.intersection(taken):
            behind.update(node.output)
    outside = computed - behind
    return _segment(index, tuple(name for name in dict.fromkeys(tensors) if name in behind), outside)


def segment_from(graph: onnx.GraphProto, given: Collection[str], tensors: Iterable[str]) -> Segment:
    """Return the part of a graph that computes these tensors from given ones, which are not among them.

    Args:
        graph: of a model.
        given: names of tensors; they suffice to compute the others.
        tensors: names of the results.
    """
    outputs = tuple(name for name in dict.fromkeys(tensors) if name not in given)
    return _segment(ProtoIndex(graph), outputs, given)


def _segment(index: ProtoIndex, outputs: tuple[str, ...], outside: Collection[str]) -> Segment:
    nodes = tuple(index.nodes[place] for place in sorted(index.ancestors(outputs, outside)))
    read = dict.fromkeys(name for node in nodes for name in names_read(node))
    return Segment(nodes, tuple(name for name in read if name in outside), outputs)


def read_from(graph: onnx.GraphProto, place: int) -> tuple[str, ...]:
    """Return what the nodes from a place on read of the inputs, and of what the nodes before it compute from these.

    Args:
        graph: of a model.
        place: number of a node in the graph's order.
    """
    index = ProtoIndex(graph)
    computed = {value.name for value in index.inputs}
    for node in index.nodes[:place]:
        if computed.intersection(names_read(node)):
            computed.update(node.output)
    read = dict.fromkeys(name for node in index.nodes[place:] for name in names_read(node))
    return tuple(name for name in read if name in computed)


def node_alone(node: Node, opset: int) -> onnx.ModelProto:
    """Return a model of one node whose inputs are all constant; the graph of the node stays as it is.

    Args:
        node: of a graph.
        opset: version of the default operator set that it is written in.
    """
    inputs = [Constant(t.name, t.values) if t.name else Variable.empty() for t in node.inputs]
    alone = Node(node.op, node.name, dict(node.attrs), inputs, [Variable(t.name) for t in node.outputs])
    graph = gs.Graph([alone], outputs=[t for t in alone.outputs if t.name], opset=opset)
    keep_unusual(graph)
    exported: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    exported.ir_version = IR_VERSION
    return exported


_SELECTING = frozenset({"TopK", "NonMaxSuppression", "ArgMax", "ArgMin", "NonZero", "Unique"})
"""Operators whose results are places, which the least noise may change as a whole."""


def before_selection(graph: onnx.GraphProto) -> tuple[str, ...]:
    """Return the tensors in which the noise of the outputs can be measured.

    Operators that select objects give them in another order, or others, where scores are nearly equal: the noise of
    the rows says nothing. An output behind such an operator is replaced by the tensors that enter the selection. It
    stays if layers follow the selection, as in a decoder of queries.

    Args:
        graph: of a model.
    """
    index = ProtoIndex(graph)
    computed, selected = {value.name for value in index.inputs}, set[str]()
    for node in index.nodes:
        read = names_read(node)
        if computed.intersection(read) and node.op_type not in ("Shape", "Size"):
            computed.update(node.output)
            if node.op_type in _SELECTING or selected.intersection(read):
                selected.update(node.output)
    found: dict[str, None] = {}
    for output in graph.output:
        behind = [index.nodes[place] for place in index.ancestors([output.name])]
        behind = [node for node in behind if selected.intersection(node.output)]
        entering = dict.fromkeys(name for node in behind for name in names_read(node))
        tensors = [name for name in entering if name in computed - selected and name in index.producers]
        is_decoder = any(node.op_type in LAYERS and selected.intersection(node.input) for node in behind)
        found.update(dict.fromkeys([output.name] if is_decoder or not tensors else sorted(tensors)))
    return tuple(found)


def comparable(reference: onnx.ModelProto, model: onnx.ModelProto) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Return a model and one made of it, ending at the tensors of `before_selection`; as they are if these are outputs.

    Args:
        reference: the model whose graph says what is selected; not changed.
        model: a model of the same outputs, not changed. If it lacks one of the tensors, both stay as they are.
    """
    tensors = before_selection(reference.graph)
    outputs = tuple(output.name for output in reference.graph.output)
    made = ProtoIndex(model.graph).producers.keys() | {output.name for output in model.graph.output}
    if tensors == outputs or not made.issuperset(tensors):
        return reference, model
    return ending_at(reference, tensors), ending_at(model, tensors)
