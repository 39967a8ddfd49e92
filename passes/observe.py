"""observe: runs the calibration data through the float graph and collects statistics of its activations."""

import math
import threading
from collections.abc import Collection, Iterable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.input_monitor import InputMonitor
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import ChannelStatistics, InputSummary, Migration, Plan, Probe, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, ending_at, image_convs
from onnxq.numerics.arrays import Float32Array
from onnxq.numerics.exact_sum import ExactSum
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
"""Evenly spaced samples, or some more, on which the covariance of inputs is taken."""

_POSITIONS = 512
"""Evenly spaced positions of an image at which the inputs of a Conv are taken. If its covariance is held by channels
and taps, as many values of each channel are: fewer positions."""

_SAMPLED = 256
"""Evenly spaced values of a channel and image of which the variance is taken."""

_BLOCK = 1 << 17
"""Values of an image that are read at once, to stay in the cache."""


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
        layers = [model.nodes[name] for name in plan.layers]
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
        self._channels = {name: _ChannelTally() for name in [*counted, *joined]}
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
                        self.histograms[tensor].add(image, _spacing(image.size, _COUNTED), extremes)
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


class _ChannelTally:
    """Statistics of the channels of images; an image may be cut into a batch of its own.

    Attributes:
        images: their number.
    """

    def __init__(self) -> None:
        self.images = 0

    def add(self, image: Float32Array) -> tuple[float, float]:
        """Add an image, (channels, height, width), and return its least and greatest value.

        The image is read once: a few channels at a time, which stay in the cache.

        Raises:
            FloatingPointError: a value is NaN or infinite; nothing is added.
        """
        flat = image.reshape(len(image), -1)
        channels, size = flat.shape
        sums, peaks = np.empty(channels, np.float32), np.empty(channels, np.float32)
        pair_peaks = np.empty(channels // 2, np.float32)
        every = _spacing(size, _SAMPLED)
        sample = np.empty((channels, -(-size // every)))
        step = max(2, _BLOCK // size // 2 * 2)
        pairs = np.empty((step // 2, size), np.float32)
        low = np.inf
        with np.errstate(invalid="ignore", over="ignore"):
            for start in range(0, channels, step):
                block = flat[start : start + step]
                even = len(block) // 2 * 2
                added = np.add(block[0:even:2], block[1:even:2], out=pairs[: even // 2])
                added.max(axis=1, out=pair_peaks[start // 2 : (start + even) // 2])
                np.einsum("cp->c", block, out=sums[start : start + step])  # thrice as fast as np.sum
                block.max(axis=1, out=peaks[start : start + step])
                low = min(low, float(block.min()))
                sample[start : start + step] = block[:, ::every]
        high = float(peaks.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise FloatingPointError("NaN or infinite values")
        moments = np.empty((3, channels))
        moments[0] = sums / np.float32(size)
        moments[1], moments[2] = sample.sum(axis=1) / sample.shape[1], np.vecdot(sample, sample) / sample.shape[1]
        if not self.images:
            self._moments = ExactSum(moments.shape)
            self._peaks, self._pair_peaks = peaks, pair_peaks
        self._moments.add(moments)
        np.maximum(self._peaks, peaks, out=self._peaks)
        np.maximum(self._pair_peaks, pair_peaks, out=self._pair_peaks)
        self.images += 1
        return low, high

    def statistics(self) -> ChannelStatistics:
        """Return the statistics over all images."""
        means, sampled, squares = self._moments.total() / self.images
        variances = np.maximum(squares - sampled**2, 0.0)
        return ChannelStatistics(means, variances, self._peaks.astype(np.float64), self._pair_peaks.astype(np.float64))


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
    return np.stack(np.divmod(np.arange(0, height * width, _spacing(height * width, counted)), width))


@cache
def _spacing(values: int, counted: int) -> int:
    """Return n for which counting every n-th value counts about `counted` values.

    It is prime, so that the values counted are not in the same columns of every row.
    """
    spacing = max(1, values // counted)
    while any(spacing % factor == 0 for factor in range(2, math.isqrt(spacing) + 1)):
        spacing += 1
    return spacing
