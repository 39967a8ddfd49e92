"""pointwise-to-matmul: turns integer 1x1 Convs with a float output into products that onnxruntime has kernels for."""

import numpy as np

from onnxq.ir import (
    Builder,
    Model,
    Node,
    Tensor,
    Variable,
    bias_of,
    constant,
    has_plain_bias,
    is_pointwise,
    producer,
    replace_nodes,
)
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

_CHANNELS_LAST = [0, 2, 3, 1]

_CHANNELS_FIRST = [0, 3, 1, 2]


class PointwiseToMatmul(Rewrite):
    """Turns Conv(x, W) + b of dequantized x and W, where the result is not quantized, into products of matrices.

        x_dequantized -> Transpose -> Reshape -> Gemm(W as (channels, outputs), b) -> Reshape -> Transpose -> y

    A 1x1 Conv is the same product at every position. onnxruntime computes a Conv on integers only if its output is
    quantized again, but these products in any case (QGemm). 8 bits are too coarse for the boxes and scores of the last
    layers, and for the input of a SiLU.

    The bias becomes int32 with the scale of the products, to which the integer kernel adds it. If height or width are
    unknown, so that there is no shape to return to, a MatMul (MatMulIntegerToFloat) and an Add replace the Gemm.

    The Transposes cancel those that onnxruntime puts around its integer Convs. The product keeps the Conv's name.
    """

    name = "pointwise-to-matmul"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Convs replaced."""
        products = _Products(Builder(model))
        convs = [node for node in model.graph.nodes if _is_float_from_integers(node)]
        replace_nodes(model.graph, {id(conv): products.of(conv) for conv in convs})
        return len(convs)


def _is_float_from_integers(node: Node) -> bool:
    """Return whether a node is a 1x1 Conv with dequantized data and weight, and an output that is not quantized."""
    if not is_pointwise(node) or not all(_is_dequantized(t) for t in node.inputs[:2]):
        return False
    return has_plain_bias(node) and all(reader.op != "QuantizeLinear" for reader in node.outputs[0].outputs)


def _is_dequantized(tensor: Tensor) -> bool:
    source = producer(tensor)
    return source is not None and source.op == "DequantizeLinear"


def _has_known_image(x: Tensor) -> bool:
    """Return whether channels, height and width are numbers."""
    return x.shape is not None and len(x.shape) == 4 and all(isinstance(size, int) for size in x.shape[1:])


class _Products:
    """Makes the nodes that replace Convs; a weight that several Convs share is stored once."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._matrices: dict[str, Variable] = {}

    def of(self, conv: Node) -> list[Node]:
        """Return the nodes that replace a Conv, which is detached from its tensors."""
        nodes: list[Node] = []
        (x, weight), bias, y = conv.inputs[:2], bias_of(conv), conv.outputs[0]
        conv.inputs.clear()
        conv.outputs.clear()
        if weight.name not in self._matrices:
            nodes.append(self._dequantize_matrix(weight))
            self._matrices[weight.name] = nodes[-1].outputs[0]
        matrix = self._matrices[weight.name]

        last = self._variable(f"{x.name}_channels_last")
        product = self._variable(f"{y.name}_channels_last")
        nodes.append(self._builder.node("Transpose", f"{conv.name}_channels_last", [x], [last], perm=_CHANNELS_LAST))
        integers = self._dequantize_bias(bias, x, weight) if bias is not None else None
        if _has_known_image(x) and (bias is None or integers is not None):
            nodes += self._gemm(conv.name, last, matrix, integers, product, x.shape)
        else:
            nodes += self._matmul(conv.name, last, matrix, bias, product)
        nodes.append(
            self._builder.node("Transpose", f"{conv.name}_channels_first", [product], [y], perm=_CHANNELS_FIRST)
        )
        return nodes

    def _gemm(
        self, name: str, x: Tensor, matrix: Tensor, bias: Node | None, product: Tensor, shape: list[int]
    ) -> list[Node]:
        """Return a Gemm over the rows of all positions."""
        _, channels, height, width = shape
        outputs = matrix.shape[1]
        rows, products = self._variable(f"{name}_rows_output"), self._variable(f"{name}_products")
        to_rows = self._builder.constant(f"{name}_rows_shape", np.array([-1, channels], np.int64))
        to_image = self._builder.constant(f"{name}_image_shape", np.array([-1, height, width, outputs], np.int64))
        return [
            *([bias] if bias is not None else []),
            self._builder.node("Reshape", f"{name}_rows", [x, to_rows], [rows]),
            Node("Gemm", name, {}, [rows, matrix, *(bias.outputs if bias is not None else [])], [products]),
            self._builder.node("Reshape", f"{name}_image", [products, to_image], [product]),
        ]

    def _matmul(self, name: str, x: Tensor, matrix: Tensor, bias: Tensor | None, product: Tensor) -> list[Node]:
        """Return a MatMul over the last axis, for images of any size."""
        if bias is None:
            return [Node("MatMul", name, {}, [x, matrix], [product])]
        # With a vector, onnxruntime would fuse the MatMul and the Add into a float Gemm.
        values = np.asarray(constant(bias)).reshape(1, 1, 1, -1)
        products, row = self._variable(f"{name}_products"), self._builder.constant(f"{bias.name}_channels_last", values)
        return [
            Node("MatMul", name, {}, [x, matrix], [products]),
            self._builder.node("Add", f"{name}_Add", [products, row], [product]),
        ]

    def _dequantize_bias(self, bias: Tensor, x: Tensor, weight: Tensor) -> Node | None:
        """Return the DequantizeLinear of a bias with the scale of the products; None if int32 cannot hold it."""
        scale = np.asarray(constant(x.inputs[0].inputs[1])) * np.asarray(constant(weight.inputs[0].inputs[1]))
        levels = np.rint(np.asarray(constant(bias), np.float64) / scale)
        if np.abs(levels).max() > np.iinfo(np.int32).max:
            return None
        stored = self._builder.constant(f"{bias.name}_quantized", levels.astype(np.int32))
        steps = self._builder.constant(f"{bias.name}_scale", np.asarray(scale, np.float32))
        output = self._variable(f"{bias.name}_dequantized")
        return self._builder.node(
            "DequantizeLinear", f"{bias.name}_DequantizeLinear", [stored, steps], [output], axis=0
        )

    def _dequantize_matrix(self, weight: Tensor) -> Node:
        """Return the DequantizeLinear of a weight (outputs, channels, 1, 1) as a matrix (channels, outputs)."""
        dequantize = weight.inputs[0]
        stored, scale, zero_point = dequantize.inputs
        values = np.ascontiguousarray(np.asarray(constant(stored))[:, :, 0, 0].T)
        matrix = self._builder.constant(f"{stored.name}_matrix", values)
        output = self._builder.variable(f"{weight.name}_matrix", np.dtype(np.float32), values.shape)
        inputs = [matrix, scale, zero_point]
        return self._builder.node("DequantizeLinear", f"{dequantize.name}_matrix", inputs, [output], axis=1)

    def _variable(self, name: str) -> Variable:
        return self._builder.variable(name, np.dtype(np.float32))
