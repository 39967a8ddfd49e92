"""Words for messages."""

from collections.abc import Sequence

_NAMED = 3  # of many files, in a message


def plural(count: int) -> str:
    """The ending of a noun of which there are so many."""
    return "" if count == 1 else "s"


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
