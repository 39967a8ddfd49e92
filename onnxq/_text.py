"""Words for messages: plurals, lists of names, shapes; names that cannot disturb a terminal or a file."""

import re
from collections.abc import Iterable, Sequence

_NAMED = 3
"""Names in a message before the others are counted."""

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, marks that turn the direction of writing, and halves of characters."""


def visible(text: str) -> str:
    """Return a text with its control characters, line breaks among them, written out, as `\\x1b` or `\\n`."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def plural(count: int) -> str:
    """Return the ending of a noun that is counted: "s" unless the count is 1."""
    return "" if count == 1 else "s"


def some(names: Sequence[str]) -> str:
    """Return the first few names as text, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")


def shape_text(dims: Iterable[int | str | None]) -> str:
    """Return the shape of a tensor as text, `(1, ?, 85)`; a dimension that is 0, empty or None is unknown."""
    return f"({', '.join(str(dim or '?') for dim in dims)})"


def size_text(size: tuple[int, int]) -> str:
    """Return the size of an image, (height, width) in px, as text: `640x480`."""
    height, width = size
    return f"{height}x{width}"
