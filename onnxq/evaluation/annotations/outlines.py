"""Outlines of objects: polygons, and masks as run lengths."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths


def polygons(outline: Any) -> list[NDArray[np.float64]]:
    """Return the polygons of COCO's `segmentation`, float64 (points, 2) in px each; none for a mask or nothing."""
    if not isinstance(outline, list) or not outline:
        return []
    parts = outline if isinstance(outline[0], list) else [outline]
    found = []
    for part in parts:
        try:
            points = np.asarray(part, np.float64).reshape(-1, 2)
        except (TypeError, ValueError):
            continue
        if len(points) and np.isfinite(points).all():
            found.append(points)
    return found


def box_of_outlines(outline: Any) -> list[float] | None:
    """Return the box around an outline: left, top, width, height in px; None if there is nothing to enclose.

    Args:
        outline: COCO's `segmentation`: polygons, or a mask as run lengths.
    """
    if isinstance(outline, dict):
        try:
            box = [float(value) for value in run_lengths.toBbox(compressed(outline))]
        except (KeyError, TypeError, ValueError, IndexError):
            return None
    else:
        parts = polygons(outline)
        if not parts:
            return None
        points = np.concatenate(parts)
        (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        box = [left, top, right - left, bottom - top]
    return box if min(box[2:]) > 0 and all(map(math.isfinite, box)) else None


def compressed(mask: dict[str, Any]) -> dict[str, Any]:
    """Return a mask of run lengths, as numbers or as text, in the form that pycocotools computes with."""
    height, width = mask["size"]
    if isinstance(mask["counts"], list):
        found: dict[str, Any] = run_lengths.frPyObjects(mask, height, width)
        return found
    return mask
