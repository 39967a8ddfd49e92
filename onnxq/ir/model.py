"""The model that passes read and edit: a graph of graphsurgeon inside the message of the original file.

graphsurgeon alone would drop the metadata of the model and the doc strings of nodes. `Model` keeps everything of the
file except the graph, and restores the parts that graphsurgeon loses on export.
"""

import hashlib
import logging
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon import Constant, Node, Variable

from onnxq.ir.proto import MIN_IR_VERSION, copy_fields, copy_message
from onnxq.ir.query import with_subgraphs
from onnxq.ir.weights.constants import keep_unusual, link_constants, move_to_files, without_values
from onnxq.ir.weights.links import embedded
from onnxq.ir.weights.spill import Spill

# graphsurgeon logs every error before it raises it.
logging.getLogger("onnx_graphsurgeon").setLevel(logging.CRITICAL)

gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL


_DOC_PREFIX = "onnxq: "
"""Beginning of the doc string lines that `Model.set_doc` writes."""

_WRITTEN = frozenset({"tensor_type", "sequence_type", "sparse_tensor_type"})
"""Kinds of values whose description graphsurgeon can write; that of an Optional is left out."""

_PLAIN = (int, float, str, bytes, list, tuple)
"""Types of attributes that are neither tensors nor graphs."""


