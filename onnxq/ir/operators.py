"""Sets of operators, and predicates on nodes: depthwise, pointwise, part of a SiLU, with a bias."""

from collections.abc import Sequence

from onnx_graphsurgeon import Node, Tensor

from onnxq.ir.query import constant, consumers, downstream, producer

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

CHANNELWISE_LINEAR = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool"})
"""Operators with f(s x) = s f(x) for s > 0 that work on each channel alone; a PRelu if its slopes are constant."""

INTEGER_OPS = frozenset({
    "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QLinearAdd", "QLinearMul",
    "QLinearSigmoid", "QLinearLeakyRelu", "QLinearConcat", "QLinearAveragePool", "QLinearGlobalAveragePool",
    "QLinearSoftmax", "QLinearReduceMean", "QLinearWhere", "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
})  # fmt: skip
"""Operators of ONNX and onnxruntime that compute on integers."""


def is_layer(node: Node) -> bool:
    """Return whether the node has weights."""
    return node.op in LAYERS


def image_convs(nodes: Sequence[Node]) -> frozenset[str]:
    """Return the names of the Convs that no other layer precedes: they read images.

    Args:
        nodes: in topological order.
    """
    behind = downstream(nodes, is_layer)
    return frozenset(node.name for node in nodes if node.op == "Conv" and node.name not in behind)


def next_layers(node: Node) -> list[Node]:
    """Return the layers that read the outputs of a node, directly or through nodes that are no layers, each once."""
    stack, seen = [node], {id(node)}
    found: list[Node] = []
    while stack:
        for tensor in stack.pop().outputs:
            for reader in consumers(tensor):
                if id(reader) not in seen:
                    seen.add(id(reader))
                    (found if is_layer(reader) else stack).append(reader)
    return found


def is_depthwise(node: Node) -> bool:
    """Return whether the node is a depthwise Conv: each input channel has filters of its own."""
    if node.op != "Conv" or node.attrs.get("group", 1) == 1:
        return False
    weight = constant(node.inputs[1])
    return weight is not None and weight.shape[1] == 1


def is_pointwise(node: Node) -> bool:
    """Return whether the node is a 1x1 Conv over images: stride 1, no padding, no groups."""
    shape = node.inputs[1].shape if node.op == "Conv" else None
    return (
        shape is not None
        and list(shape[2:]) == [1, 1]
        and node.attrs.get("group", 1) == 1
        and all(stride == 1 for stride in node.attrs.get("strides", []))
        and not any(node.attrs.get("pads", []))
    )


def is_silu(mul: Node) -> bool:
    """Return whether the node is the Mul of x * Sigmoid(x)."""
    if mul.op != "Mul" or len(mul.inputs) != 2:
        return False
    return any(_is_sigmoid_of(gate, x) for gate, x in (mul.inputs, reversed(mul.inputs)))


def is_scaling(node: Node) -> bool:
    """Return whether the node multiplies a tensor by a constant."""
    return bool(node.op == "Mul") and sum(constant(t) is not None for t in node.inputs) == 1


def feeds_only_silu(tensor: Tensor) -> bool:
    """Return whether the only use of a tensor x is x * Sigmoid(x)."""
    users = consumers(tensor)
    mul = [node for node in users if node.op == "Mul"]
    return (
        len(users) == 2
        and len(mul) == 1
        and is_silu(mul[0])
        and any(_is_sigmoid_of(t, tensor) and len(t.outputs) == 1 for t in mul[0].inputs)
    )


def _is_sigmoid_of(gate: Tensor, x: Tensor) -> bool:
    node = producer(gate)
    return node is not None and node.op == "Sigmoid" and node.inputs[0] is x


def output_axis(layer: Node) -> int:
    """Return the axis of output channels in the weight of a layer (ONNX Conv, ConvTranspose, Gemm and MatMul)."""
    if layer.op == "Conv" or (layer.op == "Gemm" and layer.attrs.get("transB", 0)):
        return 0
    return 1


def takes_bias(layer: Node) -> bool:
    """Return whether a layer has an input for a bias: a Conv, ConvTranspose or Gemm has, a MatMul has not."""
    return bool(layer.op != "MatMul")


def bias_of(layer: Node) -> Tensor | None:
    """Return the bias of a layer, constant or computed, or None if it has none; a MatMul never has one."""
    return layer.inputs[2] if len(layer.inputs) > 2 and layer.inputs[2].name else None


def has_plain_bias(layer: Node) -> bool:
    """Return whether the bias of a layer is constant or missing, not computed."""
    bias = bias_of(layer)
    return bias is None or constant(bias) is not None
