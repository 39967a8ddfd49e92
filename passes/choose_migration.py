"""choose-migration: chooses the scales by which channels of unequal size are divided in front of integer Convs."""

import logging
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.feeds import Loader
from onnxq.calibration.samples import Samples, spread
from onnxq.errors import DataError
from onnxq.facts import Migration, Plan
from onnxq.ir import Model, ending_at
from onnxq.numerics.arrays import Float32Array
from onnxq.numerics.channel_scales import channel_scales
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.migration import migratable
from onnxq.runtime.streaming import stream

log = logging.getLogger(__name__)

_SAMPLES = 16
"""Samples on which the greatest values of channels are taken, evenly spaced among all."""

_ENOUGH = 50
"""Samples below which migration loses more than it gains: with 10 images YOLOv5n loses twice as much, with 100 less."""


class ChooseMigration(Analysis[Migration]):
    """Chooses a scale for each channel of the tensors that integer Convs read, from the greatest values of channels.

    All channels of a tensor share one scale on integers, so channels of small values keep few levels. `MigrateScales`
    divides the channels by the scales found here and multiplies the weights by them, which changes nothing in float
    (SmoothQuant: Xiao et al., arXiv 2211.10438, section 4, with the exponent 0.5).

    Which tensors can be migrated, `onnxq.qdq.migration` says; those whose channels are alike stay as they are.

    The range of a channel then ends near its greatest value, so values that the samples lack are cut off: few images
    or scenes that are not real lose more than they gain.

    Args:
        samples: the data, which is read again later.
        progress: called after each run.

    Raises:
        DataError: there are no samples, only synthetic ones, or none that can be read again.
    """

    name = "choose-migration"
    gives = Migration
    needs = (Plan,)

    def __init__(self, samples: Samples | None, progress: Progress = silent) -> None:
        self._samples = samples
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Migration:
        """Return the scales."""
        tensors = list(migratable(model, facts[Plan]))
        if self._samples is None or self._samples.synthetic:
            raise DataError("scales migrate by the values of real images: give --calib, or leave --migrate out")
        if self._samples.is_read_once:
            raise DataError("the data can be read only once, migration reads it again; give a list or a folder")
        loaders = list(self._samples.loaders)
        count = self._samples.count or len(loaders) * _batch(model)
        if count < _ENOUGH:
            log.warning(
                "scales migrate by the values of %d samples: with so few, greater values are cut off; give about 100 "
                "images, or leave --migrate out",
                count,
            )
        scales = {name: channel_scales(peaks) for name, peaks in self._peaks(model, tensors, loaders).items()}
        return Migration({name: scales[name] for name in tensors if name in scales and np.ptp(scales[name]) > 0})

    def _peaks(self, model: Model, tensors: Sequence[str], loaders: Sequence[Loader]) -> dict[str, Float32Array]:
        """Return the greatest value of each channel, float32 (channels,), of the tensors of images that ran."""
        peaks: dict[str, Float32Array] = {}
        lock = threading.Lock()

        def see(_: int, tensor: str, values: NDArray[np.generic]) -> None:
            greatest = values.max(axis=(0, *range(2, values.ndim))).astype(np.float32)
            with lock:
                peaks[tensor] = np.maximum(peaks.get(tensor, greatest), greatest)

        few = spread(loaders, _SAMPLES)
        if tensors:
            ending = ending_at(model.to_proto(), tensors)
            stream(ending, few, see, lambda done: self._progress("comparing channels", done, len(few)))
        return peaks


def _batch(model: Model) -> int:
    """Return how many samples a run takes."""
    shape = model.graph.inputs[0].shape or (1,)
    return shape[0] if isinstance(shape[0], int) else 1
