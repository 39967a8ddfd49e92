"""How much the outputs of two models differ."""

import math
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[np.generic]]


class SqnrMeter:
    """Sums the signal and the noise of float outputs over many samples."""

    def __init__(self) -> None:
        self._signal: defaultdict[str, float] = defaultdict(float)
        self._noise: defaultdict[str, float] = defaultdict(float)

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Add one sample's outputs, by name.

        Those that are not of one shape do not count, nor those whose expected values are not floats or not finite.
        Where only the actual ones are not finite, there is no end of noise.
        """
        for name, a in expected.items():
            b = actual[name]
            if a.shape == b.shape and np.issubdtype(a.dtype, np.floating) and np.isfinite(a).all():
                noise = float(np.sum(np.square(np.subtract(a, b, dtype=np.float64))))
                self._signal[name] += float(np.sum(np.square(a, dtype=np.float64)))
                self._noise[name] += noise if math.isfinite(noise) else math.inf

    def merge(self, other: "SqnrMeter") -> None:
        """Add what another one has summed up."""
        for name, signal in other._signal.items():
            self._signal[name] += signal
            self._noise[name] += other._noise[name]

    def ratios(self) -> dict[str, float]:
        """Energy of the noise as a share of the signal's, of each output that has a signal."""
        return {name: self._noise[name] / signal for name, signal in self._signal.items() if signal > 0}

    def decibels(self) -> dict[str, float]:
        """Signal-to-quantization-noise ratio of each output, dB."""
        return {name: decibels(signal, self._noise[name]) for name, signal in self._signal.items() if signal > 0}


def decibels(signal: float, noise: float) -> float:
    """Ratio of a signal's energy to that of noise, dB; infinite without noise, minus infinity with no end of it."""
    if noise == math.inf:
        return -math.inf
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf
