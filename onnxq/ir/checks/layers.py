"""Checks that the constant weights of layers agree with each other and with the attributes of their nodes."""

from collections.abc import Mapping, Sequence

import onnx

from onnxq.errors import ModelError
from onnxq.ir.checks.tensors import node_text
from onnxq.ir.index import ProtoIndex

Shape = tuple[int, ...]


def check_layers(graph: onnx.GraphProto) -> None:
    """Check each Conv, ConvTranspose, Gemm and BatchNormalization with constant parameters.

    Raises:
        ModelError: the parameters of a node contradict each other or its attributes.
    """
    constants = ProtoIndex(graph).constants
    for node in graph.node:
        shapes = [tuple(constants[name].dims) if name in constants else None for name in node.input]
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        wrong = layer_fault(node.op_type, shapes, attributes)
        if wrong:
            raise ModelError(f"{node_text(node)} {wrong}; export the model again")


def layer_fault(
    op: str, shapes: Sequence[Shape | None], attributes: Mapping[str, object], data: Sequence[object] | None = None
) -> str:
    """Return what is wrong with the parameters of a node; empty if nothing is.

    Args:
        op: the operator.
        shapes: the shape of each constant input, None for other inputs.
        attributes: the attributes by name.
        data: the shape of the first input as far as it is known: a length, or anything else for an unknown one.
    """
    weight = shapes[1] if len(shapes) > 1 else None
    if op in ("Conv", "ConvTranspose") and weight is not None:
        wrong = _conv_fault(op, weight, shapes[2] if len(shapes) > 2 else None, attributes)
        return wrong or _data_fault(op, weight, attributes, data)
    if op == "Gemm" and weight is not None and len(weight) != 2:
        return f"has a weight of the shape {weight}, which is no matrix"
    if op == "BatchNormalization" and len({*shapes[1:5]} - {None}) > 1:
        return f"has parameters of the shapes {shapes[1:5]}, which are not alike"
    return ""


def _data_fault(op: str, weight: Shape, attributes: Mapping[str, object], data: Sequence[object] | None) -> str:
    """Return what is wrong with the shape of the data of a sound Conv or ConvTranspose."""
    group = attributes.get("group", 1)
    channels = weight[1] * group if op == "Conv" and isinstance(group, int) else weight[0]
    if data is None:
        return ""
    if len(data) != len(weight) or (isinstance(data[1], int) and data[1] != channels):
        return f"reads {channels} channels, and its input has the shape {tuple(data)}"
    return ""


def _conv_fault(op: str, weight: Shape, bias: Shape | None, attributes: Mapping[str, object]) -> str:
    group, kernel = attributes.get("group", 1), weight[2:]
    if not kernel or 0 in weight:
        return f"has a weight of the shape {weight}, which is no kernel"
    if not isinstance(group, int) or group < 1 or weight[0] % group:
        return f"has {group} groups, and a weight of the shape {weight}"
    channels = weight[0] if op == "Conv" else weight[1] * group
    if bias is not None and bias != (channels,):
        return f"has {channels} output channels, and a bias of the shape {bias}"
    for name, length, least in (
        ("kernel_shape", len(kernel), 1),
        ("strides", len(kernel), 1),
        ("dilations", len(kernel), 1),
        ("pads", 2 * len(kernel), None),
    ):
        given = attributes.get(name)
        if not isinstance(given, list):
            continue
        if len(given) != length or (least is not None and min(given) < least):
            return f"has {name} {given}, and a kernel of the shape {kernel}"
    stated = attributes.get("kernel_shape")
    if stated is not None and stated != list(kernel):
        return f"has the kernel_shape {stated}, and a kernel of the shape {kernel}"
    return ""
