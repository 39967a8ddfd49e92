"""undo-lowering: undoes the rewrites for one runtime in a model that is quantized again."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Builder, Model, Node, Tensor, constant, consumers, data_inputs, producer, remove, replace_nodes
from onnxq.pipeline import Facts, Rewrite

_CHANNELS_LAST = [0, 2, 3, 1]

_CHANNELS_FIRST = [0, 3, 1, 2]

_RANK = 4

_LOWERINGS = (("Reshape", "Gemm", "Reshape", "Transpose"), ("MatMul", "Transpose"), ("Add", "MatMul", "Transpose"))
"""Operators of a lowered 1x1 Conv, from the last Transpose back to the first."""


class UndoLowering(Rewrite):
    """Undoes `pointwise-to-matmul` and `expand-softmax`, so that layers and the decode are recognized.

    - Transpose, Reshape, Gemm, Reshape, Transpose, where the Reshapes turn the positions of an image into rows and
      back, become a 1x1 Conv (ONNX, opset 11) with the name of the product
    - Transpose, MatMul, Transpose, with or without an Add of a constant behind the MatMul, become the same
    - Sub, Exp, ReduceSum and Div over one axis, which compute exp(x - max x) / sum exp(x - max x), become a Softmax
      (opset 13); max x is a ReduceMax, or the Max of the slices of a Split

    The tensors in between must have no other reader and must not be outputs; matrix and bias must be constant.
    """

    name = "undo-lowering"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Convs and Softmaxes restored."""
        return _restore_convs(model) + _restore_softmaxes(model)


def _restore_convs(model: Model) -> int:
    builder, outputs = Builder(model), model.output_names
    found = [product for node in model.graph.nodes if (product := _product(node, outputs)) is not None]
    replacements: dict[int, list[Node]] = {}
    for product in found:
        conv = product.conv(builder)
        replacements |= {id(node): [] for node in product.nodes}
        replacements[id(product.nodes[0])] = [conv]
    replace_nodes(model.graph, replacements)
    return len(found)


def _restore_softmaxes(model: Model) -> int:
    outputs = model.output_names
    found = 0
    removed: list[Node] = []
    for div in model.graph.nodes:
        steps = _softmax_steps(div)
        if steps is None or any(t.name in outputs for step in steps for t in step.outputs):
            continue
        first, *_ = steps
        div.op, div.attrs, div.inputs = "Softmax", {"axis": _axis(first)}, [first.inputs[0]]
        removed += steps
        found += 1
    remove(model.graph, removed)
    return found


def _softmax_steps(div: Node) -> list[Node] | None:
    """Return the nodes in front of the Div of a Softmax, the first one that reads x first, or None.

    None too if a node that is not among them reads one of their tensors.
    """
    if div.op != "Div" or any(producer(t) is None for t in div.inputs):
        return None
    power, total = (t.inputs[0] for t in div.inputs)
    difference = producer(power.inputs[0]) if power.op == "Exp" else None
    greatest = _maximum(difference.inputs[1]) if difference is not None and difference.op == "Sub" else []
    if difference is None or not greatest or total.op != "ReduceSum":
        return None
    is_of_one = total.inputs[0] is power.outputs[0] and greatest[0].inputs[0] is difference.inputs[0]
    if not is_of_one or _axis(total) is None or _axis(total) != _axis(greatest[0]):
        return None
    steps = [*greatest, difference, power, total]
    inside = {id(node) for node in (*steps, div)}
    readers = (reader for step in steps for tensor in step.outputs for reader in consumers(tensor))
    return steps if all(id(reader) in inside for reader in readers) else None


def _maximum(tensor: Tensor) -> list[Node]:
    """Return the nodes that compute a maximum over an axis, a ReduceMax or the Split and Max of slices; else []."""
    last = producer(tensor)
    if last is None or last.op == "ReduceMax":
        return [] if last is None else [last]
    split = producer(last.inputs[0]) if last.op == "Max" else None
    if split is None or split.op != "Split" or len(split.inputs) != 2:
        return []
    lengths = constant(split.inputs[1])
    is_whole = [id(t) for t in last.inputs] == [id(t) for t in split.outputs]
    return [split, last] if is_whole and lengths is not None and np.all(lengths == 1) else []


