"""Layers that amplify channels of which the one scale of their input leaves next to nothing."""

from collections.abc import Iterator

import numpy as np

from onnxq.facts import Plan, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, Tensor, constant, data_inputs, is_layer, is_silu, producer
from onnxq.numerics.arrays import Float64Array
from onnxq.numerics.range_method import FitRange
from onnxq.numerics.sqnr import decibels
from onnxq.qdq.channel_statistics import channel_statistics
from onnxq.qdq.unequal_inputs import LEAST_SQNR, MOST_LOST
from onnxq.targets import Target


def lost_layers(
    plan: Plan, model: Model, target: Target, statistics: Statistics, fit: FitRange
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield names of tensors whose scale loses channels, each with the layers to keep float for it, and why.

    The rounding of a tensor adds the same noise to each channel. A layer with great weights for small channels, as a
    depthwise Conv behind a Conv of very unequal channels, amplifies it beyond what it makes of the values. They are
    lost if less than `unequal_inputs.LEAST_SQNR` is left of its outputs, and `unequal_inputs.MOST_LOST` less than of
    the tensor as a whole. The layer that makes the tensor is float too if the target quantizes its output.

    Args:
        plan: with the groups that the tensors have in the end.
        model: the graph of the plan.
        target: its rules.
        statistics: of the tensors of the plan.
        fit: chooses a range from a histogram.
    """
    points, groups = {point.tensor: point for point in plan.points}, plan.groups()
    found: dict[str, tuple[Tensor, dict[str, str]]] = {}
    for layer in map(model.nodes.__getitem__, plan.layers):
        tensor = layer.inputs[0]
        point = points.get(tensor.name)
        if point is None or not point.sources:
            continue
        left = _left_of_outputs(layer, point, groups[point.group], statistics, fit)
        if left is not None:
            text = f"one scale for the channels of {tensor.name!r} leaves {left:.1f} dB of its outputs"
            found.setdefault(tensor.name, (tensor, {}))[1][layer.name] = text
    for tensor, layers in found.values():
        source = _layer_before(tensor)
        if source is not None and source.name in plan.layers and target.rules[source.op].output:
            layers.setdefault(source.name, f"one scale for its channels is too coarse for {', '.join(layers)}")
        yield tensor.name, layers


def _left_of_outputs(
    layer: Node, point: QuantizationPoint, group: list[QuantizationPoint], statistics: Statistics, fit: FitRange
) -> float | None:
    """Return the SQNR of a layer's outputs behind the rounding of its input, dB, if it is lost; else None.

    Args:
        layer: with a constant weight.
        point: of its input.
        group: the points that have the same scale.
        statistics: of their tensors.
        fit: chooses a range from a histogram.
    """
    channels = channel_statistics(layer.inputs[0], statistics.channels)
    gains = _gains(layer)
    if channels is None or gains is None or len(gains) != len(channels.variances):
        return None
    variances = channels.variances
    outputs, noise = float(gains @ variances), float(gains.sum())
    if min(outputs, noise) <= 0 or decibels(float(variances.mean()) * noise, outputs) < MOST_LOST:
        return None
    scale = float(point.scheme.qparams(fit(statistics.of_points(group), point.scheme)).scale)
    left = decibels(outputs, noise * scale**2 / 12)
    return left if left < LEAST_SQNR else None


def _gains(layer: Node) -> Float64Array | None:
    """Return the energy of the weights that read each input channel, float64 (channels,); None if it is no Conv."""
    values = constant(layer.inputs[1]) if layer.op == "Conv" else None
    if values is None or values.ndim != 4:
        return None
    by_group = np.square(values, dtype=np.float64).reshape(layer.attrs.get("group", 1), -1, *values.shape[1:])
    return np.asarray(by_group.sum(axis=(1, 3, 4)).reshape(-1))


def _layer_before(tensor: Tensor) -> Node | None:
    """Return the layer whose output a tensor is, through functions of a single tensor; None if there is none."""
    source = producer(tensor)
    while source is not None and not is_layer(source):
        inputs = data_inputs(source)
        if is_silu(source):
            inputs = [t for t in inputs if (gate := producer(t)) is None or gate.op != "Sigmoid"]
        source = producer(inputs[0]) if len(inputs) == 1 else None
    return source
