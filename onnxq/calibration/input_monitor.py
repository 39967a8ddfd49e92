"""Looks at the model's inputs while calibration samples are loaded."""

import math
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.feeds import Loader, Sample
from onnxq.facts import InputSummary, Probe
from onnxq.remote.address import Location
from onnxq.runtime.session import Feed
from onnxq.yolo.preprocess import Preprocess

PROBES = 2
"""Samples on which the quantized model is compared with the float model."""

_CHECKSUM_STRIDE = 61
"""Every n-th value of an image goes into the checksum that finds duplicates."""


_BLANK = 16.0
"""Levels, of 0 to 255, that an image must span to show something. A label map of twenty classes spans twenty."""

_GREY = 3.0
"""Levels by which the planes of a grey image may differ: JPEG and video round colours."""

_OTHER_RANGE = 0.02
"""Least and, by its reciprocal, greatest share of the model's range that data of this range spans."""

_COLOURS = _IMAGE_RANK = 3

_INTERLEAVED = 0.6
"""Ratio of the squared differences three values apart and one apart, below which neighbours are colours of a pixel.

Of 288 pictures of COCO it is 1.4 and more, of noise 1, and below 0.6 for 80 % of the same without their transpose.
"""

_LOOKED_AT = 100
"""Evenly spaced rows and columns of an image that are compared between its planes."""


class _State(msgspec.Struct):
    """Types of the attributes of an `InputMonitor` that was read from a file."""

    feeds: dict[int, None]
    checksums: list[int]
    low: float
    high: float
    spans: list[tuple[float, str]]
    grey: int
    interleaved: int


