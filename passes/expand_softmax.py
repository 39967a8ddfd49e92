"""expand-softmax: a Softmax over another axis than the last becomes the operators that define it."""

import numpy as np

from onnxq.ir import Builder, Model, Node, Tensor, replace_nodes
from onnxq.pipeline import EVERYTHING, Facts, Rewrite

_REDUCE_MAX_TAKES_AXES = 18
"""First opset in which the axes are an input. onnxscript's version converter would leave them an attribute."""

_MOST_SLICES = 256
"""The longest column below opset 18; a box distribution has some 16 values."""


class ExpandSoftmax(Rewrite):
    """Turns Softmax(x) over an axis in the middle into exp(x - max x) / sum exp(x - max x), as ONNX defines it.

    onnxruntime computes a Softmax row by row, and moves the axis to the end and back for that, but box distributions of
    a detector are many short columns. The single operators take a fifth of the time or less. A Softmax over the last
    axis, as in attention, stays. The doc string of the Softmax is copied to each operator.

    max x is a ReduceMax (opset 18), and below opset 18 the Max (opset 13) of the slices of a Split: converters to a
    later opset need not change these. Numbers and time are the same. There a Softmax over an axis that is long or of
    unknown size stays, at up to six times the time (BENCHMARKS.md): distributions of boxes have 16 or 17 values.
    """

    name = "expand-softmax"
    keeps = EVERYTHING

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Softmaxes expanded."""
        builder = Builder(model)
        found = [node for node in model.graph.nodes if node.op == "Softmax" and _is_over_columns(node, model.opset)]
        steps = {id(node): _expand(node, builder, model.opset) for node in found}
        for node in found:
            model.copy_doc(node.name, [step.name for step in steps[id(node)]])
        replace_nodes(model.graph, steps)
        return len(found)


def _is_over_columns(softmax: Node, opset: int) -> bool:
    shape = softmax.inputs[0].shape
    axis = softmax.attrs.get("axis", -1)
    if shape is None or axis % len(shape) == len(shape) - 1:
        return False
    return opset >= _REDUCE_MAX_TAKES_AXES or (isinstance(shape[axis], int) and 0 < shape[axis] <= _MOST_SLICES)


def _expand(softmax: Node, builder: Builder, opset: int) -> list[Node]:
    """Return the nodes that replace a Softmax; it is detached from its tensors."""
    x, y, axis, name = softmax.inputs[0], softmax.outputs[0], softmax.attrs.get("axis", -1), softmax.name
    softmax.inputs.clear()
    softmax.outputs.clear()
    axes = builder.constant(f"{name}_axes", np.array([axis], np.int64))

    def step(op: str, inputs: list[Tensor], output: Tensor | None = None, **attrs: object) -> Tensor:
        result = output or builder.variable(f"{name}_{op}_output", x.dtype)
        nodes.append(builder.node(op, f"{name}_{op}", inputs, [result], **attrs))
        return result

    nodes: list[Node] = []
    if opset < _REDUCE_MAX_TAKES_AXES:
        lengths = builder.constant(f"{name}_lengths", np.ones(x.shape[axis], np.int64))
        slices = [builder.variable(f"{name}_Split_output", x.dtype) for _ in range(x.shape[axis])]
        nodes.append(builder.node("Split", f"{name}_Split", [x, lengths], slices, axis=axis))
        greatest = step("Max", slices)
    else:
        greatest = step("ReduceMax", [x, axes], keepdims=1)
    powers = step("Exp", [step("Sub", [x, greatest])])
    step("Div", [powers, step("ReduceSum", [powers, axes], keepdims=1)], y)
    return nodes
