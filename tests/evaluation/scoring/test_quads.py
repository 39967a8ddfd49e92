import math

import numpy as np
import pytest

from onnxq.evaluation.ground_truth import build_index
from onnxq.evaluation.scoring.averages import Matcher, Rules, averages
from onnxq.evaluation.scoring.quads import (
    RotatedEvaluation,
    convex_hull,
    quad_area,
    quad_of,
    smallest_rectangle,
    turned,
)


def flat(quad):
    return [quad.ravel().tolist()]


class TestQuadOf:
    def test_an_outline_of_four_corners_in_any_order(self):
        corners = np.array([[0, 0], [10, 4], [8, 9], [-2, 5]], float)
        for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3]):
            assert quad_area(quad_of({"segmentation": flat(corners[order])})) == pytest.approx(quad_area(corners))

    def test_more_corners_have_the_smallest_rectangle(self):
        middle = np.array([30, 20])
        points = np.array([[-10, -3], [10, -3], [10, 3], [0, 3], [-10, 3], [2, 1]])
        angle = 0.4
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        found = quad_of({"segmentation": flat(points @ turn + middle)})
        assert quad_area(found) == pytest.approx(120)
        np.testing.assert_allclose(found.mean(axis=0), middle)

    def test_a_rotation_in_degrees(self):
        found = quad_of({"bbox": [10, 10, 20, 10], "rotation": 90})
        np.testing.assert_allclose(found.min(axis=0), [15, 5])
        np.testing.assert_allclose(found.max(axis=0), [25, 25])

    @pytest.mark.parametrize("entry", [{}, {"segmentation": []}, {"segmentation": [[0, 0, 5, 5, 9, 9, 3, 3]]}])
    def test_no_rotated_box(self, entry):
        assert quad_of({"bbox": [0, 0, 9, 9], **entry}) is None


def test_hulls():
    square = np.array([[0, 0], [4, 0], [4, 4], [0, 4]], float)
    inner = np.array([[1, 2], [2, 2], [2, 0]], float)
    assert sorted(convex_hull(np.concatenate([inner, square])).tolist()) == sorted(square.tolist())
    assert len(convex_hull(np.array([[1.0, 1], [1, 1]]))) == 1
    assert quad_area(smallest_rectangle(square)) == pytest.approx(16)


def test_average_precision_depends_on_the_angle():
    def index(angle, **more):
        entry = {"image_id": 0, "category_id": 1, "bbox": [10, 20, 40, 10], "area": 400, "iscrowd": 0, **more}
        return build_index([0], {1: "ship"}, [{**entry, "quad": turned((10, 20, 40, 10), angle)}])

    matcher = Matcher(evaluation=RotatedEvaluation)
    aps = [averages(index(0.3), index(0.3 + off, score=0.9), Rules(), matcher)[0] for off in (0, 0.05, 0.3, math.pi)]
    assert aps[0] == aps[3] == pytest.approx(100)
    assert 0 < aps[2] < aps[1] < 100
    for truth, found in (([], index(0, score=0.9)), (index(0), [])):
        empty = build_index([0], {1: "ship"}, [])
        averages(truth or empty, found or empty, Rules(), matcher)
    assert averages(index(0), index(0, score=0.9), Rules(ignore_classes=True), matcher)[0] == pytest.approx(100)
