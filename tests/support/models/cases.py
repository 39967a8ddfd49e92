"""Cases of tests that need no full product of their parameters."""

from collections.abc import Iterable
from typing import Any, TypeVar

import pytest

Row, Column = TypeVar("Row"), TypeVar("Column")


def paired(rows: Iterable[Row], columns: Iterable[Column], each: int = 2, first: int = 0) -> list[tuple[Row, Column]]:
    """Return each row with `each` columns, the next ones from row to row: every column meets about as many rows.

    Args:
        rows: for example graphs.
        columns: for example targets.
        each: number of columns of a row.
        first: number of the first column of the first row; tests with other ones have other pairs.
    """
    given = list(columns)
    step = max(1, len(given) // each)
    return [(row, given[(first + k + step * j) % len(given)]) for k, row in enumerate(rows) for j in range(each)]


def fast_first(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Return values of a parameter, or rows of several, of which all but the first `count` are slow tests."""
    given = list(values)
    rows = (value if isinstance(value, tuple) else (value,) for value in given[count:])
    return [*given[:count], *(pytest.param(*row, marks=pytest.mark.slow) for row in rows)]
