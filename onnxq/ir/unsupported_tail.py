"""Operators at the end of a model that onnxruntime lacks, such as TensorRT's NMS: detach and reattach them."""

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
    """The end of a model that onnxruntime cannot run.

    Attributes:
        unsupported: names of the unsupported nodes, with their operators.
        nodes: the unsupported nodes, all that depend on them, and the Constant nodes that they read.
        initializers: those that the nodes read.
        outputs: outputs of the whole model.
        opset: version of the default operator set of the nodes.
    """

    unsupported: tuple[str, ...]
    nodes: tuple[onnx.NodeProto, ...]
    initializers: tuple[onnx.TensorProto, ...]
    outputs: tuple[onnx.ValueInfoProto, ...]
    opset: int

    def reattach(self, front: onnx.ModelProto) -> None:
        """Append the tail to the model from which it was detached, or to one derived from it; edits it in place.

        Raises:
            ModelError: the model has another operator set, in which a node has another meaning.
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
    """Return the part of a model that onnxruntime can run, and the tail; the model itself and None if it can run whole.

    A node cannot run if its domain is neither ONNX's nor onnxruntime's, or if ONNX lacks its operator. The tensors that
    the tail reads become outputs, after the remaining outputs of the model.

    Raises:
        ModelError: a Conv depends on such a node, or the type of a tensor that it reads cannot be inferred.
    """
    graph = model.graph
    unsupported = [node for node in graph.node if _unknown(node)]
    if not unsupported:
        return model, None
    behind = _behind(graph, unsupported)
    _refuse_inside(graph, unsupported, behind)
    tensors = {name for node in behind for name in names_read(node)}
    constants = [n for n in graph.node if n.op_type == "Constant" and tensors.intersection(n.output)]
    tail = UnsupportedTail(
        unsupported=tuple(map(_described, unsupported)),
        nodes=(*map(copy_message, constants), *map(copy_message, behind)),
        initializers=tuple(w for w in graph.initializer if w.name in tensors),
        outputs=tuple(graph.output),
        opset=opset_of(model),
    )
    return _front(model, behind, tensors - {name for n in constants for name in n.output}), tail


def _unknown(node: onnx.NodeProto) -> str:
    """Return the unsupported operator of a node, or of one in its subgraphs; empty if there is none."""
    if node.domain not in _RUN_HERE:
        return f"{node.domain}.{node.op_type}"
    if node.domain in DEFAULT_DOMAINS and node.op_type not in _OPERATORS:
        return node.op_type
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return next(filter(None, (_unknown(inner) for body in bodies for inner in body.node)), "")


def _described(node: onnx.NodeProto) -> str:
    return f"{(node.name or node.output[0])!r} ({_unknown(node) or node.op_type})"


def _behind(graph: onnx.GraphProto, starts: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Return the nodes and all nodes that depend on them, in topological order."""
    first = {id(node) for node in starts}
    produced: set[str] = set()
    found = []
    for node in graph.node:
        if id(node) in first or produced.intersection(names_read(node)):
            produced.update(node.output)
            found.append(node)
    return found


def _refuse_inside(graph: onnx.GraphProto, unsupported: list[onnx.NodeProto], behind: list[onnx.NodeProto]) -> None:
    layer = next((node for node in behind if node.op_type in CONVS), None)
    given = {value.name for value in graph.input}
    if layer is not None and given.intersection(unsupported[0].input):
        raise ModelError(
            f"onnxruntime does not know {_described(unsupported[0])}, which reads the model's input, and "
            f"{_described(layer)} depends on it; if it decodes or prepares images, cut it off with "
            "onnx.utils.Extractor, at a tensor that is (batch, 3, height, width), and quantize the rest"
        )
    if layer is not None:
        raise ModelError(
            f"onnxruntime does not know {_described(unsupported[0])}, and {_described(layer)} depends on it; "
            "export the model with ONNX's own operators"
        )


def _front(model: onnx.ModelProto, behind: list[onnx.NodeProto], read: set[str]) -> onnx.ModelProto:
    """Return the model without the nodes `behind`; its outputs are the remaining ones and the tensors in `read`."""
    index = ProtoIndex(model.graph)
    removed = {name for node in behind for name in node.output}
    computed = [name for name in index.positions if name not in removed]
    own = [output.name for output in model.graph.output if output.name not in removed]
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
                f"{_described(node)} depends on a node that onnxruntime does not know, and cannot be converted "
                f"from opset {before} to {after}; export the model with opset 17"
            )


def _means_the_same(old: onnx.defs.OpSchema, new: onnx.defs.OpSchema) -> bool:
    """Return whether every node of one version of an operator means the same in another version."""
    kept = (name in new.attributes and new.attributes[name].default_value == a.default_value
            for name, a in old.attributes.items())  # fmt: skip
    return all(kept) and old.min_input == new.min_input and old.max_input <= new.max_input
