"""Sums of floats that do not depend on the order of their terms."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.numerics.arrays import Float64Array

_STEP = 2.0**-40
"""Resolution of the fractions."""

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
        self._wholes: NDArray[np.int64] = np.zeros(shape, np.int64)
        self._fractions: NDArray[np.int64] = np.zeros(shape, np.int64)

    def add(self, term: ArrayLike) -> None:
        """Add an array, rounded to 2^-40."""
        given = np.asarray(term, np.float64)
        values = np.minimum(np.maximum(given, -_LARGEST), _LARGEST)
        self.clamped |= not np.array_equal(values, given)
        wholes = np.floor(values)
        fractions = np.rint((values - wholes) / _STEP)
        np.add(self._wholes, wholes, out=self._wholes, casting="unsafe")
        np.add(self._fractions, fractions, out=self._fractions, casting="unsafe")

    def merge(self, other: "ExactSum") -> None:
        """Add the terms of another sum of the same shape; the result is the sum of all terms."""
        self.clamped |= other.clamped
        self._wholes += other._wholes
        self._fractions += other._fractions

    def total(self) -> Float64Array:
        """Return the sum."""
        return np.asarray(self._wholes + self._fractions * _STEP)