def _axis(node: Node) -> int | None:
    """Return the single axis of a Split or of a reduction with keepdims, from its attribute or input, or None."""
    if node.op == "Split":
        return int(node.attrs.get("axis", 0))
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1:
        values = constant(node.inputs[1])
        axes = None if values is None else values.tolist()
    return axes[0] if axes is not None and len(axes) == 1 and node.attrs.get("keepdims", 1) else None


@dataclass(frozen=True)
class _Product:
    """A lowered 1x1 Conv: its nodes from the last Transpose back to the first, and its product."""

    nodes: list[Node]
    product: Node
    matrix: NDArray[np.generic]
    bias: NDArray[np.generic] | None

    def conv(self, builder: Builder) -> Node:
        """Return the Conv that replaces the nodes, and disconnect them from their tensors."""
        x, y, name = self.nodes[-1].inputs[0], self.nodes[0].outputs[0], self.product.name
        for node in self.nodes:
            node.inputs.clear()
            node.outputs.clear()
        weight = np.ascontiguousarray(self.matrix.T)[:, :, None, None]
        inputs = [x, builder.constant(f"{name}_weight", weight)]
        if self.bias is not None:
            inputs.append(builder.constant(f"{name}_bias", self.bias.reshape(-1)))
        return Node("Conv", name, {"kernel_shape": [1, 1]}, inputs, [y])


def _product(last: Node, outputs: frozenset[str]) -> _Product | None:
    """Return the lowered Conv that ends with a Transpose to channels first, or None."""
    if not _transposes(last, _CHANNELS_FIRST):
        return None
    nodes = next(filter(None, (_chain(last, ops, outputs) for ops in _LOWERINGS)), None)
    if nodes is None or not _transposes(nodes[-1], _CHANNELS_LAST):
        return None
    by_op = {node.op: node for node in reversed(nodes)}
    product = by_op["Gemm"] if "Gemm" in by_op else by_op["MatMul"]
    matrix = constant(product.inputs[1])
    if matrix is None or matrix.ndim != 2 or (product.op == "Gemm" and product.attrs):
        return None
    if product.op == "Gemm" and not _is_same_image(nodes[-1].inputs[0], nodes[1].inputs[1], matrix):
        return None
    added = [*product.inputs[2:], *(t for t in nodes[1].inputs if nodes[1].op == "Add" and constant(t) is not None)]
    biases = [constant(t) for t in added]
    if any(bias is None or bias.size != matrix.shape[1] or bias.shape[-1] != bias.size for bias in biases):
        return None
    return _Product(nodes, product, matrix, biases[0] if biases else None)


def _chain(last: Node, ops: Sequence[str], outputs: frozenset[str]) -> list[Node] | None:
    """Return a node and those before it, if they have these operators and no tensor between has another reader."""
    nodes = [last]
    for op in ops:
        data = data_inputs(nodes[-1])
        before = producer(data[0]) if len(data) == 1 else None
        if before is None or before.op != op or len(consumers(data[0])) > 1 or data[0].name in outputs:
            return None
        nodes.append(before)
    return nodes


def _transposes(node: Node, order: list[int]) -> bool:
    return node.op == "Transpose" and list(node.attrs.get("perm", [])) == order


def _is_same_image(x: Tensor, shape: Tensor, matrix: NDArray[np.generic]) -> bool:
    """Return whether a Reshape restores the height and width of x."""
    sizes = constant(shape)
    if sizes is None or x.shape is None or len(x.shape) != _RANK:
        return False
    return bool(sizes.tolist() == [-1, *x.shape[2:], matrix.shape[1]] and x.shape[1] == matrix.shape[0])
