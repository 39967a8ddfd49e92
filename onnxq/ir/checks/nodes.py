"""Checks that nodes have the inputs, outputs and attributes that operators define, and that tensors have a source.

What an exporter adds beyond the definition is left alone; so are operators that onnx does not know.
"""

import math
from collections.abc import Collection, Iterator, Mapping

import onnx
from google.protobuf.message import Message
from onnx import AttributeProto, TensorProto

from onnxq import memory
from onnxq._text import shape_text
from onnxq.errors import ModelError
from onnxq.ir.checks.tensors import is_utf8, node_text
from onnxq.ir.proto import DEFAULT_DOMAINS, graphs_of

Schema = onnx.defs.OpSchema

_FIELDS = {AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.SPARSE_TENSOR: "sparse_tensor"}
"""Type of an attribute whose value has no default -> the field that holds it."""

_LAST_VERSION = 2**31 - 1
"""Greatest version of an operator set that onnx can look up; a model may state greater ones."""

_REMEDY = "export the model again"


def check_nodes(model: onnx.ModelProto) -> None:
    """Check the nodes of a model, also those of subgraphs, but not those of local functions.

    Raises:
        ModelError: a node is malformed.
    """
    opsets = {
        "" if entry.domain in DEFAULT_DOMAINS else entry.domain: min(max(entry.version, 0), _LAST_VERSION)
        for entry in model.opset_import
    }
    _Checker(opsets).check(model.graph, frozenset())


def check_texts(message: Message) -> None:
    """Check the names and other texts in a model, or in a part of one.

    Raises:
        ModelError: one is not UTF-8.
    """
    try:
        wrong = next((text for text in _texts(message) if isinstance(text, bytes)), None)
    except UnicodeDecodeError as error:  # protobuf before version 7; later ones give the bytes
        wrong = error.object
    if wrong is not None:
        raise ModelError(f"the model has a name that is not UTF-8, {wrong!r}; {_REMEDY}")


def _texts(message: Message) -> Iterator[object]:
    if isinstance(message, TensorProto):  # without its values
        yield from (message.name, message.doc_string)
        return
    for field, value in message.ListFields():
        several = value if hasattr(value, "extend") else [value]
        if field.type == field.TYPE_STRING:
            yield from several
        elif field.type == field.TYPE_MESSAGE:
            for part in several:
                yield from _texts(part)


def check_values(graph: onnx.GraphProto) -> None:
    """Check the element types and shapes that a graph states for its inputs, outputs and inner tensors.

    Raises:
        ModelError: a type is unknown, or an input is larger than any picture.
    """
    known = set(TensorProto.DataType.values())
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if tensor.elem_type not in known:
            raise ModelError(
                f"{value.name!r} has the element type {tensor.elem_type}, which the installed onnx does not know; "
                f"{_REMEDY}"
            )
    for value in graph.input:
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        size = 4 * math.prod(max(dim, 1) for dim in dims)
        what = f"the input {value.name!r} of the shape {shape_text(dims)}"
        memory.require(size, what, _REMEDY, ModelError, memory.CONSTANT)


def check_tensor_values(graph: onnx.GraphProto) -> None:
    """Check that the inputs and outputs of a graph are tensors, not sequences, maps or optional values.

    Raises:
        ModelError: one is none, or an input has no element type.
    """
    constants = {tensor.name for tensor in graph.initializer}
    for what, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value") or "tensor_type"
            if kind != "tensor_type":
                found = kind.removesuffix("_type").replace("_", " ")
                raise ModelError(f"the {what} {value.name!r} is no tensor but of type {found}; {_REMEDY} without it")
            if what == "input" and not value.type.tensor_type.elem_type and value.name not in constants:
                raise ModelError(f"the input {value.name!r} has no element type; {_REMEDY}")


class _Checker:
    """Checks graphs of one model.

    Args:
        opsets: domain -> version of its operator set.
    """

    def __init__(self, opsets: Mapping[str, int]) -> None:
        self._opsets = opsets
        self._schemas: dict[tuple[str, str], Schema | None] = {}

    def check(self, graph: onnx.GraphProto, outer: Collection[str]) -> None:
        """Check a graph whose nodes may also read tensors of the graphs around it."""
        known = {*outer, "", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
        known |= {sparse.values.name for sparse in graph.sparse_initializer}
        made: set[str] = set()
        for node in graph.node:
            for name in filter(None, node.output):
                if name in made:
                    raise ModelError(f"{node_text(node)} makes {name!r}, and so does another node; {_REMEDY}")
                made.add(name)
        known |= made
        for node in graph.node:
            self._check_node(node, known)
        for value in graph.output:
            if value.name not in known:
                raise ModelError(f"no node makes the output {value.name!r}; {_REMEDY}")

    def _check_node(self, node: onnx.NodeProto, known: Collection[str]) -> None:
        for name in node.input:
            if name not in known:
                raise ModelError(f"{node_text(node)} reads {name!r}, which no node makes; {_REMEDY}")
        schema = self._schema(node)
        if schema is not None:
            for what, names, least, most in (
                ("inputs", node.input, schema.min_input, schema.max_input),
                ("outputs", node.output, schema.min_output, schema.max_output),
            ):
                if not least <= len(names) <= most:
                    expected = (
                        f"{least}" if least == most else f"{least} or more" if most > 1e6 else f"{least} to {most}"
                    )
                    raise ModelError(f"{node_text(node)} has {len(names)} {what} instead of {expected}; {_REMEDY}")
            for name, formal in zip(node.input, schema.inputs, strict=False):
                if not name and formal.option == Schema.FormalParameterOption.Single:
                    raise ModelError(f"{node_text(node)} leaves out its input {formal.name}; {_REMEDY}")
            _check_attributes(node, schema)
        for attribute in node.attribute:
            if not all(map(is_utf8, (attribute.s, *attribute.strings))):
                raise ModelError(f"the attribute {attribute.name!r} of {node_text(node)} is not UTF-8; {_REMEDY}")
            if attribute.type in _FIELDS and not attribute.HasField(_FIELDS[attribute.type]):
                raise ModelError(f"the attribute {attribute.name!r} of {node_text(node)} has no value; {_REMEDY}")
            for inner in graphs_of(attribute):
                self.check(inner, known)

    def _schema(self, node: onnx.NodeProto) -> Schema | None:
        """Return the definition of the operator of a node, or None if onnx does not know it."""
        domain = "" if node.domain in DEFAULT_DOMAINS else node.domain
        key = domain, node.op_type
        if key not in self._schemas:
            try:
                self._schemas[key] = onnx.defs.get_schema(node.op_type, self._opsets.get(domain, 0), domain)
            except onnx.defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]


def _check_attributes(node: onnx.NodeProto, schema: Schema) -> None:
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ModelError(f"{node_text(node)} has the attribute {twice!r} twice; {_REMEDY}")
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is None:
            continue
        wanted = str(known.type).rpartition(".")[2]
        if attribute.type != AttributeProto.AttributeType.Value(wanted) or attribute.ref_attr_name:
            raise ModelError(f"the attribute {attribute.name!r} of {node_text(node)} is no {wanted}; {_REMEDY}")
    missing = [name for name, known in schema.attributes.items() if known.required and name not in names]
    if missing:
        raise ModelError(f"{node_text(node)} has no attribute {missing[0]!r}; {_REMEDY}")
