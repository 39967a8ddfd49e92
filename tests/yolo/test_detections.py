"""Detections: rows, boxes, and what a task adds to them."""

import numpy as np

from onnxq.yolo.detections import Detections, to_corners, with_corners, without_extras


def three(columns=2):
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    extras = np.arange(3 * columns, dtype=np.float32).reshape(3, columns)
    return Detections(boxes, np.float32([0.5, 0.9, 0.1]), np.array([7, 8, 9]), extras)


def test_rows_are_taken_together_and_in_order():
    found = three().take(np.array([2, 0]))
    assert len(found) == 2
    assert found.boxes.tolist() == [[8, 9, 10, 11], [0, 1, 2, 3]]
    assert (found.labels.tolist(), found.extras.tolist()) == ([9, 7], [[4, 5], [0, 1]])
    np.testing.assert_allclose(found.scores, [0.1, 0.5])


def test_rotated_boxes_have_their_angle_last():
    assert three().rotated().tolist() == [[0, 1, 2, 3, 0], [4, 5, 6, 7, 2], [8, 9, 10, 11, 4]]


def test_masks_are_prototypes_weighted_by_coefficients():
    prototypes = np.stack([np.eye(2), np.ones((2, 2))]).astype(np.float16)
    logits = three(columns=3).mask_logits(prototypes)  # a third column is no coefficient
    assert (logits.dtype, logits.shape) == (np.float32, (3, 2, 2))
    np.testing.assert_allclose(logits[1], 3 * np.eye(2) + 4)


def test_a_mask_of_no_detections():
    assert three().take(np.zeros(0, np.intp)).mask_logits(np.zeros((2, 4, 5), np.float32)).shape == (0, 4, 5)


def test_corners_of_boxes_given_by_their_centre():
    boxes = np.float32([[10, 20, 4, 6], [0, 0, 1, 1]])
    expected = [[8, 17, 12, 23], [-0.5, -0.5, 0.5, 0.5]]
    assert to_corners(boxes).tolist() == expected
    found = with_corners(Detections(boxes, np.float32([0.5, 0.4]), np.array([1, 2]), np.float32([[1], [2]])))
    assert (found.boxes.tolist(), found.extras.tolist()) == (expected, [[1], [2]])


def test_extras_may_have_no_columns():
    assert without_extras(np.zeros((2, 4), np.float32), np.zeros(2, np.float32), np.zeros(2, np.intp)).extras.shape == (
        2, 0,
    )  # fmt: skip
