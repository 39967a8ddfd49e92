import pytest

from onnxq._text import plural, shape_text, size_text, some, visible


@pytest.mark.parametrize(("count", "ending"), [(0, "s"), (1, ""), (2, "s")])
def test_only_one_has_no_plural(count, ending):
    assert plural(count) == ending


@pytest.mark.parametrize(
    ("names", "text"),
    [("", ""), ("a", "a"), ("abc", "a, b, c"), ("abcd", "a, b, c and 1 more"), ("abcdefg", "a, b, c and 4 more")],
)
def test_of_many_names_the_first_three_are_listed(names, text):
    assert some(list(names)) == text


@pytest.mark.parametrize(
    ("shape", "text"),
    [([1, 84, 8400], "(1, 84, 8400)"), ([None, 3, 0, ""], "(?, 3, ?, ?)"), (["batch", 5], "(batch, 5)"), ([], "()")],
)
def test_unknown_dimensions_are_question_marks(shape, text):
    assert shape_text(shape) == text


def test_the_height_of_an_image_comes_first():
    assert size_text((640, 480)) == "640x480"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("conv1", "conv1"),
        ("größe 検出 👩‍👧", "größe 検出 👩‍👧"),
        ("\x1b[2J\x07", r"\x1b[2J\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x85\u2028\u2029", r"\x85\u2028\u2029"),
        ("\u202egnp.exe\u2066", r"\u202egnp.exe\u2066"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_written_out(text, shown):
    assert visible(text) == shown
