"""Numbers of a command: as a table with a title, and as JSON."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from onnxq.console.terminal import OUT, NumberTable, say


def show_numbers(title: str, first: str, others: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a title and a table.

    Args:
        title: the line before it.
        first: head of the first column, of names.
        others: heads of the other columns.
        rows: a name and the other cells.
    """
    table = NumberTable(first, others)
    for name, *cells in rows:
        table.add_row(Text(name), *cells)
    say(title)
    OUT.print(table)


def decibels(ratio: float) -> str:
    """Return a signal-to-noise ratio in dB as text: `equal` without any noise, `-` if there is nothing to compare."""
    if math.isnan(ratio):
        return "-"
    return f"{ratio:.1f}" if math.isfinite(ratio) else "equal"


def finite(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Return numbers for JSON: None for those that are not finite."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}
