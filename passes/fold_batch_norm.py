"""fold-batch-norm: folds per-channel arithmetic behind a Conv into its weight and bias."""

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Builder, Constant, Model, Node, Tensor, Variable, bias_of, constant, producer, remove, set_bias
from onnxq.numerics.arrays import Float32Array, Float64Array
from onnxq.pipeline import Facts, Rewrite

_CHANNEL_AXIS = {"Conv": 0, "ConvTranspose": 1}


class FoldBatchNorm(Rewrite):
    """Folds y = a * conv(x) + b, with constants a and b per channel, into the Conv (or ConvTranspose).

    - BatchNormalization in inference form (ONNX BatchNormalization, opset 15)
    - Mul, Div, Add and Sub by a constant scalar or (C, 1, 1), such as a separate bias
    - a chain of these

    A Conv that shares its weights gets a copy. Nothing is folded if the Conv's output has another reader or is an
    output of the model, if its weight is not a float32 constant, or if it is a ConvTranspose in groups (the channel
    axis of its weight holds one group only).
    """

    name = "fold-batch-norm"

    def run(self, model: Model, facts: Facts) -> int:
        """Edit the graph and return the number of nodes folded away."""
        outputs = model.output_names
        builder = Builder(model)
        folded = []
        for node in model.graph.nodes:
            affine = _affine(node)
            if affine is None:
                continue
            conv = producer(affine.data)
            if conv is None or not _can_take(conv, affine, outputs):
                continue
            _fold(conv, affine, builder, outputs)
            _take_output(conv, node)
            folded.append(node)
        return remove(model.graph, folded)


@dataclass(frozen=True)
class _Affine:
    """y = scale * data + shift, with scale and shift float64 of shape () or (channels,)."""

    data: Tensor
    scale: Float64Array
    shift: Float64Array

    @property
    def channels(self) -> int:
        return max(self.scale.size, self.shift.size)


def _affine(node: Node) -> _Affine | None:
    if node.op == "BatchNormalization":
        return _batch_norm(node)
    if node.op not in ("Mul", "Div", "Add", "Sub") or len(node.inputs) != 2:
        return None
    left, right = node.inputs
    data, other = (left, right) if isinstance(right, Constant) else (right, left)
    if not isinstance(data, Variable) or (data is right and node.op in ("Div", "Sub")):
        return None
    factor = _per_channel(other)
    if factor is None or (node.op == "Div" and np.any(factor == 0)):
        return None
    one, zero = np.float64(1), np.float64(0)
    return {
        "Mul": lambda: _Affine(data, factor, np.asarray(zero)),
        "Div": lambda: _Affine(data, 1 / factor, np.asarray(zero)),
        "Add": lambda: _Affine(data, np.asarray(one), factor),
        "Sub": lambda: _Affine(data, np.asarray(one), -factor),
    }[node.op]()


def _batch_norm(node: Node) -> _Affine | None:
    parameters = [constant(t) for t in node.inputs[1:5]]
    if len(node.outputs) != 1 or node.attrs.get("training_mode", 0) or any(p is None for p in parameters):
        return None
    gamma, beta, mean, variance = (np.asarray(p, np.float64) for p in parameters)
    scale = gamma / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    return _Affine(node.inputs[0], scale, beta - mean * scale)


def _per_channel(tensor: Tensor) -> Float64Array | None:
    """Return the values of a constant that is a scalar or varies by channel only, float64 () or (channels,)."""
    values = constant(tensor)
    if values is None or values.dtype != np.float32:
        return None
    if values.size == 1 and values.ndim <= 4:
        return np.asarray(values, np.float64).reshape(())
    shape = (1,) * (4 - values.ndim) + values.shape
    if len(shape) == 4 and shape[0] == shape[2] == shape[3] == 1:
        return np.asarray(values, np.float64).reshape(-1)
    return None


def _can_take(conv: Node, affine: _Affine, outputs: frozenset[str]) -> bool:
    if conv.op not in _CHANNEL_AXIS or affine.data.name in outputs or len(affine.data.outputs) != 1:
        return False
    if conv.op == "ConvTranspose" and conv.attrs.get("group", 1) != 1:
        return False
    weight = constant(conv.inputs[1])
    bias_tensor = bias_of(conv)
    bias = np.zeros(0, np.float32) if bias_tensor is None else constant(bias_tensor)
    if weight is None or bias is None or weight.dtype != np.float32 or weight.ndim != 4:
        return False
    return affine.channels in (1, weight.shape[_CHANNEL_AXIS[conv.op]])


def _fold(conv: Node, affine: _Affine, builder: Builder, outputs: frozenset[str]) -> None:
    axis = _CHANNEL_AXIS[conv.op]
    weight_tensor = conv.inputs[1]
    weight = np.asarray(constant(weight_tensor), np.float64)
    channels = weight.shape[axis]
    bias_tensor = bias_of(conv)
    bias = np.zeros(channels) if bias_tensor is None else np.asarray(constant(bias_tensor), np.float64)
    spread = [1] * weight.ndim
    spread[axis] = -1
    scale = np.broadcast_to(affine.scale, (channels,))
    new_weight = (weight * scale.reshape(spread)).astype(np.float32)
    new_bias = (bias * scale + affine.shift).astype(np.float32)
    conv.inputs[1] = _with_values(weight_tensor, new_weight, builder, outputs)
    if bias_tensor is None:
        set_bias(conv, builder.constant(f"{conv.name}_bias", new_bias))
    else:
        set_bias(conv, _with_values(bias_tensor, new_bias, builder, outputs))


def _with_values(tensor: Constant, values: Float32Array, builder: Builder, outputs: frozenset[str]) -> Constant:
    """Return a constant with other values, under the same name if nothing else reads the old one."""
    if len(tensor.outputs) == 1 and tensor.name not in outputs:
        return Constant(tensor.name, values)
    return builder.constant(tensor.name, values)


def _take_output(conv: Node, folded: Node) -> None:
    """Make the Conv produce the output of the folded node, under the same name."""
    output = folded.outputs[0]
    folded.outputs.clear()
    conv.outputs[0] = output
