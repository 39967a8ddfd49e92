"""Ids in annotation files: whole numbers, whole numbers as text, or any text, as whole numbers."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Numbering:
    """Numbers for the ids of a list.

    Attributes:
        numbers: number of each id of the list.
        by_text: number of each text; None if ids are whole numbers and stand for themselves.
    """

    numbers: tuple[int, ...]
    by_text: dict[str, int] | None

    @classmethod
    def of(cls, ids: Sequence[object], noun: str, *, sort: bool = True) -> "Numbering":
        """Number the ids of a list.

        Args:
            ids: as the file has them; the same id may come twice.
            noun: what has the ids, for messages.
            sort: number texts in their order, else in the order of the list.

        Raises:
            ValueError: an id is a fraction, or neither a number nor text.
        """
        for place, each in enumerate(ids, start=1):
            _check(each, f"{noun} number {place}")
        whole = [_whole(each) for each in ids]
        as_numbers = [each for each in whole if each is not None]
        if len(as_numbers) == len(ids) and len(set(as_numbers)) == len(set(map(_text, ids))):
            return cls(tuple(as_numbers), None)
        texts = list(map(_text, ids))
        distinct = sorted(set(texts)) if sort else list(dict.fromkeys(texts))
        by_text = {text: number for number, text in enumerate(distinct, start=1)}
        return cls(tuple(by_text[text] for text in texts), by_text)

    def number(self, reference: object, what: str) -> int | None:
        """Return the number of an id that refers to the list; None if no id of the list can be meant.

        Raises:
            ValueError: the reference is a fraction, or neither a number nor text.
        """
        if type(reference) is int and self.by_text is None:
            return reference
        _check(reference, what)
        return _whole(reference) if self.by_text is None else self.by_text.get(_text(reference))


def _check(each: object, what: str) -> None:
    if isinstance(each, bool) or not isinstance(each, int | float | str):
        raise ValueError(f"{what} has the id {each!r}; ids are whole numbers or text")
    if isinstance(each, float) and not (math.isfinite(each) and each.is_integer()):
        raise ValueError(f"{what} has the id {each!r}, a fraction; number images, categories and objects anew")


def _whole(each: object) -> int | None:
    if isinstance(each, str):
        match = re.fullmatch(r"\s*(-?[0-9]+)(\.0+)?\s*", each)
        return int(match[1]) if match else None
    return int(each) if isinstance(each, int | float) else None


def _text(each: object) -> str:
    return str(int(each) if isinstance(each, float) else each).strip()
