"""Intersection over union of upright and of rotated boxes."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

_LEAST = np.finfo(np.float32).tiny

_Within = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]


def box_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union of each pair of boxes; 0 if both have no area.

    Args:
        a: float32 (n, 4), left, top, right, bottom.
        b: float32 (m, 4).

    Returns:
        float32 (n, m).
    """
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = sides.clip(0).prod(axis=2)
    areas = (a[:, 2:] - a[:, :2]).prod(axis=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(axis=1)[None]
    return np.asarray(common / np.maximum(areas - common, _LEAST))


def rotated_iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of rotated boxes, computed from their common polygon.

    Args:
        a: float32 (n, 5): left, top, right, bottom before rotation about the centre, and the angle in radians.
        b: float32 (m, 5).

    Returns:
        float64 (n, m).
    """
    first, second = np.repeat(np.arange(len(a)), len(b)), np.tile(np.arange(len(b)), len(a))
    common = _common_area(corners_of_rotated(a)[first], corners_of_rotated(b)[second], _within).reshape(len(a), len(b))
    areas = _area(a)[:, None] + _area(b)[None]
    return np.asarray(np.clip(common / np.maximum(areas - common, _LEAST), 0, 1))


def quad_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of convex polygons of four corners; 0 if both have no area.

    Args:
        a: float64 (n, 4, 2), corners in the order of their sides; one may come twice.
        b: float64 (m, 4, 2).

    Returns:
        float64 (n, m).
    """
    first, second = np.repeat(np.arange(len(a)), len(b)), np.tile(np.arange(len(b)), len(a))
    common = _common_area(a[first], b[second], _within_convex).reshape(len(a), len(b))
    areas = _quad_area(a)[:, None] + _quad_area(b)[None]
    return np.asarray(np.clip(common / np.maximum(areas - common, _LEAST), 0, 1))


def _quad_area(quads: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.abs(_cross(quads, np.roll(quads, -1, axis=1)).sum(axis=1)) / 2)


def _area(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.asarray((boxes[:, 2:4].astype(np.float64) - boxes[:, :2]).prod(axis=1))


def corners_of_rotated(boxes: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the corners of rotated boxes, in the order of their sides.

    Args:
        boxes: float32 (n, 5), as for `rotated_iou`.

    Returns:
        float64 (n, 4, 2).
    """
    wide = boxes.astype(np.float64)
    middles, halves = (wide[:, :2] + wide[:, 2:4]) / 2, (wide[:, 2:4] - wide[:, :2]) / 2
    cos, sin = np.cos(wide[:, 4]), np.sin(wide[:, 4])
    across, down = halves[:, :1] * np.stack([cos, sin], 1), halves[:, 1:] * np.stack([-sin, cos], 1)
    return np.stack([middles + x * across + y * down for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))], axis=1)


def _common_area(a: NDArray[np.float64], b: NDArray[np.float64], within: _Within) -> NDArray[np.float64]:
    """Common area of the convex polygons a and b, float64 (pairs, 4, 2), as float64 (pairs,).

    The corners of the common polygon are the corners of each within the other, and the crossings of their sides.
    """
    start, side = a[:, :, None], (np.roll(a, -1, axis=1) - a)[:, :, None]
    other_start, other_side = b[:, None], (np.roll(b, -1, axis=1) - b)[:, None]
    across = _cross(side, other_side)
    parallel = np.abs(across) < 1e-12
    divisor = np.where(parallel, 1.0, across)
    along = _cross(other_start - start, other_side) / divisor
    other_along = _cross(other_start - start, side) / divisor
    crossing = ~parallel & (along >= 0) & (along <= 1) & (other_along >= 0) & (other_along <= 1)
    crossings = start + along[..., None] * side
    points = np.concatenate([a, b, crossings.reshape(len(a), 16, 2)], axis=1)
    valid = np.concatenate([within(a, b), within(b, a), crossing.reshape(len(a), 16)], axis=1)
    return _hull_area(points, valid)


def _cross(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0])


def _within(points: NDArray[np.float64], rectangle: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points, float64 (pairs, 4, 2), lie in the rectangle of their pair or on its sides."""
    offset = points - rectangle[:, :1]
    inside = np.ones(points.shape[:2], bool)
    for end in (1, 3):
        side = rectangle[:, end : end + 1] - rectangle[:, :1]
        along, length = (offset * side).sum(axis=2), (side * side).sum(axis=2)
        inside &= (along >= -1e-9 * length) & (along <= (1 + 1e-9) * length)
    return inside


def _within_convex(points: NDArray[np.float64], quads: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points, float64 (pairs, 4, 2), lie in the convex polygon of their pair or on its sides."""
    sides = np.roll(quads, -1, axis=1) - quads
    turns = _cross(sides[:, None], points[:, :, None] - quads[:, None])  # (pairs, points, sides)
    slack = 1e-9 * np.square(sides).sum(axis=(1, 2))[:, None, None]
    return np.asarray((turns >= -slack).all(axis=2) | (turns <= slack).all(axis=2))


def _hull_area(points: NDArray[np.float64], valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Area of the convex polygons whose corners are the valid points.

    Args:
        points: float64 (pairs, points, 2).
        valid: bool (pairs, points).
    """
    count = valid.sum(axis=1)
    middle = (points * valid[..., None]).sum(axis=1) / np.maximum(count, 1)[:, None]
    offset = np.where(valid[..., None], points - middle[:, None], 0.0)
    angle = np.where(valid, np.arctan2(offset[..., 1], offset[..., 0]), np.inf)
    order = np.argsort(angle, axis=1)
    ring = np.take_along_axis(offset, order[..., None], axis=1)
    # Repeat the first corner in place of the points that are not valid: edges of length 0 add no area.
    ring = np.where((np.arange(ring.shape[1]) < count[:, None])[..., None], ring, ring[:, :1])
    return np.asarray(np.abs(_cross(ring, np.roll(ring, -1, axis=1)).sum(axis=1)) / 2)
