"""Ground truth: images and their annotated objects, checked, and indexed by pycocotools."""

import contextlib
import io
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO

from onnxq._text import plural
from onnxq.calibration.dataset_yaml import SUFFIXES
from onnxq.calibration.demo import CLASSES, VALIDATION, scene
from onnxq.errors import DataError
from onnxq.evaluation.annotations.box_checks import check_boxes
from onnxq.evaluation.annotations.coco_file import read_coco
from onnxq.evaluation.annotations.image_files import find_images, picture_size
from onnxq.evaluation.annotations.records import Annotations, Size
from onnxq.evaluation.annotations.references import check_references
from onnxq.evaluation.annotations.sizes import reconcile_sizes
from onnxq.evaluation.annotations.yolo_labels import read_yolo
from onnxq.remote.address import Location
from onnxq.yolo.inputs.image_files import ImageReader

_log = logging.getLogger(__name__)

_EMPTY = 0.2
"""Part of the images without an object from which on it is said."""


@dataclass(frozen=True)
class GroundTruth:
    """Images and the objects in them.

    Attributes:
        coco: pycocotools' index of these images and their objects.
        images: image id -> function that returns the image, uint8 (height, width, 3), RGB; sorted by id.
        categories: category id -> name, sorted by id.
        files: files of the images; empty for images in memory.
        groups: ids of categories that only group others: they have no object, and others name them as their parent.
        owned: ids of the categories that have objects, also on images that are left out.
        remarks: what was mended in the annotations, a sentence each; also logged.
        large: image id -> (height, width) in px of a picture that is decoded at a smaller scale.
    """

    coco: Any
    images: Mapping[int, Callable[[], NDArray[np.uint8]]]
    categories: dict[int, str]
    files: tuple[Location, ...] = ()
    groups: frozenset[int] = frozenset()
    owned: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()
    large: Mapping[int, Size] = field(default_factory=dict)

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
        owned = frozenset(int(entry["category_id"]) for entry in annotations)
        return cls(build_index(loaders, categories, annotations), loaders, categories, owned=owned)

    @classmethod
    def load(cls, annotations: Path, images: Location | None = None, max_images: int | None = None) -> "GroundTruth":
        """Read annotations and check them; what is mended and which images are missing is logged.

        Args:
            annotations: COCO's JSON file with `images`, `annotations` and `categories`, or the YAML file of a data set
                with the label files of YOLO.
            images: folder or address of the `file_name`s; of a data set, other images than those of its validation
                split.
            max_images: most images; those with the lowest ids are kept.

        Raises:
            DataError: the annotations are missing or invalid, or all images are missing.
        """
        if annotations.suffix.lower() in SUFFIXES:
            read, paths = read_yolo(annotations, images)
            check_references(read)
            return cls._checked(read, dict(list(paths.items())[:max_images]))
        if images is None:
            raise DataError(f"{annotations}: give the folder of its images")
        read = read_coco(annotations)
        check_references(read)
        paths = find_images(read, images)
        missing = [Path(image.name).name for image in read.images if image.id not in paths]
        if not paths:
            raise DataError(f"{images}: none of the {len(read.images)} images of {annotations} exists")
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            _log.warning("%d of %d images are missing in %s: %s", len(missing), len(read.images), images, names)
        return cls._checked(read, dict(list(paths.items())[:max_images]))

    @classmethod
    def _checked(cls, read: Annotations, paths: Mapping[int, Location]) -> "GroundTruth":
        """Check annotations against these images, and index them."""
        found = {number: picture_size(path) for number, path in paths.items()}
        sizes = reconcile_sizes(read, {number: size for number, size in found.items() if size is not None})
        check_boxes(read, sizes)
        empty = _without_objects(read, paths)
        if empty:
            read.remarks.append(empty)
        for remark in read.remarks:
            _log.warning("%s: %s", read.source, remark)
        owned = frozenset(read.owned)
        parents = {category.parent for category in read.categories}
        reader = ImageReader(paths.values())
        loaders = {number: partial(reader, path) for number, path in paths.items()}
        categories = {category.id: category.name for category in read.categories}
        return cls(
            build_index(loaders, categories, read.objects, sizes),
            loaders,
            categories,
            tuple(paths.values()),
            frozenset(each.id for each in read.categories if each.id not in owned and each.name in parents),
            owned,
            tuple(read.remarks),
            {number: size.upright for number, size in found.items() if size is not None and size.is_large},
        )


def _without_objects(read: Annotations, images: Collection[int]) -> str:
    """Return what to say of images without an object; empty if they are few."""
    seen = {entry["image_id"] for entry in read.objects} & set(images)
    count = len(images) - len(seen)
    if not seen:
        return f"no object is on the {len(images)} image{plural(len(images))}, so there is no AP"
    unlabelled = len(read.unlabelled & set(images))
    if unlabelled:
        empty = f" and {count - unlabelled} an empty one" if count > unlabelled else ""
        return (
            f"{unlabelled} of {len(images)} images have no label file{empty}, and all that is detected there counts as "
            "wrong"
        )
    if count < max(_EMPTY * len(images), 2):
        return ""
    return f"{count} of {len(images)} images have no object, and all that is detected there counts as wrong"


def build_index(
    images: Collection[int],
    categories: dict[int, str],
    annotations: list[dict[str, Any]],
    sizes: Mapping[int, Size] | None = None,
    *,
    own: bool = False,
) -> Any:
    """Return pycocotools' index; object ids start at 1, as it takes a match with object 0 for none.

    Args:
        images: ids of the images; objects of others are left out.
        categories: category id -> name.
        annotations: objects, or detections, as records of COCO.
        sizes: (height, width) of images in px, which masks need.
        own: the records are not copied, and get ids.
    """
    kept = [entry if own else dict(entry) for entry in annotations if entry["image_id"] in images]
    for number, entry in enumerate(kept, start=1):
        entry["id"] = number
    coco = COCO()
    sizes = sizes or {}
    coco.dataset = {
        "images": [
            {"id": number, **dict(zip(("height", "width"), sizes.get(number, ()), strict=False))} for number in images
        ],
        "categories": [{"id": number, "name": name} for number, name in categories.items()],
        "annotations": kept,
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
