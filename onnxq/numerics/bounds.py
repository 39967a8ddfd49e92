"""Search for the bounds of a range, for the range methods.

A search scores many candidates at once in numpy: first a coarse set, then the neighbors of the best of them.
"""

from collections.abc import Callable

import numpy as np

from onnxq.numerics.arrays import AnyArray, Float64Array
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.scheme import Range, Scheme

CANDIDATES = 128
"""Bounds that a coarse search scores."""

_ROUNDS = 8


def observed(histogram: Histogram) -> tuple[float, float]:
    """Return the least and the greatest value; 0 and 0 without values."""
    return (histogram.low, histogram.high) if histogram.low <= histogram.high else (0.0, 0.0)


def best_high(histogram: Histogram, scheme: Scheme, low: float) -> Range:
    """Return the range with a fixed lower bound whose upper bound has the least squared error.

    A symmetric scheme has only one bound; `low` then limits how far down the range reaches.
    """
    bound = _best_high(histogram, scheme, low, observed(histogram)[1])
    return Range(max(low, -bound) if scheme.symmetric else low, bound)


def alternate_bounds(histogram: Histogram, scheme: Scheme, low: float, high: float) -> Range:
    """Search one bound, then the other, starting from `low` and `high`, until neither moves."""
    for _ in range(_ROUNDS):
        before = (low, high)
        high = _best_high(histogram, scheme, low, high)
        low = _best_low(histogram, scheme, low, high)
        if (low, high) == before:
            break
    return Range(float(low), float(high))


def prefix_sums(values: AnyArray) -> Float64Array:
    """Return the sums of the first 0, 1, ... n values, float64 (n + 1,)."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _best_high(histogram: Histogram, scheme: Scheme, low: float, high: float) -> float:
    """Return the edge above zero with the least squared error as upper bound; `high` if there is none."""
    edges = histogram.occupied()[1]
    candidates = np.unique(np.abs(edges)) if scheme.symmetric else edges
    candidates = candidates[candidates > 0]
    if candidates.size == 0:
        return high
    # A symmetric scheme has one bound: the lower one must not widen the candidates.
    fixed = 0.0 if scheme.symmetric else low
    return _search(candidates, lambda highs: squared_error(histogram, scheme, np.full(highs.shape, fixed), highs))


def _best_low(histogram: Histogram, scheme: Scheme, low: float, high: float) -> float:
    """Return the edge below zero with the least squared error as lower bound; `low` if there is none."""
    edges = histogram.occupied()[1]
    candidates = edges[edges < 0]
    if candidates.size == 0:
        return low
    return _search(candidates, lambda lows: squared_error(histogram, scheme, lows, np.full(lows.shape, high)))


def _search(candidates: Float64Array, cost: Callable[[Float64Array], Float64Array]) -> float:
    """Return the candidate of least cost: score every n-th, then all near the best of these."""
    stride = max(1, len(candidates) // CANDIDATES)
    coarse = np.unique(np.append(np.arange(len(candidates) - 1, -1, -stride), 0))
    best = coarse[np.argmin(cost(candidates[coarse]))]
    if stride > 1:
        near = np.arange(max(0, best - stride), min(len(candidates), best + stride + 1))
        best = near[np.argmin(cost(candidates[near]))]
    return float(candidates[best])
