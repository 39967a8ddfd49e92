"""observe: runs the calibration data through the float graph and collects statistics of its activations."""

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
"""Values of one tensor and sample that are counted; the minimum and maximum are those of all values."""

_IMAGE_RANK = 4

_MEAN_STEP = 2.0**-24
"""Resolution of means, which are summed in fixed point."""


class Observe(Analysis[tuple[Statistics, Probe, InputSummary]]):
    """Collects a histogram of each tensor that the plan observes, and the mean of each of its channels.

    The graph ends at these tensors; onnxruntime optimizes it as usual. A sample is freed once it is counted, so memory
    does not grow with the number of samples, and the result does not depend on their order. The minimum and
    maximum are those of all values. In large tensors only evenly spaced values are counted: counting all of the many
    millions would take almost as long as running the network, and add little.

    The first samples are kept as the `Probe`, and the range of the inputs and their duplicates as `InputSummary`.

    Args:
        samples: the data; None only if the statistics are given from outside.
        progress: called after each run.

    Raises:
        DataError: no sample could be read, or a tensor holds NaN or infinite values.
    """

    name = "observe"
    gives = (Statistics, Probe, InputSummary)
    needs = (Plan,)

    def __init__(self, samples: Samples | None, progress: Progress = silent) -> None:
        self._samples = samples
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> tuple[Statistics, Probe, InputSummary]:
        """Return the statistics, the first samples and the summary of the inputs."""
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
    """Accumulates histograms and means of tensors; several threads may call it."""

    def __init__(self, points: dict[str, QuantizationPoint]) -> None:
        self.histograms = {
            name: Histogram(SILU_FLAT_BELOW if point.silu_input else -math.inf) for name, point in points.items()
        }
        # The input of a SiLU is not the input of a layer, so no mean of it is needed.
        self._averaged = {name for name, point in points.items() if not point.silu_input}
        self._sums: dict[str, NDArray[np.int64]] = {}
        self._rows: dict[str, int] = {}
        self._locks = {name: threading.Lock() for name in points}

    def count(self, tensor: str, values: NDArray[np.generic]) -> None:
        """Count the values of a tensor in one run."""
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
        """Add the mean of each channel of each row, in fixed point, so that the order makes no difference."""
        if tensor in self._averaged and values.ndim == _IMAGE_RANK and values.size:
            per_row = values.reshape(*values.shape[:2], -1).mean(axis=2)
            sums = np.rint(per_row.astype(np.float64) / _MEAN_STEP).astype(np.int64).sum(axis=0)
            self._sums[tensor] = self._sums.get(tensor, 0) + sums
            # Rows, not samples: an image may be cut into a batch of its own.
            self._rows[tensor] = self._rows.get(tensor, 0) + len(values)

    def means(self) -> dict[str, NDArray[np.float64]]:
        """Return the mean of each channel over all samples, float64 (channels,), of tensors that have channels."""
        return {name: sums.astype(np.float64) * (_MEAN_STEP / self._rows[name]) for name, sums in self._sums.items()}


def _samples_of(values: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
    """Return the samples of a run: images along the first axis, so that each counts as if it ran alone."""
    return values if values.ndim == _IMAGE_RANK else [values]


def _spacing(values: int) -> int:
    """Return n for which counting every n-th value counts about `_COUNTED` values.

    It is prime, so that the values counted are not in the same columns of every row.
    """
    spacing = max(1, values // _COUNTED)
    while any(spacing % factor == 0 for factor in range(2, math.isqrt(spacing) + 1)):
        spacing += 1
    return spacing
