import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from onnxq.errors import DataError
from onnxq.evaluation.ground_truth import build_index
from onnxq.evaluation.scoring.averages import Rules, averages
from onnxq.memory import limited_to

CATEGORIES = {1: "a", 2: "b", 3: "c"}


def crowd(images=6, objects=14, seed=0):
    """Indices of random objects, and of detections near them and elsewhere."""
    rng = np.random.default_rng(seed)
    records = []
    for image in range(images):
        for _ in range(objects):
            x, y, w, h = *rng.uniform(0, 400, 2), *rng.uniform(5, 150, 2)
            entry = {"image_id": image, "category_id": int(rng.integers(1, 4)), "bbox": [x, y, w, h], "area": w * h}
            records.append({**entry, "iscrowd": int(rng.random() < 0.1)})
    found = []
    for entry in records:
        for _ in range(int(rng.integers(0, 3))):
            x, y, w, h = np.array(entry["bbox"]) + rng.normal(0, 4, 4)
            category = entry["category_id"] if rng.random() < 0.8 else 1
            found.append({**entry, "category_id": category, "bbox": [x, y, max(w, 1), max(h, 1)], "iscrowd": 0,
                          "area": float(w * h), "score": float(rng.random())})  # fmt: skip
    return build_index(range(images), CATEGORIES, records), build_index(range(images), CATEGORIES, found)


@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_pycocotools(seed):
    truth, found = crowd(seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(truth, found, "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    assert averages(truth, found, Rules()) == [100.0 * value for value in scoring.stats[:6]]


def test_most_detections_of_a_class_per_image():
    count = 150
    records = [
        {"image_id": 0, "category_id": 1, "bbox": [20 * n, 0, 10, 10], "area": 100, "iscrowd": 0} for n in range(count)
    ]
    truth = build_index([0], CATEGORIES, records)
    found = build_index([0], CATEGORIES, [{**each, "score": 1 - n / 1000} for n, each in enumerate(records)])
    assert averages(truth, found, Rules())[0] == pytest.approx(67 / 1.01, abs=0.5)
    assert averages(truth, found, Rules(most=count))[0] == pytest.approx(100)
    assert averages(truth, found, Rules(most=count - 75))[0] == pytest.approx(50, abs=0.6)


def test_only_some_categories_and_images():
    truth, found = crowd()
    whole = averages(truth, found, Rules())[0]
    single = [averages(truth, found, Rules(categories=[number]))[0] for number in CATEGORIES]
    assert np.mean(single) == pytest.approx(whole)
    assert averages(truth, found, Rules(images=[2]))[0] != whole


def test_without_classes():
    records = [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}]
    truth = build_index([0], CATEGORIES, records)
    found = build_index([0], CATEGORIES, [{**records[0], "category_id": 2, "score": 0.5}])
    assert averages(truth, found, Rules())[0] == 0
    assert averages(truth, found, Rules(ignore_classes=True))[0] == pytest.approx(100)


def test_nothing_to_find():
    empty = build_index([0], CATEGORIES, [])
    assert all(map(math.isnan, averages(empty, empty, Rules())))


def test_categories_without_objects_take_no_memory():
    truth, found = crowd()
    more = {**CATEGORIES, **{number: str(number) for number in range(10, 100_000)}}
    wide = build_index(range(6), more, truth.dataset["annotations"])
    with limited_to(1_000_000):
        assert averages(wide, found, Rules()) == averages(truth, found, Rules())
    with limited_to(100_000), pytest.raises(DataError, match=r"^AP of 3 categories with objects would take 290.9 KB"):
        averages(truth, found, Rules())
