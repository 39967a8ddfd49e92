"""The language of `--layout`: what the columns of a model's outputs hold, and how objects are read from them.

A layout is a list of words, `x1 y1 x2 y2 score label`. `/` stands between outputs, in the graph's order. Words such as
`shares`, `logits` and `finished` hold for all outputs and stand anywhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ConfigError, ModelError
from onnxq.yolo.detections import Detections, to_corners

Shape = tuple[int, ...]

CORNERS, CENTRES, SIZES = ("x1", "y1", "x2", "y2"), ("cx", "cy", "w", "h"), ("x1", "y1", "w", "h")
"""Columns of a box: two corners, centre and size, or the first corner and size; in any order."""

UNREAD = "-"

_OPEN = ("scores", "extras")
"""Words for all columns that are left."""

_COLUMNS = {
    **dict.fromkeys(("x1", "y1", "x2", "y2"), "a side of the box"),
    **dict.fromkeys(("cx", "cy"), "its centre"),
    **dict.fromkeys(("w", "h"), "its size"),
    "score": "score of the best class",
    "label": "number of the best class",
    "objectness": "factor of all class scores",
    "scores": "a column for each class",
    "background": "score of no class",
    "angle": "rotation in radians",
    "extras": "what the task has beside boxes",
    "image": "number of the image in the batch",
    "count": "number of valid rows",
    UNREAD: "is not read",
}

_MODES = {
    "px": "boxes are in px of the input",
    "shares": "boxes are shares of the input's width and height",
    "logits": "scores are before their Sigmoid",
    "softmax": "scores are before their Softmax",
    "percent": "scores are 0 to 100",
    "from-1": "labels count from 1",
    "candidates": "duplicates must be removed",
    "finished": "the model removes duplicates itself",
}

_EXCLUSIVE = (
    ("px", "shares"), ("candidates", "finished"), ("logits", "softmax"), ("logits", "percent"), ("softmax", "percent"),
)  # fmt: skip

WORDS = (*_COLUMNS, *_MODES)
"""All words of a layout, but the `/` between outputs."""

LAYOUT_HELP = (
    "what the columns of the outputs hold, if values do not tell it: x1 y1 x2 y2 score label, or cx cy w h objectness "
    "scores; / between outputs, - for what is not read; shares for boxes as shares of the picture, finished if no "
    "duplicates are to be removed"
)
"""Help text of `--layout`."""


@dataclass(frozen=True)
class Columns:
    """What the columns of all outputs hold.

    Attributes:
        groups: for each output of the graph the words of its columns; `(UNREAD,)` if it is not read.
        shares: boxes are shares of the input's width and height, else px.
        logits: scores are before their Sigmoid.
        softmax: scores are before their Softmax, the background's among them.
        percent: scores are 0 to 100.
        from_one: labels count from 1.
        finished: the model removes duplicates itself; None: it is not known, and they are removed.
    """

    groups: tuple[tuple[str, ...], ...]
    shares: bool = False
    logits: bool = False
    finished: bool | None = None
    softmax: bool = False
    percent: bool = False
    from_one: bool = False

    @property
    def words(self) -> tuple[str, ...]:
        """The words of all columns."""
        return tuple(word for group in self.groups for word in group)

    @property
    def text(self) -> str:
        """The layout as `--layout` takes it."""
        columns = " / ".join(" ".join(group) for group in self.groups)
        held = {
            "shares": self.shares,
            "logits": self.logits,
            "softmax": self.softmax,
            "percent": self.percent,
            "from-1": self.from_one,
        }
        modes = [word for word, holds in held.items() if holds]
        modes += [] if self.finished is None else ["finished" if self.finished else "candidates"]
        return " ".join([columns, *modes])

    @property
    def task(self) -> str:
        """`obb` for boxes with an angle, else `detect`."""
        return "obb" if "angle" in self.words else "detect"

    def names(self, outputs: Sequence[str]) -> tuple[str, ...]:
        """Return the outputs that are read, of all outputs of the graph.

        Raises:
            ConfigError: the layout has more or fewer outputs than the graph.
        """
        if len(self.groups) > len(outputs):
            raise ConfigError(
                f"layout: {self.text!r} has {len(self.groups)} outputs, and the model {len(outputs)}: "
                f"{', '.join(outputs)}; put / between outputs, and {UNREAD} for one that is not read"
            )
        return tuple(name for name, group in zip(outputs, self.groups, strict=False) if group != (UNREAD,))

    @property
    def read_groups(self) -> list[tuple[str, ...]]:
        """The words of the outputs that are read."""
        return [group for group in self.groups if group != (UNREAD,)]

    def classes(self, shapes: Sequence[Shape], named: int) -> int | None:
        """Return the number of columns with class scores; None if there is a label instead.

        Args:
            shapes: of the outputs that are read.
            named: number of classes in the metadata; 0: none.

        Raises:
            ModelError: an output has too many axes.
        """
        if "label" in self.words:
            return None
        rows = self._rows(shapes)
        for group, shape in zip(self.read_groups, shapes, strict=True):
            if "scores" in group:
                room = _placed(shape, group, rows).width - _fixed(group)
                return named if named and "extras" in group else room
        return 1

    def images(self, shape: Shape) -> int:
        """Return the number of images in the batch, by the shape of the first output that is read; 0: it does not show.

        A list of rows without the number of the image is of one image.
        """
        if "image" in self.words:
            return 0
        group = self.read_groups[0]
        return shape[0] if group == ("count",) or not _placed(shape, group, 0).is_list else 1

    def _rows(self, shapes: Sequence[Shape]) -> int:
        """Number of rows, if an output without open columns shows it, else 0."""
        for group, shape in zip(self.read_groups, shapes, strict=True):
            if not set(group) & {*_OPEN, "count"}:
                return _placed(shape, group, 0).rows
        return 0

    def read(
        self,
        arrays: Sequence[NDArray[Any]],
        size: tuple[int, int],
        named: int,
        confidence: float,
        index: int = 0,
    ) -> Detections:
        """Return the (box, class) pairs on one image of a score above `confidence`.

        Args:
            arrays: the outputs that are read, in order.
            size: the model's input, (height, width) in px.
            named: number of classes in the metadata; 0: none.
            confidence: least score.
            index: number of the image in the batch.

        Raises:
            ModelError: the outputs do not have these columns.
        """
        table = self._table(arrays, named, index)
        boxes = corners_of({name: table[name][:, 0] for name in _COLUMNS if name in table}, size, self.shares)
        scores = self._scores(table)
        if "objectness" in table:
            scores = scores * table["objectness"]
        extras = np.concatenate(
            [np.zeros((len(boxes), 0), np.float32), *(table[n] for n in ("angle", "extras") if n in table)], axis=1
        )
        keep = scores > confidence
        if "image" in table:
            keep &= table["image"] == index
        if "label" in table:
            keep &= table["label"] >= int(self.from_one)
        rows, labels = np.nonzero(keep)
        found = table["label"][rows, 0] - self.from_one if "label" in table else labels
        return Detections(boxes[rows], scores[rows, labels], found.astype(np.intp), extras[rows])

    def _scores(self, table: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """The scores as probabilities, float32 (rows, classes)."""
        scores = table["scores"] if "scores" in table else table["score"]
        if self.logits:
            return sigmoid(scores)
        if self.softmax:
            every = np.concatenate([scores, *(table[name] for name in ("background",) if name in table)], axis=1)
            return softmax(every)[:, : scores.shape[1]]
        return scores / np.float32(100) if self.percent else scores

    def _table(self, arrays: Sequence[NDArray[Any]], named: int, index: int) -> dict[str, NDArray[np.float32]]:
        """The columns by their words, float32 (rows, columns)."""
        rows = self._rows([array.shape for array in arrays])
        table: dict[str, NDArray[np.float32]] = {}
        count = None
        for group, array in zip(self.read_groups, arrays, strict=True):
            if group == ("count",):
                count = int(np.reshape(array, -1)[index])
                continue
            part = own_rows(array, group, index, rows)
            table.update(self._split(part, group, named, array.shape))
        if len({len(part) for part in table.values()}) > 1:
            raise ModelError(f"layout: the outputs have different numbers of rows: {[a.shape for a in arrays]}")
        return table if count is None else {name: part[:count] for name, part in table.items()}

    def _split(
        self, part: NDArray[np.float32], group: tuple[str, ...], named: int, shape: Shape
    ) -> dict[str, NDArray[np.float32]]:
        left = part.shape[1] - _fixed(group)
        widths = {"scores": left, "extras": left}
        if "scores" in group and "extras" in group:
            widths = {"scores": named, "extras": left - named}
        if left < 0 or (left and not set(group) & set(_OPEN)) or ("scores" in group and widths["scores"] < 1):
            raise ModelError(f"layout: {' '.join(group)!r} does not fit an output of shape {shape}")
        columns, start = {}, 0
        for word in group:
            width = widths.get(word, 1)
            columns[word] = part[:, start : start + width]
            start += width
        columns.pop(UNREAD, None)
        return columns


class _Place(NamedTuple):
    """How the rows of one image stand in an output.

    Attributes:
        is_list: the first axis is rows, not the batch.
        sides: the two axes that remain.
        turned: the columns stand first.
    """

    is_list: bool
    sides: tuple[int, int]
    turned: bool

    @property
    def rows(self) -> int:
        return self.sides[self.turned]

    @property
    def width(self) -> int:
        return self.sides[not self.turned]


def _fixed(group: Sequence[str]) -> int:
    return sum(word not in _OPEN for word in group)


def _placed(shape: Shape, group: Sequence[str], rows: int) -> _Place:
    """Return how the rows of one image stand in an output of this shape.

    Args:
        shape: its first axis is the batch, unless it is a list of rows, (rows, columns).
        group: words of its columns.
        rows: number of rows if another output shows it, else 0: rows are more than columns.
    """
    is_open, fixed = bool(set(group) & set(_OPEN)), _fixed(group)
    is_single = fixed == 1 and not is_open
    is_list = "image" in group or len(shape) < 2 or (len(shape) == 2 and not (is_single and shape[1] != 1))
    own = list(shape if is_list else shape[1:])
    while len(own) > 2 and 1 in own:
        own.remove(1)
    own += [1] * (2 - len(own))
    if len(own) > 2:
        raise ModelError(f"layout: an output of shape {shape} is no table of boxes")
    if is_open:
        turned = own[0] < own[1] if rows not in own else own[0] != rows
    else:
        turned = own[1] != fixed and own[0] == fixed
    return _Place(is_list, (own[0], own[1]), turned)


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities, float32, of logits of any shape."""
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities that add up to 1 in each row, float32 (rows, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def own_rows(array: NDArray[Any], group: Sequence[str], index: int, rows: int) -> NDArray[np.float32]:
    """Return the part of an output that belongs to one image, float32 (rows, columns).

    Args:
        array: the output. Its first axis is the batch, unless it is a list of rows, (rows, columns).
        group: words of its columns.
        index: number of the image in the batch; of a list, the rows of all images are returned.
        rows: number of rows if another output shows it, else 0: rows are more than columns.

    Raises:
        ModelError: the output has too many axes.
    """
    place = _placed(array.shape, group, rows)
    part = np.asarray(array if place.is_list else array[index], np.float32).reshape(place.sides)
    return part.T if place.turned else part


def corners_of(columns: Mapping[str, NDArray[np.float32]], size: tuple[int, int], shares: bool) -> NDArray[np.float32]:
    """Return boxes as left, top, right, bottom in px, float32 (n, 4), from columns by their words."""
    form = next(form for form in (CORNERS, CENTRES, SIZES) if set(form) <= set(columns))
    boxes = np.stack([columns[word] for word in form], axis=1).astype(np.float32, copy=False)
    if shares:
        boxes = boxes * np.array([size[1], size[0]] * 2, np.float32)
    if form == CENTRES:
        return to_corners(boxes)
    if form == SIZES:
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return boxes


def parse_layout(words: Iterable[str]) -> Columns:
    """Parse the words of `--layout`; they may also be joined by commas or spaces.

    Raises:
        ConfigError: a word is unknown or comes twice, or there is no box or no score.
    """
    split = [word.lower() for text in words for word in text.replace(",", " ").replace("/", " / ").split()]
    unknown = [word for word in split if word not in (*WORDS, "/")]
    if unknown:
        raise ConfigError(
            f"layout: {unknown[0]!r} is none of {', '.join(WORDS)}; put / between outputs, and files before --layout"
        )
    columns = [word for word in split if word not in _MODES]
    groups: list[tuple[str, ...]] = [()]
    for word in columns:
        if word == "/":
            groups.append(())
        else:
            groups[-1] = (*groups[-1], word)
    modes = set(split) & set(_MODES)
    for a, b in _EXCLUSIVE:
        if {a, b} <= modes:
            raise ConfigError(f"layout: {a} and {b} exclude each other; give one of the two")
    finished = None if not modes & {"candidates", "finished"} else "finished" in modes
    layout = Columns(
        tuple(group or (UNREAD,) for group in groups),
        shares="shares" in modes,
        logits="logits" in modes,
        finished=finished,
        softmax="softmax" in modes,
        percent="percent" in modes,
        from_one="from-1" in modes,
    )
    _check(layout)
    return layout


def _check(layout: Columns) -> None:
    read = [word for word in layout.words if word != UNREAD]
    twice = [word for word in dict.fromkeys(read) if read.count(word) > 1]
    if twice:
        raise ConfigError(f"layout: {twice[0]!r} comes twice; write {UNREAD} for a column that is not read")
    sides = set(read) & {*CORNERS, *CENTRES}
    if sides not in ({*CORNERS}, {*CENTRES}, {*SIZES}):
        raise ConfigError(f"layout: {layout.text!r} has no box: give x1 y1 x2 y2, cx cy w h or x1 y1 w h")
    if ("score" in read) == ("scores" in read):
        raise ConfigError(f"layout: {layout.text!r} must have score or scores (one column per class)")
    if "background" in read and "scores" not in read:
        raise ConfigError(
            f"layout: {layout.text!r} has background without scores of all classes; write {UNREAD} for it"
        )
    if layout.from_one and "label" not in read:
        raise ConfigError(f"layout: {layout.text!r} has from-1 without a label")
    if "scores" in read and "label" in read:
        raise ConfigError(f"layout: {layout.text!r} has a label beside scores of all classes; give score and label")
