"""Finds the category of each class of a model: by name, or by order."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from onnxq._text import some
from onnxq.evaluation.annotations.class_keys import class_key


@dataclass(frozen=True)
class ClassMatch:
    """The category of each class of a model.

    Attributes:
        categories: category id of each class; None for a class that is not annotated.
        how: how classes were matched, in words.
        measured: ids of the categories that are measured; None: all.
        remark: what to know of it, a sentence; empty if nothing.
    """

    categories: tuple[int | None, ...]
    how: str
    measured: tuple[int, ...] | None = None
    remark: str = ""

    @property
    def is_by_order(self) -> bool:
        """Whether some class was matched by its place."""
        return "by order" in self.how


def match_classes(
    names: Sequence[str],
    classes: int | None,
    categories: Mapping[int, str],
    owned: Collection[int] = (),
    groups: Collection[int] = (),
) -> ClassMatch:
    """Find the category of each class.

    Names are compared without regard to case, spaces, hyphens and underscores. If one name of the model is that of a
    category, classes are matched by name: then all names must be categories, or all categories that have objects must
    be names. If none is, classes are matched by order.

    Args:
        names: names of the model's classes; the last may be absent or empty, or there may be none.
        classes: number of the model's classes; None if it is not known.
        categories: category id -> name, sorted by id.
        owned: ids of the categories that have objects.
        groups: ids of the categories that only group others.

    Raises:
        ValueError: classes and categories do not fit.
    """
    names = [name for name in names if name]
    found = _by_name(names, categories, owned)
    if not any(each is not None for each in found):
        return _by_order(names, classes, categories, owned, groups)
    if classes is not None and classes > len(names):
        return _with_unnamed(names, found, classes, [each for each in categories if each not in groups], categories)
    known = set(found) - {None}
    strangers = [name for name, each in zip(names, found, strict=True) if each is None]
    others = [each for each in categories if each in owned and each not in known]
    if strangers and others:
        raise ValueError(
            f"{len(known)} of its {len(names)} class names are categories of the annotations, but not "
            f"{_quoted(strangers)}, and {_quoted([categories[each] for each in others])} of the categories are no "
            "classes; spell them alike, or leave out the objects of categories that the model does not know"
        )
    measured, remark = tuple(each for each in categories if each in known), ""
    if strangers:
        remark = (
            f"{len(measured)} of the model's {len(names)} classes are annotated, and AP is that of these: "
            f"{_quoted([categories[each] for each in measured])}"
        )
    elif others:
        remark = (
            f"the annotations have {len(others)} more categor{'y' if len(others) == 1 else 'ies'} than the model has "
            f"classes, such as {categories[others[0]]!r}: AP is that of the model's classes"
        )
    return ClassMatch(tuple(found), "classes by name", measured if remark else None, remark)


def _by_name(names: Sequence[str], categories: Mapping[int, str], owned: Collection[int]) -> list[int | None]:
    """Return the category with the name of each class; None for all if names are not distinct."""
    if len(set(names)) < len(names):
        return [None] * len(names)
    exact = {name: number for number, name in categories.items()}
    loose: dict[str, int] = {}
    for number in sorted(categories, key=lambda number: (number not in owned, number)):
        loose.setdefault(class_key(categories[number]), number)
    return [exact.get(name, loose.get(class_key(name))) for name in names]


def _by_order(
    names: Sequence[str],
    classes: int | None,
    categories: Mapping[int, str],
    owned: Collection[int],
    groups: Collection[int],
) -> ClassMatch:
    every, without = list(categories), [number for number in categories if number not in groups]
    remark = ""
    if classes == len(every):
        chosen = every
    elif classes is None or classes == len(without):
        chosen = without
    else:
        chosen = _without_empty_end(every, classes, owned)
        if not chosen:
            why = f"none of its names, such as {names[0]!r}, is one" if names else "its metadata names no classes"
            remedy = "" if names else ", or put `names`, a dict of number and name, into its metadata"
            raise ValueError(
                f"has {classes} class{'' if classes == 1 else 'es'}, but the annotations have {len(categories)} "
                f"categor{'y' if len(categories) == 1 else 'ies'}, {_quoted(list(categories.values()))}, and {why}; "
                f"give annotations of the classes that the model was trained on{remedy}"
            )
    left_out = [categories[number] for number in every if number not in chosen]
    if left_out:
        remark = f"{_quoted(left_out)}: has no objects, and is not taken as a class"
    why = f", as none of the model's names, such as {names[0]!r}, is a category" if names else ", as it names none"
    return ClassMatch(tuple(chosen), f"classes by order of the categories{why}", None, remark)


def _without_empty_end(every: Sequence[int], classes: int, owned: Collection[int]) -> list[int]:
    """Return the categories without one at an end that has no objects; none if that does not give all classes."""
    if len(every) != classes + 1:
        return []
    if every[0] not in owned and (every[0] == 0 or every[-1] in owned):
        return list(every[1:])
    return list(every[:-1]) if every[-1] not in owned and every[0] in owned else []


def _with_unnamed(
    names: Sequence[str],
    found: Sequence[int | None],
    classes: int,
    order: Sequence[int],
    categories: Mapping[int, str],
) -> ClassMatch:
    """Match the classes without a name: by order, if the named ones are in that order, or as the only one left."""
    told = f"its metadata names {len(names)} of its {classes} classes"
    left = [number for number in order if number not in found]
    if all(each is not None for each in found):
        if len(order) == classes and list(found) == list(order[: len(names)]):
            matched: tuple[int | None, ...] = tuple(order)
        elif len(left) == classes - len(names) == 1:
            matched = (*found, left[0])
        elif not left:
            matched = (*found, *[None] * (classes - len(names)))
        else:
            matched = ()
        if matched:
            rest = _quoted([categories[number] for number in left])
            taken = f"the others are taken for {rest}" if left else "the others are no categories"
            how = "classes by name" + (", the unnamed ones by order" if left else "")
            return ClassMatch(matched, how, None, f"{told}: {taken}")
    raise ValueError(
        f"{told}, and which categories the others are does not show: the annotations have "
        f"{_quoted(list(categories.values()))}; correct `names` in the metadata"
    )


def _quoted(names: Sequence[str]) -> str:
    return some([repr(name) for name in names])
