"""Ranges from histograms: which interval of a tensor's values the integer grid should cover.

Every method is a function (Histogram, Scheme) -> Range; `METHODS` has them by name. Searches score all candidates at
once in numpy, first a coarse set, then the neighbours of the best.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.histogram import BINS, Histogram
from onnxq.numerics.quantization_error import Array, silu, silu_slope, squared_error
from onnxq.numerics.scheme import Range, Scheme

Method = Callable[[Histogram, Scheme], Range]

SILU_MINIMUM = -0.27846454
"""Least value of x * sigmoid(x), at x = -1.27846454."""

SILU_FLAT_BELOW = -10.0
"""Below it |silu(x)| < 5e-4: inputs of SiLU are counted in one bin from here down."""

_SHARE = 0.9999

_CANDIDATES = 128


def minmax(histogram: Histogram, scheme: Scheme) -> Range:
    """The observed least and greatest value: nothing is clipped."""
    return Range(*observed(histogram))


def percentile(histogram: Histogram, scheme: Scheme, share: float = _SHARE) -> Range:
    """The interval that leaves out the share 1 - `share` of the values at either end."""
    counts, edges = histogram.occupied()
    mass = np.concatenate([[0], np.cumsum(counts)]) / max(1, counts.sum())
    low, high = np.interp([1 - share, share], mass, edges)
    return Range(float(low), float(high))


def unilateral_histogram(histogram: Histogram, scheme: Scheme, lower: float | None = None) -> Range:
    """Unilateral histogram: the lower bound is fixed, the upper bound has the least squared error.

    Activations of YOLO come out of SiLU: their mass crowds the lower bound and thins out above zero, so that only
    the upper bound is worth a search (Q-YOLO, arXiv 2307.04816, section 3.2). The error counts clipping and rounding
    together; the candidates are the bins' edges.

    Args:
        histogram: of the values.
        scheme: the integers.
        lower: the bound where it is known (`SILU_MINIMUM` behind a SiLU); else the observed minimum.
    """
    low, high = observed(histogram)
    low = low if lower is None else lower
    bound = _best_high(histogram, scheme, low, high)
    return Range(max(low, -bound) if scheme.symmetric else low, bound)


def mse(histogram: Histogram, scheme: Scheme) -> Range:
    """Both bounds have the least squared error |x - x'|^2.

    They are searched in turn until neither moves, from the observed bounds; and once more from the best of what is left
    when both shrink together, where that is better: with outliers on both sides neither bound gains by moving alone.
    On a symmetric grid there is one bound only, and `uh` finds it.
    """
    if scheme.symmetric:
        return unilateral_histogram(histogram, scheme)
    low, high = observed(histogram)
    found = _alternate_bounds(histogram, scheme, low, high)
    shares = np.linspace(1, 0, _CANDIDATES, endpoint=False)
    costs = squared_error(histogram, scheme, low * shares, high * shares)
    best = int(np.argmin(costs))
    if costs[best] < squared_error(histogram, scheme, np.asarray(found.low), np.asarray(found.high))[0]:
        return _alternate_bounds(histogram, scheme, low * shares[best], high * shares[best])
    return found


def entropy(histogram: Histogram, scheme: Scheme) -> Range:
    """The upper bound has the least Kullback-Leibler divergence of the clipped and rounded distribution.

    What TensorRT's entropy calibrator did, for any bit width, over the histogram's own 2048 bins: P is the histogram
    up to a bound with everything beyond it added to its last bin, Q is the same without what is beyond, gathered into
    2^bits levels and spread evenly over the bins that are not empty. A symmetric scheme takes the histogram of |x|;
    an asymmetric one keeps the observed minimum as its lower bound.

    Zero is on every grid, so that the many zeros which a ReLU gives lose nothing. Spread over a level they would cost
    more than any clipping, and the bin that holds them counts no more than its neighbours, as with NVIDIA's
    pytorch-quantization.
    """
    low, high = observed(histogram)
    counts, edges = histogram.occupied()
    if high <= low:
        return Range(low, high)
    if scheme.symmetric:
        counts, edges = _folded(counts, edges, histogram.width)
    levels = 2 ** (scheme.bits - 1) if scheme.symmetric else 2**scheme.bits
    if counts.size <= levels:
        return Range(low, high)
    bound = float(edges[_least_divergence(_zero_bin_capped(counts, edges).astype(np.float64), levels)])
    return Range(-bound, bound) if scheme.symmetric else Range(low, max(bound, 0.0))


METHODS: dict[str, Method] = {
    "uh": unilateral_histogram,
    "mse": mse,
    "minmax": minmax,
    "percentile": percentile,
    "entropy": entropy,
}


def method_for(name: str, silu_output: bool) -> Method:
    """The method of a name, for tensors that are or are not x * sigmoid(x)."""
    return partial(unilateral_histogram, lower=SILU_MINIMUM) if name == "uh" and silu_output else METHODS[name]


def before_silu(histogram: Histogram, scheme: Scheme) -> Range:
    """Both bounds have the least squared error behind the SiLU that reads the tensor.

    An int8 pre-activation reaches far below zero, where SiLU is flat and any error vanishes. To first order an error e
    at x is silu'(x) e behind it, so rounding costs silu'(x)^2 s^2 / 12 and clipping (silu(x) - silu(bound))^2; both
    come from running sums, for all pairs of bounds at once. The histogram should have `SILU_FLAT_BELOW` as its floor.
    """
    low, high = observed(histogram)
    if high <= low:
        return Range(low, high)
    counts, edges = histogram.occupied()
    centres = (edges[:-1] + edges[1:]) / 2
    y, slope = silu(centres), silu_slope(centres)
    lows = np.linspace(low, min(0.0, high), _CANDIDATES) if low < 0 else np.array([low])
    highs = np.linspace(max(0.0, low), high, _CANDIDATES + 1)[1:] if high > 0 else np.array([high])
    reach_low, reach_high, step = scheme.reach(lows[:, None], highs[None, :])
    first = np.searchsorted(centres, reach_low)
    last = np.searchsorted(centres, reach_high)
    rounding = step**2 / 12 * (_running(counts * slope**2)[last] - _running(counts * slope**2)[first])
    c0, c1, c2 = _running(counts), _running(counts * y), _running(counts * y * y)
    at_low, at_high = silu(reach_low), silu(reach_high)
    below = c2[first] - 2 * at_low * c1[first] + at_low**2 * c0[first]
    above = (c2[-1] - c2[last]) - 2 * at_high * (c1[-1] - c1[last]) + at_high**2 * (c0[-1] - c0[last])
    i, j = np.unravel_index(np.argmin(rounding + below + above), step.shape)
    return Range(float(lows[i]), float(highs[j]))


def _best_high(histogram: Histogram, scheme: Scheme, low: float, high: float) -> float:
    """The upper bound among the edges above zero with the least squared error, for a given lower bound."""
    edges = histogram.occupied()[1]
    candidates = np.unique(np.abs(edges)) if scheme.symmetric else edges
    candidates = candidates[candidates > 0]
    if candidates.size == 0:
        return high
    # While the bound of a symmetric grid is searched, it must not be held open by the other bound.
    fixed = 0.0 if scheme.symmetric else low
    return _search(candidates, lambda highs: squared_error(histogram, scheme, np.full(highs.shape, fixed), highs))


def _best_low(histogram: Histogram, scheme: Scheme, low: float, high: float) -> float:
    """The lower bound among the edges below zero with the least squared error, for a given upper bound."""
    edges = histogram.occupied()[1]
    candidates = edges[edges < 0]
    if candidates.size == 0:
        return low
    return _search(candidates, lambda lows: squared_error(histogram, scheme, lows, np.full(lows.shape, high)))


def _alternate_bounds(histogram: Histogram, scheme: Scheme, low: float, high: float) -> Range:
    """Search one bound, then the other, until neither moves."""
    for _ in range(8):
        before = (low, high)
        high = _best_high(histogram, scheme, low, high)
        low = _best_low(histogram, scheme, low, high)
        if (low, high) == before:
            break
    return Range(float(low), float(high))


def _search(candidates: Array, cost: Callable[[Array], Array]) -> float:
    """The candidate of least cost: every n-th first, then all near the best of these."""
    stride = max(1, len(candidates) // _CANDIDATES)
    coarse = np.unique(np.append(np.arange(len(candidates) - 1, -1, -stride), 0))
    best = coarse[np.argmin(cost(candidates[coarse]))]
    if stride > 1:
        near = np.arange(max(0, best - stride), min(len(candidates), best + stride + 1))
        best = near[np.argmin(cost(candidates[near]))]
    return float(candidates[best])


def observed(histogram: Histogram) -> tuple[float, float]:
    """Least and greatest value; 0 and 0 of nothing."""
    return (histogram.low, histogram.high) if histogram.low <= histogram.high else (0.0, 0.0)


def _running(values: NDArray[np.generic]) -> Array:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _folded(counts: NDArray[np.int64], edges: Array, width: float) -> tuple[NDArray[np.int64], Array]:
    """The histogram of |x|, on bins of the same width, or of twice it, ... where they would be more than `BINS`."""
    reach = float(max(-edges[0], edges[-1]))
    width = math.ldexp(width, max(0, math.ceil(math.log2(reach / (width * BINS)))))
    bins = math.ceil(reach / width)
    index = np.minimum((np.abs((edges[:-1] + edges[1:]) / 2) / width).astype(np.int64), bins - 1)
    return np.bincount(index, counts, bins).astype(np.int64), np.arange(bins + 1, dtype=np.float64) * width


def _zero_bin_capped(counts: NDArray[np.int64], edges: Array) -> NDArray[np.int64]:
    """The counts, of which that of the bin with zero is no greater than its neighbours'."""
    zero = int(np.searchsorted(edges, 0.0, side="right")) - 1
    if not 0 <= zero < counts.size:
        return counts
    neighbours = np.delete(counts[max(zero - 1, 0) : zero + 2], min(zero, 1))
    cut = counts.copy()
    cut[zero] = min(counts[zero], neighbours.max(initial=0))
    return cut


