"""observe: runs the calibration data through the float graph and collects statistics of its activations."""

import logging
import math
import shlex
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibration.input_monitor import InputMonitor
from onnxq.calibration.kept_sums import KeptSums, key_of, require_type
from onnxq.calibration.samples import Samples
from onnxq.errors import DataError, OnnxqError
from onnxq.facts import InputSummary, Migration, Plan, Probe, QuantizationPoint, Statistics
from onnxq.ir import Model, Node, Tensor, ending_at, image_convs, producer
from onnxq.numerics.channel_statistics import ChannelStatistics, ChannelSums, spacing
from onnxq.numerics.exact_sum import ExactSum
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.input_covariance import BlockShape, CovarianceSums, InputCovariance
from onnxq.numerics.silu import SILU_FLAT_BELOW
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.qdq.channel_statistics import is_derived
from onnxq.reconstruction.im2col import Im2col, Positions
from onnxq.runtime.pool import IN_PROCESS, Finished, Pool
from onnxq.runtime.streaming import Sessions, stream

log = logging.getLogger(__name__)

_COUNTED = 1 << 14
"""Values of one tensor and sample that are counted; the minimum and maximum are those of all values."""

_IMAGE_RANK = 4

COVARIANCES = 32
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
        pool: where the samples run; the result does not depend on it.

    Raises:
        DataError: no sample could be read, or a tensor holds NaN or infinite values.
    """

    name = "observe"
    gives = (Statistics, Probe, InputSummary)
    needs = (Plan,)
    uses = (Migration,)

    def __init__(
        self,
        samples: Samples | None,
        progress: Progress = silent,
        *,
        every_conv: bool = False,
        pool: Pool = IN_PROCESS,
    ) -> None:
        self._samples = samples
        self._progress = progress
        self._every_conv = every_conv
        self._pool = pool

    def run(self, model: Model, facts: Facts) -> tuple[Statistics, Probe, InputSummary]:
        """Return the statistics, the first samples and the summary of the inputs."""
        plan, digest = facts[Plan], model.digest()
        migration = (facts.get(Migration) or Migration({})).scales
        layers = list(map(model.nodes.__getitem__, plan.layers))
        reading = image_convs(model.graph.nodes)
        images = [layer for layer in layers if layer.name in reading]
        windows = _windows(layer for layer in (layers if self._every_conv else images) if layer.op == "Conv")
        every = max(1, self._samples.steps // COVARIANCES) if self._samples else 1
        observed, tensors = plan.observed(), model.graph.tensors()
        remedies = {name: _remedy(tensors[name], point) for name, point in observed.items()}
        counted = _Counted.of(observed, layers, windows, {layer.inputs[0].name for layer in images}, every, remedies)
        if not counted.floors:
            return Statistics({}, digest=digest, migration=migration), Probe(), InputSummary()
        if self._samples is None:
            raise DataError("there is no calibration data; give some, or statistics that were saved")
        samples = self._samples.to_send() if self._pool.is_remote else self._samples
        sums = self._sums(ending_at(model.to_linked_proto(), counted.tensors()), samples, counted)
        if sums.samples == 0:
            samples.require_any()
            raise DataError("the calibration data is empty; a generator or reader can be read only once")
        channels, covariances = sums.channel_statistics(), sums.covariances(windows)
        statistics = Statistics(sums.histograms, sums.samples, digest, channels, covariances, migration, samples.images)
        return statistics, sums.inputs.probe(samples.loaders), sums.inputs.summary()

    def _sums(self, model: onnx.ModelProto, samples: Samples, counted: "_Counted") -> "_Sums":
        """Return the statistics of all samples, the sums of those of each chunk."""
        work = _Observing(Sessions(model, self._pool.cores), samples, counted)
        steps, total = samples.steps, _Sums(counted, InputMonitor(samples.preprocess))
        kept = self._kept(model, samples, counted)
        before = kept.load(partial(_check, counted, steps)) if kept else None
        if before is not None:
            log.info("%d of %d samples were finished before", before.finished(), steps)
            total.merge(before)
        first = total.finished()
        results = self._pool.run(
            work,
            self._chunks(total.done, steps),
            lambda done: self._progress("calibrating", first + done, steps),
            _Sums.merge,
        )
        try:
            for _, sums in results:
                if self._pool.is_remote or total.samples:
                    total.merge(sums)
                else:
                    total = sums  # of one chunk, as usual, they are not held twice
        except OnnxqError as error:
            if kept is None or not total.done:
                raise
            kept.save(total)
            told = f"{total.finished()} of {steps} samples are finished, and kept in {kept.path}: run the same again"
            raise type(error)(*error.args, told) from error
        if kept:
            kept.remove()
        samples.add_unreadable(total.unreadable)
        return total

    def _kept(self, model: onnx.ModelProto, samples: Samples, counted: "_Counted") -> KeptSums | None:
        """Return the file of finished samples; None if there is none, or nothing can tell what it belongs to."""
        key = key_of(model, samples, counted.text()) if self._pool.kept else None
        return KeptSums(self._pool.kept, key, _KEPT) if self._pool.kept and key else None

    def _chunks(self, done: Iterable[tuple[int, int]], steps: int) -> list[slice]:
        """Return chunks of the steps that are not done."""
        if not done:
            return self._pool.chunks(steps)
        return [
            slice(gap.start + chunk.start, gap.start + chunk.stop)
            for gap in _gaps(done, steps)
            for chunk in self._pool.chunks(gap.stop - gap.start)
        ]


def _windows(convs: Iterable[Node]) -> dict[str, tuple[str, Im2col]]:
    """Return Conv -> the tensor that it reads, and the window that its inputs are taken by."""
    found = {layer.name: (layer.inputs[0].name, Im2col.of(layer)) for layer in convs}
    return {name: (tensor, im2col.window()) for name, (tensor, im2col) in found.items() if im2col is not None}


def _remedy(tensor: Tensor, point: QuantizationPoint) -> str:
    """Return what else to do if the values of a tensor are not finite, as those of a mask with -inf."""
    maker = producer(tensor)
    if maker is None or not point.users:
        return ""
    exclude = shlex.join(["--exclude", *point.users])
    return f". If {maker.op} {maker.name!r} is meant to make infinite values, keep what reads them float: {exclude}"


def _gaps(done: Iterable[tuple[int, int]], steps: int) -> list[slice]:
    """Return the steps that are not among those that are done."""
    found, end = [], 0
    for start, stop in [*sorted(done), (steps, steps)]:
        if start > end:
            found.append(slice(end, start))
        end = max(end, stop)
    return found


def _check(counted: "_Counted", steps: int, sums: "_Sums") -> None:
    """Check that sums from a file can be those of some of the samples.

    Raises:
        Exception: they cannot.
    """
    require_type(sums.samples, int)
    require_type(sums.unreadable, dict[str, str])
    require_type(sums.done, list[tuple[int, int]])
    ranges = sorted(sums.done)
    ends = [0, *(place for each in ranges for place in each), steps]
    if ends != sorted(ends):
        raise ValueError("samples come twice")
    for each in sums.histograms.values():
        Histogram.of(each.counts, each.exponent, each.start, each.low, each.high, each.floor)
    sums.inputs.check()
    total = _Sums(counted, InputMonitor())
    total.merge(sums)
    total.channel_statistics()
    total.covariances({})


@dataclass(frozen=True)
class _Counted:
    """What is counted of which tensors.

    Attributes:
        floors: tensor whose values are counted -> values below this count as this.
        channels: tensors of whose channels statistics are taken.
        windows: tensor -> windows of which the covariance is taken.
        images: tensors of which it is taken in every run.
        every: of others it is taken in every n-th run.
        remedies: tensor -> what else to do if its values are not finite, to follow a text.
    """

    floors: Mapping[str, float]
    channels: Collection[str]
    windows: Mapping[str, Collection[Im2col]]
    images: Collection[str]
    every: int
    remedies: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        points: Mapping[str, QuantizationPoint],
        layers: Iterable[Node],
        windows: Mapping[str, tuple[str, Im2col]],
        images: Collection[str],
        every: int,
        remedies: Mapping[str, str],
    ) -> "_Counted":
        """Return what is counted for these points and layers.

        Args:
            points: tensor whose values are counted -> its point.
            layers: the layers on integers.
            windows: Conv -> the tensor that it reads, and the window.
            images: as in the attributes.
            every: as in the attributes.
            remedies: as in the attributes.
        """
        # The input of a SiLU is not the input of a layer.
        counted = [name for name, point in points.items() if not point.silu_input]
        inputs = [layer.inputs[0] for layer in layers]
        joined = [tensor.name for tensor in inputs if not is_derived(tensor, counted)]
        by_tensor: dict[str, dict[Im2col, None]] = {}
        for tensor, window in windows.values():
            by_tensor.setdefault(tensor, {})[window] = None
        return cls(
            {name: SILU_FLAT_BELOW if point.silu_input else -math.inf for name, point in points.items()},
            tuple(dict.fromkeys([*counted, *joined])),
            {tensor: tuple(found) for tensor, found in by_tensor.items()},
            frozenset(images),
            every,
            remedies,
        )

    def text(self) -> str:
        """Return it as text, which is the same in every process."""
        return repr((sorted(self.floors.items()), self.channels, self.windows, sorted(self.images), self.every))

    def tensors(self) -> list[str]:
        """Return the tensors at which the graph ends."""
        return list(dict.fromkeys([*self.floors, *self.channels, *self.windows]))


class _Observing:
    """Observes a chunk of the samples; the sessions are kept for the next one.

    Args:
        sessions: of the graph that ends at the tensors.
        samples: all of them.
        counted: what is counted.
    """

    def __init__(self, sessions: Sessions, samples: Samples, counted: _Counted) -> None:
        self._sessions = sessions
        self._samples = samples
        self._counted = counted

    def __call__(self, chunk: slice, finished: Finished) -> "_Sums":
        """Return the statistics of the samples of a chunk."""
        first = chunk.start or 0
        sums = _Sums(self._counted, InputMonitor(self._samples.preprocess, self._samples.sources))
        locks = {name: threading.Lock() for name in self._counted.tensors()}

        def count(number: int, tensor: str, values: NDArray[np.generic]) -> None:
            with locks[tensor]:
                sums.count(first + number, tensor, values)

        watched = sums.inputs.watch(self._samples.part(chunk), first)
        sums.samples = stream(self._sessions, watched, count, finished)
        sums.unreadable.update(self._samples.unreadable)
        sums.done = [(first, chunk.stop)] if chunk.stop else []
        return sums


class _Sums:
    """The statistics of some samples, which those of others can be added to.

    Attributes:
        samples: their number.
        histograms: tensor -> histogram of its values.
        inputs: first samples, and the summary of the model's inputs.
        unreadable: file -> why it could not be read.
        done: first and last step, and one, of the chunks; empty if all steps were one chunk.

    Args:
        counted: what is counted.
        inputs: without samples yet.
    """

    def __init__(self, counted: _Counted, inputs: InputMonitor) -> None:
        self.samples = 0
        self.inputs = inputs
        self.unreadable: dict[str, str] = {}
        self.done: list[tuple[int, int]] = []
        self.histograms = {name: Histogram(floor) for name, floor in counted.floors.items()}
        self._channels = {name: ChannelSums() for name in counted.channels}
        # Few chunks have samples on which a covariance is taken; of the others none is sent.
        self._covariances: dict[str, dict[Im2col, CovarianceSums]] = {tensor: {} for tensor in counted.windows}
        self._counted = counted

    def count(self, step: int, tensor: str, values: NDArray[np.generic]) -> None:
        """Count the values of a tensor in the run of this number; one thread at a time for each tensor."""
        floats = values.astype(np.float32, copy=False)
        has_channels = floats.ndim == _IMAGE_RANK and floats.size > 0
        images = floats if has_channels else floats[None]
        channels = self._channels.get(tensor) if has_channels else None
        is_taken = has_channels and (tensor in self._counted.images or step % self._counted.every == 0)
        windows = self._counted.windows.get(tensor, ()) if is_taken else ()
        try:
            for image in images:
                extremes = channels.add(image) if channels else None
                if tensor in self.histograms:
                    self.histograms[tensor].add(image, spacing(image.shape, _COUNTED), extremes)
                for window in windows:
                    sums = self._covariance(tensor, window)
                    positions = _spaced_positions(window, image.shape[1:], sums.taps)
                    sums.add(np.asarray(window.columns(image, positions), np.float32))
        except FloatingPointError as error:
            raise DataError(
                f"tensor {tensor!r} holds {error} for a calibration sample; check the model and its preprocessing"
                f"{self._counted.remedies.get(tensor, '')}"
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_counted": None}

    def finished(self) -> int:
        """Return the number of steps of the chunks."""
        return sum(stop - start for start, stop in self.done)

    def merge(self, other: "_Sums") -> None:
        """Add the statistics of other samples."""
        self.samples += other.samples
        self.inputs.merge(other.inputs)
        self.unreadable.update(other.unreadable)
        self.done += other.done
        for name, histogram in other.histograms.items():
            self.histograms[name].merge(histogram)
        for name, channels in other._channels.items():
            self._channels[name].merge(channels)
        for tensor, by_window in other._covariances.items():
            for window, sums in by_window.items():
                self._covariance(tensor, window).merge(sums)

    def _covariance(self, tensor: str, window: Im2col) -> CovarianceSums:
        """Return the sums of a window, which are made when they are first needed."""
        by_window = self._covariances[tensor]
        if window not in by_window:
            by_window[window] = _covariance_sums(window)
        return by_window[window]

    def channel_statistics(self) -> dict[str, ChannelStatistics]:
        """Return the statistics of the channels of tensors that have channels."""
        return {name: sums.statistics() for name, sums in self._channels.items() if sums.images}

    def covariances(self, windows: Mapping[str, tuple[str, Im2col]]) -> dict[str, InputCovariance]:
        """Return the covariance of the inputs of each Conv; those that share it have the same object.

        Args:
            windows: Conv -> the tensor that it reads, and the window.
        """
        found = {
            (tensor, window): sums.covariance()
            for tensor, by_window in self._covariances.items()
            for window, sums in by_window.items()
        }
        return {layer: found[key] for layer, key in windows.items() if key in found}


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
    return np.stack(np.divmod(np.arange(0, height * width, spacing((height, width), counted)), width))


_KEPT = (_Sums, InputMonitor, Histogram, ChannelSums, ExactSum, CovarianceSums, BlockShape, Im2col)
"""What sums consist of."""
