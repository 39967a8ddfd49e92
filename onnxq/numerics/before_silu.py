"""The range of a tensor that only a SiLU reads."""

import numpy as np

from onnxq.numerics.bounds import CANDIDATES, observed, prefix_sums
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.silu import silu, silu_slope


def before_silu(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the range with the least squared error of silu(x).

    An int8 pre-activation reaches far below zero, where SiLU is flat and any error vanishes. To first order an error e
    at x becomes silu'(x) e in silu(x), so rounding with the step s costs silu'(x)^2 s^2 / 12, and clipping
    (silu(x) - silu(bound))^2. Prefix sums give both for all pairs of bounds at once.

    Args:
        histogram: of the input of the SiLU, with the floor `SILU_FLAT_BELOW`.
        scheme: the integers.
    """
    low, high = observed(histogram)
    if high <= low:
        return Range(low, high)
    counts, edges = histogram.occupied()
    centers = (edges[:-1] + edges[1:]) / 2
    y, slope = silu(centers), silu_slope(centers)
    lows = np.linspace(low, min(0.0, high), CANDIDATES) if low < 0 else np.array([low])
    highs = np.linspace(max(0.0, low), high, CANDIDATES + 1)[1:] if high > 0 else np.array([high])
    reach_low, reach_high, step = scheme.reach(lows[:, None], highs[None, :])
    first = np.searchsorted(centers, reach_low)
    last = np.searchsorted(centers, reach_high)
    rounding = step**2 / 12 * (prefix_sums(counts * slope**2)[last] - prefix_sums(counts * slope**2)[first])
    c0, c1, c2 = prefix_sums(counts), prefix_sums(counts * y), prefix_sums(counts * y * y)
    at_low, at_high = silu(reach_low), silu(reach_high)
    below = c2[first] - 2 * at_low * c1[first] + at_low**2 * c0[first]
    above = (c2[-1] - c2[last]) - 2 * at_high * (c1[-1] - c1[last]) + at_high**2 * (c0[-1] - c0[last])
    i, j = np.unravel_index(np.argmin(rounding + below + above), step.shape)
    return Range(float(lows[i]), float(highs[j]))
