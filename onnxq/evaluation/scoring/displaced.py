"""Finds classes whose names are exchanged: most of their objects are found, as objects of each other."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from onnxq._text import some
from onnxq.evaluation.scoring.matching import matched

_IMAGES = 500
"""Most images that are looked at."""

_IOU = 0.5

_LEAST_OBJECTS = 5
"""Found objects of a class from which on it is judged."""

_SHARE = 2 / 3
"""Share of the found objects of a class that are found as one other class, if names are exchanged."""


def displaced_classes(truth: Any, found: Any, images: Sequence[int]) -> dict[int, int]:
    """Return the categories whose objects are found as those of another one, of which the same is true.

    A weak detector takes a rare class for a common one, but not the common one for a third.

    Args:
        truth: pycocotools' index of the objects.
        found: pycocotools' index of the detections.
        images: ids of the images to look at, at most 500 of those with objects.

    Returns:
        Category of the objects -> category of the detections.
    """
    seen: dict[int, Counter[int]] = {}
    for image in [number for number in images if truth.imgToAnns[number]][:_IMAGES]:
        objects = [entry for entry in truth.imgToAnns[image] if not entry["iscrowd"]]
        ranked = sorted(found.imgToAnns[image], key=lambda entry: -entry["score"])
        if not objects or not ranked:
            continue
        boxes = ([entry["bbox"] for entry in entries] for entries in (ranked, objects))
        overlaps = np.asarray(run_lengths.iou(*boxes, [0] * len(objects)))
        none = np.zeros(len(objects), bool)
        _, detections = matched(overlaps, np.array([_IOU]), none, none)
        for entry, detection in zip(objects, detections[0].tolist(), strict=True):
            if detection >= 0:
                seen.setdefault(entry["category_id"], Counter())[ranked[detection]["category_id"]] += 1
    taken = {}
    for category, counts in seen.items():
        other, count = counts.most_common(1)[0]
        if other != category and counts.total() >= _LEAST_OBJECTS and count >= _SHARE * counts.total():
            taken[category] = other
    return {category: taken[category] for category in sorted(taken) if taken[category] in taken}


def displaced_remark(truth: Any, found: Any, categories: Mapping[int, str]) -> str:
    """Return what to say of classes whose names are exchanged; empty if there are none.

    Args:
        truth: pycocotools' index of the objects.
        found: pycocotools' index of the detections.
        categories: category id -> name.
    """
    taken = displaced_classes(truth, found, list(truth.imgs))
    if not taken:
        return ""
    pairs = [f"{categories[own]!r} as {categories[other]!r}" for own, other in taken.items()]
    return (
        f"most objects of {len(taken)} classes are found as those of each other: {some(pairs)}; "
        "check the order of the names in the model's metadata and in the annotations"
    )
