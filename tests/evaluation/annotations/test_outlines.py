import numpy as np
import pytest
from pycocotools import mask

from onnxq.evaluation.annotations.outlines import box_of_outlines, check_outline, compressed, polygons

PICTURE = np.zeros((20, 30), np.uint8, order="F")
PICTURE[5:15, 10:25] = 1


def counts():
    """The picture as run lengths, column by column, zeros first."""
    flat = PICTURE.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *edges, flat.size]).tolist()


@pytest.mark.parametrize(
    ("outline", "box"),
    [
        ([[1, 2, 5, 2, 5, 9, 1, 9]], [1, 2, 4, 7]),
        ([[1, 2, 5, 2, 5, 9], [8, 0, 9, 1, 8, 1]], [1, 0, 8, 9]),
        ([1, 2, 5, 2, 5, 9], [1, 2, 4, 7]),
        ([[[1, 2], [5, 2], [5, 9]]], [1, 2, 4, 7]),
        ([], None),
        ([[]], None),
        (None, None),
        ([[1, 2, 1, 2]], None),
        ([[1, 2, 3]], None),
        ([[1, 2, float("nan"), 4]], None),
        ({"size": [20, 30]}, None),
    ],
)
def test_box(outline, box):
    assert box_of_outlines(outline) == box


def test_box_of_masks():
    assert box_of_outlines({"size": [20, 30], "counts": counts()}) == [10, 5, 15, 10]
    packed = mask.encode(PICTURE)
    assert box_of_outlines({"size": [20, 30], "counts": packed["counts"].decode()}) == [10, 5, 15, 10]


def test_masks_of_numbers_are_packed():
    assert mask.decode(compressed({"size": [20, 30], "counts": counts()})).tolist() == PICTURE.tolist()


def test_polygons_have_points():
    [points] = polygons([[1, 2, 3, 4, 5, 6]])
    assert points.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert polygons({"size": [1, 1], "counts": []}) == []


@pytest.mark.parametrize("seed", range(20))
def test_masks_that_pycocotools_makes_are_sound(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 60, 2)
    picture = np.asfortranarray(rng.random((height, width)) < rng.choice([0, 0.02, 0.5, 1]), np.uint8)
    made = mask.encode(picture)
    text = {"size": [int(height), int(width)], "counts": made["counts"].decode()}
    check_outline(text)
    with pytest.raises(ValueError, match="runs"):
        check_outline({**text, "counts": text["counts"][:-1] + "~"})
