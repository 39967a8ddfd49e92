"""What speaks against the calibration data: values, pictures, and what the first layer makes of them."""

import logging
import operator
import threading
import zlib
from bisect import bisect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibration.feeds import Loader, Sample
from onnxq.errors import ModelError
from onnxq.ir import ending_at
from onnxq.runtime.session import Feed, open_session, run
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN

log = logging.getLogger(__name__)

_LEAST_SHARE, _GREATEST_SHARE = 0.01, 1.5
"""Of the greatest value that a model takes, between which that of the data is: a factor of 255 lies far beyond."""

_LEAST_SPREAD, _GREATEST_SPREAD = 0.03, 25.0
"""Standard deviation of what the first layer gives, on average over its channels. Activations bend near 1, so trained
networks have it near there, 2.3 (YOLOv5n) or 2.9 (YOLOX-Nano); random ones have 0.2 to 0.3. A factor of 255 too much
makes 58 and more of it, and one too little 0.011 and less."""

_FEW = 4
"""Samples up to which it means nothing that some are equal."""

_THINNED = 61
"""Of a picture's values every so many tell it from others."""


@dataclass(frozen=True)
class _Look:
    low: float
    high: float
    digest: int


class InputMonitor:
    """Looks at each sample that is loaded, once, from whatever thread."""

    def __init__(self) -> None:
        self._looks: dict[tuple[int, int], _Look] = {}

    def look(self, step: int, images: NDArray[np.generic], valid: int) -> None:
        """Take note of a batch.

        Args:
            step: its number; looked at again it counts once.
            images: the image input, (batch, 3, height, width) or (batch, height, width, 3).
            valid: how many of them count.
        """
        for row, image in enumerate(images[:valid]):
            thinned = image.reshape(-1)[::_THINNED]
            self._looks[step, row] = _Look(float(image.min()), float(image.max()), zlib.crc32(thinned.tobytes()))

    def warnings(self, detector: Detector) -> Iterator[str]:
        """A sentence for each thing that is wrong with the samples, as far as they were looked at."""
        looks = list(self._looks.values())
        if not looks:
            return
        low, high = min(look.low for look in looks), max(look.high for look in looks)
        greatest = detector.preprocess.value_range[1]
        taken = f"this model ({detector.family}) takes values from 0 to {greatest:g}"
        if low == high:
            yield f"all values of the calibration data are {low:g}: nothing can be learnt from them"
        elif detector.family == UNKNOWN:
            pass
        elif low < -_LEAST_SHARE * greatest:
            yield (
                f"the calibration data goes down to {low:.3g}, and {taken}: leave mean and deviation out, or say with "
                "--preprocess what it takes"
            )
        elif not _LEAST_SHARE * greatest < high <= _GREATEST_SHARE * greatest:
            yield (
                f"the calibration data goes up to {high:.3g}, and {taken}: scale it by {greatest / high:.3g}, or say "
                "with --preprocess what it takes"
            )
        distinct = len({look.digest for look in looks})
        if len(looks) > _FEW and 2 * distinct <= len(looks):
            yield f"only {distinct} of {len(looks)} calibration samples differ: give more pictures, not the same again"


def check_first_layer(model: onnx.ModelProto, detector: Detector, feeds: Sequence[Feed]) -> Iterator[str]:
    """A sentence if the first layer on the image gives values that no trained network has.

    Nothing is said of a model that onnxruntime cannot run up to there, as one that computes in bfloat16.

    Args:
        model: the float model.
        detector: what it was taken for.
        feeds: a few samples.
    """
    conv = _first_conv(model.graph, detector.input_name)
    if conv is None or not feeds:
        return
    try:
        session = open_session(ending_at(model, conv.output), exact=True)
        spreads = [_spread(run(session, feed)[0]) for feed in feeds]
    except ModelError as error:
        log.info("the first layer cannot be looked at: %s", error)
        return
    spread = float(np.mean(spreads))
    if not _LEAST_SPREAD <= spread <= _GREATEST_SPREAD:
        layer, much = conv.name or conv.output[0], "little" if spread < _LEAST_SPREAD else "much"
        yield (
            f"the first layer, {layer!r}, gives values that deviate by {spread:.3g}, and those of trained "
            f"networks deviate by about 1: the input ({detector.preprocess.describe()}) may be scaled too {much}; "
            "see --preprocess"
        )


def _spread(values: NDArray[np.generic]) -> float:
    """The standard deviation of each channel of images, on average."""
    return float(values.astype(np.float64).std(axis=(0, 2, 3)).mean())


def _first_conv(graph: onnx.GraphProto, image: str) -> onnx.NodeProto | None:
    """Return the first Conv that the image comes to, or None."""
    made_of_image = {image}
    node: onnx.NodeProto
    for node in graph.node:
        if made_of_image.intersection(node.input):
            if node.op_type == "Conv" and node.input[0] in made_of_image:
                return node
            made_of_image.update(node.output)
    return None


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
            self.monitor.look(step, next(iter(sample.feed.values())), sample.valid)
            self._keep(step, sample.feed)
        return sample

    def _keep(self, step: int, feed: Feed) -> None:
        with self._lock:
            if step not in self._steps:
                place = bisect(self._steps, step)
                self._steps.insert(place, step)
                self.feeds.insert(place, feed)
                del self._steps[PROBES:], self.feeds[PROBES:]
