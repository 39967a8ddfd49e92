"""Non-maximum suppression, class by class."""

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.boxes import rotated_iou
from onnxq.yolo.detections import Detections

MOST_CANDIDATES = 30_000
"""Boxes of one image that suppression looks at; those of the least scores are dropped."""

MOST_DETECTIONS = 300
"""Boxes of one image that are kept unless another number is asked for."""


def suppress(
    boxes: NDArray[np.float32],
    scores: NDArray[np.float32],
    labels: NDArray[np.intp],
    iou: float,
    most: int = MOST_DETECTIONS,
) -> NDArray[np.intp]:
    """Return the boxes that class-wise non-maximum suppression keeps: those that overlap no better one of their class.

    Args:
        boxes: float32 (n, 4), xyxy.
        scores: float32 (n,).
        labels: intp (n,), class of each box.
        iou: boxes overlap if their intersection over union is greater than this.
        most: greatest number of boxes that are kept.

    Returns:
        Indices of the boxes, intp, best first; at most `most`, among the best `MOST_CANDIDATES`.
    """
    best = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    # Sorted by class, then score: the boxes that a box can suppress are one slice.
    order = best[np.argsort(labels[best], kind="stable")]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order].T)
    areas = (x2 - x1) * (y2 - y1)
    ends = np.searchsorted(labels[order], labels[order], side="right")
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for here in np.argsort(-scores[order], kind="stable").tolist():
        if not alive[here]:
            continue
        kept.append(here)
        if len(kept) == most:
            break
        if here + 1 == ends[here]:
            continue
        worse = slice(here + 1, ends[here])
        width = np.minimum(x2[here], x2[worse]) - np.maximum(x1[here], x1[worse])
        height = np.minimum(y2[here], y2[worse]) - np.maximum(y1[here], y1[worse])
        overlap = np.maximum(width, 0) * np.maximum(height, 0)
        alive[worse] &= overlap <= iou * (areas[here] + areas[worse] - overlap)
    return order[kept]


def suppress_rotated(found: Detections, iou: float, most: int = MOST_DETECTIONS) -> NDArray[np.intp]:
    """Return the same as `suppress`, for rotated boxes."""
    boxes = found.rotated()
    left = np.argsort(-found.scores, kind="stable")[:MOST_CANDIDATES]
    kept: list[int] = []
    while len(left) and len(kept) < most:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        near = _may_overlap(boxes, best, left) & (found.labels[left] == found.labels[best])
        duplicates = left[near][rotated_iou(boxes[best : best + 1], boxes[left[near]])[0] > iou]
        left = left[~np.isin(left, duplicates)]
    return np.array(kept, np.intp)


def _may_overlap(boxes: NDArray[np.float32], one: int, others: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Whether the circles around rotated boxes touch, bool (others,)."""
    middles = (boxes[:, :2] + boxes[:, 2:4]) / 2
    radii = np.hypot(*(boxes[:, 2:4] - boxes[:, :2]).T) / 2
    distances = np.hypot(*(middles[others] - middles[one]).T)
    return np.asarray(distances <= radii[others] + radii[one])
