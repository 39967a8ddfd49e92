"""Calibration samples: finds the samples of any data source, chooses among them, and loads them one at a time.

A sample is read when its loader is called, and is not kept.
"""

import operator
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from onnxq._text import plural, some
from onnxq.calibration.dead_leaves import SCENE_COUNT, SyntheticImages, dead_leaves_image
from onnxq.calibration.feeds import Inputs, Loader, ModelInputs, T
from onnxq.calibration.find_files import find_files, paths_of, short_name
from onnxq.calibration.readers import FeedReader, FeedStream, FileReader, is_array, is_video
from onnxq.errors import ConfigError, DataError
from onnxq.facts import PreparedImages
from onnxq.remote.address import Address, Location
from onnxq.yolo.preprocess import Preprocess

DataSource = str | os.PathLike[str] | Address | Iterable[Any] | FeedReader | SyntheticImages | None
"""What `open_samples` takes; None: synthetic images."""


@dataclass(frozen=True)
class Samples:
    """Samples that are loaded one at a time.

    Attributes:
        loaders: one per run of the model. Iterable again, unless the source is a generator or a reader.
        count: number of single samples, unreadable ones included; None if unknown before the end.
        description: for messages, "100 of 288 images in train2017".
        synthetic: no data was given; these are synthetic scenes.
        missing: file -> reason, for files that a list names and that do not exist.
        unreadable: file -> reason, for images that cannot be read; grows while the loaders are called.
        files: the files of the samples; empty if they are in no file.
        sources: for each loader the files of its single samples, unreadable ones included; empty if they are in none.
        other_kinds: suffix -> number of files in folders that are of a kind that is not read.
        preprocess: what the image input holds; None: nothing is known of it.
        images: how images among the samples are prepared; None: all samples are arrays.
    """

    loaders: Iterable[Loader]
    count: int | None
    description: str
    synthetic: bool = False
    missing: Mapping[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    files: tuple[Location, ...] = ()
    sources: Sequence[Sequence[Location]] = ()
    other_kinds: Mapping[str, int] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    images: PreparedImages | None = None

    @property
    def steps(self) -> int:
        """Number of loaders; 0 if unknown."""
        return operator.length_hint(self.loaders)

    @property
    def is_read_once(self) -> bool:
        """Whether the loaders cannot be iterated again."""
        return isinstance(self.loaders, FeedStream) and self.loaders.is_read_once

    def part(self, chunk: slice) -> Iterable[Loader]:
        """Return the loaders of a chunk of all steps; those of `slice(None)` are all of them, even if read once."""
        return self.loaders if chunk == slice(None) else tuple(self.loaders)[chunk]

    def to_send(self) -> "Samples":
        """Return the same samples in a form that can be pickled and cut into chunks.

        Raises:
            DataError: the source is a generator or a reader, which only the process that made it can draw from.
        """
        if self.is_read_once:
            raise DataError(
                f"{self.description} cannot be sent to workers, because a generator or reader gives each sample once "
                "and in one process; give a folder, files or a list, or leave the workers out"
            )
        return replace(self, loaders=tuple(self.loaders))

    def add_unreadable(self, found: Mapping[str, str]) -> None:
        """Note files or frames that could not be read, each with the reason, where a copy of the samples was used."""
        self.unreadable.update(sorted(found.items()))

    @property
    def skipped(self) -> dict[str, str]:
        """File -> reason, for every file that was left out so far."""
        return {**self.missing, **self.unreadable}

    def require_any(self) -> None:
        """Check that a sample was read; call it after all loaders.

        Raises:
            DataError: no image could be read.
        """
        if self.unreadable and len(self.unreadable) == self.count:
            first = next(iter(self.unreadable.values()))
            raise DataError(f"none of the {self.count} images could be read; first: {first}")


def open_samples(
    source: DataSource,
    *,
    inputs: Inputs,
    image_input: str,
    size: tuple[int, int],
    preprocess: Preprocess,
    count: int | None = 100,
    companions: Mapping[str, Sequence[float]] = MappingProxyType({}),
) -> Samples:
    """Find the samples of a source and choose among them.

    A source is one of:

    - None: synthetic scenes; or `SyntheticImages`
    - the path of an image or a video, or of a folder, which stands for all images below it
    - the path of a `.txt` list of files, a path per line, relative to the list or to the working directory
    - the path of COCO annotations, `.json`, or of a data set's `.yaml`, which stands for its train split
    - the path of an `.npy` of shape (n, *input) or (*input), or of an `.npz` with such arrays named after the inputs
    - a glob pattern, or a list of paths and patterns
    - the address of a picture, a folder, a ZIP archive or a `.txt` list of pictures, such as `s3://bucket/folder`
    - an iterable of feeds, or of bare arrays if the model has one input; or an onnxruntime CalibrationDataReader

    If files have more than `count` samples, evenly spaced ones of the sorted files are taken: the choice does not
    depend on the order of a list, and neighbouring frames of a video are not overrepresented. Batches are split into
    single samples and joined again to the model's batch: how the data was batched makes no difference.

    Args:
        source: the data.
        inputs: the model's inputs.
        image_input: the input that takes images; its first axis is the model's batch.
        size: size of images, (height, width) in px.
        preprocess: makes the image input's array from an image.
        count: most samples to take from files or synthetic images; None: all. Iterables and readers are read to
            their end.
        companions: values of the other inputs beside an image, one row each.

    Raises:
        DataError: the source does not exist, is empty or of an unknown kind, or does not fit the model. Faults in the
            data itself (NaN, a feed of the wrong shape, a generator without feeds) are raised when a loader is drawn
            or called.
        ConfigError: `count` is less than 1.
    """
    if count is not None and count < 1:
        raise ConfigError(f"{count} calibration samples: take at least 1")
    specs = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in inputs.items()}
    reader = FileReader(ModelInputs(specs, image_input), size, preprocess, companions)
    if source is None:
        reader.check_images("no data is given, and synthetic scenes")
        scenes = SyntheticImages("synthetic scene", SCENE_COUNT, partial(dead_leaves_image, size=size))
        samples = replace(_open_synthetic(reader, scenes, count), synthetic=True)
    elif isinstance(source, SyntheticImages):
        samples = _open_synthetic(reader, source, count)
    elif (paths := paths_of(source)) is not None:
        samples = _open_files(reader, paths, count)
    else:
        samples = _open_feeds(reader.inputs, source)
    return replace(samples, preprocess=preprocess)


def _open_synthetic(reader: FileReader, images: SyntheticImages, count: int | None) -> Samples:
    reader.check_images(f"{images.noun}s")
    number = images.count if count is None else min(count, images.count)
    loaders = reader.inputs.batches([partial(reader.synthetic, images, index) for index in range(number)])
    return Samples(loaders, number, f"{number} {images.noun}{plural(number)}", images=reader.prepared())


def _open_files(reader: FileReader, paths: Sequence[str | Address], count: int | None) -> Samples:
    found = [find_files(path) for path in paths]
    files = {_key(file): file for each in found for file in each.files}
    opened = [(files[name], reader.open(files[name])) for name in sorted(files)]
    reader.warn_of_unused()
    total = sum(len(loads) for _, loads in opened)
    chosen, batch = _picked(opened, spread(range(total), count)), reader.inputs.batch
    reader.choose(dict.fromkeys(file for file, _ in chosen if not is_array(file) and not is_video(file)))
    number = f"{total}" if len(chosen) == total else f"{len(chosen)} of {total}"
    kinds = {"sample" if is_array(file) else "frame" if is_video(file) else "image" for file in files.values()}
    noun = kinds.pop() if len(kinds) == 1 else "sample"
    return Samples(
        loaders=reader.inputs.batches([load for _, load in chosen]),
        count=len(chosen),
        description=f"{number} {noun}{plural(total)} in {some(list(dict.fromkeys(map(short_name, paths))))}",
        missing={name: reason for each in found for name, reason in each.missing.items()},
        unreadable=reader.unreadable,
        other_kinds=dict(sum((Counter(each.other_kinds) for each in found), Counter())),
        files=tuple(dict.fromkeys(file for file, _ in chosen)),
        sources=tuple(
            tuple(file for file, _ in chosen[start : start + batch]) for start in range(0, len(chosen), batch)
        ),
        images=None if all(is_array(file) for file, _ in chosen) else reader.prepared(),
    )


def _key(file: Location) -> str:
    """Return what files are put in order by, which is the same for a folder and for a copy of it elsewhere."""
    return file.key if isinstance(file, Address) else os.path.abspath(file)


def _picked(opened: Iterable[tuple[Location, Sequence[T]]], numbers: Iterable[int]) -> list[tuple[Location, T]]:
    """Return the items with these numbers, which rise, of the sequences of several files one after the other."""
    found: list[tuple[Location, T]] = []
    files, start, end = iter(opened), 0, 0
    file, items = cast("Location", Path()), cast("Sequence[T]", ())
    for number in numbers:
        while number >= end:
            file, items = next(files)
            start, end = end, end + len(items)
        found.append((file, items[number - start]))
    return found


def _open_feeds(inputs: ModelInputs, source: object) -> Samples:
    kind = type(source).__name__
    if not (hasattr(source, "get_next") or hasattr(source, "__array__") or isinstance(source, Iterable)):
        raise DataError(
            f"data of type {kind}: give an image folder, a glob, a .txt, .json, .yaml, .npy or .npz file, an iterable "
            "of {input name: array}, or an object with get_next()"
        )
    return Samples(FeedStream(inputs, source), None, f"samples of a Python {kind}")


def spread(items: Sequence[T], count: int | None) -> Sequence[T]:
    """Return `count` evenly spaced items, from the middle of each of `count` equal parts; all items for None."""
    total = len(items)
    if count is None or count >= total:
        return items
    return [items[(2 * k + 1) * total // (2 * count)] for k in range(count)]
