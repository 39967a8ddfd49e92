"""Grids of weights: one symmetric scale per output channel."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Node, bias_of, constant
from onnxq.numerics.scheme import QParams, Range, Scheme

Array = NDArray[np.float32]

_SHRINKS = np.linspace(1.0, 0.3, 71)
"""Shares of a channel's greatest weight that are tried as its bound."""

_MOST_BIAS_STEPS = 2.0**30


def weight_qparams(
    scheme: Scheme,
    values: Array,
    *,
    least_scale: NDArray[np.float64],
    shrink: bool = False,
    importance: NDArray[np.float64] | None = None,
) -> QParams:
    """The grid of a weight.

    Args:
        scheme: with an axis.
        values: the weight.
        least_scale: of each channel, float64 (channels,) or (1,).
        shrink: take the bound with the least squared error, rather than the greatest magnitude.
        importance: of each value's squared error, of the weight's shape.
    """
    assert scheme.axis is not None
    channels = _by_channel(values, scheme.axis)
    bound = np.abs(channels).max(axis=1, initial=0.0).astype(np.float64)
    if shrink:
        weights = None if importance is None else _by_channel(importance, scheme.axis)
        bound *= _clip_search(channels, bound, scheme, weights)
    bound = np.maximum(bound, least_scale * (scheme.steps / 2))
    return scheme.qparams(Range(-bound, bound))


def minimum_scale(layers: Iterable[Node], activations: Mapping[str, QParams]) -> NDArray[np.float64]:
    """The least scales, float64 (scales,) or (1,), of a weight that these layers read.

    Runtimes hold the bias in int32 steps of input scale * weight scale: a channel whose weights are almost zero must
    not get a scale so small that its bias overflows.

    Args:
        layers: all that read it.
        activations: tensor -> its grid.
    """
    bias_steps = [_bias(node) / float(activations[node.inputs[0].name].scale) for node in layers]
    return np.asarray(np.max(np.broadcast_arrays(*bias_steps), axis=0) / _MOST_BIAS_STEPS)


def _by_channel(values: NDArray[np.floating], axis: int) -> NDArray[np.floating]:
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _bias(layer: Node) -> NDArray[np.float64]:
    """Greatest magnitude of a layer's bias under each scale of its weight, float64 (scales,).

    (1,) of zero where it has none or one that is computed. The groups of a ConvTranspose share their scales.
    """
    tensor = bias_of(layer)
    bias = None if tensor is None else constant(tensor)
    if bias is None:
        return np.zeros(1)
    groups = layer.attrs.get("group", 1) if layer.op == "ConvTranspose" else 1
    return np.asarray(np.abs(np.asarray(bias, np.float64)).reshape(groups, -1).max(axis=0))


def _clip_search(
    channels: NDArray[np.floating],
    bound: NDArray[np.float64],
    scheme: Scheme,
    importance: NDArray[np.floating] | None,
) -> NDArray[np.float64]:
    """Per channel the share of its bound with the least squared error, float64 (channels,).

    Args:
        channels: (channels, weights of a channel).
        bound: float64 (channels,), the greatest magnitudes.
        scheme: the integers.
        importance: of each error, as `channels`.
    """
    values = np.asarray(channels, np.float32)
    weights = 1.0 if importance is None else importance
    best, least = np.ones(len(bound)), np.full(len(bound), np.inf)
    for share in _SHRINKS:
        grid = replace(scheme, axis=0).qparams(Range(-bound * share, bound * share))
        error = (weights * (grid.dequantize(grid.quantize(values)) - values) ** 2).sum(axis=1, dtype=np.float64)
        best = np.where(error < least, share, best)
        least = np.minimum(error, least)
    return best
