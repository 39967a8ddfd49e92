"""observe: runs the calibration data through the float graph and collects statistics of its activations."""

import math
import threading
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.input_monitor import InputMonitor
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError
from onnxq.facts import ChannelStatistics, InputSummary, Plan, Probe, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, downstream, ending_at, is_layer
from onnxq.numerics.arrays import Float32Array, Float64Array
from onnxq.numerics.exact_sum import ExactSum
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.silu import SILU_FLAT_BELOW
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.channel_statistics import is_derived
from onnxq.reconstruction.im2col import Im2col
from onnxq.runtime.streaming import stream

_COUNTED = 1 << 14
"""Values of one tensor and sample that are counted; the minimum and maximum are those of all values."""

_IMAGE_RANK = 4

_MOST_PATCH_INPUTS = 1024
"""Inputs of a layer at one position up to which their covariance is kept."""

_PATCHES = 1024
"""Evenly spaced positions of an image at which the inputs of its first layers are taken."""


class Observe(Analysis[tuple[Statistics, Probe, InputSummary]]):
    """Collects a histogram of each tensor that the plan observes, and statistics of the channels of layer inputs.

    Of layers that read images, the covariance of their inputs is collected too. The graph ends at these tensors;
    onnxruntime optimizes it as usual. A sample is freed once it is counted, so memory does not grow with the number of
    samples, and the result does not depend on their order. The minimum and maximum are those of all values. In large
    tensors only evenly spaced values are counted: counting all of the many millions would take almost as long as
    running the network, and add little.

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
        layers = [model.nodes[name] for name in plan.layers]
        tally = _Tally(plan.observed(), layers, _image_layers(model, layers))
        if not tally.histograms:
            return Statistics({}, digest=digest), Probe(), InputSummary()
        if self._samples is None:
            raise DataError("there is no calibration data; give some, or statistics that were saved")
        steps, inputs = self._samples.steps, InputMonitor()
        count = stream(
            ending_at(model.to_proto(), tally.tensors),
            inputs.watch(self._samples.loaders),
            tally.count,
            lambda done: self._progress("calibrating", done, steps),
        )
        if count == 0:
            self._samples.require_any()
            raise DataError("the calibration data is empty; a generator or reader can be read only once")
        statistics = Statistics(tally.histograms, count, digest, tally.channels(), tally.patches())
        return statistics, inputs.probe(), inputs.summary()


class _Tally:
    """Accumulates the statistics of tensors; several threads may call it.

    Args:
        points: tensor whose values are counted -> its point.
        layers: the layers on integers.
        images: those of them that read images -> their matrix products.
    """

    def __init__(self, points: Mapping[str, QuantizationPoint], layers: Iterable[Node], images: Mapping[str, Im2col]):
        self.histograms = {
            name: Histogram(SILU_FLAT_BELOW if point.silu_input else -math.inf) for name, point in points.items()
        }
        # The input of a SiLU is not the input of a layer.
        counted = [name for name, point in points.items() if not point.silu_input]
        inputs = {layer.name: layer.inputs[0] for layer in layers}
        joined = [tensor.name for tensor in inputs.values() if not is_derived(tensor, counted)]
        self._channels = {name: _ChannelTally() for name in [*counted, *joined]}
        self._patches: dict[str, dict[str, _PatchTally]] = {}
        for layer, im2col in images.items():
            self._patches.setdefault(inputs[layer].name, {})[layer] = _PatchTally(im2col)
        self.tensors = list(dict.fromkeys([*self.histograms, *self._channels, *self._patches]))
        self._locks = {name: threading.Lock() for name in self.tensors}

    def count(self, tensor: str, values: NDArray[np.generic]) -> None:
        """Count the values of a tensor in one run."""
        floats = values.astype(np.float32, copy=False)
        with self._locks[tensor]:
            try:
                for sample in _samples_of(floats) if tensor in self.histograms else ():
                    self.histograms[tensor].add(sample, _spacing(sample.size))
            except FloatingPointError as error:
                raise DataError(
                    f"tensor {tensor!r} holds {error} for a calibration sample; check the model and its preprocessing"
                ) from None
            if floats.ndim == _IMAGE_RANK and floats.size:
                if tensor in self._channels:
                    self._channels[tensor].add(floats)
                for tally in self._patches.get(tensor, {}).values():
                    tally.add(floats)

    def channels(self) -> dict[str, ChannelStatistics]:
        """Return the statistics of the channels of tensors that have channels."""
        return {name: tally.statistics() for name, tally in self._channels.items() if tally.rows}

    def patches(self) -> dict[str, Float64Array]:
        """Return the covariance of the inputs of each layer that reads images."""
        tallies = {layer: tally for layers in self._patches.values() for layer, tally in layers.items()}
        return {layer: tally.covariance() for layer, tally in tallies.items() if tally.rows}


class _ChannelTally:
    """Sums over images, not samples: an image may be cut into a batch of its own.

    Attributes:
        rows: number of images.
    """

    def __init__(self) -> None:
        self.rows = 0

    def add(self, values: Float32Array) -> None:
        """Add images, (n, channels, height, width)."""
        flat = values.reshape(*values.shape[:2], -1)
        if not self.rows:
            self._sums, self._squares = ExactSum(flat.shape[1:2]), ExactSum(flat.shape[1:2])
            self._peaks = np.full(flat.shape[1], -np.inf, np.float32)
            self._pair_peaks = np.full(flat.shape[1] // 2, -np.inf, np.float32)
        for means, energies in zip(flat.mean(axis=2), np.vecdot(flat, flat) / flat.shape[2], strict=True):
            self._sums.add(means)
            self._squares.add(energies)
        even = flat.shape[1] // 2 * 2
        np.maximum(self._peaks, flat.max(axis=(0, 2)), out=self._peaks)
        np.maximum(self._pair_peaks, (flat[:, 0:even:2] + flat[:, 1:even:2]).max(axis=(0, 2)), out=self._pair_peaks)
        self.rows += len(values)

    def statistics(self) -> ChannelStatistics:
        """Return the statistics over all images."""
        means, energies = self._sums.total() / self.rows, self._squares.total() / self.rows
        return ChannelStatistics(means, energies, self._peaks.astype(np.float64), self._pair_peaks.astype(np.float64))


class _PatchTally:
    """Sums of the inputs of a layer at evenly spaced positions, and of their products.

    Attributes:
        rows: number of images.
    """

    def __init__(self, im2col: Im2col) -> None:
        self.rows = 0
        self._im2col = im2col
        self._sums, self._products = ExactSum((im2col.inputs,)), ExactSum((im2col.inputs, im2col.inputs))

    def add(self, values: Float32Array) -> None:
        """Add images, (n, channels, height, width)."""
        for image in values:
            height, width = self._im2col.output_size(image.shape[1:])
            every = _spacing(height * width, _PATCHES)
            positions = np.stack(np.divmod(np.arange(0, height * width, every), width))
            columns = np.asarray(self._im2col.columns(image, positions)[0], np.float64)
            self._sums.add(columns.mean(axis=1))
            self._products.add(columns @ columns.T / columns.shape[1])
            self.rows += 1

    def covariance(self) -> Float64Array:
        """Return the covariance over all images, (k, k)."""
        mean = self._sums.total() / self.rows
        return np.asarray(self._products.total() / self.rows - np.outer(mean, mean))


def _image_layers(model: Model, layers: Iterable[Node]) -> dict[str, Im2col]:
    """Return the Convs without groups that no other layer precedes, as matrix products."""
    found = {}
    behind = downstream(model.graph.nodes, is_layer)
    for layer in layers:
        im2col = Im2col.of(layer) if layer.op == "Conv" and layer.name not in behind else None
        if im2col is not None and im2col.group == 1 and im2col.inputs <= _MOST_PATCH_INPUTS:
            found[layer.name] = im2col
    return found


def _samples_of(values: NDArray[np.float32]) -> Iterable[NDArray[np.float32]]:
    """Return the samples of a run: images along the first axis, so that each counts as if it ran alone."""
    return values if values.ndim == _IMAGE_RANK else [values]


def _spacing(values: int, counted: int = _COUNTED) -> int:
    """Return n for which counting every n-th value counts about `counted` values.

    It is prime, so that the values counted are not in the same columns of every row.
    """
    spacing = max(1, values // counted)
    while any(spacing % factor == 0 for factor in range(2, math.isqrt(spacing) + 1)):
        spacing += 1
    return spacing
