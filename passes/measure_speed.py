"""measure-speed: runs the float and the quantized model in turn, for the ratio of their times on this CPU."""

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.facts import Probe, Speed
from onnxq.ir import Model
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.runtime import RUNTIMES
from onnxq.runtime.paired_times import paired_times
from onnxq.targets import Target

_ROUNDS = 30
"""Greatest number of rounds; in each, both models run once."""

_SECONDS = 2.5
"""No round starts later than this, except for the first few."""


class MeasureSpeed(Analysis[Speed]):
    """Measures how much faster the quantized model is than the float one, in the target's runtime on this CPU.

    The models take turns, so that other load on the machine affects both alike. The result has no rounds if the
    runtime is not installed or loads only one of the models, or if there is no sample to run.

    Nothing that is written into the model depends on this.

    Args:
        original: the float model.
        target: the target of the result.
        progress: called once, before the measurement.
    """

    name = "measure-speed"
    gives = Speed
    needs = (Probe,)

    def __init__(self, original: onnx.ModelProto, target: Target, progress: Progress = silent) -> None:
        self._original = original
        self._target = target
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Speed:
        """Return the ratio."""
        runtime = RUNTIMES[self._target.runtime] if self._target.runtime is not None else None
        feeds = facts[Probe].feeds
        if runtime is None or not runtime.is_installed() or not feeds:
            return Speed()
        self._progress("measuring speed", 0, 0)
        try:
            loaded = runtime(self._original), runtime(model.to_linked_proto())
        except ModelError:
            return Speed()
        return summary(runtime.title, paired_times(loaded, 2 * [feeds[0]], _ROUNDS, seconds=_SECONDS))


def summary(runtime: str, times: NDArray[np.float64]) -> Speed:
    """Return the ratio of paired times.

    Args:
        runtime: title of the runtime.
        times: of each round, s, float64 (2, rounds): of the float model, of the quantized one.
    """
    least, paired = times.min(axis=1), times[0] / times[1]
    return Speed(runtime, float(least[0] / least[1]), float(np.median(paired)), times.shape[1])
