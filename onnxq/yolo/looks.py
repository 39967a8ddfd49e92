"""A few runs on parts of pictures, whose outputs show what their columns hold."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.runtime.session import Feed
from onnxq.yolo.detections import Outputs
from onnxq.yolo.detector import Detector
from onnxq.yolo.evidence import Look
from onnxq.yolo.preprocess import PADDING, Preprocess

LOOKS = 4
"""Number of runs; a multiple of the halves."""

MOST_LOOKS = 12
"""Number of runs if fewer show no object."""

Region = tuple[float, float, float, float]
"""Left, top, right, bottom, px of the input."""

Run = Callable[[Feed], Outputs]
"""Runs a model on a feed, and returns its outputs by name."""


def look(run: Run, detector: Detector, feed: Feed, number: int, content: Region | None = None) -> Look:
    """Run a model on one half of a picture; the other half is grey.

    Halves to the left, at the top, to the right and at the bottom tell x from y, and corners from centres: what is
    detected lies in the half.

    Args:
        run: runs the model.
        detector: describes its input.
        feed: all inputs; the images as `detector.preprocess` makes them, (batch, ...).
        number: number of the look, which chooses the half.
        content: where the picture is on the input; None: everywhere.
    """
    height, width = detector.size
    half = _half(number, width, height)
    images = _grey_outside(np.asarray(feed[detector.input_name]), half, detector.preprocess)
    left, top, right, bottom = content or (0, 0, width, height)
    region = max(left, half[0]), max(top, half[1]), min(right, half[2]), min(bottom, half[3])
    return Look(run({**feed, detector.input_name: images}), region)


def chosen(count: int) -> Sequence[int]:
    """Return which of `count` pictures the looks are on, evenly spaced; a picture may come again for another half."""
    # The first few are spread over all, and each later one lies between them.
    places = [(2 * number + 1) / (2 * LOOKS) for number in range(LOOKS)]
    places += [(place + step / MOST_LOOKS) % 1 for step in (1, 2) for place in places]
    return [int(place * count) for place in places] if count else []


def _half(number: int, width: int, height: int) -> tuple[int, int, int, int]:
    halves = (
        (0, 0, width // 2, height),
        (0, 0, width, height // 2),
        (width // 2, 0, width, height),
        (0, height // 2, width, height),
    )
    # A picture that comes again, LOOKS or a multiple later, shows another half.
    return halves[(number + number // LOOKS) % len(halves)]


def _grey_outside(images: NDArray[Any], half: tuple[int, int, int, int], preprocess: Preprocess) -> NDArray[Any]:
    left, top, right, bottom = half
    canvas = np.empty_like(images)
    canvas[:] = preprocess.plain(PADDING)
    part = (slice(top, bottom), slice(left, right))
    place = (slice(None), *part) if preprocess.channels_last else (slice(None), slice(None), *part)
    canvas[place] = images[place]
    return canvas
