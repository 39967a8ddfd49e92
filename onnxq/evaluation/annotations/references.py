"""Checks what annotations list: entries that come twice, and objects of images that are not listed."""

from collections import Counter
from typing import Any

from onnxq._text import plural, some
from onnxq.errors import DataError
from onnxq.evaluation.annotations.class_keys import class_key
from onnxq.evaluation.annotations.records import Annotations, Category, ImageRecord

_PARTS = ("segmentation", "keypoints", "iscrowd", "rotation")
"""Keys in which objects with the same box may differ."""


def check_references(read: Annotations) -> None:
    """Mend entries that come twice and objects of unlisted images, with a remark each.

    Raises:
        DataError: an id stands for two images or two categories, or no object is of a listed image.
    """
    _merge_images(read)
    _merge_categories(read)
    _drop_unlisted(read)
    _drop_copies(read)
    crowds = sum(entry["iscrowd"] for entry in read.objects)
    if read.objects and crowds == len(read.objects):
        for entry in read.objects:
            entry["iscrowd"] = 0
        read.remarks.append("all objects are marked as crowds, which AP ignores: each is taken as a single object")


def _merge_images(read: Annotations) -> None:
    """Put the entries of one file together; refuse an id of two files."""
    names: dict[int, str] = {}
    clashes: dict[int, str] = {}
    for image in read.images:
        if names.setdefault(image.id, image.name) != image.name:
            clashes.setdefault(image.id, f"{image.id} ({names[image.id]} and {image.name})")
    if clashes:
        raise DataError(
            f"{read.source}: {len(clashes)} id{plural(len(clashes))} of images stand for two files each: "
            f"{some(list(clashes.values()))}; when annotation files are put together, the images and objects of one "
            "must be numbered anew"
        )
    first: dict[str, ImageRecord] = {}
    moved: dict[int, int] = {}
    kept = []
    for image in read.images:
        if image.name not in first:
            first[image.name] = image
            kept.append(image)
        elif first[image.name].id != image.id:
            moved[image.id] = first[image.name].id
    if len(kept) < len(read.images):
        twice = [name for name, count in Counter(image.name for image in read.images).items() if count > 1]
        read.remarks.append(
            f"{len(twice)} image{plural(len(twice))} listed more than once, such as {twice[0]}: the objects of each "
            "are put together"
        )
        read.images = kept
        for entry in read.objects:
            entry["image_id"] = moved.get(entry["image_id"], entry["image_id"])


def _merge_categories(read: Annotations) -> None:
    """Put categories of one name together; refuse an id of two names."""
    by_id: dict[int, Category] = {}
    for category in read.categories:
        if class_key(by_id.setdefault(category.id, category).name) != class_key(category.name):
            raise DataError(
                f"{read.source}: category id {category.id} stands for {by_id[category.id].name!r} and "
                f"{category.name!r}; number the categories anew"
            )
    owned = read.owned
    # A category that owns nothing, such as the group in front in files of Roboflow, gives way to its namesake.
    ranked = sorted(by_id.values(), key=lambda category: (category.id not in owned, category.id))
    by_name: dict[str, Category] = {}
    moved: dict[int, int] = {}
    for category in ranked:
        first = by_name.setdefault(category.name, category)
        if first.id != category.id:
            moved[category.id] = first.id
    together = [category for category in by_id.values() if category.id in moved and category.id in owned]
    if together:
        read.remarks.append(
            f"{some([repr(category.name) for category in together])}: listed as a category more than once, and taken "
            "as one class"
        )
    read.categories = [category for category in by_id.values() if category.id not in moved]
    for entry in read.objects:
        entry["category_id"] = moved.get(entry["category_id"], entry["category_id"])


def _drop_unlisted(read: Annotations) -> None:
    listed = {image.id for image in read.images}
    rows = [row for row, entry in enumerate(read.objects) if entry["image_id"] in listed]
    absent = len(read.objects) - len(rows)
    if not absent:
        return
    kept = set(rows)
    label = next(label for row, label in enumerate(read.labels) if row not in kept)
    if not rows:
        raise DataError(
            f"{read.source}: no object belongs to a listed image, such as {label}: the image_id of objects must be the "
            "id of an image"
        )
    read.remarks.append(
        f"{absent} object{plural(absent)} of images that are not listed {'is' if absent == 1 else 'are'} left out, "
        f"such as {label}"
    )
    read.keep(rows)


def _drop_copies(read: Annotations) -> None:
    """Keep the first of objects that are equal in all but their id."""
    seen: set[tuple[Any, ...]] = set()
    rows, copies = [], []
    for row, entry in enumerate(read.objects):
        parts = (repr(entry.get(key)) for key in _PARTS)
        key = (entry["image_id"], entry["category_id"], *entry["bbox"], *parts)
        if key in seen:
            copies.append(read.labels[row])
            continue
        seen.add(key)
        rows.append(row)
    if copies:
        read.remarks.append(
            f"{len(copies)} object{plural(len(copies))} {'is' if len(copies) == 1 else 'are'} listed twice and counted "
            f"once, such as {copies[0]}"
        )
        read.keep(rows)
