"""The graph of a model, for passes to read and edit: graphsurgeon's nodes in the shell of the original file.

graphsurgeon alone would drop the model's metadata and the doc strings of nodes; everything of the file but the
graph stays in the shell, and what the graph loses is put back when it is stored.
"""

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from onnx import external_data_helper
from onnx_graphsurgeon import Constant, Node, Tensor, Variable

from onnxq.errors import ModelError

__all__ = [
    "DEFAULT_DOMAINS", "INTEGER_OPS", "IR_VERSION", "LAYERS", "QDQ_OPS", "Constant", "Model", "Node",
    "Tensor", "Variable", "ancestors", "behind", "bias_of", "constant", "copied", "data_inputs", "dtype_of",
    "feeds_silu_only", "gs", "has_plain_bias", "hollow", "is_depthwise", "is_float", "is_pointwise", "is_silu",
    "large_initializers", "load_proto", "names_read", "opset_of", "outline", "output_axis", "producer", "readers",
    "refilled", "remove", "replace_nodes", "replace_uses", "set_bias", "takes_bias", "with_stand_ins",
]  # fmt: skip

# graphsurgeon logs what it then raises.
logging.getLogger("onnx_graphsurgeon").setLevel(logging.CRITICAL)
gs.logger.G_LOGGER.severity = gs.logger.G_LOGGER.CRITICAL

Proto = TypeVar("Proto", bound=Message)

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

LEAST_IR_VERSION = 7
IR_VERSION = 10
"""Of models that are made here: newer ones are refused by runtimes a year old."""

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators that networks have their weights in."""

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
INTEGER_OPS = frozenset({
    "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool",
    "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
})  # fmt: skip
"""Operators that compute on integers, ONNX's and onnxruntime's."""


_SAID = "onnxq: "
"""What lines of doc strings begin with that `Model.document` wrote."""

_LARGE = 1024
"""Elements from which on a constant takes part by its shape alone; shape arithmetic needs the values of small ones."""

_PLAIN = (int, float, str, bytes, list, tuple)
"""Attributes that are no tensors and no graphs."""


class Model:
    """A model being rewritten.

    Attributes:
        graph: graphsurgeon's view, edited by the passes.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._docs: dict[str, onnx.NodeProto] = {}
        self._graph_metadata: list[onnx.StringStringEntryProto] = []
        self._interface: dict[str, onnx.ValueInfoProto] = {}
        self.replace(proto)

    def replace(self, proto: onnx.ModelProto) -> None:
        """Take another model in the place of this one, as a converter returns it."""
        self._shell = onnx.ModelProto()
        _copy_fields(proto, self._shell, "graph")
        # Before IR version 4 every initializer had to be an input; opset 13 came with version 7.
        self._shell.ir_version = max(proto.ir_version, LEAST_IR_VERSION)
        documented = (n for n in proto.graph.node if n.name and (n.doc_string or n.metadata_props))
        # What a converter drops is kept from before.
        self._docs = {**self._docs, **{n.name: _documentation(n) for n in documented}}
        self._graph_metadata = list(proto.graph.metadata_props) or self._graph_metadata
        # Exporters may describe an input or output a second time, in other words, among the inner tensors.
        declared = {value.name: copied(value) for value in (*proto.graph.input, *proto.graph.output)}
        self._interface = {**declared, **self._interface}
        self.graph: gs.Graph = gs.import_onnx(proto)
        for tensor in (*self.graph.inputs, *self.graph.outputs):
            if isinstance(tensor, Variable) and tensor.name in self._interface:
                tensor.dtype, tensor.shape = _declared(self._interface[tensor.name].type.tensor_type)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self.graph.opset)

    @property
    def metadata(self) -> dict[str, str]:
        """The model's own key-value pairs."""
        return {p.key: p.value for p in self._shell.metadata_props}

    def add_metadata(self, key: str, value: str) -> None:
        """Set a key of the model's metadata; other keys stay as they are."""
        for p in self._shell.metadata_props:
            if p.key == key:
                p.value = value
                return
        self._shell.metadata_props.add(key=key, value=value)

    def to_proto(self) -> onnx.ModelProto:
        """The model as it now is; the graph can be edited further."""
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

    def document(self, node: str, text: str) -> bool:
        """Say something of a node in a line of its doc string, which viewers show; what others wrote there stays.

        Args:
            node: its name.
            text: takes the place of what was said before; empty: nothing is said any more.

        Returns:
            Whether the doc string changed.
        """
        before = self._docs[node].doc_string if node in self._docs else ""
        lines = [line for line in before.split("\n") if not line.startswith(_SAID)] if before else []
        after = "\n".join([*lines, _SAID + text] if text else lines)
        if after != before:
            self._docs.setdefault(node, onnx.NodeProto(name=node)).doc_string = after
        return after != before

    def document_alike(self, node: str, others: Iterable[str]) -> None:
        """Let what is said of a node be said of nodes that take its place; all by name."""
        said = self._docs.get(node)
        if said is not None:
            words = {"doc_string": said.doc_string, "metadata_props": said.metadata_props}
            self._docs.update({name: onnx.NodeProto(name=name, **words) for name in others})

    @property
    def nodes(self) -> dict[str, Node]:
        """The nodes by name, in graph order; names are unique once the model is normalised."""
        return {node.name: node for node in self.graph.nodes}

    @property
    def output_names(self) -> frozenset[str]:
        """Names of the tensors that are outputs of the model."""
        return frozenset(t.name for t in self.graph.outputs)

    def taken_names(self) -> set[str]:
        """Names of all tensors and nodes, those of subgraphs too."""
        graphs = list(_graphs(self.graph))
        return {node.name for graph in graphs for node in graph.nodes}.union(*(graph.tensors() for graph in graphs))

    def digest(self) -> str:
        """SHA-256 of the nodes and constants, to tell whether calibration data belongs to this graph."""
        sha = hashlib.sha256()
        constants: dict[str, Constant] = {}
        for node in self.graph.nodes:
            sha.update(repr((node.op, [t.name for t in node.inputs], [t.name for t in node.outputs])).encode())
            sha.update(repr(sorted((k, v) for k, v in node.attrs.items() if isinstance(v, _PLAIN))).encode())
            constants.update({t.name: t for t in node.inputs if isinstance(t, Constant)})
        for name in sorted(constants):
            values = np.ascontiguousarray(constants[name].values)
            sha.update(repr((name, values.dtype.str, values.shape)).encode())
            sha.update(values.data if values.size else b"")
        return sha.hexdigest()


