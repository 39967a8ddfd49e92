"""SQNR, the signal-to-quantization-noise ratio between the outputs of two models."""

import math
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from onnxq.numerics.arrays import AnyArray, NamedArrays

_BLOCK = 1 << 13
"""Values that are squared at once: they stay in the cache, and BLAS takes several threads for more than 10,000."""

_LEAST = 1e-25
"""Least energy of a block of float32 that is summed in float32; below it, squares may vanish."""


class SqnrMeter:
    """Accumulates the energy of signal and noise of float outputs over samples."""

    def __init__(self) -> None:
        self._signal: defaultdict[str, float] = defaultdict(float)
        self._noise: defaultdict[str, float] = defaultdict(float)

    def add(self, expected: NamedArrays, actual: NamedArrays) -> None:
        """Add the outputs of one sample.

        An output is left out if its shapes differ, or if the expected values are not floats or not finite. If only the
        actual values are not finite, the noise is infinite.
        """
        for name, wanted in expected.items():
            got = actual[name]
            if wanted.shape == got.shape and np.issubdtype(wanted.dtype, np.floating):
                signal, noise = _energies(wanted.reshape(-1), got.reshape(-1))
                if math.isfinite(signal):
                    self._signal[name] += signal
                    self._noise[name] += noise if math.isfinite(noise) else math.inf

    def merge(self, other: "SqnrMeter") -> None:
        """Add the energies of another meter."""
        for name, signal in other._signal.items():
            self._signal[name] += signal
            self._noise[name] += other._noise[name]

    def ratios(self) -> dict[str, float]:
        """Return noise energy / signal energy of each output that has a signal."""
        return {name: self._noise[name] / signal for name, signal in self._signal.items() if signal > 0}

    def decibels(self) -> dict[str, float]:
        """Return the SQNR of each output that has a signal, dB."""
        return {name: decibels(signal, self._noise[name]) for name, signal in self._signal.items() if signal > 0}


def _energies(wanted: NDArray[np.generic], got: NDArray[np.generic]) -> tuple[float, float]:
    """Return the energies of values and of the differences from them, (n,); NaN or inf if values are not finite."""
    kind = np.float32 if wanted.dtype == got.dtype == np.float32 else np.float64
    signal = noise = 0.0
    with np.errstate(invalid="ignore", over="ignore"):
        for at in range(0, wanted.size, _BLOCK):
            exact = wanted[at : at + _BLOCK].astype(kind, copy=False)
            signal += _energy(exact)
            noise += _energy(np.subtract(exact, got[at : at + _BLOCK], dtype=kind))
    return signal, noise


def _energy(values: AnyArray) -> float:
    """Return the sum of the squares of a block of values, float32 or float64 (n,)."""
    found = float(np.dot(values, values))
    if values.dtype == np.float64 or _LEAST < found < math.inf:
        return found
    exact = values.astype(np.float64)
    return float(np.dot(exact, exact))


def decibels(signal: float, noise: float) -> float:
    """Return signal energy / noise energy in dB: inf without noise, -inf with infinite noise."""
    if noise == math.inf:
        return -math.inf
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf
