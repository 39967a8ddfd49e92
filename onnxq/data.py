"""Calibration data: from whatever the user has to feeds of the model.

`open_samples` finds out what there is and chooses; a sample is read when its loader is called, and not kept.
"""

import logging
import operator
import os
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.lib.format import open_memmap, read_array_header_1_0, read_array_header_2_0, read_magic
from numpy.typing import DTypeLike, NDArray

from onnxq.errors import ConfigError, DataError
from onnxq.images import Preprocess, read_image
from onnxq.scenes import SCENES, Painted, scene
from onnxq.sources import ARRAYS, find_files, paths_of, place, plural, some

log = logging.getLogger(__name__)

Feed = dict[str, NDArray[Any]]
"""Input name -> array."""

Inputs = Mapping[str, tuple[Sequence[int | None], DTypeLike]]
"""Input name -> shape (None: dynamic) and dtype."""


T = TypeVar("T")


class FeedReader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Any:
        """Give the next feed, or None at the end."""


Source = str | os.PathLike[str] | Iterable[Any] | FeedReader | Painted | None


class Sample(NamedTuple):
    """What the model is run on at once.

    Attributes:
        feed: an array for each input, the image input first.
        valid: how many samples of the batch are real; the last of them is repeated to fill a batch of fixed size.
    """

    feed: Feed
    valid: int


Loader = Callable[[], Sample | None]
"""Loads a sample in whichever thread calls it; None if nothing of it could be read."""


@dataclass(frozen=True)
class Samples:
    """Samples that are loaded one at a time.

    Attributes:
        loaders: one per run of the model. Of files they can be gone through again, of a generator or reader only once.
        count: how many single samples that is, unreadable ones included; None if that is not known before the end.
        description: in words, "100 of 288 images in train2017".
        synthetic: no data was given, these are synthetic scenes.
        missing: file -> reason, for files that a list names and that do not exist.
        unreadable: file -> reason, for images that turn out to be unreadable; it grows while the loaders are called.
        files: where the samples are from; empty of data that is in no file.
    """

    loaders: Iterable[Loader]
    count: int | None
    description: str
    synthetic: bool = False
    missing: Mapping[str, str] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    @property
    def steps(self) -> int:
        """How many loaders there are; 0 if that is not known."""
        return operator.length_hint(self.loaders)

    @property
    def skipped(self) -> dict[str, str]:
        """Every file that was left out so far, and why."""
        return {**self.missing, **self.unreadable}

    def require_any(self) -> None:
        """Call it when all loaders were called.

        Raises:
            DataError: none of them could read its sample.
        """
        if self.unreadable and len(self.unreadable) == self.count:
            first = next(iter(self.unreadable.values()))
            raise DataError(f"none of the {self.count} images could be read; first: {first}")


def open_samples(
    source: Source,
    *,
    inputs: Inputs,
    image_input: str,
    size: tuple[int, int],
    preprocess: Preprocess,
    count: int | None = 100,
    companions: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Samples:
    """Find the samples of a source and choose among them.

    A source is None (synthetic scenes); pictures that are painted; the path of an image, a folder of images (its
    subfolders are searched if it has none itself), a `.txt` list of files (a path per line, relative to the list or to
    the working directory), a COCO `.json`, an `.npy` of shape (n, *input) or (*input), an `.npz` with such arrays named
    after the inputs; a glob pattern; a list of all these; an iterable of feeds (of bare arrays, if the model has one
    input); or an onnxruntime CalibrationDataReader.

    Of more than `count` samples in files, evenly spaced ones of the sorted files are taken, so that the choice does
    not depend on the order of a list, and neighbouring frames of a video do not crowd. Batches are split into single
    samples and, if the model has a fixed batch, put together anew: how the data was batched makes no difference.

    Args:
        source: the data.
        inputs: the model's inputs.
        image_input: the one that takes images; its first dimension is the model's batch.
        size: of images, (height, width) in pixels.
        preprocess: makes the image input's array of an image.
        count: how many samples of files, or painted pictures, to take at most; None for all. Iterables and readers are
            read to their end.
        companions: what other inputs read beside an image, a row of values each.

    Raises:
        DataError: the source does not exist, is empty or of an unknown kind, or does not fit the model. What can be
            seen only in the data itself (NaN, a feed of the wrong shape, a generator without feeds) is raised when a
            loader is drawn or called.
        ConfigError: `count` is less than 1.
    """
    if count is not None and count < 1:
        raise ConfigError(f"{count} calibration samples: take 1 at least")
    model = _Model({name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in inputs.items()}, image_input)
    reader = _FileReader(model, size, preprocess, companions)
    if source is None:
        reader.check_images("no data is given, and synthetic scenes")
        scenes = Painted("synthetic scene", SCENES, partial(scene, size=size))
        return replace(_open_painted(reader, scenes, count), synthetic=True)
    if isinstance(source, Painted):
        return _open_painted(reader, source, count)
    paths = paths_of(source)
    if paths is None:
        return _open_feeds(model, source)
    return _open_files(reader, paths, count)


def _open_painted(reader: "_FileReader", source: Painted, count: int | None) -> Samples:
    reader.check_images(f"{source.what}s")
    number = source.most if count is None else min(count, source.most)
    loaders = reader.model.batches([partial(reader.painted, source, index) for index in range(number)])
    return Samples(loaders, number, f"{number} {source.what}{plural(number)}")


def _open_files(reader: "_FileReader", paths: Sequence[str], count: int | None) -> Samples:
    found = [find_files(path) for path in paths]
    files = {os.path.abspath(file): file for each in found for file in each.files}
    loads = [(files[name], load) for name in sorted(files) for load in reader.open(files[name])]
    chosen = spread(loads, count)
    number = f"{len(loads)}" if len(chosen) == len(loads) else f"{len(chosen)} of {len(loads)}"
    noun = "sample" if any(_is_array(file) for file in files.values()) else "image"
    return Samples(
        loaders=reader.model.batches([load for _, load in chosen]),
        count=len(chosen),
        description=f"{number} {noun}{plural(len(loads))} in {some(list(dict.fromkeys(map(place, paths))))}",
        missing={name: reason for each in found for name, reason in each.missing.items()},
        unreadable=reader.unreadable,
        files=tuple(dict.fromkeys(file for file, _ in chosen)),
    )


def _open_feeds(model: "_Model", source: object) -> Samples:
    kind = type(source).__name__
    if not (hasattr(source, "get_next") or hasattr(source, "__array__") or isinstance(source, Iterable)):
        raise DataError(
            f"data of type {kind}: give an image folder, a glob, a .txt, .json, .npy or .npz file, an iterable of "
            "{input name: array}, or an object with get_next()"
        )
    return Samples(_FeedStream(model, source), None, f"samples of a Python {kind}")


def spread(items: Sequence[T], count: int | None) -> Sequence[T]:
    """Evenly spaced items, from the middle of each of `count` equal stretches."""
    total = len(items)
    if count is None or count >= total:
        return items
    return [items[(2 * k + 1) * total // (2 * count)] for k in range(count)]


# --- what the model takes ---------------------------------------------------------------------------------------------


class _Shaped(Protocol):
    """An array, or the header of one in a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...


class _Header(NamedTuple):
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class _Model:
    """The inputs that every sample has to fit."""

    inputs: Mapping[str, tuple[tuple[int | None, ...], np.dtype[Any]]]
    image_input: str

    @property
    def batch(self) -> int:
        """How many samples are run at once: one where the model leaves it open."""
        return self.inputs[self.image_input][0][0] or 1

    def names(self) -> list[str]:
        """The inputs, the image input first."""
        return sorted(self.inputs, key=lambda name: name != self.image_input)

    def choose(self, where: str, arrays: Mapping[str, T]) -> dict[str, T]:
        """The arrays by input; a lone array is the only input's, whatever it is called."""
        if len(arrays) == len(self.inputs) == 1:
            return {self.image_input: next(iter(arrays.values()))}
        if not arrays.keys() >= self.inputs.keys():
            raise self._misnamed(where, arrays)
        return {name: arrays[name] for name in self.names()}

    def feed(self, where: str, item: object) -> Feed:
        """Turn an item of an iterable into arrays by input: a mapping, or a bare array for the only input."""
        if isinstance(item, Mapping):
            if item.keys() != self.inputs.keys():
                raise self._misnamed(where, item)
            return {name: np.asarray(item[name]) for name in self.names()}
        if not hasattr(item, "__array__"):
            raise DataError(f"{where} is a {type(item).__name__}; give {{input name: array}} for {self._all_names()}")
        if len(self.inputs) > 1:
            raise DataError(f"{where} is a bare array; give {{input name: array}} for {self._all_names()}")
        return {self.image_input: np.asarray(item)}

    def check(self, where: str, arrays: Mapping[str, _Shaped]) -> int:
        """Check types and shapes, and give the number of samples in the arrays."""
        full = {name: self._full_shape(name, arrays[name]) for name in self.names()}
        rows = next(iter(full[self.image_input]), 1)
        for name, shape in full.items():
            self._check_type(where, name, arrays[name].dtype)
            wanted = self.inputs[name][0]
            if self._has_batch(name):
                wanted = (None if name == self.image_input else rows, *wanted[1:])
            if len(shape) != len(wanted) or any(size not in (None, given) for size, given in zip(wanted, shape)):
                raise DataError(
                    f"{where}: input {name} has shape {_text(arrays[name].shape)}, not {_text(wanted)}; "
                    "resize, transpose or split it as the model wants"
                )
        if rows == 0:
            raise DataError(f"{where}: holds no samples; leave it out")
        return rows

    def row(self, where: str, arrays: Mapping[str, NDArray[Any]], index: int) -> Feed:
        """Copy one sample out of checked arrays, with a batch of one and in the model's types."""
        feed = {}
        for name in self.names():
            array = arrays[name].reshape(self._full_shape(name, arrays[name]))
            part = array[index : index + 1] if self._has_batch(name) else array
            # A copy even where the type fits: a generator may fill the same array again.
            with np.errstate(over="ignore"):
                feed[name] = np.array(part, dtype=self.inputs[name][1], order="C")
            if feed[name].dtype.kind == "f" and not np.isfinite(feed[name]).all():
                raise DataError(f"{where}: input {name} has NaN or infinite values; repair it or leave it out")
        return feed

    def join(self, feeds: Sequence[Feed]) -> Sample:
        """Put single samples together to the model's batch, repeating the last one as often as it takes."""
        if self.batch == 1:
            return Sample(feeds[0], 1)
        full = [*feeds, *[feeds[-1]] * (self.batch - len(feeds))]
        shapes = sorted({feed[self.image_input].shape for feed in feeds})
        if len(shapes) > 1:
            raise DataError(
                f"samples of shapes {_text(shapes[0])} and {_text(shapes[1])} cannot be run in one batch of "
                f"{self.batch}; give all the same shape"
            )
        joined = {
            name: np.concatenate([feed[name] for feed in full]) if self._has_batch(name) else feeds[-1][name]
            for name in self.names()
        }
        return Sample(joined, len(feeds))

    def batches(self, loads: Sequence[Callable[[], Feed | None]]) -> tuple[Loader, ...]:
        """Loaders of the model's batch from loaders of single samples."""
        step = self.batch
        return tuple(partial(self._load, loads[start : start + step]) for start in range(0, len(loads), step))

    def _load(self, loads: Sequence[Callable[[], Feed | None]]) -> Sample | None:
        feeds = [feed for load in loads if (feed := load()) is not None]
        return self.join(feeds) if feeds else None

    def _has_batch(self, name: str) -> bool:
        """Whether the input's first dimension is the batch: it is declared as the image input's is."""
        return self.inputs[name][0][:1] == self.inputs[self.image_input][0][:1]

    def _full_shape(self, name: str, array: _Shaped) -> tuple[int, ...]:
        """The array's shape, with the batch of a lone sample that came without."""
        lone = len(array.shape) == len(self.inputs[name][0]) - 1
        return (1, *array.shape) if lone else tuple(array.shape)

    def _check_type(self, where: str, name: str, given: np.dtype[Any]) -> None:
        wanted = self.inputs[name][1]
        if (given.kind == "f") == (wanted.kind == "f") and np.can_cast(given, wanted, "same_kind"):
            return
        given_as = "values 0-255 as uint8: scale them" if given == np.uint8 else f"not {given}: convert it"
        raise DataError(f"{where}: input {name} takes {wanted}, {given_as} as the model wants")

    def _misnamed(self, where: str, arrays: Mapping[str, object]) -> DataError:
        given = ", ".join(map(str, arrays)) or "nothing"
        return DataError(f"{where}: has {given}, the model's inputs are {self._all_names()}; name the arrays so")

    def _all_names(self) -> str:
        return ", ".join(self.names())


def _text(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if n is None else str(n) for n in shape)})"


# --- iterables and readers --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _FeedStream:
    """Loaders of the feeds of an iterable or a reader, which is drawn from only when the next loader is asked for."""

    model: _Model
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


class _FileReader:
    """Loads single samples from files, and notes the images that cannot be read. Safe to use from several threads."""

    def __init__(
        self, model: _Model, size: tuple[int, int], preprocess: Preprocess, companions: Mapping[str, Sequence[float]]
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
        image = _Header(self._preprocess.shape(self._size), self._preprocess.dtype)
        self.model.check(what, {self.model.image_input: image, **self._companions})

    def open(self, file: Path) -> list[Callable[[], Feed | None]]:
        """Loaders of the samples in a file; of an array only the header is read."""
        if not _is_array(file):
            self.check_images("images")
            return [partial(self.image, file)]
        headers = self.model.choose(str(file), self._headers(file))
        return [partial(self.row, file, index) for index in range(self.model.check(str(file), headers))]

    def image(self, file: Path) -> Feed | None:
        try:
            image = read_image(file)
        except DataError as error:
            log.warning("skipped %s", error)
            self.unreadable[str(file)] = str(error)
            return None
        return self._feed(str(file), image)

    def painted(self, source: Painted, index: int) -> Feed:
        return self._feed(f"{source.what} {index}", source.paint(index))

    def row(self, file: Path, index: int) -> Feed:
        return self.model.row(f"{file}, sample {index}", self._arrays(file), index)

    def _feed(self, where: str, image: NDArray[np.uint8]) -> Feed:
        array, _ = self._preprocess(image, self._size)
        return self.model.row(where, {self.model.image_input: array, **self._companions}, 0)

    def _headers(self, file: Path) -> dict[str, _Header]:
        with _reading(file):
            if not zipfile.is_zipfile(file):
                array = open_memmap(file, mode="r")
                return {self.model.image_input: _Header(array.shape, array.dtype)}
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


def _is_array(file: Path) -> bool:
    return file.suffix.lower() in ARRAYS


def _header(archive: zipfile.ZipFile, member: str) -> _Header:
    with archive.open(member) as stream:
        read = read_array_header_1_0 if read_magic(stream) == (1, 0) else read_array_header_2_0
        shape, _, dtype = read(stream)
    return _Header(shape, dtype)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file}: cannot be read as arrays ({error}); write it with numpy.save or savez") from None
