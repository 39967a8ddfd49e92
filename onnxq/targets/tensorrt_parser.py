"""The rules of TensorRT's ONNX parser and builder for Q/DQ files, checked without TensorRT.

"Parser" is onnx/onnx-tensorrt for TensorRT 10 (`QuantDequantLinearHelper` and the importers in `onnxOpImporters.cpp`,
`docs/operators.md`); "guide" is "Explicit Quantization" in NVIDIA's documentation of TensorRT; "builder" is what
TensorRT-RTX 1.7.1 makes of small models: `tests/targets/test_tensorrt_builder.py` builds them. A rule stands for what
the parser refuses or reads as other numbers, or for a layer that the builder runs in float without a word. What it
takes has no rule: any opset, Q and DQ of com.microsoft, a Clip of integers, an int8 bias, float64 scales.
"""

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from onnxq.ir import CONVS, LAYERS, ProtoIndex

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}

_SCALES = {*_FLOATS, TensorProto.DOUBLE}
"""Types of scales; the parser stores float64 as float32."""

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

_AXIS = 1
"""Default of the attribute `axis` of both operators."""


def violations(proto: onnx.ModelProto) -> list[str]:
    """Return the faults by which TensorRT refuses a quantized model, misreads it, or runs a layer of it in float.

    Each message names the node, the rule and the remedy. Nodes inside subgraphs are not checked.
    """
    return [message for messages in violations_by_node(proto).values() for message in messages]


