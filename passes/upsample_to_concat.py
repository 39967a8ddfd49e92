"""upsample-to-concat: a nearest Resize that doubles an integer image becomes copies of its rows and columns."""

import numpy as np

from onnxq.ir import Builder, Constant, Model, Node, Tensor, Variable, constant, producer, replace_nodes
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

_REPEATING_MODES = {
    ("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("pytorch_half_pixel", "round_prefer_floor"),
}  # fmt: skip
"""Coordinate and rounding modes of Resize (ONNX, opset 11) that repeat each pixel when they double an image."""


class UpsampleToConcat(Rewrite):
    """Turns Resize(x_dequantized), quantized again with the same scale, into Concats of x with itself.

        x_quantized -> Transpose -> Concat -> Reshape -> Concat -> Reshape -> Transpose -> DequantizeLinear

    With channels last, copying each pixel beside it and each row below it is a plain copy of memory. onnxruntime's
    Resize computes every byte: the copies take about a tenth of its time. The integers are the same, and the Transposes
    cancel those that onnxruntime puts around its integer Convs.

    Images of unknown height, width or channels keep their Resize, and so do outputs of the model.
    """

    name = "upsample-to-concat"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Resizes replaced."""
        builder, outputs = Builder(model), model.output_names
        found = [node for node in model.graph.nodes if _doubles_integers(node, outputs)]
        quantized_again = {id(node.outputs[0].outputs[0]): list[Node]() for node in found}
        replace_nodes(model.graph, {id(node): _copies(node, builder) for node in found} | quantized_again)
        return len(found)


def _doubles_integers(node: Node, outputs: frozenset[str]) -> bool:
    is_inner = node.op == "Resize" and node.outputs[0].name not in outputs
    return is_inner and _doubles(node) and _keeps_its_scale(node)


def _doubles(resize: Node) -> bool:
    """Return whether a Resize repeats each pixel 2 x 2 times, in images of known channels, height and width."""
    modes = (
        resize.attrs.get("coordinate_transformation_mode", "half_pixel"),
        resize.attrs.get("nearest_mode", "round_prefer_floor"),
    )
    shape = resize.inputs[0].shape
    if (
        resize.attrs.get("mode", "nearest") != "nearest"
        or modes not in _REPEATING_MODES
        or shape is None
        or len(shape) != 4
    ):
        return False
    _, channels, height, width = shape
    if not all(isinstance(size, int) for size in (channels, height, width)):
        return False
    scales, sizes = (constant(t) for t in (*resize.inputs[2:4], *[Variable("")] * 2)[:2])
    if scales is not None and scales.size:
        return list(scales) == [1, 1, 2, 2]
    return sizes is not None and list(sizes[1:]) == [channels, 2 * height, 2 * width] and sizes[0] == shape[0]


def _keeps_its_scale(resize: Node) -> bool:
    """Return whether the input of a Resize is dequantized, and its output only quantized again with the same scale."""
    before, readers = producer(resize.inputs[0]), resize.outputs[0].outputs
    if before is None or before.op != "DequantizeLinear" or len(readers) != 1 or readers[0].op != "QuantizeLinear":
        return False
    pairs = zip(before.inputs[1:], readers[0].inputs[1:], strict=True)
    return all(_equal(a, b) for a, b in pairs)


def _equal(a: Tensor, b: Tensor) -> bool:
    one, other = constant(a), constant(b)
    return one is not None and other is not None and np.array_equal(one, other)


def _copies(resize: Node, builder: Builder) -> list[Node]:
    """Return the nodes that replace a Resize and the QuantizeLinear behind it; both are detached from their tensors."""
    x, quantize = resize.inputs[0].inputs[0].inputs[0], resize.outputs[0].outputs[0]
    _, channels, height, width = resize.inputs[0].shape
    y = quantize.outputs[0]
    for node in (resize, quantize):
        node.inputs.clear()
        node.outputs.clear()
    nodes: list[Node] = []

    def step(suffix: str, op: str, inputs: list[Tensor], output: Tensor | None = None, **attrs: object) -> Tensor:
        result = output or builder.variable(f"{resize.name}_{suffix}_output", y.dtype)
        nodes.append(builder.node(op, f"{resize.name}_{suffix}", inputs, [result], **attrs))
        return result

    def shape(suffix: str, *sizes: int) -> Constant:
        return builder.constant(f"{resize.name}_{suffix}_shape", np.array([0, *sizes], np.int64))

    last = step("channels_last", "Transpose", [x], perm=[0, 2, 3, 1])
    columns = step("columns", "Concat", [last, last], axis=3)
    rows = step("as_rows", "Reshape", [columns, shape("as_rows", height, 1, 2 * width * channels)])
    doubled = step("rows", "Concat", [rows, rows], axis=2)
    image = step("as_image", "Reshape", [doubled, shape("as_image", 2 * height, 2 * width, channels)])
    step("channels_first", "Transpose", [image], y, perm=[0, 3, 1, 2])
    return nodes