def _graphs(graph: gs.Graph) -> Iterator[gs.Graph]:
    """The graph and all graphs within."""
    yield graph
    for node in graph.nodes:
        for value in node.attrs.values():
            if isinstance(value, gs.Graph):
                yield from _graphs(value)


def _declared(tensor: onnx.TypeProto.Tensor) -> tuple[np.dtype[np.generic] | None, list[int | str | None] | None]:
    """The type and the shape, each None where it is not declared; a size is a number, a name or None."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return dtype, None
    return dtype, [d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim]


def copied(message: Proto) -> Proto:
    """A message of its own, equal to this part of a model, which would keep all of the model in memory."""
    made: Proto = type(message)()
    made.CopyFrom(message)
    return made


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set; 0 where the model does not say it."""
    return next((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), 0)


def _documentation(node: onnx.NodeProto) -> onnx.NodeProto:
    return onnx.NodeProto(name=node.name, doc_string=node.doc_string, metadata_props=node.metadata_props)


def load_proto(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its external data.

    Raises:
        ModelError: the file is missing, is not an ONNX file, or is cut short.
    """
    path = Path(path)
    if not os.path.isfile(path):
        is_folder = os.path.isdir(path)
        wrong = "is a folder, not an ONNX file; name the file" if is_folder else "no such file; check the path"
        raise ModelError(f"{path}: {wrong}")
    try:
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or cut short; export or copy it again") from None
    if not proto.graph.node:
        raise ModelError(f"{path}: not an ONNX file, or one without nodes; export it again")
    try:
        external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"{path}: its external data cannot be read ({error}); copy the data files beside it") from None
    return proto


def large_initializers(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The constants that have a model's bulk, and whose values no shape depends on."""
    return [tensor for tensor in proto.graph.initializer if _is_large(tensor)]


def _is_large(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) > _LARGE and tensor.data_type != onnx.TensorProto.STRING


def hollow(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model that lacks its large constants: small enough for one message, whatever the model's size."""
    made = onnx.ModelProto()
    _copy_fields(proto, made, "graph")
    _copy_fields(proto.graph, made.graph, "initializer")
    made.graph.initializer.extend(t for t in proto.graph.initializer if not _is_large(t))
    return made


def with_stand_ins(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which inputs stand for its large constants; `refilled` undoes it."""
    made = hollow(proto)
    inputs = {t.name for t in proto.graph.input}
    made.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in large_initializers(proto)
        if t.name not in inputs
    )
    return made


def refilled(made: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """What became of a model with stand-ins, with the constants of the original in their places; edited in place."""
    large = {t.name: t for t in large_initializers(original)}
    kept = {t.name for t in original.graph.input}
    inputs = onnx.GraphProto(input=[t for t in made.graph.input if t.name in kept])
    del made.graph.input[:]
    made.graph.input.extend(inputs.input)
    made.graph.initializer.extend(large.values())
    return made


def outline(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model for shape inference: inputs stand for large constants, and nothing is believed of its shapes."""
    made = with_stand_ins(proto)
    made.ir_version = max(proto.ir_version, 4)
    del made.graph.value_info[:]
    return made


def _copy_fields(source: Message, target: Message, left_out: str) -> None:
    """Copy what is set in a message, but for one field."""
    for field, value in source.ListFields():
        if field.name == left_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def names_read(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, its subgraphs too (with those that are made within one, which do no harm)."""
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in names_read(n)]
    return [name for name in (*node.input, *inner) if name]


def constant(tensor: Tensor) -> NDArray[np.generic] | None:
    """The values of a constant tensor, or None for any other."""
    return np.asarray(tensor.values) if isinstance(tensor, Constant) else None


def producer(tensor: Tensor) -> Node | None:
    """The node that makes a tensor, or None for inputs and constants."""
    return tensor.inputs[0] if tensor.inputs else None


def readers(tensor: Tensor) -> list[Node]:
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


def behind(nodes: Iterable[Node], is_start: Callable[[Node], bool]) -> set[str]:
    """Names of the nodes, given in topological order, that depend on one for which `is_start` holds."""
    found: set[str] = set()
    for node in nodes:
        if any(is_start(p) or p.name in found for t in node.inputs for p in t.inputs):
            found.add(node.name)
    return found


def is_depthwise(node: Node) -> bool:
    """Whether every channel of a Conv is convolved by itself."""
    if node.op != "Conv" or node.attrs.get("group", 1) == 1:
        return False
    weight = constant(node.inputs[1])
    return weight is not None and weight.shape[1] == 1


def is_pointwise(node: Node) -> bool:
    """Whether the node is a 1x1 Conv over images that gives each position from the same position and all channels."""
    shape = node.inputs[1].shape if node.op == "Conv" else None
    return (
        shape is not None
        and list(shape[2:]) == [1, 1]
        and node.attrs.get("group", 1) == 1
        and all(stride == 1 for stride in node.attrs.get("strides", []))
        and not any(node.attrs.get("pads", []))
    )


def is_silu(mul: Node) -> bool:
    """Whether the node is the Mul of x * Sigmoid(x)."""
    if mul.op != "Mul" or len(mul.inputs) != 2:
        return False
    return any(_is_sigmoid_of(gate, x) for gate, x in (mul.inputs, reversed(mul.inputs)))


def feeds_silu_only(tensor: Tensor) -> bool:
    """Whether x is used as x * Sigmoid(x) and for nothing else."""
    users = readers(tensor)
    mul = [node for node in users if node.op == "Mul"]
    return (
        len(users) == 2
        and len(mul) == 1
        and is_silu(mul[0])
        and any(_is_sigmoid_of(t, tensor) and len(t.outputs) == 1 for t in mul[0].inputs)
    )


def _is_sigmoid_of(gate: Tensor, x: Tensor) -> bool:
    made_by = producer(gate)
    return made_by is not None and made_by.op == "Sigmoid" and made_by.inputs[0] is x


def dtype_of(tensor: Tensor) -> "np.dtype[np.generic] | None":
    """Element type, or None where it is unknown; graphsurgeon has types that numpy lacks as ONNX's numbers."""
    kind = tensor.dtype
    if kind is None:
        return None
    return onnx.helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else np.dtype(kind)


def is_float(tensor: Tensor) -> bool:
    """Whether the tensor is float32; tensors of unknown type are not."""
    return dtype_of(tensor) == np.dtype(np.float32)


def replace_uses(old: Tensor, new: Tensor, users: Iterable[Node] | None = None) -> int:
    """Let the nodes that read `old` (or only those in `users`) read `new`; returns how many inputs changed."""
    edits = 0
    for node in {id(n): n for n in (old.outputs if users is None else users)}.values():
        for index, tensor in enumerate(node.inputs):
            if tensor is old:
                node.inputs[index] = new
                edits += 1
    return edits


def output_axis(layer: Node) -> int:
    """Axis of a weight that its layer's outputs lie along (ONNX Conv, ConvTranspose, Gemm and MatMul)."""
    if layer.op == "Conv" or (layer.op == "Gemm" and layer.attrs.get("transB", 0)):
        return 0
    return 1


def takes_bias(layer: Node) -> bool:
    """Whether a Conv, ConvTranspose or Gemm; a MatMul has no input for one."""
    return bool(layer.op != "MatMul")


def bias_of(layer: Node) -> Tensor | None:
    """The bias of a Conv, ConvTranspose or Gemm, constant or computed; None where it has none, as a MatMul."""
    return layer.inputs[2] if len(layer.inputs) > 2 and layer.inputs[2].name else None


def has_plain_bias(layer: Node) -> bool:
    """Whether the bias of a Conv, ConvTranspose or Gemm is constant, or there is none."""
    bias = bias_of(layer)
    return bias is None or constant(bias) is not None


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
