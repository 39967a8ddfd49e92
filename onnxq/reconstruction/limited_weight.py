"""Rounding of a weight so that no CPU saturates: output channels at fault get wider scales, and so smaller integers.

The scale and the integers are those that err least. In a layer that reads images, neighboring pixels are alike:
rounding with error feedback lets their errors cancel. In other layers, each input channel counts with its variance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.numerics.arrays import Float32Array, Float64Array, FloatArray
from onnxq.numerics.scheme import QParams
from onnxq.qdq.pair_limit import PairLimit, by_output
from onnxq.reconstruction.least_squares import FeedbackRounding
from onnxq.reconstruction.rounded_weight import RoundedWeight

_STRETCHES = np.linspace(1.0, 1.3, 16)
"""Factors of the least scale that are tried."""

_DAMPING = 0.05
"""Share of the inputs' mean energy that is added to each input's in the error feedback."""

_BLOCK = 1 << 15
"""Values of a weight that are rounded at once, to stay in the cache."""


@dataclass(frozen=True)
class LimitedWeight(RoundedWeight):
    """A weight whose sums of two products fit into 16 bits.

    Attributes:
        channels: number of output channels with a wider scale.
    """

    channels: int


@dataclass(frozen=True)
class _Rounding:
    """A way to round rows of a weight, and its error.

    Attributes:
        integers: returns whole numbers, (o, c, k), for a weight, float32 (o, c, k), and scales, float32 (o,).
        error: returns the squared error of the outputs, (o,), for the error of a weight, (o, c, k).
    """

    integers: Callable[[Float32Array, Float32Array], FloatArray]
    error: Callable[[FloatArray], FloatArray]


def limit_weight(
    weight: Float32Array,
    qparams: QParams,
    limit: PairLimit,
    *,
    variances: Float64Array | None = None,
    covariance: Float64Array | None = None,
) -> LimitedWeight | None:
    """Round a weight within a limit; return None if rounding it to nearest is within the limit.

    Args:
        weight: of a Conv, Gemm or MatMul.
        qparams: its scales, of a symmetric scheme of signed integers.
        limit: of its integers.
        variances: of the input channels, float64 (channels of a group,); None if they are not known.
        covariance: of all inputs at one position, float64 (k, k); None if it is not known.

    Variances and covariances of another shape, or that are not finite, count as not known.
    """
    axis, scheme = qparams.scheme.axis or 0, qparams.scheme
    nearest = qparams.quantize(weight)
    shares = limit.shares_of(nearest, axis)
    at_fault = shares > 1
    if not at_fault.any():
        return None
    rows_of, places = by_output(weight, axis), np.flatnonzero(at_fault)
    least = np.asarray(qparams.scale, np.float64)[at_fault] * shares[at_fault]
    channels, inputs = rows_of.shape[1], rows_of[0].size
    covariance, variances = _relative(covariance, (inputs, inputs)), _relative(variances, (channels,))
    if covariance is not None:
        rounding = _with_feedback(covariance, scheme.qmax)
    else:
        rounding = _to_nearest(variances, scheme.qmax)
    scale, integers = np.empty_like(least), np.empty((len(places), *rows_of.shape[1:]), nearest.dtype)
    at_once = max(1, _BLOCK // inputs)
    for start in range(0, len(places), at_once):
        rows = slice(start, start + at_once)
        taken, within = np.asarray(rows_of[places[rows]], np.float32), limit.at(places[rows])
        scale[rows], integers[rows] = _search(taken, least[rows], rounding, within, scheme.stored)
    scales = np.array(qparams.scale, np.float64)
    scales[at_fault] = scale
    outputs = np.moveaxis(nearest, axis, 0).copy()
    outputs[at_fault] = integers.reshape(-1, *outputs.shape[1:])
    limited = np.ascontiguousarray(np.moveaxis(outputs, 0, axis))
    return LimitedWeight(qparams.rescaled(scales), limited, int(at_fault.sum()))


def _relative(moments: Float64Array | None, shape: tuple[int, ...]) -> Float64Array | None:
    """Return moments divided by a power of two, so that they are at most 1 and no error overflows; None if unusable."""
    if moments is None or moments.shape != shape or not np.isfinite(moments).all():
        return None
    _, exponent = np.frexp(np.abs(moments).max(initial=0.0))
    return np.asarray(np.ldexp(moments, -exponent))


def _search(
    weight: Float32Array,
    least: Float64Array,
    rounding: _Rounding,
    limit: PairLimit,
    stored: Callable[[Float64Array], Float64Array],
) -> tuple[Float64Array, Float32Array]:
    """Return the scales, (o,), and integers, (o, c, k), that err least among those within the limit.

    It ends, because wide scales give zeros, which are within every limit, and all errors are finite.
    """
    # In units of a power of two per output, no square of float32 overflows.
    _, exponents = np.frexp(np.abs(weight).max(axis=(1, 2)))
    scaled = np.ldexp(weight, -exponents[:, None, None])
    scale, integers, error = least.copy(), np.zeros_like(scaled), np.full(len(scaled), np.inf)
    while not np.isfinite(error).all():
        for stretch in _STRETCHES:
            tried = stored(least * stretch)
            steps = np.ldexp(tried, -exponents).astype(np.float32)
            rounded = rounding.integers(scaled, steps)
            off = rounded * steps[:, None, None]
            found = rounding.error(np.subtract(off, scaled, out=off))
            better = np.flatnonzero(found < error)
            better = better[limit.at(better).shares(rounded[better]) <= 1]
            scale[better], integers[better], error[better] = tried[better], rounded[better], found[better]
        least = np.where(np.isfinite(error), least, least * _STRETCHES[-1])
    return scale, integers


def _to_nearest(variances: Float64Array | None, qmax: int) -> _Rounding:
    """Return the rounding to nearest; the error is that of independent inputs."""

    def integers(exact: Float32Array, scale: Float32Array) -> FloatArray:
        rounded = exact / scale[:, None, None]
        return np.clip(np.rint(rounded, out=rounded), -qmax, qmax, out=rounded)

    def error(of_weight: FloatArray) -> FloatArray:
        squares = np.einsum("ock,ock->oc", of_weight, of_weight)
        return np.asarray(squares.sum(axis=1) if variances is None else squares @ variances)

    return _Rounding(integers, error)


def _with_feedback(covariance: Float64Array, qmax: int) -> _Rounding:
    """Return the rounding with error feedback; the covariance of the inputs gives the error."""

    feedback = FeedbackRounding.of(covariance[None], _DAMPING)

    def integers(exact: Float32Array, scale: Float32Array) -> FloatArray:
        return feedback.round(exact.reshape(1, len(exact), -1), scale[None], qmax).reshape(exact.shape)

    def error(of_weight: FloatArray) -> FloatArray:
        rows = of_weight.reshape(len(of_weight), -1)
        return np.asarray(((rows @ covariance) * rows).sum(axis=1))

    return _Rounding(integers, error)
