"""Reads the label files of YOLO: a text file beside each image, and the YAML file of the data set.

A line has the class and, as shares of the image, centre and size of a box, or the corners of an outline, or a box and
the keypoints that `kpt_shape` in the YAML file counts.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onnxq._text import plural
from onnxq.calibration.dataset_yaml import read_dataset
from onnxq.calibration.find_files import IMAGES, find_files
from onnxq.errors import DataError
from onnxq.evaluation.annotations.image_files import picture_size
from onnxq.evaluation.annotations.outlines import box_of_outlines
from onnxq.evaluation.annotations.records import Annotations, Category, ImageRecord, Size
from onnxq.remote.address import Address, Location
from onnxq.remote.fetch import NothingThere
from onnxq.remote.fetched import read_bytes

_AT_ONCE = 16
"""Label files that are read at once: at an address, each takes the time of an answer."""

_BOX = 5
"""Values of a line with a box."""

_PX = 1.5
"""Values from which on a line must be in px."""

_WRONG_SHARE = 0.1
"""Share of the boxes that must lie partly outside of their image to ask whether another form fits."""

_MARGIN = 0.02
"""Boxes may reach this share of the image beyond it."""


def read_yolo(path: Path, folder: Location | None = None) -> tuple[Annotations, dict[int, Location]]:
    """Read the label files of the images of a data set's validation split.

    Args:
        path: the YAML file of the data set.
        folder: the images, instead of the split.

    Returns:
        The annotations, and the image files by image id.

    Raises:
        DataError: the data set has no such images, none has a label file, or a line is of another form.
    """
    dataset = read_dataset(path, ("val",) if folder is None else ())
    parts = dataset.val if folder is None else (folder,)
    if not parts:
        raise DataError(f"{path}: names no val split; give --images the folder of the images, with labels beside it")
    found = dict.fromkeys(file for part in parts for file in find_files(part).files)
    files = sorted((file for file in found if file.suffix.lower() in IMAGES), key=lambda file: file.parts)
    paths = dict(enumerate(files, start=1))
    labels = dict(_labels(paths))
    if not labels:
        raise DataError(
            f"{path}: none of {len(paths)} image{plural(len(paths))} has a label file, such as {_beside(files[0])[0]}; "
            "labels are text files in a folder labels beside images, or beside the images"
        )
    read = _Reader(path, dataset.keypoints)
    for number, (file, text) in labels.items():
        size = picture_size(paths[number])
        if size is not None:
            read.add(number, file, text, size.upright)
    images = [ImageRecord(number, str(file)) for number, file in paths.items()]
    annotations = read.annotations(images, dataset.names)
    annotations.unlabelled = frozenset(paths.keys() - labels.keys())
    return annotations, paths


def has_labels(path: Path) -> bool:
    """Return whether the first image of a data set's validation split has a label file, without reading it."""
    try:
        parts = read_dataset(path, ("val",)).val
        if any(isinstance(part, Address) for part in parts):
            return False
        files = [file for part in parts for file in find_files(part).files if isinstance(file, Path)]
    except DataError:
        return False
    return bool(files) and label_file(min(files)) is not None


def label_file(image: Path) -> Path | None:
    """Return the label file of an image: in `labels` in place of the last folder `images`, or beside the image."""
    return next((file for file in _beside(image) if isinstance(file, Path) and os.path.isfile(file)), None)


