"""How much the outputs of two models differ."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxq.ranges import decibels

Outputs = Mapping[str, NDArray[np.generic]]


class Noise:
    """Sums the signal and the noise of float outputs over many samples."""

    def __init__(self) -> None:
        self._signal: defaultdict[str, float] = defaultdict(float)
        self._noise: defaultdict[str, float] = defaultdict(float)

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Add one sample's outputs, by name; those that are not of one shape or not finite do not count."""
        for name, a in expected.items():
            b = actual[name]
            if a.shape == b.shape and np.issubdtype(a.dtype, np.floating) and np.isfinite(a).all():
                self._signal[name] += float(np.sum(np.square(a, dtype=np.float64)))
                self._noise[name] += float(np.sum(np.square(np.subtract(a, b, dtype=np.float64))))

    def decibels(self) -> dict[str, float]:
        """Signal-to-quantization-noise ratio of each output, dB."""
        return {name: decibels(signal, self._noise[name]) for name, signal in self._signal.items() if signal > 0}
