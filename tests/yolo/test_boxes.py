import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.yolo.boxes import box_iou, corners_of_rotated, quad_iou, rotated_iou

SIDE = st.floats(0.5, 40)
PLACE = st.floats(-20, 20)
ANGLE = st.floats(-7, 7)
ROTATED = st.tuples(PLACE, PLACE, SIDE, SIDE, ANGLE).map(lambda v: (v[0], v[1], v[0] + v[2], v[1] + v[3], v[4]))


def rows(*boxes):
    return np.array(boxes, np.float32)


def clipped(polygon, edges):
    """The part of a convex polygon left of each edge (Sutherland and Hodgman 1974), as complex numbers."""
    for a, b in edges:
        side = [((b - a).conjugate() * (p - a)).imag for p in polygon]
        kept = []
        for k, p in enumerate(polygon):
            if side[k - 1] * side[k] < 0:
                kept.append(polygon[k - 1] + (p - polygon[k - 1]) * side[k - 1] / (side[k - 1] - side[k]))
            if side[k] >= 0:
                kept.append(p)
        polygon = kept
    return polygon


def area(polygon):
    return sum((polygon[k - 1].conjugate() * p).imag for k, p in enumerate(polygon)) / 2


def corners(box):
    left, top, right, bottom, angle = map(float, box)
    middle, turn = complex(left + right, top + bottom) / 2, complex(np.cos(angle), np.sin(angle))
    return [
        middle + turn * (complex(x, y) - middle)
        for x, y in ((left, top), (right, top), (right, bottom), (left, bottom))
    ]


def slow_iou(a, b):
    one, other = corners(a), corners(b)
    common = area(clipped(one, [(other[k - 1], other[k]) for k in range(4)]))
    return common / (area(one) + area(other) - common)


class TestStraight:
    def test_of_each_pair(self):
        a = rows((0, 0, 4, 4), (0, 0, 2, 2))
        b = rows((0, 0, 4, 4), (2, 2, 6, 6), (5, 5, 9, 9))
        np.testing.assert_allclose(box_iou(a, b), [[1, 4 / 28, 0], [0.25, 0, 0]], rtol=1e-6)

    def test_boxes_without_area_overlap_nothing(self):
        assert box_iou(rows((1, 1, 1, 1)), rows((1, 1, 1, 1), (0, 0, 2, 2))).tolist() == [[0, 0]]

    def test_of_none(self):
        assert box_iou(np.zeros((0, 4), np.float32), rows((0, 0, 1, 1))).shape == (0, 1)


class TestRotated:
    @given(ROTATED)
    def test_a_box_covers_itself(self, box):
        assert rotated_iou(rows(box), rows(box)) == pytest.approx(1, abs=1e-6)

    @given(ROTATED, st.integers(-3, 3))
    def test_half_a_turn_changes_nothing(self, box, halves):
        turned = (*box[:4], box[4] + halves * np.pi)
        assert rotated_iou(rows(box), rows(turned)) == pytest.approx(1, abs=1e-4)

    def test_corners_that_rounding_moves_out_by_a_hair_still_count(self):
        box = (-16.5, -5.5, -16.13, -4.76)
        assert rotated_iou(rows((*box, np.float32(np.pi))), rows((*box, 8.742278e-08))) == pytest.approx(1)

    @given(ROTATED, ROTATED)
    def test_is_symmetric(self, a, b):
        assert rotated_iou(rows(a), rows(b)) == pytest.approx(rotated_iou(rows(b), rows(a)), abs=1e-6)

    @given(ROTATED, ROTATED)
    def test_without_an_angle_is_that_of_straight_boxes(self, a, b):
        a, b = rows((*a[:4], 0)), rows((*b[:4], 0))
        assert rotated_iou(a, b) == pytest.approx(box_iou(a[:, :4], b[:, :4]), abs=1e-5)

    @given(ROTATED, ROTATED)
    def test_is_what_clipping_leaves(self, a, b):
        a, b = rows(a), rows(b)
        assert rotated_iou(a, b)[0, 0] == pytest.approx(slow_iou(a[0], b[0]), abs=1e-5)

    def test_of_each_pair(self):
        square, diamond = (0, 0, 2, 2, 0), (0, 0, 2, 2, np.pi / 4)
        octagon = 8 * (np.sqrt(2) - 1)
        found = rotated_iou(rows(square, (9, 9, 11, 11, 1)), rows(diamond, square, (2, 0, 4, 2, 0)))
        np.testing.assert_allclose(found, [[octagon / (8 - octagon), 1, 0], [0, 0, 0]], atol=1e-6)

    def test_of_none(self):
        assert rotated_iou(np.zeros((0, 5), np.float32), rows((0, 0, 1, 1, 0))).shape == (0, 1)
        assert rotated_iou(rows((0, 0, 1, 1, 0)), np.zeros((0, 5), np.float32)).shape == (1, 0)


class TestQuads:
    def test_rectangles_are_as_rotated_boxes(self):
        rng = np.random.default_rng(0)
        start, size, angle = rng.uniform(0, 20, (12, 2)), rng.uniform(1, 30, (12, 2)), rng.uniform(-3, 3, (12, 1))
        boxes = np.concatenate([start, start + size, angle], axis=1).astype(np.float32)
        quads = corners_of_rotated(boxes)
        np.testing.assert_allclose(quad_iou(quads, quads), rotated_iou(boxes, boxes), atol=1e-6)
        np.testing.assert_allclose(quad_iou(quads[:, ::-1], quads), rotated_iou(boxes, boxes), atol=1e-6)

    def test_other_polygons(self):
        square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
        triangle = np.array([[0, 0], [4, 0], [4, 4], [4, 4]], float)
        assert quad_iou(square[None], np.stack([square, triangle, square + 9]))[0] == pytest.approx([1, 0.5, 0])
        assert quad_iou(triangle[None], square[None])[0, 0] == pytest.approx(0.5)
        assert quad_iou(square[None] * 0, square[None] * 0)[0, 0] == 0

    def test_trapezoid(self):
        trapezoid = np.array([[[0, 0], [8, 0], [6, 4], [2, 4]]], float)
        square = np.array([[[2, 0], [6, 0], [6, 4], [2, 4]]], float)
        assert quad_iou(trapezoid, square)[0, 0] == pytest.approx(16 / 24)
