import pytest

from onnxq.evaluation.classes import match_classes

SIX = {1: "ring", 2: "star", 3: "cross", 4: "crescent", 5: "heart", 6: "arrow"}
NAMES = tuple(SIX.values())


def test_by_name():
    match = match_classes(NAMES, 6, SIX, SIX)
    assert (match.categories, match.how, match.measured, match.remark) == (
        (1, 2, 3, 4, 5, 6),
        "classes by name",
        None,
        "",
    )


@pytest.mark.parametrize("spell", [str.upper, str.title, lambda name: f"{name[0]}-{name[1:]}", lambda name: f" {name}"])
def test_by_name_whatever_the_order_and_the_spelling(spell):
    categories = {number: spell(name) for number, name in enumerate(sorted(NAMES), start=10)}
    match = match_classes(NAMES, 6, categories, categories)
    assert [categories[number] for number in match.categories] == [spell(name) for name in NAMES]


def test_equal_names_come_before_alike_ones():
    match = match_classes(["Cat", "cat"], 2, {1: "cat", 2: "Cat"}, {1, 2})
    assert match.categories == (2, 1)


def test_of_alike_categories_the_one_with_objects():
    assert match_classes(["a", "b"], 2, {0: "A", 1: "A ", 2: "b"}, {1, 2}).categories == (1, 2)


class TestSome:
    def test_where_some_names_match_all_must(self):
        categories = {**SIX, 3: "plus"}
        with pytest.raises(ValueError, match=r"5 of its 6 class names .* not 'cross', and 'plus' of the"):
            match_classes(NAMES, 6, categories, categories)

    def test_a_category_without_objects_need_not(self):
        match = match_classes(NAMES, 6, {**SIX, 3: "plus"}, set(SIX) - {3})
        assert match.categories == (1, 2, None, 4, 5, 6)
        assert match.measured == (1, 2, 4, 5, 6)

    def test_annotations_of_some_classes(self):
        match = match_classes(NAMES, 6, {7: "heart", 8: "star"}, {7, 8})
        assert match.categories == (None, 8, None, None, 7, None)
        assert match.measured == (7, 8)
        assert match.remark == "2 of the model's 6 classes are annotated, and AP is that of these: 'heart', 'star'"

    def test_a_model_of_some_categories(self):
        match = match_classes(["star"], 1, SIX, SIX)
        assert (match.categories, match.measured) == ((2,), (2,))
        assert "5 more categories than the model has classes" in match.remark

    def test_a_model_of_all_categories_with_objects(self):
        assert match_classes(["star"], 1, SIX, {2}).measured is None


class TestByOrder:
    def test_without_names(self):
        match = match_classes((), 6, SIX, SIX)
        assert match.categories == (1, 2, 3, 4, 5, 6)
        assert match.how == "classes by order of the categories, as it names none"

    def test_of_other_names(self):
        match = match_classes(list("abcdef"), 6, SIX, SIX)
        assert match.is_by_order
        assert "as none of the model's names, such as 'a', is a category" in match.how

    def test_names_that_come_twice_tell_nothing(self):
        assert match_classes(["star"] * 6, 6, SIX, SIX).is_by_order

    def test_of_an_unknown_number(self):
        assert match_classes((), None, SIX, SIX).categories == (1, 2, 3, 4, 5, 6)

    @pytest.mark.parametrize(("classes", "groups"), [(6, {0}), (None, {0}), (6, ())])
    def test_a_group_in_front_is_no_class(self, classes, groups):
        match = match_classes((), classes, {0: "symbols", **SIX}, SIX, groups)
        assert match.categories == (1, 2, 3, 4, 5, 6)
        assert match.remark == "'symbols': has no objects, and is not taken as a class"

    def test_an_empty_category_at_the_end_is_no_class(self):
        assert match_classes((), 6, {**SIX, 7: "ignored"}, SIX).categories == (1, 2, 3, 4, 5, 6)

    def test_empty_categories_at_both_ends_do_not_tell(self):
        with pytest.raises(ValueError, match="has 6 classes, but the annotations have 7 categories"):
            match_classes((), 6, {1: "a", **{number + 1: name for number, name in SIX.items()}}, {3, 4})

    @pytest.mark.parametrize("names", [(), NAMES])
    def test_one_category_for_all_objects_is_refused(self, names):
        with pytest.raises(ValueError, match="has 6 classes, but the annotations have 1 category, 'object', and"):
            match_classes(names, 6, {1: "object"}, {1})


class TestUnnamed:
    @pytest.mark.parametrize("names", [NAMES[:5], (*NAMES[:5], "")])
    def test_the_last_in_order(self, names):
        match = match_classes(names, 6, SIX, SIX)
        assert match.categories == (1, 2, 3, 4, 5, 6)
        assert match.how == "classes by name, the unnamed ones by order"
        assert match.remark == "its metadata names 5 of its 6 classes: the others are taken for 'arrow'"

    def test_several_in_order(self):
        assert match_classes(NAMES[:3], 6, SIX, SIX).categories == (1, 2, 3, 4, 5, 6)

    def test_the_only_one_left_in_another_order(self):
        categories = dict(enumerate(sorted(NAMES)))
        match = match_classes(NAMES[:5], 6, categories, categories)
        assert categories[match.categories[5]] == "arrow"

    def test_several_in_another_order_are_refused(self):
        categories = dict(enumerate(sorted(NAMES)))
        with pytest.raises(ValueError, match="its metadata names 4 of its 6 classes, and which categories the others"):
            match_classes(NAMES[:4], 6, categories, categories)

    def test_classes_that_are_no_category(self):
        match = match_classes(NAMES, 8, SIX, SIX)
        assert match.categories == (1, 2, 3, 4, 5, 6, None, None)
