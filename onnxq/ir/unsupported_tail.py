"""Nodes that nothing here can run, as TensorRT's NMS at the end of an export: cut off the model, and put back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from onnxq.errors import ModelError
from onnxq.ir.extract import ending_at
from onnxq.ir.index import ProtoIndex
from onnxq.ir.operators import CONVS
from onnxq.ir.proto import DEFAULT_DOMAINS, copy_message, names_read, opset_of
from onnxq.ir.shape_inference import inferred_graph

_RUN_HERE = frozenset({*DEFAULT_DOMAINS, "ai.onnx.ml", "com.microsoft"})

_OPERATORS = frozenset(schema.name for schema in onnx.defs.get_all_schemas() if schema.domain in DEFAULT_DOMAINS)


@dataclass(frozen=True)
class UnsupportedTail:
    """The end of a model that cannot be run here.

    Attributes:
        opaque: names of the nodes that cannot be run, with their operators.
        nodes: these, all that depends on them, and the Constant nodes that these read.
        initializers: that they read.
        outputs: of the whole model.
        opset: of the default domain, in which they are written.
    """

    opaque: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    opset: int

    def reattach(self, front: onnx.ModelProto) -> None:
        """Join the tail to the model that it was cut off, or to what was made of it, in place.

        Raises:
            ModelError: that has another operator set now, in which a node means something else.
        """
        _check_opset(self.nodes, self.opset, opset_of(front))
        graph = front.graph
        index = ProtoIndex(graph)
        there = {*index.producers, *index.initializers}
        graph.node.extend(node for node in self.nodes if not there.intersection(node.output))
        graph.initializer.extend(w for w in self.initializers if w.name not in there)
        del graph.output[:]
        graph.output.extend(self.outputs)


def detach(model: onnx.ModelProto) -> tuple[onnx.ModelProto, UnsupportedTail | None]:
    """The part of a model that can be run, and the rest; the model itself and None where all of it can.

    A node cannot be run if its domain is neither ONNX's nor onnxruntime's, or ONNX does not have its operator. What the
    rest reads become outputs, behind those of the model that are left.

    Raises:
        ModelError: such a node has Convs behind it, or the type of what it reads cannot be inferred.
    """
    graph = model.graph
    opaque = [node for node in graph.node if _unknown(node)]
    if not opaque:
        return model, None
    behind = _behind(graph, opaque)
    _refuse_inside(opaque, behind)
    tensors = {name for node in behind for name in names_read(node)}
    constants = [n for n in graph.node if n.op_type == "Constant" and tensors.intersection(n.output)]
    tail = UnsupportedTail(
        opaque=tuple(map(_described, opaque)),
        nodes=(*map(copy_message, constants), *map(copy_message, behind)),
        initializers=tuple(w for w in graph.initializer if w.name in tensors),
        outputs=tuple(graph.output),
        opset=opset_of(model),
    )
    return _front(model, behind, tensors - {name for n in constants for name in n.output}), tail


def _unknown(node: onnx.NodeProto) -> str:
    """The operator of a node that cannot be run, or of one within it; empty where it can."""
    if node.domain not in _RUN_HERE:
        return f"{node.domain}.{node.op_type}"
    if node.domain in DEFAULT_DOMAINS and node.op_type not in _OPERATORS:
        return node.op_type
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return next(filter(None, (_unknown(inner) for body in bodies for inner in body.node)), "")


def _described(node: onnx.NodeProto) -> str:
    return f"{(node.name or node.output[0])!r} ({_unknown(node) or node.op_type})"


def _behind(graph: onnx.GraphProto, starts: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes themselves and all that depend on them, in topological order."""
    first = {id(node) for node in starts}
    made: set[str] = set()
    found = []
    for node in graph.node:
        if id(node) in first or made.intersection(names_read(node)):
            made.update(node.output)
            found.append(node)
    return found


def _refuse_inside(opaque: list[onnx.NodeProto], behind: list[onnx.NodeProto]) -> None:
    layer = next((node for node in behind if node.op_type in CONVS), None)
    if layer is not None:
        raise ModelError(
            f"onnxruntime does not know {_described(opaque[0])}, and {_described(layer)} stands behind it; "
            "export the model with ONNX's own operators"
        )


def _front(model: onnx.ModelProto, behind: list[onnx.NodeProto], read: set[str]) -> onnx.ModelProto:
    """Return the model in front of some nodes: its own outputs that are left, and the tensors that these nodes read."""
    index = ProtoIndex(model.graph)
    gone = {name for node in behind for name in node.output}
    computed = [name for name in index.positions if name not in gone]
    own = [output.name for output in model.graph.output if output.name not in gone]
    crossing = [name for name in computed if name in read and name not in own]
    front = ending_at(model, [*own, *crossing])
    if crossing:
        _describe(front.graph.output[len(own) :], front, index, _described(behind[0]))
    return front


def _describe(outputs: Sequence[onnx.ValueInfoProto], front: onnx.ModelProto, index: ProtoIndex, reader: str) -> None:
    """Give outputs of the front their types and shapes: the inferred ones, else those that the model states."""
    for output in outputs:
        output.ClearField("type")
    inferred = {output.name: output for output in inferred_graph(front).output}
    for output in outputs:
        known = [v for v in (inferred.get(output.name), index.declared.get(output.name)) if v is not None]
        typed = next((value for value in known if value.type.tensor_type.HasField("shape")), None)
        if typed is None:
            raise ModelError(
                f"the shape of tensor {output.name!r}, which {reader} reads, cannot be inferred; "
                "export the model with fixed sizes, or without this operator"
            )
        output.CopyFrom(typed)


def _check_opset(nodes: Iterable[onnx.NodeProto], before: int, after: int) -> None:
    for node in nodes:
        if node.domain not in DEFAULT_DOMAINS or node.op_type not in _OPERATORS:
            continue
        if not _means_the_same(onnx.defs.get_schema(node.op_type, before), onnx.defs.get_schema(node.op_type, after)):
            raise ModelError(
                f"{_described(node)} stands behind a node that onnxruntime does not know, and cannot be converted "
                f"from opset {before} to {after}; export the model with opset 17"
            )


def _means_the_same(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Whether all that can be said in one version of an operator is said in the same way in another."""
    kept = (name in new.attributes and new.attributes[name].default_value == a.default_value
            for name, a in old.attributes.items())  # fmt: skip
    return all(kept) and old.min_input == new.min_input and old.max_input <= new.max_input
