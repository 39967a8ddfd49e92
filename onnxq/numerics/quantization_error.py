"""Expected quantization error of the values in a histogram."""

import math

import numpy as np

from onnxq.numerics.arrays import Float64Array
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.silu import silu
from onnxq.numerics.sqnr import decibels


def squared_error(histogram: Histogram, scheme: Scheme, low: Float64Array, high: Float64Array) -> Float64Array:
    """Expected sum of |x - x'|^2 over the histogram's values, for each of n candidate intervals.

    Values are taken as spread evenly within a bin, for which the integral of the squared error is exact at any
    width of bin and grid: no candidate gains by hitting the bins' centres.

    Args:
        histogram: of the values.
        scheme: the integers.
        low, high: float64, broadcast to (n,): the candidates.

    Returns:
        float64 (n,).
    """
    counts, edges = histogram.occupied()
    reach_low, reach_high, step = (np.atleast_1d(a)[:, None] for a in scheme.reach(low, high))
    filled = counts > 0
    widths = np.diff(edges)
    # In a bin that is very narrow beside a step, the integral would be the difference of two equal numbers.
    narrow = widths <= 1e-6 * step.min()
    points = np.flatnonzero(filled & narrow)
    density = np.divide(counts, widths, out=np.zeros(len(counts)), where=~narrow)
    # sum_i d_i (F(e_{i+1}) - F(e_i)), gathered by edge so that F is evaluated once.
    jumps = np.concatenate([[0.0], density]) - np.concatenate([density, [0.0]])
    used = np.flatnonzero(jumps)
    integral = _error_integral(edges[used][None, :], reach_low, reach_high, step) @ jumps[used]
    if points.size:
        integral += _error(edges[points][None, :], reach_low, reach_high, step) ** 2 @ counts[points]
    return np.asarray(integral)


def expected_sqnr(histogram: Histogram, scheme: Scheme, bounds: Range) -> float:
    """Signal-to-quantization-noise ratio in dB that the histogram lets one expect of a range; nan without values."""
    counts, edges = histogram.occupied()
    centres = (edges[:-1] + edges[1:]) / 2
    signal = float(np.dot(counts, centres**2))
    noise = float(squared_error(histogram, scheme, np.asarray(bounds.low), np.asarray(bounds.high))[0])
    if signal <= 0:
        return math.nan
    return decibels(signal, noise)


def sqnr_after_silu(histogram: Histogram, scheme: Scheme, bounds: Range) -> float:
    """The ratio in x * sigmoid(x) where x is rounded, dB: far below zero, where SiLU is flat, any error vanishes."""
    counts, edges = histogram.occupied()
    centres = (edges[:-1] + edges[1:]) / 2
    low, high, step = scheme.reach(bounds.low, bounds.high)
    exact, rounded = silu(centres), silu(low + np.rint((np.clip(centres, low, high) - low) / step) * step)
    signal = float(np.dot(counts, exact**2))
    return decibels(signal, float(np.dot(counts, (exact - rounded) ** 2))) if signal > 0 else math.nan


def clipped_share(histogram: Histogram, scheme: Scheme, bounds: Range) -> float:
    """Share of the values that lie outside the grid of a range, 0 to 1."""
    counts, edges = histogram.occupied()
    low, high, step = scheme.reach(bounds.low, bounds.high)
    centres = (edges[:-1] + edges[1:]) / 2
    outside = (centres < low - step / 2) | (centres > high + step / 2)
    return float(counts[outside].sum() / max(1, counts.sum()))


def _error(x: Float64Array, low: Float64Array, high: Float64Array, step: Float64Array) -> Float64Array:
    inside = np.clip(x, low, high)
    return np.asarray(x - (low + np.rint((inside - low) / step) * step))


def _error_integral(x: Float64Array, low: Float64Array, high: Float64Array, step: Float64Array) -> Float64Array:
    """Integral of the squared quantization error from `low` to x, on the grid low, low + step, ..., high."""
    inside = np.clip(x, low, high)
    cells = (inside - low) / step
    whole = np.rint(cells)
    rest, beyond = cells - whole, x - inside
    # Each whole cell around a grid point adds step^3 / 12, the rest of the last cell rest^3 / 3. Products, as numpy
    # takes ten times as long for a power.
    return np.asarray(step * step * step * (whole / 12 + rest * rest * rest / 3) + beyond * beyond * beyond / 3)
