"""Calibration data: from whatever the user has to feeds of the model.

`open_samples` finds out what there is and chooses; a sample is read when its loader is called, and not kept.
"""

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxq._text import plural, some
from onnxq.calibration.dead_leaves import SCENES, SyntheticImages, scene
from onnxq.calibration.feeds import Inputs, Loader, ModelInputs, T
from onnxq.calibration.find_files import find_files, paths_of, place
from onnxq.calibration.readers import FeedReader, FeedStream, FileReader, is_array
from onnxq.errors import ConfigError, DataError
from onnxq.yolo.preprocess import Preprocess

Source = str | os.PathLike[str] | Iterable[Any] | FeedReader | SyntheticImages | None


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
    model = ModelInputs({name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in inputs.items()}, image_input)
    reader = FileReader(model, size, preprocess, companions)
    if source is None:
        reader.check_images("no data is given, and synthetic scenes")
        scenes = SyntheticImages("synthetic scene", SCENES, partial(scene, size=size))
        return replace(_open_painted(reader, scenes, count), synthetic=True)
    if isinstance(source, SyntheticImages):
        return _open_painted(reader, source, count)
    paths = paths_of(source)
    if paths is None:
        return _open_feeds(model, source)
    return _open_files(reader, paths, count)


def _open_painted(reader: "FileReader", source: SyntheticImages, count: int | None) -> Samples:
    reader.check_images(f"{source.what}s")
    number = source.most if count is None else min(count, source.most)
    loaders = reader.model.batches([partial(reader.painted, source, index) for index in range(number)])
    return Samples(loaders, number, f"{number} {source.what}{plural(number)}")


def _open_files(reader: "FileReader", paths: Sequence[str], count: int | None) -> Samples:
    found = [find_files(path) for path in paths]
    files = {os.path.abspath(file): file for each in found for file in each.files}
    loads = [(files[name], load) for name in sorted(files) for load in reader.open(files[name])]
    chosen = spread(loads, count)
    number = f"{len(loads)}" if len(chosen) == len(loads) else f"{len(chosen)} of {len(loads)}"
    noun = "sample" if any(is_array(file) for file in files.values()) else "image"
    return Samples(
        loaders=reader.model.batches([load for _, load in chosen]),
        count=len(chosen),
        description=f"{number} {noun}{plural(len(loads))} in {some(list(dict.fromkeys(map(place, paths))))}",
        missing={name: reason for each in found for name, reason in each.missing.items()},
        unreadable=reader.unreadable,
        files=tuple(dict.fromkeys(file for file, _ in chosen)),
    )


def _open_feeds(model: "ModelInputs", source: object) -> Samples:
    kind = type(source).__name__
    if not (hasattr(source, "get_next") or hasattr(source, "__array__") or isinstance(source, Iterable)):
        raise DataError(
            f"data of type {kind}: give an image folder, a glob, a .txt, .json, .npy or .npz file, an iterable of "
            "{input name: array}, or an object with get_next()"
        )
    return Samples(FeedStream(model, source), None, f"samples of a Python {kind}")


def spread(items: Sequence[T], count: int | None) -> Sequence[T]:
    """Evenly spaced items, from the middle of each of `count` equal stretches."""
    total = len(items)
    if count is None or count >= total:
        return items
    return [items[(2 * k + 1) * total // (2 * count)] for k in range(count)]
