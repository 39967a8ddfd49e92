import math

import pytest

from onnxq.evaluation.annotations.ids import Numbering


@pytest.mark.parametrize(
    ("ids", "numbers"),
    [
        ([3, 1, 2], (3, 1, 2)),
        ([0, -1], (0, -1)),
        ([2.0, 7.0], (2, 7)),
        (["3", " 12"], (3, 12)),
        (["5.0"], (5,)),
        ([4, 4], (4, 4)),
    ],
)
def test_whole_numbers_stay(ids, numbers):
    assert Numbering.of(ids, "image").numbers == numbers


def test_text_is_numbered_in_its_order():
    numbering = Numbering.of(["b_2", "a_1", "b_2", "c"], "image")
    assert numbering.numbers == (2, 1, 2, 3)
    assert numbering.number("c", "x") == 3
    assert numbering.number("d", "x") is None


def test_categories_are_numbered_as_listed():
    assert Numbering.of(["b", "a"], "category", sort=False).numbers == (1, 2)


def test_texts_of_one_number_stay_apart():
    numbering = Numbering.of(["01", "1", "001"], "image")
    assert len(set(numbering.numbers)) == 3
    assert numbering.number("1", "x") != numbering.number("01", "x")


def test_numbers_and_text_together():
    numbering = Numbering.of([7, "x"], "image")
    assert numbering.number("7", "a") == numbering.numbers[0]
    assert numbering.number(7.0, "a") == numbering.numbers[0]


def test_references_may_be_spelled_otherwise():
    numbering = Numbering.of([1, 2], "image")
    assert [numbering.number(each, "a") for each in (2, "2", 2.0, "two")] == [2, 2, 2, None]


@pytest.mark.parametrize("fraction", [0.5, math.nan, math.inf])
def test_fractions_are_refused(fraction):
    with pytest.raises(ValueError, match=f"image number 2 has the id {fraction}, a fraction"):
        Numbering.of([1, fraction], "image")
    with pytest.raises(ValueError, match=r"the image of annotation 4 has the id .*, a fraction"):
        Numbering.of([1], "image").number(fraction, "the image of annotation 4")


@pytest.mark.parametrize("other", [None, True, [1], {}])
def test_what_is_no_id_is_refused(other):
    with pytest.raises(ValueError, match=r"category number 1 has the id .*; ids are whole numbers or text"):
        Numbering.of([other], "category")
