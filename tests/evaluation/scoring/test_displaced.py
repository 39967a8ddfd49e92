import pytest

from onnxq.evaluation.ground_truth import build_index
from onnxq.evaluation.scoring.displaced import displaced_classes, displaced_remark

CATEGORIES = {1: "bus", 2: "car", 3: "dog"}


def indices(taken, counts=(8, 8, 8), right=0):
    """Return the indices of objects, each found as the category that `taken` has, but for the first ones."""
    objects = [
        {"image_id": image, "category_id": category, "bbox": [40 * category, 8, 20, 20], "area": 400, "iscrowd": 0}
        for category, count in zip(CATEGORIES, counts, strict=True)
        for image in range(count)
    ]
    found = []
    for entry in objects:
        other = taken.get(entry["category_id"], entry["category_id"])
        best = entry["category_id"] if entry["image_id"] < right else other
        # A model has scores for all classes; the best one tells.
        found += [
            {**entry, "category_id": category, "score": 0.9 if category == best else 0.1} for category in CATEGORIES
        ]
    return build_index(range(8), CATEGORIES, objects), build_index(range(8), CATEGORIES, found)


@pytest.mark.parametrize(
    ("taken", "options", "expected"),
    [
        ({}, {}, {}),
        ({1: 2, 2: 1}, {}, {1: 2, 2: 1}),
        ({1: 2, 2: 3, 3: 1}, {}, {1: 2, 2: 3, 3: 1}),
        ({1: 2, 2: 1}, {"right": 2}, {1: 2, 2: 1}),
        ({1: 2, 2: 1}, {"right": 3}, {}),
        ({1: 2, 2: 1}, {"counts": (8, 4, 8)}, {}),
        ({1: 2}, {}, {}),
    ],
    ids=["right", "two", "three", "most", "some", "few", "weak"],
)
def test_displaced_classes(taken, options, expected):
    assert displaced_classes(*indices(taken, **options), range(8)) == expected


def test_what_is_said():
    assert displaced_remark(*indices({}), CATEGORIES) == ""
    assert displaced_remark(*indices({1: 2, 2: 1}), CATEGORIES).startswith(
        "most objects of 2 classes are found as those of each other: 'bus' as 'car', 'car' as 'bus';"
    )


def test_images_without_objects_or_detections():
    truth, found = indices({1: 2, 2: 1})
    nothing = build_index(range(8), CATEGORIES, [])
    assert displaced_classes(truth, nothing, range(8)) == displaced_classes(nothing, found, range(8)) == {}