def _least_divergence(counts: Array, levels: int) -> int:
    """Number of bins to keep, from `levels` to all, for which KL(P | Q) is least."""
    keep = np.unique(np.linspace(levels, len(counts), min(_CANDIDATES * 2, len(counts) - levels + 1)).astype(int))
    mass, filled = _running(counts), _running(counts > 0)
    entropy_of = _running(counts * np.log(np.maximum(counts, 1)))
    total = mass[-1]
    beyond = total - mass[keep]
    last = counts[keep - 1]
    # Levels of each candidate as ranges of bins: (candidates, levels + 1).
    bounds = keep[:, None] * np.arange(levels + 1)[None, :] // levels
    level_mass = np.diff(mass[bounds], axis=1)
    level_filled = np.maximum(np.diff(filled[bounds], axis=1), 1)
    log_q = np.log(np.maximum(level_mass, 1e-9) / level_filled) - np.log(np.maximum(mass[keep], 1))[:, None]
    sum_p_log_p = (
        entropy_of[keep]
        - last * np.log(np.maximum(last, 1))
        + (last + beyond) * np.log(np.maximum(last + beyond, 1))
        - total * math.log(max(total, 1))
    )
    sum_p_log_q = (level_mass * log_q).sum(axis=1) + beyond * log_q[:, -1]
    return int(keep[np.argmin(sum_p_log_p - sum_p_log_q)])
