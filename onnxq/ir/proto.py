"""Operations on model messages without a graph: copies without weights, and restoring the weights."""

import math
from typing import TypeVar

import onnx
from google.protobuf.message import Message

Proto = TypeVar("Proto", bound=Message)

DEFAULT_DOMAINS = ("", "ai.onnx")
"""The two names of the domain of ONNX's own operators."""

MIN_IR_VERSION = 7
"""Least IR version of written models: it introduced opset 13. Since version 4 initializers need not be inputs."""

IR_VERSION = 10
"""IR version of new models: runtimes a year old refuse newer ones."""

_LARGE = 1024
"""Elements above which only the shape of a constant matters to inference; shape arithmetic reads smaller constants."""


def copy_message(message: Proto) -> Proto:
    """Return a copy of a part of a model; a reference to the part keeps the whole model in memory."""
    copied: Proto = type(message)()
    copied.CopyFrom(message)
    return copied


def opset_of(model: onnx.ModelProto) -> int:
    """Return the version of the default operator set, or 0 if the model does not state it."""
    return next((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), 0)


def large_initializers(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Return the large constants: most bytes of a model, and no shape depends on their values."""
    return [tensor for tensor in proto.graph.initializer if is_large(tensor)]


def is_large(tensor: onnx.TensorProto) -> bool:
    """Return whether a constant is large: no shape depends on its values."""
    return math.prod(tensor.dims) > _LARGE and tensor.data_type != onnx.TensorProto.STRING


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model without its large constants; it fits into one message at any size of the model."""
    shell = onnx.ModelProto()
    copy_fields(proto, shell, "graph")
    copy_fields(proto.graph, shell.graph, "initializer")
    shell.graph.initializer.extend(t for t in proto.graph.initializer if not is_large(t))
    return shell


def with_weight_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model with an input in place of each large constant; `restore_weights` undoes it."""
    shell = without_weights(proto)
    inputs = {t.name for t in proto.graph.input}
    shell.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in large_initializers(proto)
        if t.name not in inputs
    )
    return shell


def restore_weights(made: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """Put the large constants of a model back where `with_weight_inputs` put inputs.

    Args:
        made: the model with inputs, or any model derived from it; edited in place.
        original: the model with the constants.

    Returns:
        `made`.
    """
    large = {t.name: t for t in large_initializers(original)}
    kept = {t.name for t in original.graph.input}
    inputs = onnx.GraphProto(input=[t for t in made.graph.input if t.name in kept])
    del made.graph.input[:]
    made.graph.input.extend(inputs.input)
    made.graph.initializer.extend(large.values())
    return made


def for_shape_inference(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model for shape inference: inputs for large constants, no descriptions of inner tensors."""
    shell = with_weight_inputs(proto)
    shell.ir_version = max(proto.ir_version, 4)
    del shell.graph.value_info[:]
    return shell


def copy_fields(source: Message, target: Message, *left_out: str) -> None:
    """Copy all fields that are set in a message, except those left out."""
    for field, value in source.ListFields():
        if field.name in left_out:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def clear_negative_dims(graph: onnx.GraphProto) -> None:
    """Make dimensions of -1, which paddle2onnx writes, unknown, as ONNX has it."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                dim.Clear()


def graphs_of(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    """Return the graphs that an attribute of a node holds."""
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def names_read(node: onnx.NodeProto) -> list[str]:
    """Return the names of the tensors that a node and its subgraphs read.

    Tensors that are computed inside a subgraph are among them.
    """
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in names_read(n)]
    return [name for name in (*node.input, *inner) if name]