def _labels(images: Mapping[int, Location]) -> Iterator[tuple[int, tuple[Location, str]]]:
    """Yield the number of each image that has a label file, with the file and its text."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for number, found in zip(images, pool.map(_label, images.values()), strict=True):
            if found is not None:
                yield number, found


def _label(image: Location) -> tuple[Location, str] | None:
    places: Sequence[Location | None] = _beside(image) if isinstance(image, Address) else [label_file(image)]
    for file in places:
        if file is None:
            continue
        try:
            return file, read_bytes(file).decode("utf-8-sig")
        except NothingThere:
            continue
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read as labels: {error}") from None
    return None


def _beside(image: Location) -> Sequence[Location]:
    if isinstance(image, Address):
        there = image.swapped("images", "labels")
        return [file.with_suffix(".txt") for file in (there, image) if file is not None]
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    swapped = [Path(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :])] if places else []
    return [file.with_suffix(".txt") for file in (*swapped, image)]


class _Reader:
    """Collects objects from label files."""

    def __init__(self, source: Path, keypoints: tuple[int, int]) -> None:
        self._source, self._keypoints = source, keypoints
        self._objects: list[dict[str, Any]] = []
        self._labels: list[str] = []
        self._boxes: list[tuple[float, ...]] = []
        self.remarks: list[str] = []

    def add(self, image: int, file: Location, text: str, size: Size) -> None:
        """Add the objects of one file."""
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                label = f"{file} line {number}"
                self._objects.append({"image_id": image, **self._object(line, label, size)})
                self._labels.append(label)

    def _object(self, line: str, label: str, size: Size) -> dict[str, Any]:
        values = _numbers(line, label)
        if not values[0].is_integer() or values[0] < 0:
            raise DataError(f"{label}: the class is {values[0]:g}; classes are whole numbers from 0")
        if max(map(abs, values[1:])) > _PX and not self._keypoints[0]:
            most = max(values[1:], key=abs)
            raise DataError(f"{label}: has the value {most:g}; labels are shares of the image, 0 to 1")
        height, width = size
        shape: dict[str, Any] = {"category_id": int(values[0]), "iscrowd": 0}
        count, each = self._keypoints
        if len(values) == _BOX or (count and len(values) == _BOX + count * each):
            x, y, w, h = values[1:_BOX]
            self._boxes.append((x, y, w, h))
            shape["bbox"] = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            if len(values) > _BOX:
                shape["keypoints"] = _keypoints(values[_BOX:], each, size)
        elif count:
            raise DataError(
                f"{label}: has {len(values)} values; a box has {_BOX}, and {_BOX + count * each} with the keypoints of "
                f"kpt_shape [{count}, {each}] in {self._source}"
            )
        elif len(values) >= 7 and len(values) % 2:
            outline = [value * (width, height)[place % 2] for place, value in enumerate(values[1:])]
            shape["segmentation"] = [outline]
            shape["bbox"] = box_of_outlines([outline])
        else:
            raise DataError(
                f"{label}: has {len(values)} values; a box has {_BOX} (class, centre, size), and an outline the class "
                "and pairs of corners; keypoints need kpt_shape in the YAML file"
            )
        if shape["bbox"] is None or not (shape["bbox"][2] > 0 and shape["bbox"][3] > 0):
            raise DataError(f"{label}: the box has no width or height")
        return {**shape, "area": shape["bbox"][2] * shape["bbox"][3]}

    def annotations(self, images: list[ImageRecord], names: Sequence[str]) -> Annotations:
        """Return what was collected; classes without a name are called by their number."""
        self._refuse_other_forms()
        last = max((entry["category_id"] for entry in self._objects), default=-1)
        if names and last >= len(names):
            row = next(row for row, entry in enumerate(self._objects) if entry["category_id"] == last)
            raise DataError(f"{self._labels[row]}: is of class {last}, and {self._source} names {len(names)} classes")
        kinds = [Category(number, name) for number, name in enumerate(names or map(str, range(last + 1)))]
        return Annotations(self._source, images, kinds, self._objects, self._labels, self.remarks)

    def _refuse_other_forms(self) -> None:
        beyond = [row for row, (x, y, w, h) in enumerate(self._boxes) if not _inside(x - w / 2, y - h / 2, w, h)]
        if not beyond or len(beyond) < _WRONG_SHARE * len(self._boxes):
            return
        for name, is_form in (
            ("left, top, right, bottom", lambda a, b, c, d: _inside(a, b, c - a, d - b)),
            ("left, top, width, height", _inside),
        ):
            if all(is_form(*box) for box in self._boxes):
                raise DataError(
                    f"{self._source}: {len(beyond)} of {len(self._boxes)} boxes reach beyond their image, such as "
                    f"{self._labels[beyond[0]]}: they look like {name}; labels are class, centre x, centre y, width, "
                    "height"
                )


def _inside(left: float, top: float, width: float, height: float) -> bool:
    """Whether a box, in shares of the image, has a size and lies in the image."""
    ends = (left + width, top + height)
    return width > 0 and height > 0 and min(left, top) >= -_MARGIN and max(ends) <= 1 + _MARGIN


def _numbers(line: str, label: str) -> list[float]:
    try:
        values = [float(word) for word in line.replace(",", " ").split()]
    except ValueError:
        raise DataError(f"{label}: {line[:40]!r} has words that are no numbers") from None
    if len(values) < _BOX or not all(map(math.isfinite, values)):
        raise DataError(f"{label}: {line[:40]!r} does not have class, centre x, centre y, width and height")
    return values


def _keypoints(values: Sequence[float], each: int, size: Size) -> list[float]:
    """Return keypoints as COCO has them: x, y in px and visibility; those at 0, 0 without one are not labelled."""
    found: list[float] = []
    for start in range(0, len(values), each):
        x, y = values[start : start + 2]
        seen = values[start + 2] if each == 3 else 2.0 * bool(x or y)
        found += [x * size[1], y * size[0], seen]
    return found
