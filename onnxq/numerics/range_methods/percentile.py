"""The interval without the outermost values."""

import numpy as np

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range, Scheme

_SHARE = 0.9999


def percentile(histogram: Histogram, scheme: Scheme, share: float = _SHARE) -> Range:
    """Return the interval that leaves out the share 1 - `share` of the values at either end.

    `histogram.occupied()` gives counts int64 (n,) and edges float64 (n + 1,) of the bins from the least to the greatest
    value; a histogram without values has one bin, and its count is 0.
    """
    counts, edges = histogram.occupied()
    mass = np.concatenate([[0], np.cumsum(counts)]) / max(1, counts.sum())
    low, high = np.interp([1 - share, share], mass, edges)
    return Range(float(low), float(high))


METHOD = RangeMethod("percentile", "clips 0.01% of the values at either end", percentile)
