"""Masks of objects and of detections as run lengths, at the size of the image."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as run_lengths

from onnxq.evaluation.annotations.outlines import compressed, polygons
from onnxq.evaluation.annotations.records import Size
from onnxq.yolo.detections import Detections
from onnxq.yolo.preprocess import Letterbox


def mask_of(entry: dict[str, Any], size: Size) -> dict[str, Any]:
    """Return the mask of an annotation as run lengths: its outline, or its box if it has none of this size."""
    outline = entry.get("segmentation")
    if isinstance(outline, dict) and tuple(outline.get("size", ())) == size:
        return compressed(outline)
    # pycocotools draws every pixel of a side, however far it leads.
    height, width = size
    parts = [part.clip(-max(size), (2 * width, 2 * height)) for part in polygons(outline) if len(part) > 2]
    if not parts:
        x, y, w, h = entry["bbox"]
        parts = [np.array([(x, y), (x + w, y), (x + w, y + h), (x, y + h)])]
    found: dict[str, Any] = run_lengths.merge(run_lengths.frPyObjects([part.ravel().tolist() for part in parts], *size))
    return found


def masks_of(
    found: Detections, prototypes: NDArray[np.generic], placed: Letterbox, canvas: Size, size: Size
) -> list[dict[str, Any]]:
    """Return the masks of detections as run lengths at the size of the image.

    The sums of the prototypes are interpolated bilinearly at the pixels within the box; the mask is where they are
    above 0 (YOLACT, Bolya et al. 2019).

    Args:
        found: the detections; boxes in px of the model's input, extras that begin with the coefficients.
        prototypes: float (coefficients, rows, columns), covering the model's input.
        placed: placement of the image on the model's input.
        canvas: size of the model's input, (height, width) in px.
        size: size of the image.
    """
    (left, top, right, bottom), *_ = placed.undo(np.array([[0, 0, canvas[1], canvas[0]]], np.float32)).astype(float)
    height, width = size
    limits = np.array([width, height, width, height])
    boxes = np.rint(placed.undo(found.boxes).clip(0, limits)).astype(int)
    made = []
    for (x1, y1, x2, y2), logits in zip(boxes.tolist(), found.mask_logits(prototypes), strict=True):
        rows, columns = logits.shape
        down = (np.arange(y1, y2) + 0.5 - top) / (bottom - top) * rows - 0.5
        across = (np.arange(x1, x2) + 0.5 - left) / (right - left) * columns - 0.5
        picture = np.zeros((height, width), np.uint8, order="F")
        picture[y1:y2, x1:x2] = _interpolated(_interpolated(logits, down).T, across).T > 0
        made.append(run_lengths.encode(picture))
    return made


def _interpolated(values: NDArray[np.float32], places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the rows of a table at fractional places, clipped to the table."""
    clipped = places.clip(0, len(values) - 1)
    first = np.floor(clipped).astype(np.intp)
    share = (clipped - first).astype(np.float32)[:, None]
    second = np.minimum(first + 1, len(values) - 1)
    return np.asarray(values[first] * (1 - share) + values[second] * share)
