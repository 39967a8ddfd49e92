"""Rotated boxes of annotations and of detections, as the four corners of convex polygons."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.evaluation.annotations.outlines import polygons
from onnxq.evaluation.scoring.matching import Evaluation
from onnxq.yolo.boxes import quad_iou

Quad = NDArray[np.float64]
"""Corners, float64 (4, 2), px, in the order of the angles around their middle."""


def quad_of(entry: dict[str, Any]) -> Quad | None:
    """Return the rotated box of an annotation; None if it has an upright one only.

    It is the outline of four corners, else the smallest rectangle around the outline, else the box turned by `rotation`
    in degrees about its centre, clockwise as seen, as CVAT has it.
    """
    parts = polygons(entry.get("segmentation"))
    if parts:
        hull = convex_hull(np.concatenate(parts))
        if len(hull) > 2:
            is_quad = len(parts) == 1 and len(parts[0]) == 4
            return padded(hull) if is_quad else smallest_rectangle(hull)
    if "rotation" in entry:
        x, y, w, h = entry["bbox"]
        return turned((x, y, w, h), math.radians(entry["rotation"]))
    return None


def turned(box: tuple[float, float, float, float], angle: float) -> Quad:
    """Return a box of left, top, width, height in px, turned about its centre by an angle in radians."""
    x, y, w, h = box
    across, down = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    middle = np.array([x + w / 2, y + h / 2])
    return np.array([middle + a * w / 2 * across + b * h / 2 * down for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))])


def convex_hull(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the corners of the convex hull in their order (Andrew 1979); fewer than 3 if it has no area."""
    ordered = sorted(set(map(tuple, points.tolist())))
    if len(ordered) < 3:
        return np.array(ordered, np.float64).reshape(-1, 2)
    chains = []
    for sequence in (ordered, ordered[::-1]):
        chain: list[tuple[float, ...]] = []
        for point in sequence:
            while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
                chain.pop()
            chain.append(point)
        chains.append(chain[:-1])
    return np.array([*chains[0], *chains[1]], np.float64)


def _turn(a: tuple[float, ...], b: tuple[float, ...], c: tuple[float, ...]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def padded(hull: NDArray[np.float64]) -> Quad:
    """Return four corners of a convex polygon of three or four: the last one twice."""
    return np.concatenate([hull, hull[-1:]])[:4]


def smallest_rectangle(hull: NDArray[np.float64]) -> Quad:
    """Return the rectangle of the least area around a convex polygon; a side of it lies on one of the polygon's."""
    sides = np.roll(hull, -1, axis=0) - hull
    best: tuple[float, Quad] | None = None
    for side in sides / np.linalg.norm(sides, axis=1, keepdims=True):
        frame = np.array([side, [-side[1], side[0]]])
        along = hull @ frame.T
        low, high = along.min(axis=0), along.max(axis=0)
        area = float((high - low).prod())
        if best is None or area < best[0]:
            corners = np.array([low, [high[0], low[1]], high, [low[0], high[1]]])
            best = area, corners @ frame
    assert best is not None
    return best[1]


def quad_area(quad: Quad) -> float:
    """Return the area of a convex polygon, square px."""
    x, y = quad.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


class RotatedEvaluation(Evaluation):
    """pycocotools' evaluation with the intersection over union of the entries' `quad`, as DOTA's has it."""

    def computeIoU(self, imgId: int, catId: int) -> Any:
        """Return the IoU of each detection, by falling score, with each object, float64 (detections, objects)."""
        categories = [catId] if self.params.useCats else self.params.catIds
        objects = [entry for category in categories for entry in self._gts[imgId, category]]
        found = [entry for category in categories for entry in self._dts[imgId, category]]
        if not objects or not found:
            return []
        order = np.argsort([-entry["score"] for entry in found], kind="mergesort")[: self.params.maxDets[-1]]
        a, b = np.array([found[row]["quad"] for row in order]), np.array([entry["quad"] for entry in objects])
        return quad_iou(a, b)
