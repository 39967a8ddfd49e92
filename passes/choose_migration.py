"""choose-migration: chooses the scales by which channels of unequal size are divided in front of integer Convs."""

import logging
import threading
from collections.abc import Mapping, Sequence

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
from onnxq.qdq.migration import LEAST_SAMPLES, Migratable, is_cheap, migratable
from onnxq.runtime.streaming import stream
from onnxq.targets.sizes import ImageSizes

log = logging.getLogger(__name__)

_SAMPLES = 16
"""Samples on which the greatest values of channels are taken, evenly spaced among all."""


class ChooseMigration(Analysis[Migration]):
    """Chooses a scale for each channel of the tensors that integer Convs read, from the greatest values of channels.

    All channels of a tensor share one scale on integers, so channels of small values keep few levels. `MigrateScales`
    divides the channels by the scales found here and multiplies the weights by them, which changes nothing in float
    (SmoothQuant: Xiao et al., arXiv 2211.10438, section 4, with the exponent 0.5).

    Which tensors can be migrated, `onnxq.qdq.migration` says; those whose channels are alike stay as they are.

    The range of a channel then ends near its greatest value, so values that the samples lack are cut off: few images
    or scenes that are not real lose more than they gain. From them no scales are chosen.

    Args:
        samples: the data, which is read again later.
        stride: least stride of tensors that a Mul divides: `Target.scaling_stride`.
        progress: called after each run.
        required: few samples are warned of, and samples that cannot be used are an error.
        at_sources: also choose scales of tensors that are divided at their source, which stay as they are chosen here.

    Raises:
        DataError: scales are required, and there are no samples, only synthetic ones, or none that can be read again.
    """

    name = "choose-migration"
    gives = Migration
    needs = (Plan, ImageSizes)

    def __init__(
        self,
        samples: Samples | None,
        stride: int | None,
        progress: Progress = silent,
        *,
        required: bool = True,
        at_sources: bool = True,
    ) -> None:
        self._samples = samples
        self._stride = stride
        self._progress = progress
        self._required = required
        self._at_sources = at_sources

    def run(self, model: Model, facts: Facts) -> Migration:
        """Return the scales."""
        tensors = {
            name: found
            for name, found in migratable(model, facts[Plan]).items()
            if (self._at_sources if found.sources else is_cheap(found, self._stride, facts[ImageSizes]))
        }
        if not tensors and not self._required:
            return Migration({})
        why_not = _why_not(self._samples)
        if self._samples is None or why_not:
            if self._required:
                raise DataError(f"scales cannot migrate: {why_not}; give a folder or a list, or leave --migrate out")
            return Migration({}, why_not)
        loaders = list(self._samples.loaders)
        count = self._samples.count or len(loaders) * _batch(model)
        if count < LEAST_SAMPLES:
            why_not = f"with {count} samples, fewer than {LEAST_SAMPLES}, greater values would be cut off"
            if not self._required:
                return Migration({}, why_not)
            log.warning("scales migrate, but %s; give about 100 images, or leave --migrate out", why_not)
        peaks = self._peaks(model, tensors, loaders)
        scales = {name: channel_scales(each, whole=tensors[name].is_separate) for name, each in peaks.items()}
        return Migration({name: scales[name] for name in tensors if name in scales and np.ptp(scales[name]) > 0})

    def _peaks(
        self, model: Model, tensors: Mapping[str, Migratable], loaders: Sequence[Loader]
    ) -> dict[str, Float32Array]:
        """Return the greatest value of each channel, float32 (channels,), of the tensors of images that ran.

        It is the greatest magnitude if the tensor is divided at its source, behind no function that has a lower bound.
        """
        peaks: dict[str, Float32Array] = {}
        lock = threading.Lock()

        def see(_: int, tensor: str, values: NDArray[np.generic]) -> None:
            magnitudes = np.abs(values) if tensors[tensor].sources else values
            greatest = magnitudes.max(axis=(0, *range(2, values.ndim))).astype(np.float32)
            with lock:
                peaks[tensor] = np.maximum(peaks.get(tensor, greatest), greatest)

        few = spread(loaders, _SAMPLES)
        if tensors:
            ending = ending_at(model.to_linked_proto(), list(tensors))
            stream(ending, few, see, lambda done: self._progress("comparing channels", done, len(few)))
        return peaks


def _why_not(samples: Samples | None) -> str:
    """Return why no scales can be chosen from samples, whatever their number; empty if they can."""
    if samples is None or samples.synthetic:
        return "there are no real images"
    return "the data can be read only once, and migration reads it again" if samples.is_read_once else ""


def _batch(model: Model) -> int:
    """Return how many samples a run takes."""
    shape = model.graph.inputs[0].shape or (1,)
    return shape[0] if isinstance(shape[0], int) else 1
