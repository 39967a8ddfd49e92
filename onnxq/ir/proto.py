"""Operations on model protos that need no graph: copies without weights, and restoring these."""

import math
from typing import TypeVar

import onnx
from google.protobuf.message import Message

Proto = TypeVar("Proto", bound=Message)

DEFAULT_DOMAINS = ("", "ai.onnx")
"""Names of the domain of ONNX's own operators."""

MIN_IR_VERSION = 7

IR_VERSION = 10
"""Of models that are made here: newer ones are refused by runtimes a year old."""

_LARGE = 1024
"""Elements from which on a constant takes part by its shape alone; shape arithmetic needs the values of small ones."""


def copy_message(message: Proto) -> Proto:
    """A message of its own, equal to this part of a model, which would keep all of the model in memory."""
    made: Proto = type(message)()
    made.CopyFrom(message)
    return made


def opset_of(model: onnx.ModelProto) -> int:
    """Version of the default operator set; 0 where the model does not say it."""
    return next((entry.version for entry in model.opset_import if entry.domain in DEFAULT_DOMAINS), 0)


def large_initializers(proto: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The constants that have a model's bulk, and whose values no shape depends on."""
    return [tensor for tensor in proto.graph.initializer if _is_large(tensor)]


def _is_large(tensor: onnx.TensorProto) -> bool:
    return math.prod(tensor.dims) > _LARGE and tensor.data_type != onnx.TensorProto.STRING


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model that lacks its large constants: small enough for one message, whatever the model's size."""
    made = onnx.ModelProto()
    copy_fields(proto, made, "graph")
    copy_fields(proto.graph, made.graph, "initializer")
    made.graph.initializer.extend(t for t in proto.graph.initializer if not _is_large(t))
    return made


def with_weight_inputs(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model in which inputs stand for its large constants; `refilled` undoes it."""
    made = without_weights(proto)
    inputs = {t.name for t in proto.graph.input}
    made.graph.input.extend(
        onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
        for t in large_initializers(proto)
        if t.name not in inputs
    )
    return made


def restore_weights(made: onnx.ModelProto, original: onnx.ModelProto) -> onnx.ModelProto:
    """What became of a model with stand-ins, with the constants of the original in their places; edited in place."""
    large = {t.name: t for t in large_initializers(original)}
    kept = {t.name for t in original.graph.input}
    inputs = onnx.GraphProto(input=[t for t in made.graph.input if t.name in kept])
    del made.graph.input[:]
    made.graph.input.extend(inputs.input)
    made.graph.initializer.extend(large.values())
    return made


def for_shape_inference(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model for shape inference: inputs stand for large constants, and nothing is believed of its shapes."""
    made = with_weight_inputs(proto)
    made.ir_version = max(proto.ir_version, 4)
    del made.graph.value_info[:]
    return made


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


def names_read(node: onnx.NodeProto) -> list[str]:
    """The tensors that a node reads, its subgraphs too (with those that are made within one, which do no harm)."""
    inner = [name for a in node.attribute if a.HasField("g") for n in a.g.node for name in names_read(n)]
    return [name for name in (*node.input, *inner) if name]
