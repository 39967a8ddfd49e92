"""Sets of operators, and what a node is: depthwise, pointwise, part of a SiLU."""

from onnx_graphsurgeon import Node, Tensor

from onnxq.ir.query import constant, consumers, producer

CONVS = frozenset({"Conv", "ConvTranspose"})
"""Layers over images: the channels of their inputs and outputs lie along axis 1."""

LAYERS = CONVS | {"Gemm", "MatMul"}
"""Operators with weights."""

QDQ_OPS = frozenset({"QuantizeLinear", "DequantizeLinear"})
"""Operators between a float tensor and the integers that stand for it."""

MOVES_VALUES = QDQ_OPS | {
    "Cast", "Concat", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose outputs hold values of their inputs, in other places or another type: no arithmetic, no error of its
own. Sets that need more or fewer of them are written as a difference from this one."""

INTEGER_OPS = frozenset({
    "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool",
    "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
})  # fmt: skip
"""Operators that compute on integers, ONNX's and onnxruntime's."""


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


def feeds_only_silu(tensor: Tensor) -> bool:
    """Whether x is used as x * Sigmoid(x) and for nothing else."""
    users = consumers(tensor)
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
