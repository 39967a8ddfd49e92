"""Frames of videos, decoded one at a time by PyAV, which is only imported here and only if there is a video."""

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import DataError

_SECONDS_BACK = (0, 2, 20)
"""How far before the wanted frame a key frame is looked for; then decoding starts at the beginning."""


def frames_of(path: Path) -> list[Callable[[], NDArray[np.uint8]]]:
    """Return a loader of each frame of a video; each gives uint8 (height, width, 3), RGB, upright.

    A loader decodes from the key frame before its frame; it raises DataError if the video is broken there.

    Raises:
        DataError: PyAV is not installed, or the file is no video.
    """
    with _opened(path) as (_, stream):
        count = stream.frames or _estimate(stream) or sum(packet.size > 0 for packet in stream.container.demux(stream))
    if not count:
        raise DataError(f"{path}: has no frames; leave it out")
    return [partial(_frame, path, index, count) for index in range(count)]


def _estimate(stream: Any) -> int:
    """The number of frames by duration and rate; 0 if either is unknown."""
    rate = stream.average_rate
    return round(stream.duration * stream.time_base * rate) if stream.duration and rate else 0


def _frame(path: Path, index: int, count: int) -> NDArray[np.uint8]:
    """Decode the frame that is shown in the middle of the index-th of `count` equal parts of the duration."""
    with _opened(path) as (container, stream):
        shown = None
        for frame, is_later in _frames_from(container, stream, index, count):
            if shown is not None and is_later:
                break
            shown = frame
        if shown is None:
            raise DataError(f"{path}: frame {index + 1} of {count} cannot be decoded")
        turns = round(getattr(shown, "rotation", 0) / 90)
        return np.ascontiguousarray(np.rot90(shown.to_ndarray(format="rgb24"), turns))


def _frames_from(container: Any, stream: Any, index: int, count: int) -> Iterator[tuple[Any, bool]]:
    """Yield frames from a key frame before the wanted one, and whether each is shown after it.

    Seeking goes by the time of decoding, which is earlier than that of showing: it may end behind the wanted frame.
    """
    if not stream.duration:
        yield from ((frame, number > index) for number, frame in enumerate(container.decode(stream)))
        return
    place = (stream.start_time or 0) + stream.duration * (2 * index + 1) / (2 * count)
    for back in _SECONDS_BACK:
        container.seek(max(0, int(place - back / stream.time_base)), stream=stream)
        frames = (frame for frame in container.decode(stream) if frame.pts is not None)
        first = next(frames, None)
        if first is not None and first.pts <= place:
            break
    else:
        container.seek(0, stream=stream)
        frames, first = (frame for frame in container.decode(stream) if frame.pts is not None), None
    if first is not None:
        yield first, False
    yield from ((frame, frame.pts > place) for frame in frames)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    try:
        av = importlib.import_module("av")
    except ImportError:
        raise DataError(f"{path}: PyAV, which reads videos, is not installed; pip install 'onnxq[video]'") from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError(f"{path}: has no video stream; leave it out")
            yield container, container.streams.video[0]
    except DataError:
        raise
    except Exception as error:  # PyAV raises OSError, ValueError and more for broken files
        raise DataError(f"{path}: cannot be read as a video: {error}") from error
