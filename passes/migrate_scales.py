"""migrate-scales: divides channels of unequal size in front of integer Convs, and multiplies the weights instead."""

from collections.abc import Sequence

import numpy as np

from onnxq.errors import DataError
from onnxq.facts import Migration, Plan
from onnxq.ir import Builder, Constant, Model, Node, Tensor, bias_of, constant, set_bias
from onnxq.numerics.arrays import Float32Array
from onnxq.pipeline import Facts, Rewrite
from onnxq.qdq.migration import Migratable, divided_name, migratable, multiplied_weight


class MigrateScales(Rewrite):
    """Divides each channel of a tensor by its scale s, and multiplies the weights of the integer Convs that read it.

    Conv(x, W) = Conv(x / s, W s): the float function stays the same up to its rounding. x is divided

    - at its source, if nothing but these Convs reads it and only operators with f(x / s) = f(x) / s stand between: in
      the weight and bias of a Conv, or in the constants of a Mul and of Adds behind it
    - else by a Mul by 1 / s for each channel. Nodes that do not run on integers read x itself.

    ONNX Mul and Conv, opset 13.

    Raises:
        DataError: the scales were given, and are of another number of channels.
    """

    name = "migrate-scales"
    needs = (Plan, Migration)
    keeps = (Migration,)

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of tensors divided."""
        scales, builder = facts[Migration].scales, Builder(model)
        made = {t.name for node in model.graph.nodes for t in node.outputs}
        # A tensor that is divided already has had its turn.
        chosen = {
            name: found
            for name, found in migratable(model, facts[Plan]).items()
            if name in scales and divided_name(name) not in made
        }
        behind: dict[str, list[Node]] = {}
        for tensor, found in chosen.items():
            _check(tensor, scales[tensor], found)
            for layer in found.layers:
                layer.inputs[1] = Constant(layer.inputs[1].name, multiplied_weight(layer, scales[tensor]))
            if found.sources:
                _divide_sources(found, scales[tensor], builder)
            else:
                x = found.layers[0].inputs[0]
                behind.setdefault(x.inputs[0].name, []).append(_divide(x, found.layers, scales[tensor], builder))
        model.graph.nodes = [each for node in model.graph.nodes for each in (node, *behind.get(node.name, []))]
        return len(chosen)


def _check(tensor: str, scales: Float32Array, found: Migratable) -> None:
    """Refuse scales from outside that are of another number of channels."""
    if len(scales) != found.channels:
        raise DataError(
            f"the calibration has {len(scales)} scales of the tensor {tensor!r}, which has {found.channels} channels: "
            "it was made with another model; calibrate this one with --calib"
        )


def _divide(x: Tensor, layers: Sequence[Node], scales: Float32Array, builder: Builder) -> Node:
    """Let the layers read x / scales, and return the node that divides."""
    rank = len(layers[0].inputs[1].shape)  # the shape of x may be unknown
    factors = builder.constant(f"{x.name}_factors", _along_channels(np.reciprocal(scales), rank))
    divided = builder.variable(divided_name(x.name), np.dtype(np.float32), x.shape)
    for layer in layers:
        layer.inputs[0] = divided
    return builder.node("Mul", f"{x.name}_Mul", [x, factors], [divided])


def _divide_sources(found: Migratable, scales: Float32Array, builder: Builder) -> None:
    """Divide the constants of the sources of a tensor, so that its channels are divided."""
    rank = len(found.layers[0].inputs[1].shape)
    for node in found.sources:
        if node.op == "Conv":
            weight, bias = node.inputs[1], bias_of(node)
            values = np.asarray(constant(weight), np.float32)
            node.inputs[1] = Constant(weight.name, values / scales.reshape(-1, *[1] * (values.ndim - 1)))
            if bias is not None:
                set_bias(node, builder.constant(f"{node.name}_divided_bias", np.asarray(constant(bias)) / scales))
        else:
            place = next(k for k, t in enumerate(node.inputs) if constant(t) is not None)
            old = node.inputs[place]
            values = np.asarray(constant(old), np.float32) / _along_channels(scales, rank)
            node.inputs[place] = builder.constant(f"{old.name}_divided", values)


def _along_channels(values: Float32Array, rank: int) -> Float32Array:
    """Return the values along axis 1 of an array of this rank."""
    return values.reshape(1, -1, *[1] * (rank - 2))
