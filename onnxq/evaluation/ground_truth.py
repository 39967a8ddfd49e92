"""COCO ground truth: images and their annotated objects, indexed by pycocotools."""

import contextlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from onnxq.calibration.demo import CLASSES, VALIDATION, scene
from onnxq.errors import DataError
from onnxq.yolo.inputs.image_files import ImageReader

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroundTruth:
    """Images and the objects in them.

    Attributes:
        coco: pycocotools' index of these images and their objects.
        images: image id -> function that returns the image, uint8 (height, width, 3), RGB; sorted by id.
        categories: category id -> name, sorted by id.
        files: files of the images; empty for images in memory.
    """

    coco: Any
    images: Mapping[int, Callable[[], NDArray[np.uint8]]]
    categories: dict[int, str]
    files: tuple[Path, ...] = ()

    @classmethod
    def from_memory(
        cls,
        scenes: Sequence[tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.int64]]],
        names: Sequence[str],
    ) -> "GroundTruth":
        """Build the ground truth of images in memory.

        Args:
            scenes: for each image the pixels, uint8 (height, width, 3), RGB, and the boxes, float32 (n, 4), xyxy in px,
                and labels, int64 (n,), of its objects.
            names: names of the labels.
        """
        categories = dict(enumerate(names))
        annotations = [
            {
                "image_id": number,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            for number, (_, boxes, labels) in enumerate(scenes)
            for (left, top, right, bottom), label in zip(boxes.tolist(), labels.tolist())
        ]
        loaders = {number: partial(np.asarray, image) for number, (image, _, _) in enumerate(scenes)}
        return cls(build_index(loaders, categories, annotations), loaders, categories)

    @classmethod
    def load(cls, annotations: Path, images: Path, max_images: int | None = None) -> "GroundTruth":
        """Read COCO detection annotations; missing images are logged and left out.

        Args:
            annotations: JSON file with `images`, `annotations` and `categories`.
            images: folder of the `file_name`s.
            max_images: most images; those with the lowest ids are kept.

        Raises:
            DataError: the annotations are missing or invalid, or all images are missing.
        """
        dataset = _read_annotations(annotations)
        listed = {image["id"]: images / image["file_name"] for image in sorted(dataset["images"], key=_id_of)}
        paths = {number: path for number, path in listed.items() if os.path.isfile(path)}
        missing = [path.name for number, path in listed.items() if number not in paths]
        if not paths:
            raise DataError(f"{images}: none of the {len(listed)} images of {annotations} exists")
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            _log.warning("%d of %d images are missing in %s: %s", len(missing), len(listed), images, names)
        paths = dict(list(paths.items())[:max_images])
        categories = {category["id"]: category["name"] for category in sorted(dataset["categories"], key=_id_of)}
        reader = ImageReader(paths.values())
        loaders = {number: partial(reader, path) for number, path in paths.items()}
        index = build_index(loaders, categories, dataset["annotations"])
        return cls(index, loaders, categories, tuple(paths.values()))


def _id_of(entry: dict[str, Any]) -> int:
    return int(entry["id"])


def _read_annotations(path: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        dataset = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    try:
        return {
            "images": [{"id": int(image["id"]), "file_name": str(image["file_name"])} for image in dataset["images"]],
            "categories": [{"id": int(entry["id"]), "name": str(entry["name"])} for entry in dataset["categories"]],
            "annotations": [_annotation(entry) for entry in dataset["annotations"]],
        }
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: not COCO detection annotations: {cause}") from error


def _annotation(entry: dict[str, Any]) -> dict[str, Any]:
    x, y, width, height = map(float, entry["bbox"])
    if not all(map(math.isfinite, (x, y, width, height))):
        raise ValueError(f"bbox {entry['bbox']} is not finite")
    return {
        "image_id": int(entry["image_id"]),
        "category_id": int(entry["category_id"]),
        "bbox": [x, y, width, height],
        "area": float(entry.get("area", width * height)),
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def build_index(images: Collection[int], categories: dict[int, str], annotations: list[dict[str, Any]]) -> Any:
    """Return pycocotools' index; object ids start at 1, as it takes a match with object 0 for none."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in images],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": [
            {**entry, "id": number}
            for number, entry in enumerate((e for e in annotations if e["image_id"] in images), start=1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def demo_ground_truth(count: int | None = None) -> GroundTruth:
    """Return the synthetic validation images, all generated at once, and the objects in them.

    Args:
        count: most images; None: all.
    """
    number = VALIDATION.count if count is None else min(count, VALIDATION.count)
    return GroundTruth.from_memory([scene("validation", index) for index in range(number)], CLASSES)