def violations_by_node(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """Return the same messages for each node that has some, by the name of its first output."""
    graph, found = _Graph(proto.graph), dict[str, list[str]]()
    for node in proto.graph.node:
        messages = [message for rule in _RULES for message in rule(graph, node)]
        if messages:
            found[node.output[0]] = messages
    return found


class _Graph(ProtoIndex):
    """Lookups that the rules share."""

    def dequantize(self, name: str) -> NodeProto | None:
        """Return the DequantizeLinear that produces a tensor, or None."""
        before = self.producers.get(name)
        return before if before is not None and before.op_type == _DEQUANTIZE else None

    def is_weight(self, node: NodeProto) -> bool:
        """Return whether a Q or DQ belongs to a constant: it reads the constant, or the output of the Q of one."""
        before = self.producers.get(node.input[0])
        return node.input[0] in self.constants or (
            before is not None and before.op_type == _QUANTIZE and before.input[0] in self.constants
        )

    def integer_type(self, node: NodeProto) -> int:
        """Return the type of the integers of a Q or DQ, 0 if unknown; like the parser, INT8 if the node states none."""
        if _input(node, 2):
            return self.types.get(node.input[2], 0)
        if node.op_type == _DEQUANTIZE:
            return self.types.get(node.input[0], 0)
        return _attribute(node, "output_dtype", TensorProto.INT8)


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((a.i for a in node.attribute if a.name == name), default)


def _is_qdq(node: NodeProto) -> bool:
    return node.op_type in (_QUANTIZE, _DEQUANTIZE)


def _input(node: NodeProto, index: int) -> str:
    """Return the name of an input, "" if it is left out."""
    return node.input[index] if len(node.input) > index else ""


def _message(node: NodeProto, rule: str, remedy: str) -> str:
    return f"{node.op_type} {node.name or node.output[0]}: {rule}; {remedy}"


def _integers_not_int8(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: UINT8 is refused (`checkNotInvalidType`), and so is a DQ of INT32 ("only activation types allowed").

    The parser reads a zero point of another type as INT8 with a warning. It reads FP8 and INT4, which onnxq does not
    write for TensorRT.
    """
    if _is_qdq(node):
        kind = graph.integer_type(node)
        if kind not in (TensorProto.INT8, TensorProto.UNDEFINED):
            name = TensorProto.DataType.Name(kind)
            yield _message(node, f"its integers are {name}, TensorRT takes INT8", "quantize with --target tensorrt")


def _zero_point(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: `shiftIsAllZeros`, and as many zero points as scales."""
    name = _input(node, 2) if _is_qdq(node) else ""
    if not name:
        return
    values, scale = graph.values(name), graph.values(_input(node, 1))
    if values is None:
        yield _message(node, "its zero point is computed", "make it a constant 0")
    elif np.any(values):
        yield _message(node, "its zero point is not 0", "TensorRT quantizes symmetrically: use --target tensorrt")
    elif scale is not None and scale.size != values.size:
        yield _message(node, f"it has {values.size} zero points for {scale.size} scales", "give each scale one")


def _scale(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: "Scale coefficients must all be positive", and are floats; guide: constant."""
    if not _is_qdq(node):
        return
    values = graph.values(node.input[1])
    if values is None:
        yield _message(node, "its scale is computed", "make it a constant")
    elif graph.types[node.input[1]] not in _SCALES:
        yield _message(node, f"its scale is {values.dtype}", "store it as float32")
    elif not values.size or not np.all(np.isfinite(values) & np.greater(values, 0)):
        yield _message(node, "its scale is not positive and finite", "calibrate again with other data")


def _shape_of_scale(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: a scale has no axis or one. Builder: a Conv runs in float if the scale of its data has the shape (1,)."""
    scale = graph.values(node.input[1]) if _is_qdq(node) else None
    if scale is not None and scale.ndim > 1:
        yield _message(node, f"its scale has {scale.ndim} axes", "store one scale as a scalar, several in one axis")
    dequantize = graph.dequantize(_input(node, 0)) if node.op_type in CONVS else None
    scale = graph.values(dequantize.input[1]) if dequantize is not None else None
    if scale is not None and scale.shape == (1,):
        yield _message(node, "runs in float, as the scale of its data has the shape (1,)", "store it as a scalar")


def _granularity(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: scales per channel have rank 1 and the length of the axis; guide: only weights have several scales."""
    scale = graph.values(node.input[1]) if _is_qdq(node) else None
    if scale is None or scale.size <= 1:
        return
    if not graph.is_weight(node):
        yield _message(node, f"an activation has {scale.size} scales", "give the tensor one scale")
        return
    before = graph.producers.get(node.input[0])
    weight = graph.constants[node.input[0] if before is None or before.op_type == "Constant" else before.input[0]]
    axis, rank = _attribute(node, "axis", _AXIS), len(weight.dims)
    if scale.ndim != 1 or not -rank <= axis < rank or weight.dims[axis] != scale.size:
        shape = " x ".join(map(str, weight.dims))
        yield _message(node, f"{scale.size} scales along axis {axis} of {shape}", "give each channel one")


def _weight_axis(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Guide: scales of weights are per output channel. Builder: no ConvTranspose runs on integers.

    Kernels of TensorRT 8 and 10 for ConvTranspose take scales along axis 0, its input channels; scales per output
    channel give wrong results (NVIDIA/TensorRT, issues 1694 and 2380).
    """
    dequantize = graph.dequantize(_input(node, 1)) if node.op_type in LAYERS else None
    scale = graph.values(dequantize.input[1]) if dequantize is not None else None
    if dequantize is None or scale is None:
        return
    if node.op_type == "ConvTranspose":
        yield _message(node, "runs in float", "keep it float in the file too: --exclude op:ConvTranspose")
        return
    weight = graph.constants.get(dequantize.input[0])
    axis = _attribute(dequantize, "axis", _AXIS)
    if axis < 0 and weight is not None:
        axis += len(weight.dims)
    wanted = 0 if node.op_type == "Conv" or _attribute(node, "transB", 0) else 1
    if (
        scale.size > 1
        and axis != wanted
        and not (node.op_type == "MatMul" and weight is not None and len(weight.dims) != 2)
    ):
        yield _message(node, f"the scales of its weight lie along axis {axis}", f"put them along axis {wanted}")


def _types_of_pair(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """ONNX: a DQ reads the type that the Q before it writes; the parser takes the type of each from its zero point."""
    before = graph.producers.get(node.input[0]) if node.op_type == _DEQUANTIZE else None
    if before is None or before.op_type != _QUANTIZE:
        return
    one, other = graph.integer_type(before), graph.integer_type(node)
    if one and other and one != other:
        names = " but ".join(TensorProto.DataType.Name(kind) for kind in (one, other))
        yield _message(node, f"its integers are {names} in the QuantizeLinear before", "give both one zero point")


def _quantizes_no_float(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser, docs/operators.md: QuantizeLinear takes FP32, FP16 and BF16 (ONNX allows INT32 as well)."""
    kind = graph.types.get(node.input[0], 0) if node.op_type == _QUANTIZE else 0
    if kind and kind not in _FLOATS:
        yield _message(node, f"quantizes {TensorProto.DataType.Name(kind)}", "let it read float32")


def _half_quantized_layer(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Guide: quantize all inputs of layers with weights.

    Integer weights with float data do not build; float weights with dequantized data lose accuracy and save no time.
    """
    if node.op_type not in LAYERS:
        return
    weight = graph.dequantize(node.input[1])
    if weight is not None and not graph.is_weight(weight):
        return
    data = graph.dequantize(node.input[0])
    if weight is not None and data is None:
        yield _message(node, "its weight is quantized, its data is not", "quantize its data too, or exclude it")
    if weight is None and data is not None and node.input[1] in graph.constants:
        yield _message(node, "its data is quantized, its weight is not", "quantize both, or let it read float")


def _float_types(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: data and weight of a layer have one type; a DQ has that of its scale."""
    pair = [graph.dequantize(_input(node, place)) for place in (0, 1)] if node.op_type in LAYERS else []
    types = [graph.types.get(each.input[1], 0) for each in pair if each is not None]
    if len(types) == 2 and all(types) and types[0] != types[1]:
        names = " and ".join(TensorProto.DataType.Name(kind) for kind in types)
        yield _message(node, f"the scales of its data and its weight are {names}", "give both one type")


_RULES: tuple[Callable[[_Graph, NodeProto], Iterator[str]], ...] = (
    _integers_not_int8,
    _zero_point,
    _scale,
    _shape_of_scale,
    _granularity,
    _weight_axis,
    _types_of_pair,
    _quantizes_no_float,
    _half_quantized_layer,
    _float_types,
)
