"""Compares the sizes that annotations state with those of the image files, and finds what the boxes belong to."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from onnxq._text import plural, size_text
from onnxq.errors import DataError
from onnxq.evaluation.annotations.image_files import PictureSize
from onnxq.evaluation.annotations.records import Annotations, ImageRecord, Size

_ROUNDING = 2
"""Difference of sizes, px, that rounding explains."""

_SLACK = 2.0
"""Boxes may reach this far beyond an image, px."""

_DOUBT = 0.01
"""Greatest probability of an explanation that is dismissed."""


def reconcile_sizes(read: Annotations, pictures: Mapping[int, PictureSize]) -> dict[int, Size]:
    """Return the sizes of images, and scale the objects of images that were resized after they were annotated.

    Where a stated size is not that of the file, the boxes tell which of the two they belong to.

    Args:
        read: the annotations; boxes are scaled, and a remark is added.
        pictures: sizes of the image files by image id.

    Returns:
        (height, width) in px by image id, as the boxes are in: of the files, or stated where there is no file.

    Raises:
        DataError: the boxes do not tell, or belong to images of another shape.
    """
    sizes = {image.id: image.size for image in read.images if image.size is not None}
    sizes.update({number: picture.upright for number, picture in pictures.items()})
    unlike = {
        image.id: image
        for image in read.images
        if image.id in pictures and image.size is not None and _differ(image.size, pictures[image.id].upright)
    }
    if not unlike:
        return sizes
    turned = {
        number: image
        for number, image in unlike.items()
        if pictures[number].stored != pictures[number].upright and not _differ(image.size, pictures[number].stored)
    }
    if turned:
        _require_upright(read, turned, pictures)
    resized = {number: image for number, image in unlike.items() if number not in turned}
    if resized and _belong_to_stated(read, resized, pictures):
        _scale(read, resized, pictures)
    return sizes


def _differ(a: Size | None, b: Size) -> bool:
    return a is None or max(abs(a[0] - b[0]), abs(a[1] - b[1])) > _ROUNDING


def _reach(read: Annotations, images: Mapping[int, ImageRecord], sizes: Mapping[int, Size]) -> tuple[int, int]:
    """Return how many objects of these images there are, and how many reach beyond images of these sizes."""
    boxes = [(entry["bbox"], sizes[entry["image_id"]]) for entry in read.objects if entry["image_id"] in images]
    beyond = sum(x + w > size[1] + _SLACK or y + h > size[0] + _SLACK for (x, y, w, h), size in boxes)
    return len(boxes), beyond


def _require_upright(read: Annotations, turned: Mapping[int, ImageRecord], pictures: Mapping[int, PictureSize]) -> None:
    """Refuse boxes on images that EXIF turns by a quarter, unless the boxes only fit the image as it is shown."""
    count, beyond_stored = _reach(read, turned, {number: pictures[number].stored for number in turned})
    _, beyond_upright = _reach(read, turned, {number: pictures[number].upright for number in turned})
    if count and beyond_stored and not beyond_upright:
        read.remarks.append(
            f"sizes of {len(turned)} image{plural(len(turned))} are stated without the turn of their EXIF orientation; "
            "the boxes fit the images as they are shown"
        )
        return
    if count:
        image = next(iter(turned.values()))
        raise DataError(
            f"{read.source}: {len(turned)} image{plural(len(turned))}, such as {image.name}, were annotated as they "
            f"are stored, {size_text(pictures[image.id].stored)}, but their EXIF orientation shows them as "
            f"{size_text(pictures[image.id].upright)}: remove the orientation from the files, or annotate them upright"
        )


def _belong_to_stated(
    read: Annotations, resized: Mapping[int, ImageRecord], pictures: Mapping[int, PictureSize]
) -> bool:
    """Return whether boxes are those of the stated sizes, else of the files'."""
    upright = {number: pictures[number].upright for number in resized}
    stated = {number: image.size for number, image in resized.items() if image.size is not None}
    count, beyond_files = _reach(read, resized, upright)
    _, beyond_stated = _reach(read, resized, stated)
    image = next(iter(resized.values()))
    which = f"{len(resized)} image{plural(len(resized))}, such as {image.name}"
    are = f"{size_text(stated[image.id])} in the annotations and {size_text(upright[image.id])} in the files"
    if not count:
        return False
    if beyond_files and beyond_stated:
        raise DataError(
            f"{read.source}: {which}, are {are}, and boxes fit neither; give the images that were annotated"
        )
    if beyond_stated or (not beyond_files and _fit_by_chance(read, stated, upright) < _DOUBT):
        read.remarks.append(f"{which}, are {are}; the boxes fit the files")
        return False
    if beyond_files or _fit_by_chance(read, upright, stated) < _DOUBT:
        return True
    raise DataError(
        f"{read.source}: {which}, are {are}, and the boxes do not tell which they belong to; correct width and height"
    )


def _fit_by_chance(read: Annotations, large: Mapping[int, Size], small: Mapping[int, Size]) -> float:
    """Return how probable it is that no box on large images reaches beyond the small ones; 1 if these are larger.

    The farther ends of boxes are taken to lie anywhere.
    """
    logs = 0.0
    for entry in read.objects:
        number = entry["image_id"]
        if number in large:
            ratios = [min(1.0, b / a) for a, b in zip(large[number], small[number], strict=True)]
            logs += float(np.log(ratios).sum())
    return float(np.exp(logs))


def _scale(read: Annotations, resized: Mapping[int, ImageRecord], pictures: Mapping[int, PictureSize]) -> None:
    """Scale objects from the stated sizes to those of the files."""
    factors: dict[int, tuple[float, float]] = {}
    for number, image in resized.items():
        upright, stated = pictures[number].upright, image.size or pictures[number].upright
        down, across = upright[0] / stated[0], upright[1] / stated[1]
        if _differ((round(stated[0] * across), round(stated[1] * across)), upright) and _differ(
            (round(stated[0] * down), round(stated[1] * down)), upright
        ):
            raise DataError(
                f"{read.source}: {image.name} is {size_text(stated)} in the annotations and {size_text(upright)} in "
                "the file, which has another shape: it was cropped, padded or stretched; give the images that were "
                "annotated"
            )
        factors[number] = (across, down)
    for entry in read.objects:
        if entry["image_id"] in factors:
            _scale_object(entry, *factors[entry["image_id"]])
    image = next(iter(resized.values()))
    read.remarks.append(
        f"{len(resized)} image{plural(len(resized))} were resized after they were annotated, such as {image.name} "
        f"from {size_text(image.size or (0, 0))} to {size_text(pictures[image.id].upright)}: their boxes are scaled"
    )


def _scale_object(entry: dict[str, Any], across: float, down: float) -> None:
    x, y, w, h = entry["bbox"]
    entry["bbox"] = [x * across, y * down, w * across, h * down]
    entry["area"] *= across * down
    outline = entry.get("segmentation")
    if isinstance(outline, list):
        parts = outline if outline and isinstance(outline[0], list) else [outline]
        entry["segmentation"] = [
            [value * (across, down)[place % 2] for place, value in enumerate(part)] for part in parts
        ]
    elif outline:
        del entry["segmentation"]  # a mask of run lengths has the size of the image that was annotated
    if "keypoints" in entry:
        factors = (across, down, 1)
        entry["keypoints"] = [value * factors[place % 3] for place, value in enumerate(entry["keypoints"])]
