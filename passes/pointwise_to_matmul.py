"""pointwise-to-matmul: 1x1 Convs of integers with a float output become MatMuls, which onnxruntime runs as such."""

import numpy as np

from onnxq.graph import Constant, FreshNames, Model, Node, Tensor, Variable, bias_of, constant, is_pointwise, producer
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

_CHANNELS_LAST = [0, 2, 3, 1]
_CHANNELS_FIRST = [0, 3, 1, 2]


class PointwiseToMatmul(Rewrite):
    """Turns Conv(x, W) + b of dequantized x and W, where the result is not quantized, into MatMuls.

        x_dequantized -> Transpose -> MatMul(W as (channels, outputs)) -> Add(b) -> Transpose -> y

    A 1x1 Conv is the same product at every position. onnxruntime computes a Conv on integers only where its output is
    quantized again, but a MatMul in any case (MatMulIntegerToFloat). What the last layers of a detector give are boxes
    and scores, for which 8 bits are too coarse.

    The Transposes cancel against those that onnxruntime puts around its integer Convs. The MatMul has the Conv's name.
    """

    name = "pointwise-to-matmul"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Convs replaced."""
        products = _Products(FreshNames(model.taken_names()))
        convs = [node for node in model.graph.nodes if _is_float_from_integers(node)]
        replacements = {id(conv): products.of(conv) for conv in convs}
        model.graph.nodes = [n for node in model.graph.nodes for n in replacements.get(id(node), [node])]
        return len(convs)


def _is_float_from_integers(node: Node) -> bool:
    """Whether it is a 1x1 Conv of which the data and the weight are dequantized and the output is not quantized."""
    if not is_pointwise(node) or not all(_is_dequantized(t) for t in node.inputs[:2]):
        return False
    bias = bias_of(node)
    has_plain_bias = bias is None or constant(bias) is not None
    return has_plain_bias and all(reader.op != "QuantizeLinear" for reader in node.outputs[0].outputs)


def _is_dequantized(tensor: Tensor) -> bool:
    made_by = producer(tensor)
    return made_by is not None and made_by.op == "DequantizeLinear"


class _Products:
    """Makes the nodes that do the work of Convs; a weight that several of them read is stored once."""

    def __init__(self, names: FreshNames) -> None:
        self._names = names
        self._matrices: dict[str, Variable] = {}

    def of(self, conv: Node) -> list[Node]:
        """The nodes that take this Conv's place; it is cut from its tensors."""
        nodes: list[Node] = []
        (x, weight), bias, y = conv.inputs[:2], bias_of(conv), conv.outputs[0]
        conv.inputs.clear()
        conv.outputs.clear()

        if weight.name not in self._matrices:
            nodes.append(self._dequantize_matrix(weight))
            self._matrices[weight.name] = nodes[-1].outputs[0]
        transposed = self._variable(f"{x.name}_channels_last")
        product = self._variable(f"{y.name}_product")
        nodes.append(self._node("Transpose", f"{conv.name}_channels_last", [x], transposed, perm=_CHANNELS_LAST))
        nodes.append(Node("MatMul", conv.name, {}, [transposed, self._matrices[weight.name]], [product]))
        if bias is not None:
            # As a vector, onnxruntime would make a float Gemm of the MatMul and the Add.
            values = np.asarray(constant(bias)).reshape(1, 1, 1, -1)
            row, shifted = self._constant(f"{bias.name}_channels_last", values), self._variable(f"{y.name}_shifted")
            nodes.append(self._node("Add", f"{conv.name}_Add", [product, row], shifted))
            product = shifted
        nodes.append(self._node("Transpose", f"{conv.name}_channels_first", [product], y, perm=_CHANNELS_FIRST))
        return nodes

    def _dequantize_matrix(self, weight: Tensor) -> Node:
        """DequantizeLinear of the integers of a weight (outputs, channels, 1, 1) as a matrix (channels, outputs)."""
        dequantize = weight.inputs[0]
        stored, scale, zero_point = dequantize.inputs
        values = np.ascontiguousarray(np.asarray(constant(stored))[:, :, 0, 0].T)
        matrix = self._constant(f"{stored.name}_matrix", values)
        return self._node(
            "DequantizeLinear", f"{dequantize.name}_matrix", [matrix, scale, zero_point],
            self._variable(f"{weight.name}_matrix"), axis=1,
        )  # fmt: skip

    def _node(self, op: str, name: str, inputs: list[Tensor], output: Tensor, **attrs: object) -> Node:
        return Node(op, self._names.fresh(name), attrs, inputs, [output])

    def _variable(self, name: str) -> Variable:
        return Variable(self._names.fresh(name), np.dtype(np.float32))

    def _constant(self, name: str, values: np.typing.NDArray[np.generic]) -> Constant:
        return Constant(self._names.fresh(name), values)
