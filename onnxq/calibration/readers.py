"""Readers of calibration data: iterables, image files and array files."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from onnxq._text import plural, some
from onnxq.calibration.array_files import is_archive, load_arrays, map_array, read_headers, require_memory
from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.calibration.feeds import ArrayHeader, Loader, ModelInputs
from onnxq.calibration.find_files import ARRAYS, VIDEOS
from onnxq.calibration.video import frames_of
from onnxq.errors import DataError
from onnxq.facts import PreparedImages
from onnxq.remote.address import Address, Location
from onnxq.runtime.session import Feed
from onnxq.yolo.inputs.image_files import ImageReader
from onnxq.yolo.preprocess import Preprocess

log = logging.getLogger(__name__)


class FeedReader(Protocol):
    """A CalibrationDataReader of onnxruntime."""

    def get_next(self) -> Any:
        """Return the next feed, or None at the end."""


@dataclass(frozen=True)
class FeedStream:
    """Loaders for the feeds of an iterable or a reader; each feed is drawn only when its loader is requested.

    Attributes:
        inputs: the inputs of the model.
        source: an iterable of feeds or of bare arrays, one of these, or a reader with `get_next`.
    """

    inputs: ModelInputs
    source: Any

    @property
    def is_read_once(self) -> bool:
        """Whether the source gives its feeds once only: a reader, a generator or another iterator."""
        return hasattr(self.source, "get_next") or isinstance(self.source, Iterator)

    def __length_hint__(self) -> int:
        """Return the number of loaders; 0 if it is not known before the end, as of a generator, or a feed is wrong."""
        if not (isinstance(self.source, list | tuple | Mapping) or hasattr(self.source, "__array__")):
            return 0
        with contextlib.suppress(DataError):  # told when its turn comes
            samples = sum(self.inputs.check("", self.inputs.feed("", item)) for item in self._items())
            return -(-samples // self.inputs.batch)
        return 0

    def __iter__(self) -> Iterator[Loader]:
        inputs = self.inputs
        pending: list[Feed] = []
        number = 0
        for number, item in enumerate(self._items(), 1):
            where = f"item {number} of the data"
            arrays = inputs.feed(where, item)
            for index in range(inputs.check(where, arrays)):
                pending.append(inputs.row(where, arrays, index))
                if len(pending) == inputs.batch:
                    yield partial(inputs.join, pending)
                    pending = []
        if pending:
            yield partial(inputs.join, pending)
        if number == 0:
            kind = type(self.source).__name__
            raise DataError(f"the {kind} gave no samples; a generator or reader can be read once only, give a new one")

    def _items(self) -> Iterator[object]:
        if hasattr(self.source, "get_next"):
            while (item := self.source.get_next()) is not None:
                yield item
        elif isinstance(self.source, Mapping) or hasattr(self.source, "__array__"):
            yield self.source
        else:
            yield from self.source


class FileReader:
    """Loads single samples from files; several threads may call it.

    Attributes:
        inputs: the inputs of the model.
        unreadable: file -> reason, for the images and frames that could not be read so far.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        size: tuple[int, int],
        preprocess: Preprocess,
        companions: Mapping[str, Sequence[float]],
    ) -> None:
        self.inputs = inputs
        self._companions = {name: np.array([pair], inputs.specs[name][1]) for name, pair in companions.items()}
        self.unreadable: dict[str, str] = {}
        self._size = size
        self._preprocess = preprocess
        self._read_image = ImageReader(())
        self._lock = threading.Lock()
        self._archive: tuple[Path, Feed] | None = None
        self._unused: dict[Path, list[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_archive": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def prepared(self) -> PreparedImages:
        """Return how images are prepared."""
        return PreparedImages(self._preprocess.name, self._size)

    def choose(self, files: Iterable[Location]) -> None:
        """Take these image files for the data set, whose levels decide how deep pictures are scaled."""
        self._read_image = ImageReader(files)

    def check_images(self, what: str) -> None:
        """Check that images fit the model.

        Args:
            what: the images, for messages.

        Raises:
            DataError: the model needs more than an image, or takes no image of this size.
        """
        if self.inputs.specs.keys() - {self.inputs.image_input, *self._companions}:
            names = ", ".join(self.inputs.names())
            raise DataError(f"{what} can feed one input only, the model has {names}; give .npz files or an iterable")
        image = ArrayHeader(self._preprocess.shape(self._size), self._preprocess.dtype)
        self.inputs.check(what, {self.inputs.image_input: image, **self._companions})

    def open(self, file: Location) -> Sequence[Callable[[], Feed | None]]:
        """Return loaders of the samples in a file; only the header of an array file is read.

        Raises:
            DataError: the file has no arrays, arrays that do not fit the model, or more than fit into memory.
        """
        if isinstance(file, Address) or not (is_video(file) or is_array(file)):
            self.check_images("images")
            return [partial(self.decoded, str(file), partial(self._read, file))]
        if is_video(file):
            self.check_images("videos")
            frames = enumerate(frames_of(file), start=1)
            return [partial(self.decoded, f"{file}, frame {number}", load) for number, load in frames]
        held = read_headers(file, self.inputs.image_input)
        headers = self.inputs.choose(str(file), held)
        if len(headers) < len(held):
            self._unused[file] = [name for name in held if name not in headers]
        if is_archive(file):
            require_memory(file, headers.values())
        return _Rows(self, file, self.inputs.check(str(file), headers))

    def warn_of_unused(self) -> None:
        """Warn once of the arrays, in all files opened since the last call, that no input of the model takes."""
        if not self._unused:
            return
        first, *others = self._unused
        files = f"{first} and {len(others)} more file{plural(len(others))}" if others else str(first)
        names = some(list(dict.fromkeys(name for names in self._unused.values() for name in names)))
        inputs = ", ".join(self.inputs.names())
        log.warning(
            "%s: %s not used, because the model's inputs are %s; check the names of the arrays", files, names, inputs
        )
        self._unused.clear()

    def decoded(self, where: str, load: Callable[[], NDArray[np.uint8]]) -> Feed | None:
        """Load an image or a frame; return None and note it in `unreadable` if it cannot be read."""
        try:
            image = load()
        except DataError as error:
            if where not in self.unreadable:
                log.warning("skipped %s", error)
            self.unreadable[where] = str(error)
            return None
        return self._feed(where, image)

    def _read(self, file: Location) -> NDArray[np.uint8]:
        return self._read_image(file)

    def synthetic(self, images: SyntheticImages, index: int) -> Feed:
        """Paint the synthetic image of an index."""
        return self._feed(f"{images.noun} {index}", images.paint(index))

    def row(self, file: Path, index: int) -> Feed:
        """Load one sample of an array file."""
        return self.inputs.row(f"{file}, sample {index}", self._arrays(file), index)

    def _feed(self, where: str, image: NDArray[np.uint8]) -> Feed:
        array, _ = self._preprocess(image, self._size)
        return self.inputs.row(where, {self.inputs.image_input: array, **self._companions}, 0)

    def _arrays(self, file: Path) -> Feed:
        """The arrays of a file by input. The last archive is cached: its samples are loaded one after the other."""
        if not is_archive(file):
            return {self.inputs.image_input: map_array(file)}
        with self._lock:
            if self._archive is None or self._archive[0] != file:
                self._archive = None
                names = self.inputs.choose(str(file), {name: name for name in read_headers(file)})
                self._archive = file, load_arrays(file, names)
            return self._archive[1]


def is_array(file: Location) -> bool:
    """Return whether a file holds arrays, by its suffix."""
    return file.suffix.lower() in ARRAYS


def is_video(file: Location) -> bool:
    """Return whether a file is a video, by its suffix."""
    return file.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class _Rows(Sequence[Callable[[], "Feed | None"]]):
    """Loaders of the samples of an array file, made on demand: a short header may state any number of them."""

    reader: FileReader
    file: Path
    length: int

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Callable[[], Feed | None]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Callable[[], Feed | None]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        numbers = range(self.length)[index]
        if isinstance(numbers, range):
            return [self[number] for number in numbers]
        return partial(self.reader.row, self.file, numbers)
