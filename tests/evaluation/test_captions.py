import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onnxq.evaluation.captions import Box, LabelPlacer, Sizes, title

SIZES = Sizes.on((640, 640))


def written(boxes: list[Box], size: tuple[int, int] = (640, 480), text: str = "heart  0.85") -> dict[int, Box]:
    """Return the place of each label by the number of its box; boxes without a label are left out."""
    picture = Image.new("RGB", size)
    labels = LabelPlacer(picture, SIZES)
    for number, box in enumerate(boxes):
        labels.write(text, box, f"#00{number:02x}ff")
    red, numbers, blue = np.moveaxis(np.asarray(picture), 2, 0)
    found = {}
    rows, columns = np.nonzero((red == 0) & (blue == 255))
    for number in np.unique(numbers[rows, columns]).tolist():
        its = numbers[rows, columns] == number
        x, y = columns[its], rows[its]
        found[number] = (int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1)
    return found


@pytest.mark.parametrize(
    ("box", "corner"),
    [
        ((100, 100, 300, 200), (100, 82)),  # above
        ((100, 10, 300, 200), (100, 10)),  # inside, where there is no room above
        ((600, 100, 639, 200), (None, 82)),  # and not over the edge
        ((-50, 100, 300, 200), (0, 82)),
    ],
)
def test_a_label_stands_at_its_box(box: Box, corner: tuple[int | None, int]) -> None:
    [(left, top, right, bottom)] = written([box]).values()
    assert top == corner[1]
    assert left == corner[0] or (corner[0] is None and right >= 639)
    assert bottom - top == SIZES.letters + SIZES.margin + 1


def test_the_first_has_the_choice() -> None:
    box = (100.0, 100.0, 300.0, 200.0)
    found = written([box] * 12)
    assert found[0][:2] == (100, 82)
    assert len(found) == 8  # above, at the top, at the bottom and below, each left and right
    assert list(found) == list(range(8))


@given(
    st.lists(st.tuples(*[st.integers(-20, 660)] * 2, *[st.integers(0, 200)] * 2), max_size=30),
    st.sampled_from([(640, 480), (200, 640)]),
)
def test_no_label_covers_another_or_leaves_the_picture(
    places: list[tuple[int, int, int, int]], size: tuple[int, int]
) -> None:
    found = list(written([(x, y, x + width, y + height) for x, y, width, height in places], size).values())
    width = max((box[2] - box[0] for box in found), default=0)
    assert all(box[2] - box[0] == pytest.approx(width, abs=1) for box in found)  # none is cut off, or lies below one
    for number, one in enumerate(found):
        for other in found[:number]:
            assert one[2] - 1 <= other[0] or other[2] - 1 <= one[0] or one[3] - 1 <= other[1] or other[3] - 1 <= one[1]


def test_letters_grow_with_the_picture() -> None:
    small, usual, large = (Sizes.on(size) for size in ((100, 50), (640, 480), (900, 1280)))
    assert small == usual
    assert (large.letters, large.margin, large.line) == (2 * usual.letters, 2 * usual.margin, 2 * usual.line)


def test_a_title_says_what_colours_mean() -> None:
    short, long = (title("float", [("#ff0000", "lost"), ("#00ff00", words)], SIZES) for words in ("x", "x" * 30))
    assert long.width > short.width
    assert short.height == long.height == SIZES.strip
    pixels = np.asarray(long)
    places = [np.nonzero((pixels == np.array(colour)).all(axis=2))[1] for colour in ((255, 0, 0), (0, 255, 0))]
    assert [place.max() - place.min() for place in places] == [SIZES.letters] * 2
    assert places[0].max() < places[1].min()
    # All of the text is there: the last columns are empty.
    assert (pixels[:, -SIZES.margin :] == pixels[0, 0]).all()
    assert (pixels[:, places[1].max() + SIZES.margin :] != pixels[0, 0]).any()
