"""Sums of two products of 8-bit integers, which x86 CPUs without VNNI hold in 16 bits.

Their instruction for 8-bit products, VPMADDUBSW, multiplies unsigned by signed bytes, adds each product to its
neighbor's and saturates the sum at 16 bits (Intel 64 Architectures Software Developer's Manual, volume 2,
"PMADDUBSW"). Kernels order the products of a Conv by the position in the kernel first and the input channel second, or
take each position alone; either way channels 2i and 2i + 1 of one position are added. With an odd number of channels,
pairs also span the last channel of a position and the first one of the next. With a single input channel, kernels
go through the positions by rows or by columns, so any two positions may be added.
"""

import numpy as np

from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array

LARGEST_SUM = 2**15 - 1
"""Largest sum of two products that does not saturate."""

_BLOCK = 1 << 18
"""Values of a weight that are bounded at once, to stay in the cache."""


def greatest_pair_sums(weight: AnyArray, peaks: Float64Array, pair_peaks: Float64Array) -> Float64Array:
    """Return an upper bound of the magnitude of any sum of two products, for each output channel, float64 (o,).

    The bound is the greatest value of w0 a0 + w1 a1 for 0 <= a0 <= peak 0, 0 <= a1 <= peak 1 and a0 + a1 <= pair peak.
    Products of different signs cancel, so only those of one sign are added.

    Args:
        weight: integers (o, c, k): output channels, input channels, kernel positions.
        peaks: greatest integer of each input channel, not negative, (o, c) or (1, c).
        pair_peaks: greatest sum of the integers of input channels 2i and 2i + 1 at one position, (o, c // 2) or
            (1, c // 2); not used if c is odd.

    Any two positions count as neighbors if there is a single input channel.
    """
    bound = _across_positions if weight.shape[1] % 2 else _within_positions
    reached, together = np.asarray(peaks, np.float32), np.asarray(pair_peaks, np.float32)
    found = np.empty(len(weight))
    at_once = max(1, _BLOCK // max(1, weight[:1].size))
    for start in range(0, len(weight), at_once):
        rows = slice(start, start + at_once)
        of_rows = [each if len(each) == 1 else each[rows] for each in (reached, together)]
        values = np.asarray(weight[rows], np.float32)  # holds sums of products of bytes exactly
        positive = bound(np.maximum(values, 0), *of_rows)
        found[rows] = np.maximum(positive, bound(np.maximum(-values, 0), *of_rows))
    return found


def _within_positions(weight: Float32Array, peaks: Float32Array, pair_peaks: Float32Array) -> Float32Array:
    first, second = weight[:, 0::2], weight[:, 1::2]
    peak0, peak1 = peaks[:, 0::2, None], peaks[:, 1::2, None]
    both = np.maximum(pair_peaks[:, :, None], np.maximum(peak0, peak1))
    sums = np.maximum(
        first * peak0 + second * np.minimum(peak1, both - peak0),
        second * peak1 + first * np.minimum(peak0, both - peak1),
    )
    return np.asarray(sums.max(axis=(1, 2)))


def _across_positions(weight: Float32Array, peaks: Float32Array, _: Float32Array) -> Float32Array:
    outputs, channels, positions = weight.shape
    if channels == 1:
        return np.asarray(np.sort(weight[:, 0], axis=1)[:, -2:].sum(axis=1) * peaks[:, 0])
    products = (weight * peaks[:, :, None]).swapaxes(1, 2).reshape(outputs, positions * channels)
    following = np.zeros_like(products)
    following[:, :-1] = products[:, 1:]
    return np.asarray((products + following).max(axis=1))
