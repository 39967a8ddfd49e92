"""Sanity checks of calibration data: range of values, duplicates, and the output of the first layer."""

import logging
import operator
import threading
import zlib
from bisect import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibration.feeds import Loader, Sample
from onnxq.errors import ModelError
from onnxq.ir import names_read
from onnxq.runtime.session import Feed, open_session, run
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN

log = logging.getLogger(__name__)

_LEAST_SHARE, _GREATEST_SHARE = 0.01, 1.5
"""Bounds of the data's greatest value, as a fraction of the greatest that the model takes. A wrong factor of 255 is far
outside."""

_LEAST_SPREAD, _GREATEST_SPREAD = 0.03, 25.0
"""Bounds of the standard deviation of the first layer's output, mean over its channels. Activation functions bend near
1, so trained networks are near there: 2.3 (YOLOv5n), 2.9 (YOLOX-Nano); random weights give 0.2 to 0.3. A factor of 255
too much gives 58 and more, one too little 0.011 and less."""

_FEW = 4
"""Number of samples up to which equal ones are no reason for a warning."""

_THINNED = 61
"""Every n-th value of an image goes into the checksum that finds duplicates."""


@dataclass(frozen=True)
class _Summary:
    """Least and greatest value of an image, and a checksum of its values."""

    low: float
    high: float
    checksum: int


class InputMonitor:
    """Collects what the checks need of each sample that is loaded; several threads may call it."""

    def __init__(self) -> None:
        self._summaries: dict[tuple[int, int], _Summary] = {}

    def add(self, step: int, images: NDArray[np.generic], valid: int) -> None:
        """Add a batch.

        Args:
            step: its number; a batch that is added again counts once.
            images: the image input, (batch, 3, height, width) or (batch, height, width, 3).
            valid: number of real images in the batch.
        """
        for row, image in enumerate(images[:valid]):
            thinned = image.reshape(-1)[::_THINNED]
            checksum = zlib.crc32(thinned.tobytes())
            self._summaries[step, row] = _Summary(float(image.min()), float(image.max()), checksum)

    def warnings(self, detector: Detector) -> Iterator[str]:
        """Yield a sentence for each fault of the samples that were added.

        Args:
            detector: what the model takes.
        """
        summaries = list(self._summaries.values())
        if not summaries:
            return
        low, high = min(each.low for each in summaries), max(each.high for each in summaries)
        greatest = detector.preprocess.value_range[1]
        taken = f"this model ({detector.family}) takes values from 0 to {greatest:g}"
        if low == high:
            yield f"all values of the calibration data are {low:g}: ranges cannot be fitted to them"
        elif detector.family == UNKNOWN:
            pass
        elif low < -_LEAST_SHARE * greatest:
            yield (
                f"the calibration data goes down to {low:.3g}, and {taken}: do not subtract a mean, or give "
                "--preprocess"
            )
        elif not _LEAST_SHARE * greatest < high <= _GREATEST_SHARE * greatest:
            yield (
                f"the calibration data goes up to {high:.3g}, and {taken}: scale it by {greatest / high:.3g}, or give "
                "--preprocess"
            )
        distinct = len({each.checksum for each in summaries})
        if len(summaries) > _FEW and 2 * distinct <= len(summaries):
            yield f"only {distinct} of {len(summaries)} calibration samples differ: give more images, not copies"


def check_first_layer(model: onnx.ModelProto, detector: Detector, feeds: Sequence[Feed]) -> Iterator[str]:
    """Yield a sentence if the first layer on the image gives values that no trained network gives.

    A model whose first layer onnxruntime cannot run, such as one in bfloat16, is not checked.

    Args:
        model: the float model.
        detector: what the model takes.
        feeds: a few samples.
    """
    piece = _up_to_first_conv(model, detector.input_name)
    if piece is None or not feeds:
        return
    read = {value.name for value in piece.graph.input}
    try:
        session = open_session(piece, exact=True)
        spreads = [_spread(run(session, {k: v for k, v in feed.items() if k in read})[0]) for feed in feeds]
    except ModelError as error:
        log.info("the first layer cannot be checked: %s", error)
        return
    spread = float(np.mean(spreads))
    if not _LEAST_SPREAD <= spread <= _GREATEST_SPREAD:
        much = "little" if spread < _LEAST_SPREAD else "much"
        yield (
            f"the first layer, {piece.graph.name!r}, gives values that deviate by {spread:.3g}, and those of trained "
            f"networks deviate by about 1: the input ({detector.preprocess.describe()}) may be scaled too {much}; "
            "see --preprocess"
        )


def _spread(values: NDArray[np.generic]) -> float:
    """Standard deviation per channel of images, mean over the channels."""
    return float(values.astype(np.float64).std(axis=(0, 2, 3)).mean())


def _up_to_first_conv(model: onnx.ModelProto, image: str) -> onnx.ModelProto | None:
    """The model up to the first Conv on the image, named after it; None if there is no Conv."""
    made_of_image = {image}
    makers: dict[str, onnx.NodeProto] = {}
    for node in model.graph.node:
        makers.update(dict.fromkeys(node.output, node))
        if made_of_image.intersection(node.input):
            if node.op_type == "Conv" and node.input[0] in made_of_image:
                return _ending_with(model, node, makers)
            made_of_image.update(node.output)
    return None


def _ending_with(model: onnx.ModelProto, last: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> onnx.ModelProto:
    needed = {id(last): last}
    pending, read = [last], set()
    while pending:
        for name in names_read(pending.pop()):
            read.add(name)
            if name in makers and id(makers[name]) not in needed:
                needed[id(makers[name])] = makers[name]
                pending.append(makers[name])
    graph = onnx.helper.make_graph(
        [node for node in model.graph.node if id(node) in needed],
        last.name or last.output[0],
        [value for value in model.graph.input if value.name in read],
        [onnx.ValueInfoProto(name=last.output[0])],
        [weight for weight in model.graph.initializer if weight.name in read],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


PROBES = 2
"""Samples on which the result is compared with the float model."""


@dataclass(frozen=True)
class MonitoredLoaders:
    """Loaders whose samples are looked at, and of which the first few leave their feed behind, to compare models on.

    Attributes:
        loaders: called from several threads.
        feeds: of the first samples that can be read, in their order.
        monitor: looks at all.
    """

    loaders: Iterable[Loader]
    feeds: list[Feed]
    monitor: InputMonitor
    _steps: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __iter__(self) -> Iterator[Loader]:
        for step, loader in enumerate(self.loaders):
            yield partial(self._load, step, loader)

    def __length_hint__(self) -> int:
        return operator.length_hint(self.loaders)

    def _load(self, step: int, loader: Loader) -> Sample | None:
        sample = loader()
        if sample is not None:
            self.monitor.add(step, next(iter(sample.feed.values())), sample.valid)
            self._keep(step, sample.feed)
        return sample

    def _keep(self, step: int, feed: Feed) -> None:
        with self._lock:
            if step not in self._steps:
                place = bisect(self._steps, step)
                self._steps.insert(place, step)
                self.feeds.insert(place, feed)
                del self._steps[PROBES:], self.feeds[PROBES:]
