"""The outputs of a few runs that have the same rows, side by side."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.columns import UNREAD
from onnxq.yolo.evidence import Look, is_whole
from onnxq.yolo.output_layout import Clues

FEW_COLUMNS = 9
"""Most columns of a table with a score and a label."""

_PADDING = -1.0
"""What fills rows without an object in some exports."""

Matrix = NDArray[np.float32]

_Axes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Lengths of both axes of an output in each look."""


@dataclass(frozen=True)
class JoinedOutputs:
    """The outputs that have the same rows, side by side.

    Attributes:
        places: (output, its column) of each column.
        looks: for each look its table, (rows, columns).
        regions: region of each look.
        whole: columns whose type is an integer.
        counted: output with the number of valid rows, or "".
        is_list: the rows of all images of the batch stand in one list.
    """

    places: tuple[tuple[str, int], ...]
    looks: tuple[Matrix, ...]
    regions: tuple[tuple[float, float, float, float], ...]
    whole: frozenset[int]
    counted: str
    is_list: bool

    @property
    def members(self) -> list[str]:
        """Names of the outputs."""
        return list(dict.fromkeys(name for name, _ in self.places))

    def of(self, name: str) -> list[int]:
        """Return the columns of an output."""
        return [number for number, (each, _) in enumerate(self.places) if each == name]

    def all_rows(self, column: int) -> Matrix:
        """Return a column in all looks, one after the other."""
        return np.concatenate([look[:, column] for look in self.looks])

    def groups(self, words: Mapping[int, str], clues: Clues) -> tuple[tuple[str, ...], ...]:
        """Return the words of each output of the graph; columns without a word are not read."""
        groups: dict[str, list[str]] = {name: [] for name in clues.by_name}
        for number, (name, _) in enumerate(self.places):
            word = words.get(number, UNREAD)
            if word not in ("scores", "extras") or word not in groups[name]:
                groups[name].append(word)
        if self.counted:
            groups[self.counted] = ["count"]
        return tuple(tuple(group) if set(group) - {UNREAD} else (UNREAD,) for group in groups.values())


def join_outputs(clues: Clues, looks: Sequence[Look]) -> Iterator[JoinedOutputs]:
    """Yield the outputs side by side; those of few rows and columns also turned, as either may be the rows."""
    parts = {name: own for name in clues.by_name if (own := _own(name, looks, clues.batch or 1)) is not None}
    axes = {name: (tuple(map(len, own)), tuple(p.shape[1] for p in own)) for name, own in parts.items()}
    keys = dict.fromkeys(chain(*axes.values()))
    usable = {key: [name for name in parts if key in axes[name]] for key in keys}
    usable = {key: names for key, names in usable.items() if _width(names, key, axes) >= 5 and sum(key)}
    ranked = sorted(usable.items(), key=lambda item: (len(item[1]), sum(item[0])), reverse=True)
    for number, (key, names) in enumerate(ranked):
        if not number or max(*key, _width(names, key, axes)) <= FEW_COLUMNS:
            yield _beside(clues, looks, parts, axes, key, names)


def _beside(
    clues: Clues,
    looks: Sequence[Look],
    parts: dict[str, list[NDArray[np.generic]]],
    axes: _Axes,
    key: tuple[int, ...],
    names: list[str],
) -> JoinedOutputs:
    """Put outputs with these numbers of rows side by side."""
    turned = {name: axes[name][0] != key for name in names}
    tables = [_side_by_side([parts[n][k].T if turned[n] else parts[n][k] for n in names]) for k in range(len(looks))]
    places = tuple((n, c) for n in names for c in range(axes[n][0 if turned[n] else 1][0]))
    counted = next((n for n in clues.by_name if n not in names and _counts(n, looks, clues, key)), "")
    if counted:
        tables = [t[: int(np.reshape(look.outputs[counted], -1)[0])] for t, look in zip(tables, looks, strict=True)]
    tables = [_without_padding(table) for table in tables]
    whole = frozenset(k for k, (n, _) in enumerate(places) if not clues.is_float(n))
    shape = np.shape(looks[0].outputs[names[0]])
    is_list = len(names) == 1 and (len(shape) == 2 or shape[:-2] == (1, 1))
    return JoinedOutputs(places, tuple(tables), tuple(look.region for look in looks), whole, counted, is_list)


def _without_padding(table: Matrix) -> Matrix:
    """Return the rows with values; tables without padding, which may be large, are not copied."""
    valid = (table != _PADDING).any(axis=1)
    return table if valid.all() else table[valid]


def _side_by_side(parts: Sequence[NDArray[np.generic]]) -> Matrix:
    wide = [part.astype(np.float32, copy=False) for part in parts]
    return wide[0] if len(wide) == 1 else np.concatenate(wide, axis=1)


def _own(name: str, looks: Sequence[Look], batch: int) -> list[NDArray[np.generic]] | None:
    """The rows of the first image, two axes, for each look; None if the output is no table."""
    arrays = [np.asarray(look.outputs[name]) for look in looks]
    has_batch = arrays[0].ndim >= 3 or (arrays[0].ndim == 2 and all(len(each) == batch for each in arrays))
    parts = [each[0] if has_batch else each for each in arrays]
    for number, part in enumerate(parts):
        sides = list(part.shape)
        while len(sides) > 2 and 1 in sides:
            sides.remove(1)
        if len(sides) > 2 or not sides:
            return None
        parts[number] = part.reshape([*sides, *[1] * (2 - len(sides))])
    return parts


def _width(names: Sequence[str], key: tuple[int, ...], axes: _Axes) -> int:
    """Number of columns beside this axis; 0 if it differs between looks."""
    widths = [axes[name][axes[name][0] == key] for name in names]
    return sum(each[0] for each in widths) if all(len(set(each)) == 1 for each in widths) else 0


def _counts(name: str, looks: Sequence[Look], clues: Clues, rows: tuple[int, ...]) -> bool:
    """Whether an output is the number of valid rows of each image."""
    numbers = [np.reshape(look.outputs[name], -1) for look in looks]
    return all(
        len(each) == (clues.batch or 1) and is_whole(each) and 0 <= each[0] <= most
        for each, most in zip(numbers, rows, strict=True)
    )
