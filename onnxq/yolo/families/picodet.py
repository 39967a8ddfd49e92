"""Scores and box sides apart for each stride, without a decode: PicoDet, and GFL's heads of the same kind."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxq._text import shape_text
from onnxq.yolo.columns import sigmoid
from onnxq.yolo.detections import Detections, without_extras
from onnxq.yolo.families.tables import grid_cells
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading
from onnxq.yolo.preprocess import IMAGENET, STRETCH

_STRIDES = (8, 16, 32, 64)

_SIDES = 4

_USUAL_BINS = 8
"""Bins of a side as published; they tell sides from scores where both could be either."""


class _Scale(NamedTuple):
    """The outputs of a stride.

    Attributes:
        sides: (batch, cells, 4 x bins), bins of left, top, right and bottom.
        scores: (batch, cells, classes).
        widths: number of columns of both.
        activated: the scores come from a Sigmoid.
    """

    sides: str
    scores: str
    widths: tuple[int, int]
    activated: bool


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    scales = [_scale(clues, stride) for stride in _STRIDES]
    known = [scale for scale in scales if scale is not None]
    kinds = {(scale.widths, scale.activated) for scale in known}
    names = [*(scale.sides for scale in known), *(scale.scores for scale in known)]
    if len(known) != len(_STRIDES) or len(kinds) != 1 or len(set(names)) != len(names) or output not in names:
        return None
    [((_, classes), activated)] = kinds
    if clues.classes not in (0, classes):
        return None
    listed = ", ".join(shape_text(shape) for shape in clues.of_rank(3).values())
    why = f"outputs {listed} are scores and distances as PicoDet gives them"
    return OutputLayout(PICODET, "detect", tuple(names), why, activated=activated)


def _scale(clues: Clues, stride: int) -> _Scale | None:
    """Return the outputs of a stride; None if there are not exactly two, or they may be either."""
    rows, columns = _grid(clues.size, stride)
    pair = [name for name, shape in clues.of_rank(3).items() if shape[1] == rows * columns]
    if len(pair) != 2:
        return None
    found = []
    for sides, scores in (pair, pair[::-1]):
        widths = clues.by_name[sides][2], clues.by_name[scores][2]
        tails = clues.tail(sides), clues.tail(scores)
        activated = "Sigmoid" in tails[1].arithmetic
        is_raw = not tails[0].arithmetic & {"Sigmoid", "Softmax", "Exp"}
        if widths[0] % _SIDES == 0 and widths[0] > _SIDES and is_raw and (activated or tails[1].is_raw):
            found.append(_Scale(sides, scores, widths, activated))
    if len(found) > 1:
        found = [scale for scale in found if scale.activated or scale.widths[0] == _SIDES * _USUAL_BINS]
    return found[0] if len(found) == 1 else None


def _grid(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Return rows and columns of the cells of a stride; the last ones may reach beyond the image."""
    return -(-size[0] // stride), -(-size[1] // stride)


def _read(reading: Reading) -> Detections:
    """Read the boxes of each stride: mean bins of the sides, times the stride, from the middle of the cell."""
    columns = reading.columns()
    boxes, scores, labels = [], [], []
    for index, stride in enumerate(_STRIDES):
        table = reading.own_table(len(_STRIDES) + index)[:, : columns.classes]
        shares = table if reading.layout.activated else sigmoid(table)
        rows, found = np.nonzero(shares > reading.confidence)
        grid = [stride * count for count in _grid(reading.size, stride)]
        centres = (grid_cells((grid[0], grid[1]), (stride,))[rows, :2] + 0.5) * stride
        sides = _means(reading.own_table(index)[rows]) * stride
        boxes.append(np.concatenate([centres - sides[:, :2], centres + sides[:, 2:]], axis=1))
        scores.append(shares[rows, found])
        labels.append(found)
    return without_extras(np.concatenate(boxes).astype(np.float32), np.concatenate(scores), np.concatenate(labels))


def _means(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the mean bin of each side, (n, 4), by the Softmax over its bins."""
    bins = logits.reshape(len(logits), _SIDES, logits.shape[1] // _SIDES)
    powers = np.exp(bins - bins.max(axis=2, keepdims=True))
    means: NDArray[np.float32] = (powers * np.arange(bins.shape[2])).sum(axis=2) / powers.sum(axis=2)
    return means


PICODET = Family(
    "picodet",
    "a pair for each stride 8, 16, 32 and 64: (batch, cells, nc) class scores, and (batch, cells, 4 x bins) distances "
    "of left, top, right and bottom from the middle of the cell, as logits of bins in strides",
    _recognize,
    _read,
    scores=lambda shapes: (0, shapes[-1][2]),
    preprocess=replace(STRETCH, values=IMAGENET),
)
