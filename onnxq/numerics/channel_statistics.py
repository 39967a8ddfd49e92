"""Statistics of the channels of a tensor, collected image by image."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.arrays import Float32Array
from onnxq.numerics.exact_sum import ExactSum

_SAMPLED = 256
"""Evenly spaced values of a channel and image of which the variance is taken."""

_BLOCK = 1 << 17
"""Values of an image that are read at once, to stay in the cache."""


@dataclass(frozen=True)
class ChannelStatistics:
    """Statistics of each channel of a tensor (batch, channels, height, width) over all samples; c channels.

    Attributes:
        means: float64 (c,).
        variances: float64 (c,), estimated at evenly spaced positions.
        peaks: greatest values, float64 (c,).
        pair_peaks: greatest sums of channels 2i and 2i + 1 at one position, float64 (c // 2,).
    """

    means: NDArray[np.float64]
    variances: NDArray[np.float64]
    peaks: NDArray[np.float64]
    pair_peaks: NDArray[np.float64]

    def divided(self, scales: NDArray[np.floating]) -> "ChannelStatistics":
        """Return the statistics of the channels divided by scales; the peaks of pairs are bounds.

        Args:
            scales: positive, (c,).
        """
        factors = 1 / scales.astype(np.float64)
        peaks = self.peaks * factors
        pairs, of_pairs = (each[: len(each) // 2 * 2].reshape(-1, 2) for each in (peaks, factors))
        # A sum of a negative value and another is less than the other.
        bounds = np.maximum(self.pair_peaks * of_pairs.max(axis=1), pairs.max(axis=1))
        return ChannelStatistics(
            self.means * factors, self.variances * factors**2, peaks, np.minimum(bounds, pairs.sum(axis=1))
        )


class ChannelSums:
    """Statistics of the channels of images; an image may be cut into a batch of its own.

    Attributes:
        images: their number.
    """

    def __init__(self) -> None:
        self.images = 0

    def add(self, image: Float32Array) -> tuple[float, float]:
        """Add an image, (channels, height, width), and return its least and greatest value.

        The image is read once: a few channels at a time, which stay in the cache.

        Raises:
            FloatingPointError: a value is NaN or infinite; nothing is added.
        """
        flat = image.reshape(len(image), -1)
        channels, size = flat.shape
        sums, peaks = np.empty(channels, np.float32), np.empty(channels, np.float32)
        pair_peaks = np.empty(channels // 2, np.float32)
        every = spacing(image.shape[1:], _SAMPLED)
        sample = np.empty((channels, -(-size // every)))
        step = max(2, _BLOCK // size // 2 * 2)
        pairs = np.empty((step // 2, size), np.float32)
        low = np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, channels, step):
                block = flat[start : start + step]
                even = len(block) // 2 * 2
                added = np.add(block[0:even:2], block[1:even:2], out=pairs[: even // 2])
                added.max(axis=1, out=pair_peaks[start // 2 : (start + even) // 2])
                np.einsum("cp->c", block, out=sums[start : start + step])  # thrice as fast as np.sum
                block.max(axis=1, out=peaks[start : start + step])
                low = min(low, float(block.min()))
                sample[start : start + step] = block[:, ::every]
        # Of -0 and 0 the greater one is either, by the order.
        peaks += 0.0
        pair_peaks += 0.0
        high = float(peaks.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN or infinite values")
        moments = np.empty((3, channels))
        moments[0] = sums / np.float32(size)
        moments[1], moments[2] = sample.sum(axis=1) / sample.shape[1], np.vecdot(sample, sample) / sample.shape[1]
        if not self.images:
            self._begin(channels)
        self._moments.add(moments)
        self._raise_peaks(peaks, pair_peaks)
        self.images += 1
        return low, high

    def merge(self, other: "ChannelSums") -> None:
        """Add the images of other sums; the result is that of all images."""
        if not other.images:
            return
        if not self.images:
            self._begin(len(other._peaks))
        self._moments.merge(other._moments)
        self._raise_peaks(other._peaks, other._pair_peaks)
        self.images += other.images

    def _begin(self, channels: int) -> None:
        self._moments = ExactSum((3, channels))
        self._peaks = np.full(channels, -np.inf, np.float32)
        self._pair_peaks = np.full(channels // 2, -np.inf, np.float32)

    def _raise_peaks(self, peaks: Float32Array, pair_peaks: Float32Array) -> None:
        np.maximum(self._peaks, peaks, out=self._peaks)
        np.maximum(self._pair_peaks, pair_peaks, out=self._pair_peaks)

    def statistics(self) -> ChannelStatistics:
        """Return the statistics over all images."""
        means, sampled, squares = self._moments.total() / self.images
        variances = np.maximum(squares - sampled**2, 0.0)
        return ChannelStatistics(means, variances, self._peaks.astype(np.float64), self._pair_peaks.astype(np.float64))


@cache
def spacing(shape: tuple[int, ...], counted: int) -> int:
    """Return n for which counting every n-th value of an array counts about `counted` values.

    It is prime, and divides no length but the first, so that the values counted are of all columns and all rows alike:
    in an array with channels last every third value of 48 channels would be of the same 16 channels.
    """
    spacing = max(1, math.prod(shape) // counted)
    while spacing > 1 and not _is_even(spacing, shape[1:]):
        spacing += 1
    return spacing


def _is_even(spacing: int, lengths: tuple[int, ...]) -> bool:
    is_prime = all(spacing % factor for factor in range(2, math.isqrt(spacing) + 1))
    return is_prime and all(length % spacing for length in lengths)
