"""Layers that amplify channels of which the scale of their input, or of their weights, leaves next to nothing."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from onnxq.facts import Plan, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, Tensor, constant, data_inputs, is_layer, is_silu, producer
from onnxq.numerics.arrays import Float64Array, FloatArray
from onnxq.numerics.range_method import FitRange
from onnxq.numerics.scheme import Scheme
from onnxq.numerics.sqnr import decibels
from onnxq.qdq.channel_statistics import channel_statistics
from onnxq.qdq.unequal_inputs import LEAST_SQNR, MOST_LOST
from onnxq.targets import Target


class _Left(NamedTuple):
    """What is left of the outputs of a layer.

    Attributes:
        decibels: SQNR of the outputs, dB.
        by_input: whether the rounding of its input takes more of them than that of its weights.
    """

    decibels: float
    by_input: bool

    def text(self, tensor: str) -> str:
        """Return why the layer that reads a tensor stays float."""
        scale = "one scale for the channels of" if self.by_input else "one scale for all weights that read"
        return f"{scale} {tensor!r} leaves {self.decibels:.1f} dB of its outputs"


def lost_layers(
    plan: Plan, model: Model, target: Target, statistics: Statistics, fit: FitRange
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield names of tensors with channels that are lost, each with the layers to keep float for it, and why.

    The rounding of a tensor adds the same noise to each channel. A layer with great weights for small channels, as a
    depthwise Conv behind a Conv of very unequal channels, amplifies it beyond what it makes of the values; so does one
    behind channels that differ little from a great mean. The rounding of the weights of an output is the same noise for
    each channel too, and great channels amplify that. Outputs are lost if less than `unequal_inputs.LEAST_SQNR` is left
    of them, and `unequal_inputs.MOST_LOST` less than scales for each channel would leave. If that is due to the input,
    the layer that makes it is float too if the target quantizes its output.

    Args:
        plan: with the groups that the tensors have in the end.
        model: the graph of the plan.
        target: its rules.
        statistics: of the tensors of the plan.
        fit: chooses a range from a histogram.
    """
    points, groups = {point.tensor: point for point in plan.points}, plan.groups()
    schemes = {user: weight.scheme for weight in plan.weights for user in weight.users}
    found: dict[str, tuple[Tensor, dict[str, _Left]]] = {}
    for layer in map(model.nodes.__getitem__, plan.layers):
        tensor = layer.inputs[0]
        point = points.get(tensor.name)
        if point is None or not point.sources:
            continue
        left = _left_of_outputs(layer, schemes[layer.name], point, groups[point.group], statistics, fit)
        if left is not None:
            found.setdefault(tensor.name, (tensor, {}))[1][layer.name] = left
    for tensor, layers in found.values():
        texts = {name: left.text(tensor.name) for name, left in layers.items()}
        source, coarse = _layer_before(tensor), [name for name, left in layers.items() if left.by_input]
        if coarse and source is not None and source.name in plan.layers and target.rules[source.op].output:
            texts.setdefault(source.name, f"one scale for its channels is too coarse for {', '.join(coarse)}")
        yield tensor.name, texts


def _left_of_outputs(
    layer: Node,
    scheme: Scheme,
    point: QuantizationPoint,
    group: list[QuantizationPoint],
    statistics: Statistics,
    fit: FitRange,
) -> _Left | None:
    """Return what the rounding of a layer's input and of its weights leaves of its outputs, if they are lost.

    Args:
        layer: with a constant weight.
        scheme: of its weight.
        point: of its input.
        group: the points that have the same scale.
        statistics: of their tensors.
        fit: chooses a range from a histogram.
    """
    channels = channel_statistics(layer.inputs[0], statistics.channels)
    weight = _by_group(layer)
    if channels is None or weight is None or weight.shape[0] * weight.shape[2] != len(channels.variances):
        return None
    variances = channels.variances.reshape(len(weight), -1)
    outputs = _variance(weight, variances)
    step = float(point.scheme.qparams(fit(statistics.of_points(group), point.scheme)).scale)
    by_input = _variance(weight, np.full_like(variances, step**2 / 12))
    if outputs <= 0 or decibels(outputs, by_input + _most(weight, variances, scheme)) > LEAST_SQNR:
        return None
    by_weights = _variance(_error(weight, scheme), variances)
    left = decibels(outputs, by_input + by_weights)
    # With scales for each channel: channels that are divided by their deviations vary alike, weights are multiplied.
    deviations = np.sqrt(variances)
    steps = 2 * (channels.peaks - channels.means).reshape(variances.shape) / point.scheme.steps
    alike = weight * deviations[:, None, :, None]
    best = _variance(weight, np.where(deviations > 0, steps**2 / 12, 0.0))
    best += _variance(_error(alike, scheme), np.ones_like(variances))
    is_lost = left < LEAST_SQNR and decibels(outputs, best) - left > MOST_LOST
    return _Left(left, by_input >= by_weights) if is_lost else None


def _by_group(layer: Node) -> FloatArray | None:
    """Return the weight of a Conv over images as (groups, outputs, channels, taps); None if it is no such layer."""
    values = constant(layer.inputs[1]) if layer.op == "Conv" else None
    if values is None or values.ndim != 4:
        return None
    groups = layer.attrs.get("group", 1)
    return np.asarray(values, np.float32).reshape(groups, -1, values.shape[1], values.shape[2] * values.shape[3])


def _variance(weight: FloatArray, variances: Float64Array) -> float:
    """Return the variance of all outputs of a weight, whose input channels have these variances, (groups, channels)."""
    return float((np.einsum("goct,goct->gc", weight, weight, dtype=np.float64) * variances).sum())


def _steps(weight: FloatArray, scheme: Scheme) -> FloatArray:
    """Return the step of a weight's integers, for each of its outputs or for all."""
    axes = (0, 1, 2, 3) if scheme.axis is None else (2, 3)
    return np.asarray(2 * np.abs(weight).max(axis=axes, keepdims=True) / scheme.steps)


def _most(weight: FloatArray, variances: Float64Array, scheme: Scheme) -> float:
    """Return about the most that the rounding of a weight adds to the variance of its outputs: no weight is small."""
    steps = np.broadcast_to(_steps(weight, scheme), (*weight.shape[:2], 1, 1))
    of_groups = np.square(steps, dtype=np.float64).sum(axis=(1, 2, 3)) * variances.sum(axis=1)
    return float(of_groups.sum() * weight.shape[3] / 12)


def _error(weight: FloatArray, scheme: Scheme) -> FloatArray:
    """Return the error of a weight that is rounded to nearest."""
    steps = _steps(weight, scheme)
    return np.asarray(np.rint(weight / np.where(steps > 0, steps, 1)) * steps - weight)


def _layer_before(tensor: Tensor) -> Node | None:
    """Return the layer whose output a tensor is, through functions of a single tensor; None if there is none."""
    source = producer(tensor)
    while source is not None and not is_layer(source):
        inputs = data_inputs(source)
        if is_silu(source):
            inputs = [t for t in inputs if (gate := producer(t)) is None or gate.op != "Sigmoid"]
        source = producer(inputs[0]) if len(inputs) == 1 else None
    return source
