"""Confirms on calibration samples how the outputs of a model are read."""

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import onnx

from onnxq.calibration.dead_leaves import dead_leaves_image
from onnxq.calibration.samples import Samples
from onnxq.errors import ModelError
from onnxq.runtime.session import Feed, open_session, run
from onnxq.yolo.confirm_outputs import UnclearOutputsError, confirm, unread
from onnxq.yolo.detector import Detector
from onnxq.yolo.evidence import Look
from onnxq.yolo.looks import MOST_LOOKS, chosen, look

log = logging.getLogger(__name__)


def confirm_on_samples(
    model: onnx.ModelProto, detector: Detector, samples: Samples | None
) -> tuple[Detector, tuple[str, ...]]:
    """Return the detector with the layout that a few runs show, and warnings.

    Quantization needs no layout: if none is clear, the family of the result is "unknown", and a warning says what to
    give. A model that onnxruntime cannot run is not checked.

    Args:
        model: the float model.
        detector: as `detect` recognized it.
        samples: calibration data; a source that can be read only once is left alone, and painted scenes are used.
    """
    names = [output.name for output in model.graph.output]
    feeds = _feeds(detector, samples)

    session = cache(lambda: open_session(model, exact=True, resting=True))  # some models need no look

    def look_at(numbers: Sequence[int]) -> Iterator[Look]:
        for number in numbers:
            feed = feeds(number)
            if feed is not None:
                yield look(lambda each: dict(zip(names, run(session(), each), strict=True)), detector, feed, number)

    try:
        return confirm(model, detector, lambda numbers: list(look_at(numbers))), ()
    except UnclearOutputsError as error:
        return unread(detector, "how its outputs are read is not clear"), (str(error),)
    except ModelError as error:
        log.info("the outputs cannot be checked: %s", error)
        return detector, ()


def _feeds(detector: Detector, samples: Samples | None) -> Callable[[int], Feed | None]:
    """Return a function that returns the feed of a look, or None if it cannot be read."""
    loaders = samples.loaders if samples is not None and isinstance(samples.loaders, Sequence) else ()
    places = chosen(len(loaders))

    def load(number: int) -> Feed | None:
        sample = loaders[places[number]]()
        return None if sample is None else sample.feed

    def paint(number: int) -> Feed:
        array, _ = detector.preprocess(dead_leaves_image(number % MOST_LOOKS, detector.size), detector.size)
        return detector.feed(array)

    return load if loaders else paint
