"""Ways to read the outputs of a few runs as boxes with scores, as far as shapes and values allow them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.columns import UNREAD, Columns, sigmoid, softmax
from onnxq.yolo.evidence import Best, Look, falls, is_unit, is_whole, objectness_told
from onnxq.yolo.joined_outputs import FEW_COLUMNS, JoinedOutputs, Matrix, join_outputs
from onnxq.yolo.output_layout import Clues, OutputLayout

ROWS = 100
"""Rows of each look that are judged, those of the best scores."""

_BOX = ("box0", "box1", "box2", "box3")
"""Columns of a box whose meaning is open."""

_MOST_CLASSES = 10_000

PERCENT = 100.0

LEAST_PERCENT = 10.0
"""Greatest score from which on scores may be percent."""

_MOSTLY = 0.5
"""Part of the boxes that show nothing."""

_FULL_TURN = 2 * np.pi + 1e-3
"""Greatest angle of a box in radians, up to rounding."""

_LEAST_IDS = 20
"""Rows of which some have the same class."""

_LEAST_LOGIT = -1.0
"""Scores that go below are logits; rounding does not."""


@dataclass(frozen=True)
class ScoreTable:
    """A way to read the outputs, but for the order of the columns of the boxes.

    Attributes:
        groups: words of each output, with `box0` to `box3` for the columns of the boxes.
        best: the rows of the best scores.
        is_labelled: a column has the label, else each class has a column.
        is_sorted: rows stand by falling score in every look.
        rows: number of rows.
        mode: how scores become probabilities: "logits", "softmax", "percent", or "" if they are.
        from_one: labels count from 1.
    """

    groups: tuple[tuple[str, ...], ...]
    best: Best
    is_labelled: bool
    is_sorted: bool
    rows: int
    mode: str = ""
    from_one: bool = False

    @property
    def outputs(self) -> int:
        """Number of outputs that are read."""
        return sum(group != (UNREAD,) for group in self.groups)

    def columns(self, box: Sequence[str], shares: bool, finished: bool | None = None) -> Columns:
        """Return the layout with these columns of the boxes."""
        words = dict(zip(_BOX, box, strict=True))
        groups = tuple(tuple(words.get(word, word) for word in group) for group in self.groups)
        return Columns(
            groups,
            shares,
            logits=self.mode == "logits",
            finished=finished,
            softmax=self.mode == "softmax",
            percent=self.mode == "percent",
            from_one=self.from_one,
        )


def score_tables(clues: Clues, layout: OutputLayout, looks: Sequence[Look]) -> Iterator[ScoreTable]:
    """Yield the ways to read the outputs as boxes with scores.

    Args:
        clues: what is known of the outputs.
        layout: as the shapes show it; its task tells the columns beside boxes.
        looks: runs on real pictures.
    """
    for number, joined in enumerate(join_outputs(clues, looks)):
        yield from _labelled(joined, clues, layout.task)
        if not joined.whole and not number:
            yield from _scored(joined, clues, layout)


# A score and a label


def _labelled(joined: JoinedOutputs, clues: Clues, task: str) -> Iterator[ScoreTable]:
    count = len(joined.places)
    if count > FEW_COLUMNS or not any(len(look) for look in joined.looks):
        return
    values = [joined.all_rows(column) for column in range(count)]
    whole = [k for k in range(count) if is_whole(values[k])]
    ids = [k for k in whole if _is_id(joined, k)]
    scores = [k for k in range(count) if k not in whole and is_unit(values[k])]
    choices, mode = _score_columns(joined, scores), ""
    if not scores:
        choices, mode = _percent_columns(joined, values, whole), "percent"
    for label in _labels(joined, values, [k for k in whole if k not in ids], clues):
        images = _images(joined, values, whole, label)
        for factors in choices:
            rest = [k for k in range(count) if k not in (label, *factors, *images)]
            angle = _angle(rest, values, task)
            rest = [k for k in rest if k != angle]
            varied = [k for k in rest if values[k].min() < values[k].max() and k not in ids]
            sides = varied if len(varied) >= 4 else rest
            own = {label: "label", factors[0]: "objectness", factors[-1]: "score", **dict.fromkeys(images, "image")}
            if angle is not None:
                own[angle] = "angle"
            products = [_product(look, factors, mode) for look in joined.looks]
            from_one = _from_one(values[label], np.concatenate(products), clues.classes)
            if from_one is None:
                continue
            for box in (sides[start : start + 4] for start in range(len(sides) - 3)):
                picked = [
                    _labelled_rows(look, product, label, box, from_one)
                    for look, product in zip(joined.looks, products, strict=True)
                ]
                best = _best(picked, joined.regions, clues.size)
                if best is not None:
                    words = {**own, **dict(zip(box, _BOX, strict=True))}
                    in_order, rows = all(falls(each) for each in products), len(joined.looks[0])
                    yield ScoreTable(joined.groups(words, clues), best, True, in_order, rows, mode, from_one)


def _is_id(joined: JoinedOutputs, column: int) -> bool:
    """Whether no number comes twice on a picture, as numbers of rows or tracks."""
    looks = [look[:, column] for look in joined.looks]
    return all(len(each) >= _LEAST_IDS and len(np.unique(each)) == len(each) for each in looks)


def _labels(joined: JoinedOutputs, values: Sequence[Matrix], whole: Sequence[int], clues: Clues) -> list[int]:
    """The columns that may be the labels; they may count from 1."""
    most = clues.classes or _MOST_CLASSES
    labels = [k for k in whole if values[k].min() >= -1 and values[k].max() <= most]
    labels = [k for k in labels if k in joined.whole] or labels
    return [k for k in labels if values[k].min() < values[k].max() and values[k].max() > 0] or labels[-1:]


def _from_one(labels: Matrix, scores: Matrix, classes: int) -> bool | None:
    """Return whether labels count from 1, as the last class is found and none is 0; None: they are no labels."""
    if not classes or labels.max() < classes:
        return False
    found = labels[scores > 0]
    return True if found.size and found.min() > 0 else None


def _images(joined: JoinedOutputs, values: Sequence[Matrix], whole: Sequence[int], label: int) -> list[int]:
    """The column of the number of the image in the batch: 0, or -1 behind the last row.

    Of two columns of zeros, the one that comes first is the number of the image.
    """
    return [k for k in whole if k < label and joined.is_list and values[k].max() == 0 and values[k].min() >= -1][:1]


def _score_columns(joined: JoinedOutputs, scores: list[int]) -> Sequence[tuple[int, ...]]:
    """Return the columns that may be the score, or an objectness and a score whose product it is.

    If the rows are sorted by only one choice, it is that one.
    """
    choices = [*combinations(scores, 2), *((k,) for k in scores)]
    ordered = [each for each in choices if all(falls(_product(look, each)) for look in joined.looks)]
    return ordered if len(ordered) == 1 else choices


def _percent_columns(
    joined: JoinedOutputs, values: Sequence[Matrix], whole: Sequence[int]
) -> Sequence[tuple[int, ...]]:
    """Return the column of scores of 0 to 100; none unless the rows are sorted by one such column."""
    ordered = [
        (k,)
        for k in range(len(values))
        if k not in whole
        and values[k].max() > LEAST_PERCENT
        and is_unit(values[k] / np.float32(PERCENT))
        and all(falls(look[:, k]) for look in joined.looks)
    ]
    return ordered if len(ordered) == 1 else []


def _product(look: Matrix, columns: Sequence[int], mode: str = "") -> Matrix:
    if len(columns) == 1:
        return _MODES[mode](look[:, columns[0]])
    return look[:, columns[0]] * look[:, columns[1]]


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
    look: Matrix, scores: Matrix, label: int, box: list[int], from_one: bool
) -> tuple[Matrix, NDArray[np.intp], Matrix]:
    """The scores, those of rows without a label 0; the labels; the columns of the boxes."""
    labels = look[:, label].astype(np.intp) - from_one
    return np.where(labels >= 0, scores, np.float32(0)), labels, look[:, box]


def _best(
    looks: Sequence[tuple[Matrix, NDArray[np.intp] | Matrix, Matrix]],
    regions: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> Best | None:
    """Return the rows of the best scores: from scores, labels, or the scores of all classes, and boxes of each look."""
    scores, labels, boxes, numbers, others = [], [], [], [], []
    for number, (score, label, box) in enumerate(looks):
        valid = np.flatnonzero(score > 0)
        chosen = valid[np.argsort(-score[valid], kind="stable")[:ROWS]]
        scores.append(score[chosen])
        labels.append(label[chosen] if label.ndim == 1 else label[chosen].argmax(axis=1))
        boxes.append(box[chosen])
        numbers.append(np.full(len(chosen), number))
        others.append(box[valid[:: max(1, len(valid) // ROWS)]])
    which = np.concatenate(numbers).astype(np.intp)
    if not len(which):
        return None
    return Best(
        np.concatenate(boxes), np.concatenate(scores), np.concatenate(labels), which,
        np.array(regions, np.float32)[which], size, np.concatenate(others),
    )  # fmt: skip


# A score for each class


def _scored(joined: JoinedOutputs, clues: Clues, layout: OutputLayout) -> Iterator[ScoreTable]:
    for box in _boxes(joined):
        rest = [k for k in range(len(joined.places)) if k not in box]
        extras = _extras(layout, joined, clues) if len(joined.members) == 1 else 0
        room, tail = rest[: len(rest) - extras], rest[len(rest) - extras :]
        for has in _objectness(joined, box, room, clues, layout):
            first = room[0] if has else None
            if has and len(joined.members) > 1:
                first = next(k for k in room if len(joined.of(joined.places[k][0])) in (1, 5))
            classes = [k for k in room if k != first]
            is_known = first is None and (len(joined.members) > 1 or (layout.has_boxes and not layout.is_finished))
            table = _of_classes(joined, box, first, classes, tail, clues, is_known) if classes else None
            if table is not None:
                yield table


def _boxes(joined: JoinedOutputs) -> list[list[int]]:
    """The columns that may be those of the boxes."""
    if len(joined.members) == 1:
        count = len(joined.places)
        return [list(range(4)), list(range(count - 4, count))]
    by_output = [joined.of(name) for name in joined.members]
    return [each for each in by_output if len(each) == 4] or [each[:4] for each in by_output if len(each) == 5]


def _extras(layout: OutputLayout, joined: JoinedOutputs, clues: Clues) -> int:
    if layout.prototypes:
        return clues.by_name[layout.prototypes][1]
    return {"pose": int(np.prod(layout.keypoints)), "obb": 1}.get(layout.task, 0)


def _objectness(
    joined: JoinedOutputs, box: list[int], room: list[int], clues: Clues, layout: OutputLayout
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
    joined: JoinedOutputs,
    box: list[int],
    objectness: int | None,
    classes: list[int],
    extras: list[int],
    clues: Clues,
    is_known: bool,
) -> ScoreTable | None:
    ends = slice(classes[0], classes[-1] + 1)
    if classes != list(range(ends.start, ends.stop)):
        return None
    blocks = [look[:, ends] for look in joined.looks]
    filled = [block for block in blocks if block.size]
    low = min((float(block.min()) for block in filled), default=0.0)
    high = max((float(block.max()) for block in filled), default=0.0)
    is_plain = objectness is None and clues.classes != len(classes)
    mode = "logits" if low < _LEAST_LOGIT else ""
    background = _background(filled, bool(mode)) if is_plain else None
    if mode and background is not None:
        mode = "softmax"
    elif not mode and not (low >= -1e-3 and high <= 1 + 1e-3):
        if not is_known or background is not None or low < 0 or not LEAST_PERCENT < high <= PERCENT:
            return None
        mode = "percent"
    picked = []
    for look, block in zip(joined.looks, blocks, strict=True):
        if mode == "softmax":
            block = softmax(block)
        if background is not None:
            block = np.delete(block, background, axis=1)
        score = block.max(axis=1)
        if mode != "softmax":
            score = _MODES[mode](score)
        if objectness is not None:
            score = score * look[:, objectness]
        picked.append((score, block, look[:, box]))
    best = _best(picked, joined.regions, clues.size)
    if best is None:
        return None
    words = {**dict.fromkeys(classes, "scores"), **dict.fromkeys(extras, "extras"), **dict(zip(box, _BOX, strict=True))}
    if objectness is not None:
        words[objectness] = "objectness"
    if background is not None:
        words[classes[background]] = "background"
    in_order = all(falls(score) for score, _, _ in picked)
    return ScoreTable(joined.groups(words, clues), best, False, in_order, len(joined.looks[0]), mode)


_MODES: dict[str, Callable[[Matrix], Matrix]] = {
    "": lambda scores: scores,
    "logits": sigmoid,
    "softmax": softmax,
    "percent": lambda scores: scores / np.float32(PERCENT),
}
"""How scores become probabilities."""


def _background(blocks: Sequence[Matrix], logits: bool) -> int | None:
    """Return which column, the first or the last, is the score of no class; None if neither is.

    Most boxes show nothing, and no class is as probable as that. Logits before a Softmax have any offset, but those
    that a Sigmoid makes probable in most boxes are no class either.
    """
    width = blocks[0].shape[1] if blocks else 0
    if width < 2:
        return None
    rows = sum(len(block) for block in blocks)
    least = _LEAST_LOGIT if logits else 0.5
    for column, others in ((0, slice(1, None)), (width - 1, slice(-1))):
        above = (block[:, column] > np.maximum(block[:, others].max(axis=1), least) for block in blocks)
        if sum(np.count_nonzero(each) for each in above) / rows > _MOSTLY:
            return column
    return None
