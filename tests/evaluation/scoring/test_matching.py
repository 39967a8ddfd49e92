"""Detections are matched with objects exactly as pycocotools' loops do it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.cocoeval import COCOeval

from onnxq.evaluation.ground_truth import build_index
from onnxq.evaluation.scoring import matching
from onnxq.evaluation.scoring.averages import BOXES, Matcher, Rules, averages

CATEGORIES = {1: "a", 2: "b"}


def scene(seed, count):
    """Objects and detections on two images; many overlap, some are equal, some are crowds."""
    rng = np.random.default_rng(seed)

    def boxes(number):
        corners = rng.integers(0, 40, (number, 2)) * rng.choice([1.0, 0.5], (number, 1))
        sizes = rng.choice([8.0, 20.0, 40.0, 120.0], (number, 2))
        return np.concatenate([corners, sizes], axis=1)

    def entry(box, **more):
        return {
            "image_id": int(rng.integers(1, 3)), "category_id": int(rng.integers(1, 3)), "bbox": box.tolist(),
            "area": float(box[2] * box[3]), "iscrowd": 0, **more,
        }  # fmt: skip

    objects = [entry(box) | {"iscrowd": int(rng.random() < 0.1)} for box in boxes(count)]
    moved = boxes(count // 2 + 1)
    moved[::2] = [objects[rng.integers(count)]["bbox"] for _ in moved[::2]]
    moved[::3] += rng.normal(0, 1.5, moved[::3].shape).clip(-4, 4)
    return objects, [entry(box, score=float(np.round(rng.random(), 1))) for box in moved]


def scores(objects, detections, evaluation, rules):
    truth, found = (build_index([1, 2], CATEGORIES, entries) for entries in (objects, detections))
    return averages(truth, found, rules, Matcher("bbox", evaluation=evaluation))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 20, 80]), st.booleans(), st.sampled_from([1, 10, 100]))
def test_as_pycocotools(seed, count, ignore_classes, most):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_MANY", 1)
        objects, detections = scene(seed, count)
        rules = Rules(most, ignore_classes=ignore_classes)
        expected = scores(objects, detections, COCOeval, rules)
        np.testing.assert_array_equal(scores(objects, detections, matching.Evaluation, rules), expected)


@pytest.mark.parametrize("count", [20, 400])
def test_only_what_is_read_is_kept_and_matches_take_a_byte(count):
    truth, found = (build_index([1, 2], CATEGORIES, entries) for entries in scene(0, count))
    scoring = matching.Evaluation(truth, found, "bbox")
    scoring.evaluate()
    kept = [each for each in scoring.evalImgs if each is not None]
    assert {tuple(each) for each in kept} == {("dtScores", "dtMatches", "dtIgnore", "gtIgnore")}
    assert {each[name].itemsize for each in kept for name in ("dtMatches", "dtIgnore", "gtIgnore")} == {1}
    assert any(each["dtMatches"].any() for each in kept)


def test_no_detections():
    objects, _ = scene(0, 120)
    assert scores(objects, [], matching.Evaluation, Rules())[0] == scores(objects, [], COCOeval, Rules())[0] == 0


def test_arrays_are_used_where_there_are_many(monkeypatch):
    calls = []
    monkeypatch.setattr(COCOeval, "evaluateImg", lambda *given: calls.append(given))
    objects, detections = scene(0, 400)
    assert BOXES.evaluation is matching.Evaluation
    scores(objects, detections, matching.Evaluation, Rules())
    assert calls == []


def test_an_object_that_counts_comes_before_one_that_is_ignored():
    overlaps = np.array([[0.6, 0.9], [0.7, 0.8]])
    object_of, detection_of = matching.matched(
        overlaps, np.array([0.5, 0.65]), np.array([False, True]), np.array([False, False])
    )
    assert object_of.tolist() == [[0, 1], [1, 0]]
    assert detection_of.tolist() == [[0, 1], [1, 0]]