class Model:
    """A model that passes rewrite.

    Args:
        proto: not changed.

    Attributes:
        graph: the graph, edited in place by the passes.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._docs: dict[str, onnx.NodeProto] = {}
        self._graph_metadata: list[onnx.StringStringEntryProto] = []
        self._interface: dict[str, onnx.ValueInfoProto] = {}
        self._spill = Spill()
        self.replace(proto)

    def replace(self, proto: onnx.ModelProto) -> None:
        """Replace the model by another one, such as the result of a converter."""
        self._shell = onnx.ModelProto()
        copy_fields(proto, self._shell, "graph")
        self._shell.ir_version = max(proto.ir_version, MIN_IR_VERSION)
        documented = (n for n in proto.graph.node if n.name and (n.doc_string or n.metadata_props))
        # Converters drop documentation; that of earlier nodes stays.
        self._docs = {**self._docs, **{n.name: _documentation(n) for n in documented}}
        self._graph_metadata = list(proto.graph.metadata_props) or self._graph_metadata
        # Exporters may describe an input or output again, and differently, among the inner tensors.
        declared = {value.name: copy_message(value) for value in (*proto.graph.input, *proto.graph.output)}
        self._interface = {**declared, **self._interface}
        self.graph: gs.Graph = gs.import_onnx(proto)
        link_constants(self.graph)
        for tensor in self.graph.tensors().values():
            if isinstance(tensor, Variable) and tensor.type not in _WRITTEN:
                tensor.dtype = tensor.shape = None
        for tensor in (*self.graph.inputs, *self.graph.outputs):
            if isinstance(tensor, Variable) and tensor.name in self._interface:
                tensor.dtype, tensor.shape = _declared(self._interface[tensor.name].type.tensor_type)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.graph.opset)

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the model, key -> value."""
        return {p.key: p.value for p in self._shell.metadata_props}

    def add_metadata(self, key: str, value: str) -> None:
        """Set one key of the model's metadata; other keys keep their values."""
        for p in self._shell.metadata_props:
            if p.key == key:
                p.value = value
                return
        self._shell.metadata_props.add(key=key, value=value)

    def to_proto(self) -> onnx.ModelProto:
        """Return the current model as a message; the graph can be edited further."""
        return embedded(self._exported())

    def to_linked_proto(self) -> onnx.ModelProto:
        """Return the current model as a message for use inside onnxq, as long as this object lives.

        If its weights are large, they are in files, and the message links to them; see `onnxq.ir.weights.links`. Those
        that passes have changed move to a temporary file.

        Raises:
            ConfigError: there is no room for the file.
        """
        move_to_files(self.graph, self._spill)
        return self._exported()

    def to_proto_without_weights(self) -> onnx.ModelProto:
        """Return the current model as a message in which large constants have types and shapes, but no values."""
        with without_values(self.graph):
            return self._exported()

    def _exported(self) -> onnx.ModelProto:
        keep_unusual(self.graph)
        proto: onnx.ModelProto = gs.export_onnx(self.graph, do_type_check=False)
        for field, _ in proto.ListFields():
            if field.name != "graph":
                proto.ClearField(field.name)
        proto.MergeFrom(self._shell)
        proto.graph.metadata_props.extend(self._graph_metadata)
        for value in (*proto.graph.input, *proto.graph.output):
            if value.name in self._interface:
                value.CopyFrom(self._interface[value.name])
        for node in proto.graph.node:
            if node.name in self._docs:
                if self._docs[node.name].doc_string:
                    node.doc_string = self._docs[node.name].doc_string
                node.metadata_props.extend(self._docs[node.name].metadata_props)
        return proto

    def set_doc(self, node: str, text: str) -> bool:
        """Set onnxq's line in the doc string of a node, which viewers show; lines of exporters stay.

        Args:
            node: name of the node.
            text: replaces the previous line; an empty text removes it.

        Returns:
            Whether the doc string changed.
        """
        before = self._docs[node].doc_string if node in self._docs else ""
        lines = [line for line in before.split("\n") if not line.startswith(_DOC_PREFIX)] if before else []
        after = "\n".join([*lines, _DOC_PREFIX + text] if text else lines)
        if after != before:
            self._docs.setdefault(node, onnx.NodeProto(name=node)).doc_string = after
        return after != before

    def copy_doc(self, node: str, others: Iterable[str]) -> None:
        """Copy the documentation of a node to the nodes that replace it; all are given by name."""
        source = self._docs.get(node)
        if source is not None:
            fields = {"doc_string": source.doc_string, "metadata_props": source.metadata_props}
            self._docs.update({name: onnx.NodeProto(name=name, **fields) for name in others})

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes by name, in graph order; names are unique once the model is normalized."""
        return {node.name: node for node in self.graph.nodes}

    @property
    def output_names(self) -> frozenset[str]:
        """Names of the tensors that are outputs of the model."""
        return frozenset(t.name for t in self.graph.outputs)

    def taken_names(self) -> set[str]:
        """Return the names of all tensors and nodes, including those of subgraphs."""
        graphs = list(with_subgraphs(self.graph))
        return {node.name for graph in graphs for node in graph.nodes}.union(*(graph.tensors() for graph in graphs))

    def digest(self) -> str:
        """Return the SHA-256 of the nodes and constants, which tells whether calibration data belongs to this graph."""
        sha = hashlib.sha256()
        constants: dict[str, Constant] = {}
        for node in self.graph.nodes:
            sha.update(repr((node.op, [t.name for t in node.inputs], [t.name for t in node.outputs])).encode())
            sha.update(repr(sorted((k, v) for k, v in node.attrs.items() if isinstance(v, _PLAIN))).encode())
            constants.update({t.name: t for t in node.inputs if isinstance(t, Constant)})
        for name in sorted(constants):
            values = np.ascontiguousarray(constants[name].values)
            sha.update(repr((name, values.dtype.str, values.shape)).encode())
            if values.dtype.kind in "OU":
                sha.update(repr(values.tolist()).encode())
            elif values.size:
                sha.update(values.view(np.uint8).data)
        return sha.hexdigest()


def _declared(tensor: onnx.TypeProto.Tensor) -> tuple[np.dtype[np.generic] | None, list[int | str | None] | None]:
    """Return the type and the shape, each None if it is not declared; a dimension is a number, a name or None."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]


def _documentation(node: onnx.NodeProto) -> onnx.NodeProto:
    return onnx.NodeProto(name=node.name, doc_string=node.doc_string, metadata_props=node.metadata_props)
