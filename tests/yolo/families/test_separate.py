"""Boxes and scores as two tables."""

import numpy as np
import pytest
from graphs import separate
from tables import BOX, CELLS, detector, layout_of

from onnxq.yolo.decode import decode
from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN


@pytest.mark.parametrize("classes_first", [False, True])
def test_boxes_and_scores_apart(classes_first: bool) -> None:
    boxes, scores = np.zeros((1, CELLS, 4), np.float32), np.zeros((1, CELLS, 3), np.float32)
    boxes[0, 7], scores[0, 7] = BOX, (0.1, 0.7, 0.3)
    known = detector("separate", outputs=("boxes", "scores"))
    found = decode({"boxes": boxes, "scores": scores.swapaxes(1, 2) if classes_first else scores}, known, 0.2)
    assert (found.boxes.tolist(), found.labels.tolist()) == ([list(BOX)] * 2, [1, 2])
    assert found.scores.tolist() == pytest.approx([0.7, 0.3])


def test_boxes_beside_logits_are_not_understood():
    assert layout_of(separate(logits=True)) == (UNKNOWN, "detect", ())


def test_a_family_that_is_given_and_fits():
    head = detect(separate(), family="separate").outputs
    assert (head.outputs, head.why) == (("output0", "output1"), "the family was given")
