"""observe: runs the calibration data through the float graph and collects statistics of its activations."""

import math
import threading
from collections.abc import Collection, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.input_monitor import InputMonitor
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import InputSummary, Migration, Plan, Probe, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, ending_at, image_convs
from onnxq.numerics.channel_statistics import ChannelStatistics, ChannelSums, spacing
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.input_covariance import CovarianceSums, InputCovariance
from onnxq.numerics.silu import SILU_FLAT_BELOW
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.channel_statistics import is_derived
from onnxq.reconstruction.im2col import Im2col, Positions
from onnxq.runtime.streaming import stream

_COUNTED = 1 << 14
"""Values of one tensor and sample that are counted; the minimum and maximum are those of all values."""

_IMAGE_RANK = 4

_COVARIANCES = 32
"""Evenly spaced samples, or some more, on which the covariance of inputs is taken; all, if their number is not known
before the end, as of a generator."""

_POSITIONS = 512
"""Evenly spaced positions of an image at which the inputs of a Conv are taken. If its covariance is held by channels
and taps, as many values of each channel are: fewer positions."""


class Observe(Analysis[tuple[Statistics, Probe, InputSummary]]):
    """Collects a histogram of each tensor that the plan observes, and statistics of the channels of layer inputs.

    Of Convs that read images, the covariance of their inputs is collected too. The graph ends at these tensors;
    onnxruntime optimizes it as usual. A sample is freed once it is counted, so memory does not grow with the number of
    samples, and the result does not depend on the order in which they end. The minimum and maximum are those of all
    values. In large tensors only evenly spaced values are counted: counting all of the many millions would take almost
    as long as running the network, and add little.

    The first samples are kept as the `Probe`, and the range of the inputs and their duplicates as `InputSummary`.

    Args:
        samples: the data; None only if the statistics are given from outside.
        progress: called after each run.
        every_conv: collect the covariance of the inputs of every Conv.

    Raises:
        DataError: no sample could be read, or a tensor holds NaN or infinite values.
    """

    name = "observe"
    gives = (Statistics, Probe, InputSummary)
    needs = (Plan,)
    uses = (Migration,)

    def __init__(self, samples: Samples | None, progress: Progress = silent, *, every_conv: bool = False) -> None:
        self._samples = samples
        self._progress = progress
        self._every_conv = every_conv

    def run(self, model: Model, facts: Facts) -> tuple[Statistics, Probe, InputSummary]:
        """Return the statistics, the first samples and the summary of the inputs."""
        plan, digest = facts[Plan], model.digest()
        migration = (facts.get(Migration) or Migration({})).scales
        layers = list(map(model.nodes.__getitem__, plan.layers))
        reading = image_convs(model.graph.nodes)
        images = [layer for layer in layers if layer.name in reading]
        convs = [layer for layer in layers if layer.op == "Conv"] if self._every_conv else images
        every = max(1, self._samples.steps // _COVARIANCES) if self._samples else 1
        tally = _Tally(plan.observed(), layers, convs, {layer.inputs[0].name for layer in images}, every)
        if not tally.histograms:
            return Statistics({}, digest=digest, migration=migration), Probe(), InputSummary()
        if self._samples is None:
            raise DataError("there is no calibration data; give some, or statistics that were saved")
        steps, inputs = self._samples.steps, InputMonitor(self._samples.preprocess, self._samples.sources)
        count = stream(
            ending_at(model.to_proto(), tally.tensors),
            inputs.watch(self._samples.loaders),
            tally.count,
            lambda done: self._progress("calibrating", done, steps),
        )
        if count == 0:
            self._samples.require_any()
            raise DataError("the calibration data is empty; a generator or reader can be read only once")
        statistics = Statistics(tally.histograms, count, digest, tally.channels(), tally.inputs(), migration)
        return statistics, inputs.probe(), inputs.summary()


class _Tally:
    """Accumulates the statistics of tensors; several threads may call it.

    Args:
        points: tensor whose values are counted -> its point.
        layers: the layers on integers.
        convs: those of them whose inputs' covariance is taken.
        images: tensors of which it is taken in every run.
        every: of others it is taken in every n-th run.
    """

    def __init__(
        self,
        points: Mapping[str, QuantizationPoint],
        layers: Iterable[Node],
        convs: Iterable[Node],
        images: Collection[str],
        every: int,
    ) -> None:
        self._images = images
        self._every = every
        self.histograms = {
            name: Histogram(SILU_FLAT_BELOW if point.silu_input else -math.inf) for name, point in points.items()
        }
        # The input of a SiLU is not the input of a layer.
        counted = [name for name, point in points.items() if not point.silu_input]
        inputs = {layer.name: layer.inputs[0] for layer in layers}
        joined = [tensor.name for tensor in inputs.values() if not is_derived(tensor, counted)]
        self._channels = {name: ChannelSums() for name in [*counted, *joined]}
        self._inputs: dict[str, dict[Im2col, CovarianceSums]] = {}
        self._of_layers: dict[str, CovarianceSums] = {}
        for layer in convs:
            im2col = Im2col.of(layer)
            if im2col is not None:
                sums = self._inputs.setdefault(inputs[layer.name].name, {})
                self._of_layers[layer.name] = sums.setdefault(im2col.window(), _covariance_sums(im2col))
        self.tensors = list(dict.fromkeys([*self.histograms, *self._channels, *self._inputs]))
        self._locks = {name: threading.Lock() for name in self.tensors}

    def count(self, step: int, tensor: str, values: NDArray[np.generic]) -> None:
        """Count the values of a tensor in the run of this number."""
        floats = values.astype(np.float32, copy=False)
        has_channels = floats.ndim == _IMAGE_RANK and floats.size > 0
        images = floats if has_channels else floats[None]
        channels = self._channels.get(tensor) if has_channels else None
        is_taken = has_channels and (tensor in self._images or step % self._every == 0)
        covariances = self._inputs.get(tensor, {}) if is_taken else {}
        with self._locks[tensor]:
            try:
                for image in images:
                    extremes = channels.add(image) if channels else None
                    if tensor in self.histograms:
                        self.histograms[tensor].add(image, spacing(image.size, _COUNTED), extremes)
                    for window, sums in covariances.items():
                        positions = _spaced_positions(window, image.shape[1:], sums.taps)
                        sums.add(np.asarray(window.columns(image, positions), np.float32))
            except FloatingPointError as error:
                raise DataError(
                    f"tensor {tensor!r} holds {error} for a calibration sample; check the model and its preprocessing"
                ) from None

    def channels(self) -> dict[str, ChannelStatistics]:
        """Return the statistics of the channels of tensors that have channels."""
        return {name: tally.statistics() for name, tally in self._channels.items() if tally.images}

    def inputs(self) -> dict[str, InputCovariance]:
        """Return the covariance of the inputs of each Conv; those that share it have the same object."""
        seen = (sums for by_window in self._inputs.values() for sums in by_window.values() if sums.images)
        found = {id(sums): sums.covariance() for sums in seen}
        return {layer: found[id(sums)] for layer, sums in self._of_layers.items() if sums.images}


def _covariance_sums(im2col: Im2col) -> CovarianceSums:
    taps = math.prod(im2col.shape[2:])
    return CovarianceSums(im2col.group, im2col.inputs // taps, taps)


def _spaced_positions(im2col: Im2col, size: tuple[int, ...], taps: int) -> Positions:
    """Return evenly spaced output positions of a Conv, for an input of this height and width.

    Args:
        im2col: of the Conv.
        size: of its input.
        taps: kernel positions that are held apart from the channels.
    """
    height, width = im2col.output_size(size)
    counted = max(1, _POSITIONS // taps)
    return np.stack(np.divmod(np.arange(0, height * width, spacing(height * width, counted)), width))
