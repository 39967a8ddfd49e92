"""Sums of floats that do not depend on the order of their terms."""

import numpy as np
from numpy.typing import ArrayLike

from onnxq.numerics.arrays import AnyArray, Float64Array, Int64Array, narrowed

_BITS = 40
"""Of the fractions: their resolution is 2^-40."""

_LARGEST = 2.0**40
"""Largest magnitude of a term."""


class ExactSum:
    """A sum of arrays of one shape, in fixed point: whole parts and fractions are summed as int64.

    Terms are clamped to 2^40 in magnitude; there must be fewer than 2^22 of them.

    Attributes:
        clamped: whether a term was.

    Args:
        shape: of the terms.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.clamped = False
        self._wholes: Int64Array = np.zeros(shape, np.int64)
        self._fractions: Int64Array = np.zeros(shape, np.int64)

    def add(self, term: ArrayLike) -> None:
        """Add an array, rounded to 2^-40."""
        values = np.asarray(term, np.float64)
        if not (values.min(initial=0.0) >= -_LARGEST and values.max(initial=0.0) <= _LARGEST):
            self.clamped = True
            values = np.clip(values, -_LARGEST, _LARGEST)
        wholes = np.floor(values)
        fractions = np.rint((values - wholes) * 2.0**_BITS)
        # As integers: sums of floats would be rounded beyond 2^53.
        self._wholes += wholes.astype(np.int64)
        self._fractions += fractions.astype(np.int64)

    def merge(self, other: "ExactSum") -> None:
        """Add the terms of another sum of the same shape; the result is the sum of all terms."""
        self.clamped |= other.clamped
        self._wholes += other._wholes
        self._fractions += other._fractions

    def total(self) -> Float64Array:
        """Return the sum."""
        wholes, fractions = self._carried()
        return np.asarray(wholes + fractions * 2.0**-_BITS)

    def __getstate__(self) -> tuple[bool, AnyArray, AnyArray, AnyArray]:
        """Return the sum in narrow integers, in which it is sent: a third of the bytes."""
        wholes, fractions = self._carried()
        return self.clamped, narrowed(wholes), (fractions >> 32).astype(np.uint8), fractions.astype(np.uint32)

    def __setstate__(self, state: tuple[bool, AnyArray, AnyArray, AnyArray]) -> None:
        self.clamped = state[0]
        wholes, high, low = (part.astype(np.int64) for part in state[1:])
        self._wholes, self._fractions = wholes, high << 32 | low

    def _carried(self) -> tuple[Int64Array, Int64Array]:
        """Return whole parts, and fractions below 1."""
        return self._wholes + (self._fractions >> _BITS), self._fractions & (1 << _BITS) - 1
