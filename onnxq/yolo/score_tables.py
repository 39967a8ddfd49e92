"""Ways to read the outputs of a few runs as boxes with scores, as far as shapes and values allow them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.columns import UNREAD, Columns
from onnxq.yolo.evidence import Best, Look, falls, is_unit, is_whole, objectness_told
from onnxq.yolo.output_layout import Clues, OutputLayout

_ROWS = 100
"""Rows of each look that are judged, those of the best scores."""

_BOX = ("box0", "box1", "box2", "box3")
"""Columns of a box whose meaning is open."""

_FEW_COLUMNS = 9
"""Most columns of a table with a score and a label."""

_MOST_CLASSES = 10_000

_FULL_TURN = 2 * np.pi + 1e-3
"""Greatest angle of a box in radians, up to rounding."""

_LEAST_IDS = 20
"""Rows of which some have the same class."""

_LEAST_LOGIT = -1.0
"""Scores that go below are logits; rounding does not."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class ScoreTable:
    """A way to read the outputs, but for the order of the columns of the boxes.

    Attributes:
        groups: words of each output, with `box0` to `box3` for the columns of the boxes.
        best: the rows of the best scores.
        is_labelled: a column has the label, else each class has a column.
        is_sorted: rows stand by falling score in every look.
        rows: number of rows.
        logits: scores are before their Sigmoid.
    """

    groups: tuple[tuple[str, ...], ...]
    best: Best
    is_labelled: bool
    is_sorted: bool
    rows: int
    logits: bool = False

    @property
    def outputs(self) -> int:
        """Number of outputs that are read."""
        return sum(group != (UNREAD,) for group in self.groups)

    def columns(self, box: Sequence[str], shares: bool, finished: bool | None = None) -> Columns:
        """Return the layout with these columns of the boxes."""
        words = dict(zip(_BOX, box, strict=True))
        groups = tuple(tuple(words.get(word, word) for word in group) for group in self.groups)
        return Columns(groups, shares, self.logits, finished)


@dataclass(frozen=True)
class _Joined:
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
        return list(dict.fromkeys(name for name, _ in self.places))

    def of(self, name: str) -> list[int]:
        """Return the columns of an output."""
        return [number for number, (each, _) in enumerate(self.places) if each == name]

    def all_rows(self, column: int) -> Matrix:
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


def score_tables(clues: Clues, layout: OutputLayout, looks: Sequence[Look]) -> Iterator[ScoreTable]:
    """Yield the ways to read the outputs as boxes with scores.

    Args:
        clues: what is known of the outputs.
        layout: as the shapes show it; its task tells the columns beside boxes.
        looks: runs on real pictures.
    """
    joined = _joined(clues, looks)
    if joined is not None:
        yield from _labelled(joined, clues, layout.task)
        if not joined.whole:
            yield from _scored(joined, clues, layout)


# Outputs side by side


def _joined(clues: Clues, looks: Sequence[Look]) -> _Joined | None:
    parts = {name: own for name in clues.by_name if (own := _own(name, looks, clues.batch or 1)) is not None}
    axes = {name: (tuple(map(len, own)), tuple(p.shape[1] for p in own)) for name, own in parts.items()}
    keys = dict.fromkeys(chain(*axes.values()))
    usable = {key: [name for name in parts if key in axes[name]] for key in keys}
    usable = {key: names for key, names in usable.items() if _width(names, key, axes) >= 5 and sum(key)}
    if not usable:
        return None
    key, names = max(usable.items(), key=lambda item: (len(item[1]), sum(item[0])))
    turned = {name: axes[name][0] != key for name in names}
    tables = [_side_by_side([parts[n][k].T if turned[n] else parts[n][k] for n in names]) for k in range(len(looks))]
    places = tuple((n, c) for n in names for c in range(axes[n][0 if turned[n] else 1][0]))
    counted = next((n for n in clues.by_name if n not in names and _counts(n, looks, clues, key)), "")
    if counted:
        tables = [t[: int(np.reshape(look.outputs[counted], -1)[0])] for t, look in zip(tables, looks, strict=True)]
    whole = frozenset(k for k, (n, _) in enumerate(places) if not clues.is_float(n))
    is_list = np.ndim(looks[0].outputs[names[0]]) == 2 and len(names) == 1
    return _Joined(places, tuple(tables), tuple(look.region for look in looks), whole, counted, is_list)


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


