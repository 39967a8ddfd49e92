import re
from xml.etree import ElementTree as ET

import pytest

from onnxq.report.svg import curve, histogram

RANGES = {"mse": (-1.0, 3.0), "minmax": (-2.0, 8.0)}


def drawn(*arguments):
    return ET.fromstring(histogram(*arguments))


def of_class(figure, name):
    return [element for element in figure.iter() if element.get("class") == name]


def numbers(text):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)]


def test_the_chosen_range_and_the_others_share_one_axis():
    figure = drawn([1, 10, 100, 10, 1], (-2.0, 8.0), (-2.0, 3.0), RANGES)
    left, right = (float(line.get("x1")) for line in of_class(figure, "bound"))
    [band] = of_class(figure, "band")
    assert (float(band.get("x")), float(band.get("width"))) == (left, pytest.approx(right - left))
    mse, minmax = (numbers(path.get("d")) for path in of_class(figure, "other"))
    assert minmax[0] == left  # both begin at -2
    assert mse[5] == right  # both end at 3
    assert minmax[5] > right
    assert [text.text for text in figure.iter("text")][-2:] == ["mse", "minmax"]


def test_bars_are_as_high_as_the_logarithm_of_their_counts():
    [bars] = of_class(drawn([0, 1, 10, 100], (0.0, 4.0), (0.0, 4.0), {}), "bars")
    nothing, one, ten, hundred = (float(height) for height in re.findall(r"V(-?[\d.]+)h", bars.get("d")))
    assert nothing > one > ten > hundred
    assert one - ten == pytest.approx(ten - hundred, abs=0.2)


def test_counts_and_values_are_labelled():
    texts = [text.text for text in drawn([1, 2000], (0.0, 10.0), (0.0, 10.0), {}).iter("text")]
    assert texts == ["1", "10", "100", "1,000", "0", "2", "4", "6", "8", "10"]


@pytest.mark.parametrize(
    "arguments",
    [
        ([], (0.0, 0.0), (0.0, 0.0), {}),
        ([0], (0.0, 0.0), (0.0, 0.0), {"mse": (0.0, 0.0)}),
        ([5], (3.0, 3.0), (0.0, 3.0), {}),
        ([1], (-1e-30, 1e30), (-1e30, 0.0), {}),
        ([10**9] * 96, (0.0, 1e-9), (0.0, 1.0), {}),
        ([1], (0.0, 1.0), (0.0, 1.0), {"uh": (-0.3, 20.0)}),
    ],
)
def test_everything_lies_within_the_picture(arguments):
    figure = drawn(*arguments)
    _, _, width, height = numbers(figure.get("viewBox"))
    for element in figure.iter():
        for name in ("x", "x1", "x2"):
            assert 0 <= float(element.get(name, 0)) <= width
        for name in ("y", "y1", "y2"):
            assert 0 <= float(element.get(name, 0)) <= height
    for path in of_class(figure, "other"):
        assert 0 <= min(numbers(path.get("d"))) <= max(numbers(path.get("d"))) <= width
    assert "nan" not in ET.tostring(figure, "unicode")


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [100.0, 1.0, 0.01]])
def test_curves_fall_from_left_to_right_within_the_picture(values):
    figure = ET.fromstring(curve(values))
    _, _, width, height = numbers(figure.get("viewBox"))
    points = numbers(figure[0].get("points"))
    across, down = points[::2], points[1::2]
    assert across == sorted(across)
    assert down == sorted(down)
    assert (min(across), max(across)) == (2, width - 2)
    assert 0 < min(down) <= max(down) < height


def test_two_curves_share_a_scale_and_begin_at_the_top():
    before, after = ET.fromstring(curve([10.0, 5.0, 1.0], before=[100.0, 10.0, 0.1], label="peaks"))
    assert (before.get("class"), after.get("class")) == ("curve before", "curve")
    heights = [numbers(line.get("points"))[1::2] for line in (before, after)]
    assert heights[0][0] == heights[1][0] == 4
    assert heights[0][-1] - 4 == pytest.approx(3 * (heights[1][-1] - 4), abs=0.2)  # three decades beside one
    assert heights[0][-1] == 44
