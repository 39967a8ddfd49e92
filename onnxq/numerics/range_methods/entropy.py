"""The upper bound with the least Kullback-Leibler divergence."""

import math

import numpy as np

from onnxq.numerics.arrays import Float64Array, Int64Array
from onnxq.numerics.bounds import observed, prefix_sums
from onnxq.numerics.histogram import BINS, Histogram
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range, Scheme

_CANDIDATES = 256
"""Upper bounds that are scored."""


def entropy(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the range whose upper bound has the least Kullback-Leibler divergence KL(P | Q).

    This is TensorRT's entropy calibrator, for any bit width, over the histogram's own 2048 bins. P is the histogram up
    to a bound, with all values beyond it added to its last bin. Q is the histogram up to the bound, without these
    values, merged into 2^bits levels that are spread evenly over the bins that are not empty. A symmetric scheme takes
    the histogram of |x|; an asymmetric one keeps the observed minimum as its lower bound.

    Zero is exactly representable, so the many zeros of a ReLU's output lose nothing. Spread over a level they would
    cost more than any clipping; therefore the bin that holds them counts no more than its neighbors, as in NVIDIA's
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


def _folded(counts: Int64Array, edges: Float64Array, width: float) -> tuple[Int64Array, Float64Array]:
    """Return counts and edges of the histogram of |x|; the width of its bins is doubled until `BINS` suffice."""
    reach = float(max(-edges[0], edges[-1]))
    width = math.ldexp(width, max(0, math.ceil(math.log2(reach / (width * BINS)))))
    bins = math.ceil(reach / width)
    index = np.minimum((np.abs((edges[:-1] + edges[1:]) / 2) / width).astype(np.int64), bins - 1)
    return np.bincount(index, counts, bins).astype(np.int64), np.arange(bins + 1, dtype=np.float64) * width


def _zero_bin_capped(counts: Int64Array, edges: Float64Array) -> Int64Array:
    """Return the counts, with that of the bin that holds zero no greater than its neighbors'."""
    zero = int(np.searchsorted(edges, 0.0, side="right")) - 1
    if not 0 <= zero < counts.size:
        return counts
    neighbors = np.delete(counts[max(zero - 1, 0) : zero + 2], min(zero, 1))
    cut = counts.copy()
    cut[zero] = min(counts[zero], neighbors.max(initial=0))
    return cut


def _least_divergence(counts: Float64Array, levels: int) -> int:
    """Return the number of bins to keep, from `levels` to all, for which KL(P | Q) is least."""
    keep = np.unique(np.linspace(levels, len(counts), min(_CANDIDATES, len(counts) - levels + 1)).astype(int))
    mass, filled = prefix_sums(counts), prefix_sums(counts > 0)
    entropy_of = prefix_sums(counts * np.log(np.maximum(counts, 1)))
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


METHOD = RangeMethod("entropy", "searches the maximum with the least KL divergence (TensorRT)", entropy)
