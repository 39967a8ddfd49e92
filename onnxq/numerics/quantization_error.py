"""Expected quantization error of the values that a histogram counted."""

import math

import numpy as np

from onnxq.numerics.arrays import Float64Array
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.silu import silu
from onnxq.numerics.sqnr import decibels


def squared_error(histogram: Histogram, scheme: Scheme, low: Float64Array, high: Float64Array) -> Float64Array:
    """Return the expected sum of |x - x'|^2 over the values of a histogram, for each of n candidate ranges.

    The values of a bin count as spread evenly over it. The integral of their squared error is exact at any width of
    bins and steps, so no candidate gains by a grid point in the center of a bin.

    Args:
        histogram: of the values.
        scheme: the integers.
        low, high: bounds of the candidates, float64, broadcast to (n,).

    Returns:
        float64 (n,).
    """
    counts, edges = histogram.occupied()
    reach_low, reach_high, step = (np.atleast_1d(a)[:, None] for a in scheme.reach(low, high))
    filled = counts > 0
    widths = np.diff(edges)
    # In a bin that is much narrower than a step, the integral would be the difference of two nearly equal numbers.
    narrow = widths <= 1e-6 * step.min()
    points = np.flatnonzero(filled & narrow)
    density = np.divide(counts, widths, out=np.zeros(len(counts)), where=~narrow)
    # sum_i d_i (F(e_{i+1}) - F(e_i)), collected by edge, so that F is evaluated once for each.
    jumps = np.concatenate([[0.0], density]) - np.concatenate([density, [0.0]])
    used = np.flatnonzero(jumps)
    integral = _error_integral(edges[used][None, :], reach_low, reach_high, step) @ jumps[used]
    if points.size:
        integral += _error(edges[points][None, :], reach_low, reach_high, step) ** 2 @ counts[points]
    return np.asarray(integral)


def expected_sqnr(histogram: Histogram, scheme: Scheme, bounds: Range) -> float:
    """Return the SQNR in dB to expect if a range is used; nan without values other than zero."""
    counts, edges = histogram.occupied()
    centers = (edges[:-1] + edges[1:]) / 2
    signal = float(np.dot(counts, centers**2))
    noise = float(squared_error(histogram, scheme, np.asarray(bounds.low), np.asarray(bounds.high))[0])
    if signal <= 0:
        return math.nan
    return decibels(signal, noise)


def sqnr_after_silu(histogram: Histogram, scheme: Scheme, bounds: Range) -> float:
    """Return the SQNR of silu(x) in dB to expect if x is quantized; nan without a signal.

    Far below zero SiLU is flat, so errors of x vanish there.
    """
    counts, edges = histogram.occupied()
    centers = (edges[:-1] + edges[1:]) / 2
    low, high, step = scheme.reach(bounds.low, bounds.high)
    exact, rounded = silu(centers), silu(low + np.rint((np.clip(centers, low, high) - low) / step) * step)
    signal = float(np.dot(counts, exact**2))
    return decibels(signal, float(np.dot(counts, (exact - rounded) ** 2))) if signal > 0 else math.nan


def clipped_share(histogram: Histogram, scheme: Scheme, bounds: Range) -> float:
    """Return the share of the values that a range clips, 0 to 1."""
    counts, edges = histogram.occupied()
    low, high, step = scheme.reach(bounds.low, bounds.high)
    centers = (edges[:-1] + edges[1:]) / 2
    outside = (centers < low - step / 2) | (centers > high + step / 2)
    return float(counts[outside].sum() / max(1, counts.sum()))


def _error(x: Float64Array, low: Float64Array, high: Float64Array, step: Float64Array) -> Float64Array:
    inside = np.clip(x, low, high)
    return np.asarray(x - (low + np.rint((inside - low) / step) * step))


def _error_integral(x: Float64Array, low: Float64Array, high: Float64Array, step: Float64Array) -> Float64Array:
    """Return the integral of the squared error from `low` to x, on the grid low, low + step, ..., high."""
    inside = np.clip(x, low, high)
    cells = (inside - low) / step
    whole = np.rint(cells)
    rest, beyond = cells - whole, x - inside
    # Each whole cell around a grid point adds step^3 / 12, the rest of the last cell rest^3 / 3. Products, because
    # powers take ten times as long in numpy.
    return np.asarray(step * step * step * (whole / 12 + rest * rest * rest / 3) + beyond * beyond * beyond / 3)
