"""observe: one run over the data, from which only histograms and means are kept."""

import math
import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.input_monitor import InputMonitor
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import InputSummary, Plan, Probe, QuantizationPoint, Statistics
from onnxq.ir import Model, ending_at
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.silu import SILU_FLAT_BELOW
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.runtime.streaming import stream

_COUNTED = 1 << 14
"""Values of one tensor and sample that are counted; extremes are taken of all."""

_IMAGE_RANK = 4

_MEAN_STEP = 2.0**-24


class Observe(Analysis[tuple[Statistics, Probe, InputSummary]]):
    """Runs the data through the float graph and counts the values of the tensors that the plan needs to know.

    The graph ends at these tensors and is otherwise optimized by onnxruntime as ever. Each sample is forgotten once
    it is counted, so that memory does not grow with their number, and the result does not depend on their order.
    The extremes are those of all values; of large tensors only evenly spaced values are counted: to count every one
    of the many millions would take almost as long as to run the network, and tell little more. Beside the histograms,
    the mean of each channel is kept.

    Args:
        samples: the data; None only where statistics are given.
        progress: told after each run.

    Raises:
        DataError: not one sample could be read, or a tensor holds NaN or infinite values.
    """

    name = "observe"
    gives = (Statistics, Probe, InputSummary)
    needs = (Plan,)

    def __init__(self, samples: Samples | None, progress: Progress = silent) -> None:
        self._samples = samples
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> tuple[Statistics, Probe, InputSummary]:
        """Find the fact; the graph is not touched."""
        plan, digest = facts[Plan], model.digest()
        tally = _Tally(plan.observed())
        if not tally.histograms:
            return Statistics({}, digest=digest), Probe(), InputSummary()
        if self._samples is None:
            raise DataError("there is no calibration data; give some, or statistics that were saved")
        steps, inputs = self._samples.steps, InputMonitor()
        count = stream(
            ending_at(model.to_proto(), tally.histograms),
            inputs.watch(self._samples.loaders),
            tally.count,
            lambda done: self._progress("calibrating", done, steps),
        )
        if count == 0:
            self._samples.require_any()
            raise DataError("the calibration data is empty; a generator or reader can be read only once")
        return Statistics(tally.histograms, count, digest, tally.means()), inputs.probe(), inputs.summary()


class _Tally:
    """Counts tensors that workers hand in."""

    def __init__(self, points: dict[str, QuantizationPoint]) -> None:
        self.histograms = {
            name: Histogram(SILU_FLAT_BELOW if point.silu_input else -math.inf) for name, point in points.items()
        }
        # What a SiLU reads is no layer's input.
        self._averaged = {name for name, point in points.items() if not point.silu_input}
        self._sums: dict[str, NDArray[np.int64]] = {}
        self._rows: dict[str, int] = {}
        self._locks = {name: threading.Lock() for name in points}

    def count(self, tensor: str, values: NDArray[np.generic]) -> None:
        """Count one run's values of a tensor."""
        floats = values.astype(np.float32, copy=False)
        with self._locks[tensor]:
            try:
                for sample in _samples_of(floats):
                    self.histograms[tensor].add(sample, _spacing(sample.size))
                self._sum_channels(tensor, floats)
            except FloatingPointError as error:
                raise DataError(
                    f"tensor {tensor!r} holds {error} for a calibration sample; check the model and its preprocessing"
                ) from None

    def _sum_channels(self, tensor: str, values: NDArray[np.float32]) -> None:
        """Add each row's mean of each channel, in fixed point, so that the sum does not depend on the order."""
        if tensor in self._averaged and values.ndim == _IMAGE_RANK and values.size:
            per_row = values.reshape(*values.shape[:2], -1).mean(axis=2)
            sums = np.rint(per_row.astype(np.float64) / _MEAN_STEP).astype(np.int64).sum(axis=0)
            self._sums[tensor] = self._sums.get(tensor, 0) + sums
            # Not the samples: a picture may have been cut up into a batch of its own.
            self._rows[tensor] = self._rows.get(tensor, 0) + len(values)

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Mean of each channel over all samples, float64 (channels,), of the tensors that have channels."""
        return {name: sums.astype(np.float64) * (_MEAN_STEP / self._rows[name]) for name, sums in self._sums.items()}


def _samples_of(values: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
    """The samples of a run: of images those along the first axis, so that each counts as much as if it ran alone."""
    return values if values.ndim == _IMAGE_RANK else [values]


def _spacing(values: int) -> int:
    """How far the values of a tensor lie apart that are counted, so that about `_COUNTED` of them are.

    A prime keeps the picks from falling on the same columns of every row.
    """
    spacing = max(1, values // _COUNTED)
    while any(spacing % factor == 0 for factor in range(2, math.isqrt(spacing) + 1)):
        spacing += 1
    return spacing
