"""Ways to read the outputs of a few runs as boxes with scores, as far as shapes and values allow them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.columns import UNREAD, Columns, sigmoid, softmax
from onnxq.yolo.evidence import Best, Look, falls, has_objectness, is_unit, is_whole
from onnxq.yolo.joined_outputs import FEW_COLUMNS, JoinedOutputs, Matrix, join_outputs
from onnxq.yolo.output_layout import Clues, OutputLayout

_ROWS = 100
"""Rows of each look that are judged, those of the best scores."""

_BOX = ("box0", "box1", "box2", "box3")
"""Columns of a box whose meaning is open."""

_MOST_CLASSES = 10_000

_PERCENT = 100.0

_LEAST_PERCENT = 10.0
"""Greatest score from which on scores may be percent."""

_MOSTLY = 0.5
"""Part of the boxes that show nothing."""

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
        yield from _labelled(joined, clues)
        if not joined.whole and not number:
            yield from _scored(joined, clues, layout)


# A score and a label


def _labelled(joined: JoinedOutputs, clues: Clues) -> Iterator[ScoreTable]:
    count = len(joined.places)
    if count > FEW_COLUMNS or not any(len(look) for look in joined.looks):
        return
    values = [joined.all_rows(column) for column in range(count)]
    whole = [k for k in range(count) if is_whole(values[k])]
    for label in _labels(joined, values, whole, clues):
        images = _images(joined, values, whole, label)
        for score in _label_scores(joined, values, whole):
            rest = [k for k in range(count) if k not in (label, *score.columns, *images)]
            from_one = _from_one(values[label], score.of(np.concatenate(joined.looks)), clues.classes)
            if len(rest) < 4 or from_one is None:
                continue
            words = {label: "label", **dict(zip(score.columns, score.words, strict=True))}
            words.update(zip(rest, _BOX, strict=False))
            words.update(dict.fromkeys(images, "image"))
            picked = [
                (score.of(look), look[:, label].astype(np.intp) - from_one, look[:, rest[:4]]) for look in joined.looks
            ]
            best = _best(picked, joined.regions, clues.size)
            if best is not None:
                in_order = all(falls(score.of(look)) for look in joined.looks)
                mode = "percent" if score.percent else ""
                yield ScoreTable(
                    joined.groups(words, clues), best, True, in_order, len(joined.looks[0]), mode, from_one
                )


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


@dataclass(frozen=True)
class _Score:
    """The columns of the score of the best class.

    Attributes:
        columns: one column, or two whose product is the score.
        percent: they are 0 to 100.
    """

    columns: tuple[int, ...]
    percent: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        return ("score",) if len(self.columns) == 1 else ("objectness", "score")

    def of(self, look: Matrix) -> Matrix:
        """The scores of all rows."""
        product: Matrix = np.prod(look[:, list(self.columns)], axis=1, dtype=np.float32)
        return product / np.float32(_PERCENT) if self.percent else product


def _label_scores(joined: JoinedOutputs, values: Sequence[Matrix], whole: Sequence[int]) -> list[_Score]:
    """The scores that may stand beside a label; if the rows fall by one of them, it is the one."""
    others = [k for k in range(len(values)) if k not in whole]
    unit = [k for k in others if is_unit(values[k])]
    pairs = [_Score((a, b)) for a, b in pairwise(unit) if b == a + 1]
    percent = [
        _Score((k,), percent=True)
        for k in others
        if values[k].max() > _LEAST_PERCENT and is_unit(values[k] / np.float32(_PERCENT))
    ]
    singles = [_Score((k,)) for k in unit]
    for kind in (singles, pairs, percent if not unit else []):
        ordered = [each for each in kind if all(falls(each.of(look)) for look in joined.looks)]
        if len(ordered) == 1:
            return ordered
    return singles + (pairs if len(unit) == 2 else [])


def _best(
    looks: Sequence[tuple[Matrix, NDArray[np.intp], Matrix]],
    regions: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> Best | None:
    """Return the rows of the best scores: from scores, labels and boxes of each look."""
    scores, labels, boxes, numbers, others = [], [], [], [], []
    for number, (score, label, box) in enumerate(looks):
        valid = np.flatnonzero((score > 0) & (label >= 0))
        chosen = valid[np.argsort(-score[valid], kind="stable")[:_ROWS]]
        scores.append(score[chosen])
        labels.append(label[chosen])
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


def objectness_told(looks: Sequence[Matrix], first: int, others: Sequence[int]) -> bool | None:
    """Return whether a column of tables, (rows, columns) each, is an objectness of the columns after it."""
    ends = slice(others[0], others[-1] + 1)
    greatest = [look[:, ends].max(axis=1) for look in looks]
    return has_objectness(np.concatenate([look[:, first] for look in looks]), np.concatenate(greatest))


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
        if not is_known or background is not None or low < 0 or not _LEAST_PERCENT < high <= _PERCENT:
            return None
        mode = "percent"
    picked = []
    for look, block in zip(joined.looks, blocks, strict=True):
        scores = _MODES[mode](block)
        if background is not None:
            scores = np.delete(scores, background, axis=1)
        label = scores.argmax(axis=1)
        score = scores[np.arange(len(scores)), label]
        if objectness is not None:
            score = score * look[:, objectness]
        picked.append((score, label, look[:, box]))
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
    "percent": lambda scores: scores / np.float32(_PERCENT),
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
    every = np.concatenate(blocks)
    least = _LEAST_LOGIT if logits else 0.5
    for column in (0, width - 1):
        others = np.delete(every, column, axis=1).max(axis=1)
        if float((every[:, column] > np.maximum(others, least)).mean()) > _MOSTLY:
            return column
    return None
