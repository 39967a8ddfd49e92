"""migrate-scales: divides channels of unequal size in front of integer Convs, and multiplies the weights instead."""

import numpy as np

from onnxq.errors import DataError
from onnxq.facts import Migration, Plan
from onnxq.ir import Builder, Constant, Model, Node, Tensor, constant
from onnxq.numerics.arrays import Float32Array
from onnxq.pipeline import Facts, Rewrite
from onnxq.qdq.migration import migratable


class MigrateScales(Rewrite):
    """Puts a Mul by 1 / s for each channel in front of the integer Convs that read a tensor, and s into their weights.

    Conv(x, W) = Conv(x / s, W s): the float function stays the same up to its rounding. The Mul and the Q behind it run
    in one kernel with the activation before them where the runtime fuses them (`Target.fuses_scaling`). Nodes that do
    not run on integers read the tensor itself.

    ONNX Mul and Conv, opset 13.

    Raises:
        DataError: the scales were given, and are of another number of channels.
    """

    name = "migrate-scales"
    needs = (Plan, Migration)
    keeps = (Migration,)

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of Muls added."""
        scales, builder = facts[Migration].scales, Builder(model)
        behind: dict[str, Node] = {}
        for tensor, layers in migratable(model, facts[Plan]).items():
            if tensor in scales:
                _check(tensor, scales[tensor], layers)
                x = layers[0].inputs[0]
                behind[x.inputs[0].name] = _divide(x, layers, scales[tensor], builder)
        nodes = list(model.graph.nodes)
        model.graph.nodes = [each for node in nodes for each in (node, behind.get(node.name)) if each is not None]
        return len(behind)


def _check(tensor: str, scales: Float32Array, layers: list[Node]) -> None:
    """Refuse scales from outside that are of another number of channels."""
    channels = layers[0].inputs[1].shape[1]
    if len(scales) != channels:
        raise DataError(
            f"the calibration has {len(scales)} scales of the tensor {tensor!r}, which has {channels} channels: it was "
            "made with another model; calibrate this one with --calib"
        )


def _divide(x: Tensor, layers: list[Node], scales: Float32Array, builder: Builder) -> Node:
    """Let the layers read x / scales with weights times scales, and return the node that divides."""
    factors = builder.constant(f"{x.name}_factors", (1 / scales).reshape(1, -1, *[1] * (len(x.shape) - 2)))
    divided = builder.variable(f"{x.name}_migrated", np.dtype(np.float32), x.shape)
    for layer in layers:
        weight = layer.inputs[1]
        values = np.asarray(constant(weight), np.float32)
        scaled = values * scales.reshape(1, -1, *[1] * (values.ndim - 2))
        layer.inputs[1] = Constant(weight.name, scaled)
        layer.inputs[0] = divided
    return builder.node("Mul", f"{x.name}_Mul", [x, factors], [divided])
