"""Readers of calibration data: iterables, images and array files."""

import logging
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.lib.format import open_memmap, read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import NDArray

from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.calibration.feeds import ArrayHeader, Feed, Loader, ModelInputs
from onnxq.calibration.find_files import ARRAYS
from onnxq.errors import DataError
from onnxq.yolo.preprocess import Preprocess, read_image

log = logging.getLogger(__name__)


class FeedReader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Any:
        """Give the next feed, or None at the end."""


# --- iterables and readers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeedStream:
    """Loaders of the feeds of an iterable or a reader, which is drawn from only when the next loader is asked for."""

    model: ModelInputs
    source: Any

    def __iter__(self) -> Iterator[Loader]:
        model = self.model
        pending: list[Feed] = []
        number = 0
        for number, item in enumerate(self._items(), 1):
            where = f"item {number} of the data"
            arrays = model.feed(where, item)
            for index in range(model.check(where, arrays)):
                pending.append(model.row(where, arrays, index))
                if len(pending) == model.batch:
                    yield partial(model.join, pending)
                    pending = []
        if pending:
            yield partial(model.join, pending)
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


# --- files ------------------------------------------------------------------------------------------------------------


class FileReader:
    """Loads single samples from files, and notes the images that cannot be read. Safe to use from several threads."""

    def __init__(
        self,
        model: ModelInputs,
        size: tuple[int, int],
        preprocess: Preprocess,
        companions: Mapping[str, Sequence[float]],
    ) -> None:
        self.model = model
        self._companions = {name: np.array([values], np.float32) for name, values in companions.items()}
        self.unreadable: dict[str, str] = {}
        self._size = size
        self._preprocess = preprocess
        self._lock = threading.Lock()
        self._archive: tuple[Path, Feed] | None = None

    def check_images(self, what: str) -> None:
        """Refuse images where the model takes more than an image, or no image of this size."""
        if self.model.inputs.keys() - {self.model.image_input, *self._companions}:
            names = ", ".join(self.model.names())
            raise DataError(f"{what} can feed one input only, the model has {names}; give .npz files or an iterable")
        image = ArrayHeader(self._preprocess.shape(self._size), self._preprocess.dtype)
        self.model.check(what, {self.model.image_input: image, **self._companions})

    def open(self, file: Path) -> list[Callable[[], Feed | None]]:
        """Loaders of the samples in a file; of an array only the header is read."""
        if not is_array(file):
            self.check_images("images")
            return [partial(self.image, file)]
        headers = self.model.choose(str(file), self._headers(file))
        return [partial(self.row, file, index) for index in range(self.model.check(str(file), headers))]

    def image(self, file: Path) -> Feed | None:
        """Load an image; None and an entry in `unreadable` if it cannot be read."""
        try:
            image = read_image(file)
        except DataError as error:
            log.warning("skipped %s", error)
            self.unreadable[str(file)] = str(error)
            return None
        return self._feed(str(file), image)

    def painted(self, source: SyntheticImages, index: int) -> Feed:
        """Paint the image of an index."""
        return self._feed(f"{source.what} {index}", source.paint(index))

    def row(self, file: Path, index: int) -> Feed:
        """Load one sample of an array file."""
        return self.model.row(f"{file}, sample {index}", self._arrays(file), index)

    def _feed(self, where: str, image: NDArray[np.uint8]) -> Feed:
        array, _ = self._preprocess(image, self._size)
        return self.model.row(where, {self.model.image_input: array, **self._companions}, 0)

    def _headers(self, file: Path) -> dict[str, ArrayHeader]:
        with _reading(file):
            if not zipfile.is_zipfile(file):
                array = open_memmap(file, mode="r")
                return {self.model.image_input: ArrayHeader(array.shape, array.dtype)}
            with zipfile.ZipFile(file) as archive:
                return {name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()}

    def _arrays(self, file: Path) -> Feed:
        """The arrays of a file by input. The last archive is kept, as its samples follow each other."""
        with _reading(file):
            if not zipfile.is_zipfile(file):
                return {self.model.image_input: open_memmap(file, mode="r")}
            with self._lock:
                if self._archive is None or self._archive[0] != file:
                    self._archive = None
                    with np.load(file) as archive:
                        keys = self.model.choose(str(file), {key: key for key in archive.files})
                        self._archive = file, {name: archive[key] for name, key in keys.items()}
                return self._archive[1]


def is_array(file: Path) -> bool:
    """Whether a file holds arrays, by its suffix."""
    return file.suffix.lower() in ARRAYS


def _header(archive: zipfile.ZipFile, member: str) -> ArrayHeader:
    with archive.open(member) as stream:
        read = read_array_header_1_0 if read_magic(stream) == (1, 0) else read_array_header_2_0
        shape, _, dtype = read(stream)
    return ArrayHeader(shape, dtype)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file}: cannot be read as arrays ({error}); write it with numpy.save or savez") from None
