"""The rules of TensorRT's ONNX parser for Q/DQ files, checked without TensorRT.

"Parser" is onnx/onnx-tensorrt for TensorRT 10 (`QuantDequantLinearHelper` and the importers in `onnxOpImporters.cpp`,
`docs/operators.md`); "guide" is "Explicit Quantization" in NVIDIA's documentation of TensorRT. Some rules are stricter
than the parser: they also cover files that it misreads, and files that the builder refuses or miscomputes.
"""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from onnxq.ir import LAYERS, ProtoIndex

_OPSETS = range(13, 25)
"""The parser reads opsets 9 to 24; scales per channel have an axis since opset 13."""

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}

_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

_AXIS = 1
"""Default of the attribute `axis` of both operators."""


def violations(proto: onnx.ModelProto) -> list[str]:
    """Return the faults by which TensorRT refuses a quantized model or computes another result than ONNX defines.

    Each message names the node, the rule and the remedy. Nodes inside subgraphs are not checked.
    """
    graph = _Graph(proto.graph)
    return [
        *_unreadable_opset(proto),
        *itertools.chain.from_iterable(rule(graph, node) for node in proto.graph.node for rule in _RULES),
    ]


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


def _unreadable_opset(proto: onnx.ModelProto) -> Iterator[str]:
    """Parser, docs/operators.md: opset 9 to 24; ONNX: Q and DQ have an `axis` since opset 13."""
    for opset in proto.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version not in _OPSETS:
            limits = f"{_OPSETS.start} to {_OPSETS.stop - 1}"
            yield f"opset {opset.version}: TensorRT reads Q/DQ files of opset {limits}; export with one of these"


def _foreign_domain(_: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser: importers are for operators of the default domain; Q and DQ of com.microsoft take other types."""
    if _is_qdq(node) and node.domain not in ("", "ai.onnx"):
        yield _message(node, f"its domain is {node.domain}", "use the operator of ONNX")


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
    """Parser: "Scale coefficients must all be positive", and are float32, float16 or bfloat16; guide: constant."""
    if not _is_qdq(node):
        return
    values = graph.values(node.input[1])
    if values is None:
        yield _message(node, "its scale is computed", "make it a constant")
    elif graph.types[node.input[1]] not in _FLOATS:
        yield _message(node, f"its scale is {values.dtype}", "store it as float32")
    elif not values.size or not np.all(np.isfinite(values) & np.greater(values, 0)):
        yield _message(node, "its scale is not positive and finite", "calibrate again with other data")


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
    """Guide: scales of weights are per output channel.

    NVIDIA/TensorRT, issues 1694 and 2380: kernels for ConvTranspose take scales along axis 0, its input channels;
    scales per output channel give wrong results.
    """
    dequantize = graph.dequantize(_input(node, 1)) if node.op_type in LAYERS else None
    scale = graph.values(dequantize.input[1]) if dequantize is not None else None
    if dequantize is None or scale is None or scale.size <= 1:
        return
    if node.op_type == "ConvTranspose":
        yield _message(node, "its weight has a scale per channel", "keep it float: --exclude op:ConvTranspose")
        return
    axis = _attribute(dequantize, "axis", _AXIS)
    wanted = {"Conv": 0, "Gemm": 0 if _attribute(node, "transB", 0) else 1}.get(node.op_type)
    if wanted is not None and axis != wanted:
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


def _clip_of_integers(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Parser, docs/operators.md: Clip takes FP32, FP16 and BF16; activations of fewer than 8 bits have one of INT8."""
    before = graph.producers.get(node.input[0]) if node.op_type == "Clip" else None
    if before is not None and before.op_type == _QUANTIZE:
        yield _message(node, "clips integers, TensorRT clips float only", "use --act-bits 8")


def _dequantizes_no_integers(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Guide: INT8 tensors come from a Q or are constant weights; Q and DQ come in pairs."""
    if node.op_type != _DEQUANTIZE or node.input[0] in graph.constants:
        return
    before = graph.producers.get(node.input[0])
    if before is None or before.op_type not in (_QUANTIZE, "Clip"):
        source = "an input of the model" if before is None else f"the output of {before.op_type}"
        yield _message(node, f"reads {source}", "let it read the output of a QuantizeLinear, or a constant")


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


def _quantized_bias(graph: _Graph, node: NodeProto) -> Iterator[str]:
    """Guide: biases stay float; the parser takes a dequantized bias for data (`convMultiInput`)."""
    if node.op_type in LAYERS and graph.dequantize(_input(node, 2)) is not None:
        yield _message(node, "its bias is quantized", "store the bias as float32")


_RULES: tuple[Callable[[_Graph, NodeProto], Iterator[str]], ...] = (
    _foreign_domain,
    _integers_not_int8,
    _zero_point,
    _scale,
    _granularity,
    _weight_axis,
    _types_of_pair,
    _clip_of_integers,
    _dequantizes_no_integers,
    _quantizes_no_float,
    _half_quantized_layer,
    _quantized_bias,
)
