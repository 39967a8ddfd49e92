"""Reads annotations in COCO's format, as COCO and the tools that export it write them."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq._text import plural
from onnxq.errors import DataError
from onnxq.evaluation.annotations.ids import Numbering
from onnxq.evaluation.annotations.outlines import box_of_outlines, check_outline
from onnxq.evaluation.annotations.records import Annotations, Category, ImageRecord, Size
from onnxq.ir.files import read_json

_FARTHEST = 1e9
"""Greatest coordinate of a keypoint, px."""

_OTHER_FORMATS = (
    ({"shapes", "imagePath"}, "LabelMe and X-AnyLabeling keep a file for each image: export them as COCO"),
    ({"samples"}, "this is a dataset of FiftyOne: export it with fo.types.COCODetectionDataset"),
    ({"_via_img_metadata"}, "this is a project of VIA: export it as COCO"),
)
"""Keys of other formats, and what to do with them."""


def read_coco(path: Path) -> Annotations:
    """Read an annotation file in COCO's format.

    Raises:
        DataError: the file is missing, of another kind, or an entry cannot be used.
    """
    dataset = read_json(path)
    try:
        return _Reader(path, dataset).read()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not COCO detection annotations: {cause}{_hint(dataset)}") from error


def _hint(dataset: object) -> str:
    """Return what else the file may be, in words; empty if nothing is known."""
    if isinstance(dataset, list):
        return "; a list is the format of Label Studio or CreateML: export the annotations as COCO"
    if isinstance(dataset, dict):
        return next((f"; {hint}" for keys, hint in _OTHER_FORMATS if keys <= dataset.keys()), "")
    return ""


class _Reader:
    """Reads the parts of a dataset, and collects what is mended."""

    def __init__(self, path: Path, dataset: Any) -> None:
        self._path, self._dataset = path, dataset
        self._mended: dict[str, list[str]] = {}
        self._category_numbers: set[int] = set()

    def read(self) -> Annotations:
        """Return what the dataset says.

        Raises:
            KeyError, TypeError, ValueError, OverflowError: it is not in COCO's format.
        """
        listed, entries = self._entries("images"), self._entries("annotations")
        labels = [_label(entry, place) for place, entry in enumerate(entries, start=1)]
        image_ids = Numbering.of([image["id"] for image in listed], "image")
        images = [
            ImageRecord(number, _file_name(image, number), _stated_size(image))
            for number, image in zip(image_ids.numbers, listed, strict=True)
        ]
        kinds = self._entries("categories")
        category_ids = Numbering.of([kind["id"] for kind in kinds], "category", sort=False)
        self._category_numbers = set(category_ids.numbers)
        categories = [
            Category(number, str(kind["name"]), str(kind.get("supercategory") or ""))
            for number, kind in zip(category_ids.numbers, kinds, strict=True)
        ]
        objects = [self._object(entry, label, category_ids) for entry, label in zip(entries, labels, strict=True)]
        self._refer(objects, entries, labels, images, image_ids)
        return Annotations(
            self._path,
            sorted(images, key=lambda image: image.id),
            sorted(categories, key=lambda category: category.id),
            objects,
            labels,
            [_counted(what, names) for what, names in self._mended.items()],
        )

    def _entries(self, key: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._dataset[key]
        if not isinstance(found, list):
            raise TypeError(f"`{key}` is no list")
        for place, entry in enumerate(found, start=1):
            if not isinstance(entry, dict):
                raise TypeError(f"number {place} of `{key}` is no object with keys")
        return found

    def _mend(self, what: str, label: str) -> None:
        self._mended.setdefault(what, []).append(label)

    def _refer(
        self,
        objects: list[dict[str, Any]],
        entries: Sequence[Mapping[str, Any]],
        labels: Sequence[str],
        images: Sequence[ImageRecord],
        ids: Numbering,
    ) -> None:
        """Give each object the number of its image, or -1 if the list has none; by file name if no id fits."""
        known = set(ids.numbers)
        numbers = [
            ids.number(_of(entry, "image_id", label), label) for entry, label in zip(entries, labels, strict=True)
        ]
        if entries and not any(number in known for number in numbers):
            by_name = {key: image.id for image in images for key in (image.name, Path(image.name).stem)}
            named = [by_name.get(str(entry["image_id"])) for entry in entries]
            if any(number is not None for number in named):
                numbers = named
                self._mended["with the name of a file in place of an image's id"] = list(labels)
        for entry, number in zip(objects, numbers, strict=True):
            entry["image_id"] = number if number is not None else -1

    def _object(self, entry: Mapping[str, Any], label: str, category_ids: Numbering) -> dict[str, Any]:
        if entry.get("segmentation"):
            _check_outline(entry["segmentation"], label)
        box = self._box(entry, label)
        category = category_ids.number(_of(entry, "category_id", label), f"the category of {label}")
        if category is None or category not in self._category_numbers:
            known = ", ".join(str(kind["id"]) for kind in self._dataset["categories"][:10])
            raise DataError(
                f"{self._path}: {label} is of category {entry['category_id']!r}, and `categories` lists "
                f"{known or 'none'}: list the category, or remove its objects"
            )
        found = {
            "image_id": 0,
            "category_id": category,
            "bbox": box,
            "area": self._area(entry, box, label),
            "iscrowd": _crowd(entry.get("iscrowd"), label),
        }
        if entry.get("ignore") in (1, "1") and not found["iscrowd"]:
            what = "marked `ignore`, which must be found as others, as in pycocotools (iscrowd 1 leaves them out)"
            self._mend(what, label)
        found.update({key: entry[key] for key in ("segmentation", "keypoints") if entry.get(key)})
        _check_keypoints(found.get("keypoints", []), label)
        attributes = entry.get("attributes")
        rotation = attributes.get("rotation") if isinstance(attributes, dict) else None
        if rotation:
            found["rotation"] = float(rotation)
        return found

    def _box(self, entry: Mapping[str, Any], label: str) -> list[float]:
        given = entry.get("bbox")
        if given:
            box = _four(given, label)
            if box[2] > 0 and box[3] > 0:
                return box
            if min(box[2:]) < 0:
                raise ValueError(
                    f"{label}: bbox {given} has a negative width or height; COCO's boxes are left, top, width and "
                    "height"
                )
        outline = box_of_outlines(entry.get("segmentation"))
        if outline is None and not given:
            what = f"the bbox of {label} is {'missing' if 'bbox' not in entry else repr(given)}"
            raise ValueError(f"{what}, and it has no outline to take the box from; remove it, or give its box")
        if outline is None:
            self._mend("with a width or height of 0, which cannot be found", label)
            return box
        self._mend("without a box, which is taken from the outline", label)
        return outline

    def _area(self, entry: Mapping[str, Any], box: Sequence[float], label: str) -> float:
        of_box = box[2] * box[3]
        if "area" not in entry:
            return of_box
        try:
            area = float(entry["area"])
        except (TypeError, ValueError):
            area = math.nan
        if math.isfinite(area) and (area > 0 or of_box == 0):
            return area
        self._mend("without an area, which is taken from the box", label)
        return of_box


def _check_outline(outline: object, label: str) -> None:
    try:
        check_outline(outline)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None


def _check_keypoints(points: object, label: str) -> None:
    """Refuse keypoints that cannot be read."""
    if not isinstance(points, list) or len(points) % 3 or not all(_is_number(value) for value in points):
        raise ValueError(f"{label}: keypoints are no list of x, y and visibility")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _FARTHEST


def _of(entry: Mapping[str, Any], key: str, label: str) -> Any:
    """Return a value that an entry must have."""
    if key not in entry:
        raise ValueError(f"{key!r} of {label} is missing")
    return entry[key]


def _label(entry: Any, place: int) -> str:
    number = entry.get("id") if isinstance(entry, dict) else None
    return f"annotation number {place}" if number is None else f"annotation {number}"


def _counted(what: str, labels: Sequence[str]) -> str:
    """Return what was mended of how many objects, as a sentence."""
    return f"{len(labels)} object{plural(len(labels))} {what}, such as {labels[0]}"


def _crowd(given: object, label: str) -> int:
    if given in (0, 1, "0", "1"):
        return int(given)
    if given is None or given == "":
        return 0
    raise ValueError(f"{label}: iscrowd is {given!r}; it is 1 for a crowd, and otherwise 0")


def _four(given: Any, label: str) -> list[float]:
    if not isinstance(given, list | tuple) or len(given) != 4:
        raise ValueError(f"{label}: bbox {given!r} does not have four numbers: left, top, width, height")
    try:
        box = [float(value) for value in given]
    except (TypeError, ValueError):
        raise ValueError(f"{label}: bbox {given!r} has values that are no numbers") from None
    if not all(map(math.isfinite, box)):
        raise ValueError(f"{label}: bbox {given} is not finite")
    return box


def _file_name(image: Mapping[str, Any], number: int) -> str:
    name = image["file_name"]
    if not isinstance(name, str) or not name:
        raise ValueError(f"image {number} has the file_name {name!r}")
    return name


def _stated_size(image: Mapping[str, Any]) -> Size | None:
    try:
        size = int(image["height"]), int(image["width"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None