class InputMonitor:
    """Records the first samples and a summary of all of them. The loaders may run in several threads.

    A pickled copy lacks the feeds of the first samples, which are larger than all else, but knows their numbers.

    Args:
        preprocess: what the image input holds; None: nothing is known of it.
        sources: for each loader the files of its single samples.
    """

    def __init__(self, preprocess: Preprocess | None = None, sources: Sequence[Sequence[Location]] = ()) -> None:
        self._preprocess = preprocess
        self._sources = sources
        self._lock = threading.Lock()
        self._feeds: dict[int, Feed | None] = {}
        self._checksums: list[int] = []
        self._low = math.inf
        self._high = -math.inf
        self._spans: list[tuple[float, str]] = []
        self._grey = 0
        self._interleaved = 0

    def __getstate__(self) -> dict[str, Any]:
        own = {"_preprocess": None, "_sources": (), "_lock": None, "_feeds": dict.fromkeys(self._feeds)}
        return {**vars(self), **own}

    def watch(self, loaders: Iterable[Loader], first: int = 0) -> Iterator[Loader]:
        """Yield loaders that load the same samples and record them; each is to be called once.

        Args:
            loaders: of the samples.
            first: number of the first of them among all.
        """
        for step, loader in enumerate(loaders, first):
            yield partial(self._load, step, loader)

    def merge(self, other: "InputMonitor") -> None:
        """Add the samples of another monitor."""
        self._low, self._high = min(self._low, other._low), max(self._high, other._high)
        self._spans += other._spans
        self._grey += other._grey
        self._interleaved += other._interleaved
        self._checksums += other._checksums
        self._keep(other._feeds)

    def check(self) -> None:
        """Check a monitor that was read from a file.

        Raises:
            msgspec.ValidationError: an attribute is of another type.
        """
        msgspec.convert({name: getattr(self, f"_{name}") for name in _State.__struct_fields__}, _State)

    def probe(self, loaders: Iterable[Loader] = ()) -> Probe:
        """Return the first `PROBES` samples that could be read, in the order of the loaders.

        Args:
            loaders: of all samples; those whose feed is not there are read again.
        """
        absent = [step for step, feed in self._feeds.items() if feed is None]
        for step, loader in enumerate(islice(loaders, max(absent, default=-1) + 1)):
            if step in absent and (sample := loader()) is not None:
                self._feeds[step] = sample.feed
        kept = (self._feeds[step] for step in sorted(self._feeds))
        return Probe(tuple(feed for feed in kept if feed is not None))

    def summary(self) -> InputSummary:
        """Return the summary of the image input over all samples that could be read."""
        equal = Counter(self._checksums).most_common(1)
        blank = [file for span, file in self._spans if span < _BLANK / 255 * self._full_span()]
        return InputSummary(
            self._low,
            self._high,
            samples=len(self._checksums),
            distinct=len(set(self._checksums)),
            most_equal=equal[0][1] if equal else 0,
            blank=len(blank),
            blank_file=min(filter(None, blank), default=""),
            grey=self._grey,
            interleaved=self._interleaved,
        )

    def _full_span(self) -> float:
        """The distance from black to white: as the model takes it, or less if the data is of another range."""
        found = self._high - self._low
        if self._preprocess is None:
            return found
        low, high = self._preprocess.value_range
        return high - low if _OTHER_RANGE * (high - low) < found < (high - low) / _OTHER_RANGE else found

    def _load(self, step: int, loader: Loader) -> Sample | None:
        sample = loader()
        if sample is not None:
            images = next(iter(sample.feed.values()))[: sample.valid]
            contents = [self._content(image) for image in images]
            ends = [[(float(plane.min()), float(plane.max())) for plane in content] for content in contents]
            extremes = [(min(low for low, _ in planes), max(high for _, high in planes)) for planes in ends]
            spans = [max(high - low for low, high in planes) for planes in ends]
            sources = self._sources[step] if step < len(self._sources) else ()
            # Where one of a batch could not be read, the others cannot be told apart.
            files = list(map(str, sources)) if len(sources) == len(spans) else [""] * len(spans)
            checksums, grey = list(map(_checksum, images)), sum(map(self._is_grey, contents))
            interleaved = sum(map(self._is_interleaved, images))
            with self._lock:
                for low, high in extremes:
                    self._low, self._high = min(self._low, low), max(self._high, high)
                self._spans += zip(spans, files)
                self._grey += grey
                self._interleaved += interleaved
                self._checksums += checksums
                self._keep({step: sample.feed})
        return sample

    def _keep(self, feeds: Mapping[int, Feed | None]) -> None:
        """Keep the first of these feeds, by their steps, and of those that are kept."""
        self._feeds.update(feeds)
        for later in sorted(self._feeds)[PROBES:]:
            del self._feeds[later]

    def _content(self, image: NDArray[np.generic]) -> NDArray[np.generic]:
        """Cut off what surrounds an image in one colour.

        Args:
            image: (planes, height, width), or as the model takes it; arrays of other ranks are one plane as they are.

        Returns:
            (planes, ...).
        """
        if image.ndim != _IMAGE_RANK:
            return image[np.newaxis]
        planes_last = self._preprocess is not None and self._preprocess.channels_last
        planes = np.moveaxis(image, -1, 0) if planes_last else image
        for axis in (1, 2):
            first, last = _uniform_ends(planes, axis), _uniform_ends(np.flip(planes, axis), axis)
            length = planes.shape[axis]
            # Of an image in one colour and its padding at the end, the image is left.
            kept = slice(first, length - last) if first + last < length else slice(0, first)
            planes = planes[:, kept] if axis == 1 else planes[:, :, kept]
        return planes

    def _is_grey(self, planes: NDArray[np.generic]) -> bool:
        """Whether the three planes are nearly the same, once mean and deviation are undone."""
        if len(planes) != _COLOURS or planes.ndim != _IMAGE_RANK:
            return False
        rows, columns = (max(1, side // _LOOKED_AT) for side in planes.shape[1:])
        few = planes[:, ::rows, ::columns].astype(np.float64)
        if self._preprocess is not None:
            few = self._preprocess.undo(few)
        return bool(np.ptp(few, axis=0).max() <= _GREY / 255 * np.abs(few).max())

    def _is_interleaved(self, image: NDArray[np.generic]) -> bool:
        """Whether an image of three planes holds the three colours of a pixel side by side, as before a transpose."""
        planes_last = self._preprocess is not None and self._preprocess.channels_last
        if planes_last or image.ndim != _IMAGE_RANK or len(image) != _COLOURS:
            return False
        lines = image[:, :: max(1, image.shape[1] // _LOOKED_AT)].astype(np.float32)
        near, far = (
            float(np.square(lines[..., step:] - lines[..., :-step]).sum(dtype=np.float64)) for step in (1, _COLOURS)
        )
        return far < _INTERLEAVED * near


def _uniform_ends(planes: NDArray[np.generic], axis: int) -> int:
    """Return how many of the first rows (axis 1) or columns (axis 2) are of the colour of the first corner."""
    corner = planes[:, :1, :1]
    across = planes.swapaxes(1, axis)
    # Of most images the first lines differ within a few values.
    few = (across[:, :, ::_LOOKED_AT] == corner).all(axis=(0, 2))
    length = len(few) if few.all() else int(few.argmin())
    same = (across[:, :length] == corner).all(axis=(0, 2))
    return length if same.all() else int(same.argmin())


def _checksum(image: NDArray[np.generic]) -> int:
    return zlib.crc32(image.reshape(-1)[::_CHECKSUM_STRIDE].tobytes())
