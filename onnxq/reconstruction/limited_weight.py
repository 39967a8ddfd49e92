"""Rounding of a weight so that no CPU saturates: output channels at fault get wider scales, and so smaller integers.

The scale and the integers are those that err least. In a layer that reads images, neighboring pixels are alike:
rounding with error feedback lets their errors cancel. In other layers, each channel counts with its energy.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array
from onnxq.numerics.scheme import QParams
from onnxq.qdq.pair_limit import PairLimit, by_output
from onnxq.reconstruction.least_squares import round_with_feedback

_STRETCHES = np.linspace(1.0, 1.3, 16)
"""Factors of the least scale that are tried."""

_DAMPING = 0.05
"""Share of the inputs' mean energy that is added to each input's in the error feedback."""


@dataclass(frozen=True)
class LimitedWeight:
    """A weight whose sums of two products fit into 16 bits.

    Attributes:
        qparams: its scales.
        integers: of its shape.
        channels: number of output channels with a wider scale.
    """

    qparams: QParams
    integers: AnyArray
    channels: int


@dataclass(frozen=True)
class _Rounding:
    """A way to round rows of a weight, and its error.

    Attributes:
        integers: returns float64 (o, c, k) for scales (o,).
        error: returns the squared error of the outputs, float64 (o,), for the error of a weight, float64 (o, c, k).
    """

    integers: Callable[[Float64Array], Float64Array]
    error: Callable[[Float64Array], Float64Array]


def limit_weight(
    weight: Float32Array,
    qparams: QParams,
    limit: PairLimit,
    *,
    energies: Float64Array | None = None,
    covariance: Float64Array | None = None,
) -> LimitedWeight | None:
    """Round a weight within a limit; return None if rounding it to nearest is within the limit.

    Args:
        weight: of a Conv, Gemm or MatMul.
        qparams: its scales, of a symmetric scheme of signed integers.
        limit: of its integers.
        energies: mean square of each input channel's deviation from its mean, float64 (channels of a group,); None if
            they are not known.
        covariance: of all inputs at one position, float64 (k, k); None if it is not known.
    """
    axis, scheme = qparams.scheme.axis or 0, qparams.scheme
    nearest = qparams.quantize(weight)
    shares = limit.shares_of(nearest, axis)
    at_fault = shares > 1
    if not at_fault.any():
        return None
    exact = np.asarray(by_output(weight, axis)[at_fault], np.float64)
    rounding = _to_nearest(exact, scheme.qmax, energies)
    if covariance is not None and len(covariance) == exact[0].size:
        rounding = _with_feedback(exact, scheme.qmax, covariance)
    least = np.asarray(qparams.scale, np.float64)[at_fault] * shares[at_fault]
    scale, integers = _search(exact, least, rounding, limit.at(at_fault), scheme.stored)
    scales = np.array(qparams.scale, np.float64)
    scales[at_fault] = scale
    channels = np.moveaxis(nearest, axis, 0).copy()
    channels[at_fault] = integers.reshape(-1, *channels.shape[1:])
    limited = np.ascontiguousarray(np.moveaxis(channels, 0, axis))
    return LimitedWeight(qparams.rescaled(scales), limited, int(at_fault.sum()))


def _search(
    exact: Float64Array,
    least: Float64Array,
    rounding: _Rounding,
    limit: PairLimit,
    stored: Callable[[Float64Array], Float64Array],
) -> tuple[Float64Array, Float64Array]:
    """Return the scales, (o,), and integers, (o, c, k), that err least among those within the limit."""
    best_scale, best, best_error = least.copy(), np.zeros_like(exact), np.full(len(exact), np.inf)
    while not np.isfinite(best_error).all():
        for stretch in _STRETCHES:
            scale = stored(least * stretch)
            integers = rounding.integers(scale)
            error = rounding.error(integers * scale[:, None, None] - exact)
            better = (limit.shares(integers) <= 1) & (error < best_error)
            best_scale[better], best[better], best_error[better] = scale[better], integers[better], error[better]
        least = np.where(np.isfinite(best_error), least, least * _STRETCHES[-1])
    return best_scale, best


def _to_nearest(exact: Float64Array, qmax: int, energies: Float64Array | None) -> _Rounding:
    factors = np.ones((1, exact.shape[1], 1)) if energies is None else energies.reshape(1, -1, 1)

    def integers(scale: Float64Array) -> Float64Array:
        return np.asarray(np.clip(np.rint(exact / scale[:, None, None]), -qmax, qmax))

    return _Rounding(integers, lambda error: np.asarray((np.square(error) * factors).sum(axis=(1, 2))))


def _with_feedback(exact: Float64Array, qmax: int, covariance: Float64Array) -> _Rounding:
    matrix, hessian = exact.reshape(1, len(exact), -1), covariance[None]

    def integers(scale: Float64Array) -> Float64Array:
        return round_with_feedback(matrix, hessian, scale[None], qmax, _DAMPING).reshape(exact.shape)

    def error(of_weight: Float64Array) -> Float64Array:
        rows = of_weight.reshape(len(exact), -1)
        return np.asarray(((rows @ covariance) * rows).sum(axis=1))

    return _Rounding(integers, error)
