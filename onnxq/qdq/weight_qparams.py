"""Scales and zero points of weights, one for each output channel."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Node, bias_of, constant
from onnxq.numerics.arrays import Float32Array, Float64Array
from onnxq.numerics.scheme import QParams, Range, Scheme

_SHRINKS = np.linspace(1.0, 0.3, 71)
"""Shares of a channel's bounds that the clip search tries."""

_MOST_BIAS_STEPS = 2.0**30
"""Greatest magnitude of a bias in int32 steps, with a factor of two to spare."""


def weight_qparams(
    scheme: Scheme,
    values: Float32Array,
    *,
    least_scale: Float64Array,
    shrink: bool = False,
    importance: Float64Array | None = None,
) -> QParams:
    """Return the scales and zero points of a weight.

    Args:
        scheme: with an axis.
        values: the weight.
        least_scale: of each channel, float64 (channels,) or (1,).
        shrink: search the bounds with the least squared error instead of taking the greatest values.
        importance: factor of each value's squared error, of the weight's shape.
    """
    assert scheme.axis is not None
    channels = _by_channel(values, scheme.axis)
    low, high = _bounds(channels, scheme)
    if shrink:
        weights = None if importance is None else _by_channel(importance, scheme.axis)
        share = _clip_search(channels, Range(low, high), scheme, weights)
        low, high = low * share, high * share
    least_span = least_scale * scheme.steps
    if scheme.symmetric:
        high = np.maximum(high, least_span / 2)
        return scheme.qparams(Range(-high, high))
    return scheme.qparams(Range(low, np.maximum(high, low + least_span)))


def _bounds(channels: NDArray[np.floating], scheme: Scheme) -> tuple[Float64Array, Float64Array]:
    """Return the least and the greatest value of each channel, float64 (channels,), widened to include zero.

    A symmetric scheme takes the greatest magnitude on both sides.
    """
    if scheme.symmetric:
        bound = np.maximum(channels.max(axis=1, initial=0.0), -channels.min(axis=1, initial=0.0)).astype(np.float64)
        return -bound, bound
    low, high = channels.min(axis=1, initial=0.0), channels.max(axis=1, initial=0.0)
    return low.astype(np.float64), high.astype(np.float64)


def minimum_scale(layers: Iterable[Node], activations: Mapping[str, QParams]) -> Float64Array:
    """Return the least scales of a weight, float64 (scales,) or (1,).

    Runtimes hold the bias in int32 steps of input scale * weight scale: a channel whose weights are almost zero must
    not get a scale so small that its bias overflows.

    Args:
        layers: all consumers of the weight.
        activations: tensor -> its scale and zero point.
    """
    bias_steps = [_bias(node) / float(activations[node.inputs[0].name].scale) for node in layers]
    return np.asarray(np.max(np.broadcast_arrays(*bias_steps), axis=0) / _MOST_BIAS_STEPS)


def _by_channel(values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _bias(layer: Node) -> Float64Array:
    """Return the greatest magnitude of a layer's bias for each scale of its weight, float64 (scales,).

    The result is one zero if the bias is missing or computed. The groups of a ConvTranspose share their scales.
    """
    tensor = bias_of(layer)
    bias = None if tensor is None else constant(tensor)
    if bias is None:
        return np.zeros(1)
    groups = layer.attrs.get("group", 1) if layer.op == "ConvTranspose" else 1
    return np.asarray(np.abs(np.asarray(bias, np.float64)).reshape(groups, -1).max(axis=0))


def _clip_search(
    channels: NDArray[np.floating],
    bounds: Range,
    scheme: Scheme,
    importance: NDArray[np.floating] | None,
) -> Float64Array:
    """Return for each channel the share of its bounds with the least squared error, float64 (channels,).

    Args:
        channels: (channels, weights of a channel).
        bounds: float64 (channels,), of the values.
        scheme: the integers.
        importance: factor of each squared error, as `channels`.
    """
    values = np.asarray(channels, np.float32)
    weights = 1.0 if importance is None else importance
    low, high = np.asarray(bounds.low), np.asarray(bounds.high)
    best, least = np.ones(len(high)), np.full(len(high), np.inf)
    for share in _SHRINKS:
        qparams = replace(scheme, axis=0).qparams(Range(low * share, high * share))
        error = (weights * (qparams.rounded(values) - values) ** 2).sum(axis=1, dtype=np.float64)
        best = np.where(error < least, share, best)
        least = np.minimum(error, least)
    return best
