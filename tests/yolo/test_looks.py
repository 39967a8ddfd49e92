import numpy as np
import pytest
from tables import always, bright_rectangle

from onnxq.yolo.detector import Detector, detect
from onnxq.yolo.looks import LOOKS, MOST_LOOKS, chosen, look


def halves(known: Detector, image: np.ndarray, content=None) -> list[tuple[np.ndarray, tuple[float, ...]]]:
    """The input that each of the first looks gives, and its region."""
    looks = [look(dict, known, known.feed(image), number, content) for number in range(LOOKS)]
    return [(np.asarray(each.outputs["images"]), each.region) for each in looks]


def test_half_of_the_picture_is_left_and_the_rest_is_grey() -> None:
    known = detect(bright_rectangle([1, 3, 64, 96]))
    seen = halves(known, np.ones((1, 3, 64, 96), np.float32))
    assert [region for _, region in seen] == [(0, 0, 48, 64), (0, 0, 96, 32), (48, 0, 96, 64), (0, 32, 96, 64)]
    for array, (left, top, right, bottom) in seen:
        assert array[:, :, top:bottom, left:right].min() == 1
        assert np.count_nonzero(array == np.float32(114 / 255)) == array.size // 2


def test_the_region_is_where_the_picture_is() -> None:
    known = detect(bright_rectangle([1, 3, 64, 64]))
    regions = [region for _, region in halves(known, np.ones((1, 3, 64, 64), np.float32), (0, 20, 64, 40))]
    assert regions == [(0, 20, 32, 40), (0, 20, 64, 32), (32, 20, 64, 40), (0, 32, 64, 40)]


def test_channels_last_in_levels() -> None:
    model = always(np.zeros((9, 6), np.float32))
    model.graph.input[0].type.tensor_type.elem_type = 2
    for dim, length in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 64, 64, 3), strict=True):
        dim.dim_value = length
    [(array, _), *_] = halves(detect(model), np.full((1, 64, 64, 3), 200, np.uint8))
    assert array.dtype == np.uint8
    assert (array[:, :, :32] == 200).all()
    assert (array[:, :, 32:] == 114).all()


def test_a_picture_that_comes_again_shows_another_half() -> None:
    known = detect(bright_rectangle([1, 3, 64, 64]))
    image = np.ones((1, 3, 64, 64), np.float32)
    regions = [look(dict, known, known.feed(image), number).region for number in (0, LOOKS, 2 * LOOKS)]
    assert len(set(regions)) == 3


@pytest.mark.parametrize("count", [0, 1, 3, 50, 5000])
def test_pictures_are_spread(count: int) -> None:
    places = list(chosen(count))
    assert len(places) == (MOST_LOOKS if count else 0)
    assert all(0 <= place < count for place in places)
    if count >= 50:
        assert len(set(places)) == MOST_LOOKS
        assert places[:LOOKS] == [(2 * number + 1) * count // (2 * LOOKS) for number in range(LOOKS)]
