"""A histogram of fixed size that does not depend on the order or the batching of the values."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.arrays import Float32Array, Float64Array, Int64Array, narrowed

BINS = 2048
"""Bins of every histogram."""

_FINEST = -60
"""Exponent of the least width."""

_EXACT_BITS = 23
"""|x| / width stays below 2**23, where float32 still holds every integer and one bit more."""

_GREATEST = float(np.finfo(np.float32).max)

_MOST_COUNTED = 2.0**62
"""Sum of counts that int64 still holds."""

_CHUNK = 1 << 15
"""Values that are counted at once, to stay in the cache."""


class Histogram:
    """Counts of values in `BINS` bins whose width is a power of two and whose edges are multiples of it.

    Bin i holds the values in [(start + i) * width, (start + i + 1) * width). When the values span more than `BINS`
    bins, the width doubles and neighboring bins are added. The edges at any width are among those at half of it, so the
    counts equal those of all values counted at the final width, which depends only on the least and greatest value.

    Attributes:
        counts: int64 (BINS,).
        exponent: the width is 2**exponent.
        start: index of the first bin among all bins of this width; the lower edge of bin 0 is start * width.
        low, high: least and greatest value, exact; inf and -inf before the first value.
        floor: smaller values are counted as if they were equal to it.
    """

    def __init__(self, floor: float = -math.inf) -> None:
        self.counts: Int64Array = np.zeros(BINS, np.int64)
        self.exponent = _FINEST
        self.start = 0
        self.low = math.inf
        self.high = -math.inf
        self.floor = floor

    @classmethod
    def of(cls, counts: Int64Array, exponent: int, start: int, low: float, high: float, floor: float) -> "Histogram":
        """Return a histogram with these attributes.

        Raises:
            ValueError: no values make such a histogram.
        """
        made = cls(floor)
        if counts.shape != made.counts.shape or counts.dtype != made.counts.dtype:
            raise ValueError(f"has counts of the shape {counts.shape} and the type {counts.dtype}")
        if math.isnan(floor) or counts.min() < 0 or counts.sum(dtype=np.float64) > _MOST_COUNTED:
            raise ValueError("has counts below 0, too many, or a floor that is no number")
        if counts.any():
            if not (floor <= low <= high and low >= -_GREATEST and high <= _GREATEST):
                raise ValueError(f"has values from {low} to {high}")
            made._cover(low, high)
            last = math.floor(math.ldexp(made.high, -made.exponent)) - made.start
            if counts[last + 1 :].any():
                raise ValueError("has values beyond the greatest one")
        if (made.exponent, made.start, made.low, made.high) != (exponent, start, low, high):
            raise ValueError(f"has bins of the width 2**{exponent} from {start} on for values from {low} to {high}")
        made.counts = counts
        return made

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent)

    @property
    def total(self) -> int:
        """The number of values counted."""
        return int(self.counts.sum())

    @property
    def edges(self) -> Float64Array:
        """The edges of the bins, float64 (BINS + 1,), ascending."""
        return np.ldexp(np.arange(self.start, self.start + BINS + 1, dtype=np.float64), self.exponent)

    def occupied(self) -> tuple[Int64Array, Float64Array]:
        """Return counts int64 (n,) and edges float64 (n + 1,) without the empty bins at both ends.

        The outermost edges are moved inwards to the least and the greatest value.
        """
        if self.low > self.high:
            return np.zeros(1, np.int64), np.zeros(2)
        last = math.floor(self.high / self.width) - self.start
        edges = self.edges[: last + 2]
        edges[0], edges[-1] = self.low, max(self.high, self.low)
        return self.counts[: last + 1], edges

    def add(self, values: NDArray[np.floating], every: int = 1, extremes: tuple[float, float] | None = None) -> None:
        """Count values, of any shape.

        Args:
            values: `low` and `high` are those of all values.
            every: count every n-th value.
            extremes: the least and the greatest value, if they are known.

        Raises:
            FloatingPointError: a value is NaN or infinite; nothing is counted.
        """
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        if not flat.size:
            return
        low, high = extremes or _extremes(flat)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN or infinite values")
        self._cover(max(low, self.floor), max(high, self.floor))
        # Scaling up is exact. Scaling down in float32 would underflow for small values, which then lose their sign.
        kind = np.float32 if self.exponent <= 0 else np.float64
        per_bin = kind(math.ldexp(1.0, -self.exponent))
        least = np.float32(max(self.floor // self.width, self.start))
        flat = flat[::every]
        scaled = np.empty(min(_CHUNK, flat.size), kind)
        for at in range(0, flat.size, _CHUNK):
            chunk = flat[at : at + _CHUNK]
            n = chunk.size
            with np.errstate(over="ignore"):  # far below the floor
                np.multiply(chunk, per_bin, out=scaled[:n])
            # Floor before the subtraction: every step up to here is exact in float32, so the bin of a value does not
            # depend on the other values.
            np.floor(scaled[:n], out=scaled[:n])
            if low < self.floor:
                np.maximum(scaled[:n], least, out=scaled[:n])
            np.subtract(scaled[:n], np.float32(self.start), out=scaled[:n])
            self.counts += np.bincount(scaled[:n].astype(np.int32), minlength=BINS)

    def merge(self, other: "Histogram") -> None:
        """Add the counts of another histogram; the result is the histogram of both sets of values."""
        if other.low > other.high:
            return
        self._cover(other.low, other.high)
        shift = self.exponent - other.exponent
        occupied = np.flatnonzero(other.counts)
        np.add.at(self.counts, ((occupied + other.start) >> shift) - self.start, other.counts[occupied])

    def __getstate__(self) -> dict[str, Any]:
        """Return the counts up to the last bin that has some, in narrow integers, in which they are sent."""
        last = int(np.flatnonzero(self.counts)[-1]) if self.counts.any() else -1
        return {**vars(self), "counts": narrowed(self.counts[: last + 1])}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.counts = np.zeros(BINS, np.int64)
        self.counts[: len(state["counts"])] = state["counts"]

    def _cover(self, low: float, high: float) -> None:
        """Grow until `low` and `high` have bins."""
        low, high = min(low, self.low) + 0.0, max(high, self.high) + 0.0  # no negative zeros
        if (low, high) != (self.low, self.high):
            self._widen(_exponent(low, high), low)
            self.low, self.high = low, high

    def _widen(self, exponent: int, low: float) -> None:
        occupied = np.flatnonzero(self.counts)
        index = (occupied + self.start) >> (exponent - self.exponent)
        start = math.floor(math.ldexp(low, -exponent))
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, index - start, self.counts[occupied])
        self.counts, self.exponent, self.start = counts, exponent, start


def _extremes(values: Float32Array) -> tuple[float, float]:
    """Return the least and the greatest value, of some values that stay in the cache at a time."""
    parts = [values[at : at + _CHUNK] for at in range(0, values.size, _CHUNK)]
    lows, highs = zip(*((part.min(), part.max()) for part in parts), strict=True)
    return float(np.min(lows)), float(np.max(highs))


def _exponent(low: float, high: float) -> int:
    """Return the least e for which [low, high] touches at most BINS bins of width 2**e and float32 counts exactly.

    It grows with the interval, so it does not depend on the steps in which the interval grew.
    """
    exponent = max(_FINEST, math.frexp(max(-low, high))[1] - _EXACT_BITS)
    if high > low:
        exponent = max(exponent, math.frexp((high - low) / BINS)[1] - 1)
    while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
        exponent += 1
    return exponent
