"""Outlines of objects: polygons, and masks as run lengths."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

_MOST_PIXELS = 1 << 30
"""Pixels of a mask; pycocotools counts them in 32 bits."""


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


def check_outline(outline: Any) -> None:
    """Check an outline before pycocotools reads it: its C code trusts the run lengths of a mask.

    Raises:
        ValueError: it is neither a list nor a mask, or the runs of the mask do not fill its size.
    """
    if isinstance(outline, dict):
        size, counts = outline.get("size"), outline.get("counts")
        if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
            raise ValueError(f"the mask has the size {size!r}, not height and width")
        runs = _runs(counts) if isinstance(counts, str) else counts
        if not isinstance(runs, list) or not all(type(run) is int for run in runs):
            raise ValueError("the runs of the mask are no whole numbers")
        if min(runs, default=0) < 0 or sum(runs) != size[0] * size[1] or sum(runs) >= _MOST_PIXELS:
            raise ValueError(f"the runs of the mask add up to {sum(runs)}, not to the {size[0]} x {size[1]} pixels")
    elif not isinstance(outline, list):
        raise ValueError(f"segmentation is {outline!r}, neither polygons nor a mask")


def _runs(text: str) -> list[int]:
    """Return the run lengths of a text.

    A letter has 5 bits of a number, the lowest first, and says whether more follow. From the fourth on, a number is the
    difference to the run before the last one.

    Raises:
        ValueError: it is no such text.
    """
    runs: list[int] = []
    number = place = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or place > 30:
            raise ValueError("the runs of the mask are no text of run lengths")
        number |= (bits & 31) << place
        place += 5
        if not bits & 32:
            signed = number - (1 << place if bits & 16 else 0)
            runs.append(signed + (runs[-2] if len(runs) > 2 else 0))
            number = place = 0
    if place:
        raise ValueError("the text of the mask's runs is cut short")
    return runs


def compressed(mask: dict[str, Any]) -> dict[str, Any]:
    """Return a mask of run lengths, as numbers or as text, in the form that pycocotools computes with."""
    height, width = mask["size"]
    if isinstance(mask["counts"], list):
        found: dict[str, Any] = run_lengths.frPyObjects(mask, height, width)
        return found
    return mask