def _width(names: Sequence[str], key: tuple[int, ...], axes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> int:
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


# A score and a label


def _labelled(joined: _Joined, clues: Clues, task: str) -> Iterator[ScoreTable]:
    count = len(joined.places)
    if count > _FEW_COLUMNS or not any(len(look) for look in joined.looks):
        return
    values = [joined.all_rows(column) for column in range(count)]
    whole = [k for k in range(count) if is_whole(values[k])]
    ids = [k for k in whole if _is_id(joined, k)]
    limit = clues.classes or _MOST_CLASSES
    labels = [k for k in whole if values[k].min() >= -1 and values[k].max() < limit and k not in ids]
    labels = [k for k in labels if k in joined.whole] or labels
    labels = [k for k in labels if values[k].min() < values[k].max()] or labels[-1:]
    scores = [k for k in range(count) if k not in whole and is_unit(values[k])]
    choices = _score_columns(joined, scores)
    for label in labels:
        # Of two columns of zeros, the one that comes first is the number of the image.
        images = [k for k in whole if k < label and joined.is_list and not values[k].any()][:1]
        for factors in choices:
            rest = [k for k in range(count) if k not in (label, *factors, *images)]
            angle = _angle(rest, values, task)
            rest = [k for k in rest if k != angle]
            varied = [k for k in rest if values[k].min() < values[k].max() and k not in ids]
            sides = varied if len(varied) >= 4 else rest
            own = {label: "label", factors[0]: "objectness", factors[-1]: "score", **dict.fromkeys(images, "image")}
            if angle is not None:
                own[angle] = "angle"
            for box in (sides[start : start + 4] for start in range(len(sides) - 3)):
                picked = [_labelled_rows(look, factors, label, box) for look in joined.looks]
                best = _best(picked, joined.regions, clues.size)
                if best is not None:
                    words = {**own, **dict(zip(box, _BOX, strict=True))}
                    in_order = all(falls(_product(look, factors)) for look in joined.looks)
                    yield ScoreTable(joined.groups(words, clues), best, True, in_order, len(joined.looks[0]))


def _is_id(joined: _Joined, column: int) -> bool:
    """Whether no number comes twice on a picture, as numbers of rows or tracks."""
    looks = [look[:, column] for look in joined.looks]
    return all(len(each) >= _LEAST_IDS and len(np.unique(each)) == len(each) for each in looks)


def _score_columns(joined: _Joined, scores: list[int]) -> Sequence[tuple[int, ...]]:
    """Return the columns that may be the score, or an objectness and a score whose product it is.

    If the rows are sorted by only one choice, it is that one.
    """
    choices = [*combinations(scores, 2), *((k,) for k in scores)]
    ordered = [each for each in choices if all(falls(_product(look, each)) for look in joined.looks)]
    return ordered if len(ordered) == 1 else choices


def _product(look: Matrix, columns: Sequence[int]) -> Matrix:
    return look[:, columns[0]] if len(columns) == 1 else look[:, columns[0]] * look[:, columns[1]]


def _angle(rest: list[int], values: Sequence[Matrix], task: str) -> int | None:
    """Return the column of the rotation in radians, beside the four of the box; None if there is none.

    Values that are neither whole nor scores show it, if metadata does not; where all are 0 nothing is rotated.
    """
    turns = [k for k in rest if np.abs(values[k]).max(initial=0.0) <= _FULL_TURN]
    if len(rest) != 5 or not turns:
        return None
    if task == "obb":
        return turns[-1]
    return turns[0] if len(turns) == 1 and not is_whole(values[turns[0]]) and not is_unit(values[turns[0]]) else None


def _labelled_rows(
    look: Matrix, factors: Sequence[int], label: int, box: list[int]
) -> tuple[Matrix, NDArray[np.intp], Matrix]:
    """The scores, those of rows without a label 0; the labels; the columns of the boxes."""
    labels = look[:, label].astype(np.intp)
    return np.where(labels >= 0, _product(look, factors), np.float32(0)), labels, look[:, box]


def _best(
    looks: Sequence[tuple[Matrix, NDArray[np.intp] | Matrix, Matrix]],
    regions: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> Best | None:
    """Return the rows of the best scores: from scores, labels, or the scores of all classes, and boxes of each look."""
    scores, labels, boxes, numbers, others = [], [], [], [], []
    for number, (score, label, box) in enumerate(looks):
        valid = np.flatnonzero(score > 0)
        chosen = valid[np.argsort(-score[valid], kind="stable")[:_ROWS]]
        scores.append(score[chosen])
        labels.append(label[chosen] if label.ndim == 1 else label[chosen].argmax(axis=1))
        boxes.append(box[chosen])
        numbers.append(np.full(len(chosen), number))
        others.append(box[valid[:: max(1, len(valid) // _ROWS)]])
    which = np.concatenate(numbers).astype(np.intp)
    if not len(which):
        return None
    return Best(
        np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels), which,
        np.array(regions, np.float32)[which], size, np.concatenate(others),
    )  # fmt: skip


# A score for each class


def _scored(joined: _Joined, clues: Clues, layout: OutputLayout) -> Iterator[ScoreTable]:
    for box in _boxes(joined):
        rest = [k for k in range(len(joined.places)) if k not in box]
        extras = _extras(layout, joined, clues) if len(joined.members) == 1 else 0
        room, tail = rest[: len(rest) - extras], rest[len(rest) - extras :]
        for has in _objectness(joined, box, room, clues, layout):
            first = room[0] if has else None
            if has and len(joined.members) > 1:
                first = next(k for k in room if len(joined.of(joined.places[k][0])) in (1, 5))
            classes = [k for k in room if k != first]
            table = _of_classes(joined, box, first, classes, tail, clues) if classes else None
            if table is not None:
                yield table


def _boxes(joined: _Joined) -> list[list[int]]:
    """The columns that may be those of the boxes."""
    if len(joined.members) == 1:
        count = len(joined.places)
        return [list(range(4)), list(range(count - 4, count))]
    by_output = [joined.of(name) for name in joined.members]
    return [each for each in by_output if len(each) == 4] or [each[:4] for each in by_output if len(each) == 5]


def _extras(layout: OutputLayout, joined: _Joined, clues: Clues) -> int:
    if layout.prototypes:
        return clues.by_name[layout.prototypes][1]
    return {"pose": int(np.prod(layout.keypoints)), "obb": 1}.get(layout.task, 0)


def _objectness(
    joined: _Joined, box: list[int], room: list[int], clues: Clues, layout: OutputLayout
) -> tuple[bool, ...]:
    """Whether an objectness stands before the scores; both if it is not clear."""
    if len(joined.members) > 1:
        beside = [len(joined.of(name)) for name in joined.members if joined.of(name) != box]
        return (len(joined.of(joined.places[box[0]][0])) == 5 or (len(beside) > 1 and 1 in beside),)
    if clues.classes and len(room) - clues.classes in (0, 1):
        return (len(room) > clues.classes,)
    if len(room) < 2 or box[0] != 0:
        return (False,)
    told = objectness_told(joined.looks, room[0], room[1:])
    if told is not None:
        return (told,)
    known = {"v5": True, "yolox": True, "v8": False}.get(layout.family)
    return (False, True) if known is None else (known,)


def _of_classes(
    joined: _Joined, box: list[int], objectness: int | None, classes: list[int], extras: list[int], clues: Clues
) -> ScoreTable | None:
    ends = slice(classes[0], classes[-1] + 1)
    if classes != list(range(ends.start, ends.stop)):
        return None
    blocks = [look[:, ends] for look in joined.looks]
    logits = any(block.size and block.min() < _LEAST_LOGIT for block in blocks)
    if not logits and not all(is_unit(block) for block in blocks):
        return None
    picked = []
    for look, block in zip(joined.looks, blocks, strict=True):
        score = block.max(axis=1)
        if logits:
            with np.errstate(over="ignore"):
                score = 1 / (1 + np.exp(-score))
        if objectness is not None:
            score = score * look[:, objectness]
        picked.append((score, block, look[:, box]))
    best = _best(picked, joined.regions, clues.size)
    if best is None:
        return None
    words = {**dict.fromkeys(classes, "scores"), **dict.fromkeys(extras, "extras"), **dict(zip(box, _BOX, strict=True))}
    if objectness is not None:
        words[objectness] = "objectness"
    in_order = all(falls(score) for score, _, _ in picked)
    return ScoreTable(joined.groups(words, clues), best, False, in_order, len(joined.looks[0]), logits)
