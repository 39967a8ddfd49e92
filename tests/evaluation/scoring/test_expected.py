import math
import random

import numpy as np
import pytest
from compared import AWAY, finding
from graphs import classifier, csp, v8, with_metadata
from tables import BOX, always, table_of

from onnxq.evaluation.scoring import expected
from onnxq.evaluation.scoring.expected import UncertainObjects, expected_precision, why_not
from onnxq.yolo.detector import detect
from onnxq.yolo.preprocess import Letterbox

WHOLE = Letterbox(1.0, 0, 0), (64, 64)
"""An image that fills the input."""

LOWER = (8, 16, 32, 26)
"""A box with an IoU of 0.625 with `BOX`: three of ten thresholds are below."""

TEN = [1, 0.98, 0.95, 0.90, 0.84, 0.76, 0.65, 0.50, 0.30, 0.09]
"""Part of the detections of trained models with an IoU above each threshold, of those with an IoU above 0.5."""


def found(*boxes):
    """Return the outputs of a v8 with two classes that finds these, (x1, y1, x2, y2, score, class)."""
    return {"out": table_of(list(boxes), "v8", 2)[np.newaxis]}


def objects(*boxes, iou=0.65, place=WHOLE):
    return UncertainObjects.of(found(*boxes), detect(finding()), iou, *place)


def precision(truths, models):
    return expected_precision(truths, [truth.judge(found(*boxes)) for truth, boxes in zip(truths, models, strict=True)])


def scenes(seed=0, count=6):
    """Return the boxes that a model finds on each of several images, in cells that do not overlap."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        cells = rng.permutation(16)[:6]
        corners = [(16 * (cell % 4) + 2, 16 * (cell // 4) + 2) for cell in cells]
        scores, labels = rng.uniform(0.05, 0.95, 6), rng.integers(0, 2, 6)
        made.append([(x, y, x + 12, y + 12, s, c) for (x, y), s, c in zip(corners, scores, labels, strict=True)])
    return made


def changed(images, move=0.0, score=lambda value: value):
    return [[(x + move, y, r + move, b, score(s), c) for x, y, r, b, s, c in boxes] for boxes in images]


@pytest.fixture
def certain(monkeypatch):
    """Let the true boxes be where the float model has them."""
    monkeypatch.setattr(expected, "_deviations", lambda: np.zeros((2, 4)))


class TestPrecision:
    @pytest.mark.usefixtures("certain")
    def test_by_hand(self):
        truth = objects((*BOX, 0.8, 1), (*AWAY, 0.4, 1))
        away = (40, 40, 60, 52.5)  # IoU 0.625
        # Expected hits 0.8, 0.8, 1.2 of 1.2 objects: precision 0.8 up to a recall of 2/3, and 0.4 up to 1. Above an IoU
        # of 0.6 the last one is wrong.
        value = precision([truth], [[(*BOX, 0.9, 1), (0, 0, 6, 6, 0.7, 1), (*away, 0.5, 1)]])
        assert value == pytest.approx(100 * (67 * 0.8 + 0.3 * 34 * 0.4) / 101)

    @pytest.mark.usefixtures("certain")
    def test_classes_count_with_the_probability_that_they_occur(self):
        truth = objects((*BOX, 0.8, 1), (*AWAY, 0.4, 0))
        weights = [1 - math.exp(-0.8), 1 - math.exp(-0.4)]
        value = precision([truth], [[(*BOX, 0.9, 1), (0, 0, 9, 9, 0.9, 0)]])
        assert value == pytest.approx(100 * 0.8 * weights[0] / sum(weights))

    @pytest.mark.usefixtures("certain")
    def test_detections_of_one_score_count_together(self):
        other = (0, 0, 6, 6)
        truth = objects((*BOX, 0.8, 1), (*AWAY, 0.4, 1), (*other, 0.2, 1))
        for equal in ([AWAY, other], [other, AWAY]):
            # Precision is 0.8 up to a recall of 0.8 / 1.4, and 1.4 / 3 beyond.
            value = precision([truth], [[(*BOX, 0.9, 1), *((*box, 0.5, 1) for box in equal)]])
            assert value == pytest.approx(100 * (58 * 0.8 + 43 * 1.4 / 3) / 101)

    def test_what_the_float_model_does_not_find_is_no_object(self):
        assert math.isnan(precision([objects((*BOX, 0.02, 1))], [[(*BOX, 0.9, 1)]]))
        assert precision([objects((*BOX, 0.03, 1))], [[(*BOX, 0.9, 1)]]) > 0

    def test_a_model_that_finds_nothing(self):
        assert precision([objects((*BOX, 0.9, 1))], [[]]) == 0

    def test_the_order_of_the_images_does_not_matter(self):
        # Some scores are equal.
        images = changed(scenes(), score=lambda value: round(value, 1))
        models = changed(images, move=1.5, score=lambda value: round(value * 0.7, 1))
        pairs = list(zip([objects(*boxes) for boxes in images], models, strict=True))
        values = set()
        for seed in range(5):
            random.Random(seed).shuffle(pairs)
            values.add(precision(*zip(*pairs, strict=True)))
        assert len(values) == 1

    def test_the_further_boxes_move_the_more_is_lost(self):
        images = scenes()
        truths = [objects(*boxes) for boxes in images]
        values = [precision(truths, changed(images, move=move)) for move in (0, 0.25, 0.5, 1, 2, 4)]
        assert values == sorted(values, reverse=True)
        assert len(set(values)) == len(values)

    @pytest.mark.parametrize("score", [lambda value: value / 4, lambda value: value**2, lambda value: value**0.5])
    def test_scores_in_the_same_order_lose_nothing(self, score):
        images = scenes()
        truths = [objects(*boxes) for boxes in images]
        assert precision(truths, changed(images, score=score)) == precision(truths, images)

    def test_scores_in_another_order_lose(self):
        images = scenes()
        truths = [objects(*boxes) for boxes in images]
        assert precision(truths, changed(images, score=lambda value: 1 - value)) < precision(truths, images) - 1


class TestObjects:
    def test_the_iou_of_true_boxes_is_that_of_annotations(self):
        right = objects((*BOX, 0.5, 1)).judge(found((*BOX, 0.9, 1))).right
        assert 0.94 < right[0, 0] / 0.5 < 1
        assert right[0] / right[0, 0] == pytest.approx(np.array(TEN), abs=0.04)

    def test_a_box_is_the_mean_of_those_that_were_merged(self):
        boxes = objects((8, 16, 32, 32, 0.6, 1), (8, 16, 32, 30, 0.3, 1), (8, 16, 32, 31, 0.9, 0)).objects
        assert boxes.labels.tolist() == [0, 1]
        np.testing.assert_allclose(boxes.boxes, [[8, 16, 32, 31], [8, 16, 32, (0.6 * 32 + 0.3 * 30) / 0.9]], rtol=1e-6)
        np.testing.assert_allclose(boxes.scores, [0.9, 0.6], rtol=1e-6)

    def test_boxes_that_were_not_merged_stay_apart(self):
        boxes = objects((*BOX, 0.6, 1), (*LOWER, 0.3, 1)).objects.boxes
        np.testing.assert_allclose(boxes, [BOX, LOWER], rtol=1e-6)

    def test_finished_boxes_are_not_merged(self):
        rows = np.float32([[8, 16, 32, 32, 0.9, 1], [8, 16, 32, 30, 0.6, 1]])
        outputs = {"out": np.concatenate([rows, np.zeros((82, 6), np.float32)])[np.newaxis]}
        detector = detect(always(outputs["out"][0]), family="end2end")
        made = UncertainObjects.of(outputs, detector, 0.65, *WHOLE)
        np.testing.assert_allclose(made.objects.boxes, rows[:, :4], rtol=1e-6)

    def test_a_box_without_area_stays_where_it_is(self):
        truth = objects((8, 16, 8, 32, 0.6, 1))
        assert truth.objects.boxes.tolist() == [[8, 16, 8, 32]]
        assert not truth.judge(found((8, 16, 8, 32, 0.9, 1))).right.any()

    def test_boxes_end_where_the_image_ends(self):
        place = Letterbox(0.5, 0, 16), (64, 128)
        truth = objects((-8, 20, 32, 60, 0.6, 1), place=place)
        assert truth.objects.boxes.tolist() == [[0, 8, 64, 64]]
        value = precision([truth], [[(0, 20, 32, 48, 0.6, 1)]])
        assert value == precision([truth], [[(-8, 20, 32, 60, 0.6, 1)]])

    def test_an_object_is_found_once_and_by_its_class(self):
        truth = objects((*BOX, 0.6, 1))
        judged = truth.judge(found((*BOX, 0.5, 1), (*LOWER, 0.9, 1), (*BOX, 0.8, 0)))
        assert judged.labels.tolist() == [1, 0, 1]
        assert [bool(row.any()) for row in judged.right] == [True, False, False]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (finding(), ""),
        (csp(), "not read"),
        (with_metadata(classifier(), {"task": "classify"}), "its task is classify"),
        (with_metadata(v8(angle=True), {"task": "obb", "names": "{0: 'a', 1: 'b', 2: 'c'}"}), "rotated"),
    ],
)
def test_models_without_upright_boxes_are_not_judged(model, reason):
    why = why_not(detect(model).outputs)
    assert reason in why
    assert bool(why) == bool(reason)
