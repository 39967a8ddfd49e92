"""split-max-pool: a wide MaxPool becomes several narrow ones, one behind the other."""

from onnxq.facts import Plan
from onnxq.ir import Builder, Model, Node, Tensor, Variable, producer
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

_WIDEST = 7
"""rknn-toolkit2 2.5 splits wider ones by itself, and pads with 0 in between."""

_MOST_SPLIT = 33
"""Wider ones stay: no network has them, and each would become many nodes."""

_STEP = 2
"""How far a window of 5 x 5 reaches to each side."""


class SplitMaxPool(Rewrite):
    """Turns a MaxPool (ONNX, opset 12) of stride 1 whose padding keeps the size into MaxPools of 5 x 5, or of 3 x 3.

        MaxPool 13 x 13  ->  MaxPool 5 x 5 -> Q -> DQ -> MaxPool 5 x 5 -> Q -> DQ -> MaxPool 5 x 5

    A maximum of maxima is the same number, and 75 comparisons are fewer than 169. rknn-toolkit2 2.5 computes other
    numbers near the edges if the window has more than 7 values in a row, or more than the image
    (`findings/rknn_max_pool_edges.sh`). The first MaxPool keeps the name, and the scale is that of the input.

    A window that reaches over all of the image from each place stays: there the toolkit is right. So does one of more
    than 33 x 33.
    """

    name = "split-max-pool"
    needs = (Plan,)
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of MaxPools split."""
        builder, integer = Builder(model), facts[Plan].integer
        nodes: list[Node] = []
        found = 0
        for node in model.graph.nodes:
            nodes.append(node)
            reaches = _split(node)
            if reaches:
                added = _chain(node, reaches, builder, is_integer=node.name in integer)
                model.copy_doc(node.name, [each.name for each in added])
                nodes += added
                found += 1
        model.graph.nodes = nodes
        return found


def _split(node: Node) -> list[list[int]]:
    """Return how far each of the narrow windows reaches along each axis; none if the node stays."""
    if node.op != "MaxPool" or len(node.outputs) != 1 or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return []
    kernel = node.attrs["kernel_shape"]
    reach = [size // 2 for size in kernel]
    is_plain = all(value == 1 for name in ("strides", "dilations") for value in node.attrs.get(name, [1]))
    is_same = node.attrs.get("pads") == reach * 2 and all(size % 2 for size in kernel)
    if not is_plain or not is_same or max(kernel) > _MOST_SPLIT:
        return []
    shape = (node.inputs[0].shape or ())[2:]
    image = [size if isinstance(size, int) else None for size in shape] or [None] * len(kernel)
    if not any(_is_misread(size, known) for size, known in zip(kernel, image, strict=True)):
        return []
    step = _STEP if min((size for size in image if size is not None), default=_WIDEST) > 2 * _STEP else 1
    parts = []
    while any(reach):
        parts.append([min(step, left) for left in reach])
        reach = [left - done for left, done in zip(reach, parts[-1], strict=True)]
    return parts


def _is_misread(kernel: int, image: int | None) -> bool:
    if image is not None and kernel > image:
        return kernel // 2 < image - 1
    return kernel > _WIDEST


def _chain(pool: Node, reaches: list[list[int]], builder: Builder, *, is_integer: bool) -> list[Node]:
    """Narrow a MaxPool, and return the nodes that follow it, of which the last has its output."""
    result = pool.outputs[0]
    before = producer(pool.inputs[0]) if is_integer else None
    added: list[Node] = []

    def made(like: Tensor) -> Variable:
        return builder.variable(f"{pool.name}_{len(added)}_output", like.dtype, result.shape)

    def step(op: str, inputs: list[Tensor], output: Variable, **attrs: object) -> Variable:
        added.append(builder.node(op, f"{pool.name}_{op}_{len(added)}", inputs, [output], **attrs))
        return output

    tensor = made(result)
    _set(pool, reaches[0])
    pool.outputs = [tensor]
    for place, reach in enumerate(reaches[1:], 2):
        if before is not None and before.op == "DequantizeLinear":
            quantized = step("QuantizeLinear", [tensor, *before.inputs[1:]], made(before.inputs[0]))
            tensor = step("DequantizeLinear", [quantized, *before.inputs[1:]], made(result))
        tensor = step("MaxPool", [tensor], result if place == len(reaches) else made(result))
        _set(added[-1], reach)
    return added


def _set(pool: Node, reach: list[int]) -> None:
    pool.attrs |= {"kernel_shape": [2 * side + 1 for side in reach], "pads": reach * 2, "strides": [1] * len(reach)}
