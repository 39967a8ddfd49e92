"""What the values of outputs say of their columns: functions on arrays of a few real runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.boxes import box_iou
from onnxq.yolo.columns import CENTRES, CORNERS, SIZES, corners_of
from onnxq.yolo.detections import Outputs

_UNIT = 1e-3
"""How far a score may lie beyond 0 or 1: float16 and integers round."""

_MOST_SHARE = 1.5
"""No box that is given as shares of the picture reaches further; all that are given in px do."""

_NOISE = 0.1
"""Least score of the best box of a picture that may be an object."""

_OBJECT = 0.2
"""Least score of a box that is an object rather than noise."""

_SURE_CLASS = 0.4
"""Score of a class above which an objectness, if there is one, is not near 0 too."""

_LITTLE = 0.01
"""A part of boxes that is no difference."""

_SAME = 0.65
"""Boxes of a class with a greater intersection over union are duplicates."""

_WHOLES = (100, 1000)

_SIDES = (*_WHOLES, *range(64, 1025, 32), 80, 300, 1280, 1536, 1920)
"""Sides of the inputs of usual detectors, px."""

_NEARLY_ALL = 0.9

_TINY = np.finfo(np.float64).tiny

_USUAL = (CORNERS, CENTRES, ("y1", "x1", "y2", "x2"), SIZES, ("cy", "cx", "h", "w"))
"""Orders of the columns of a box that exporters use."""

_ORDERLY = (
    ("x1", "x2", "y1", "y2"), ("y1", "y2", "x1", "x2"), ("x2", "y2", "x1", "y1"), ("y2", "x2", "y1", "x1"),
    ("w", "h", "cx", "cy"), ("h", "w", "cy", "cx"), ("cx", "w", "cy", "h"), ("cy", "h", "cx", "w"),
    ("y1", "x1", "h", "w"), ("w", "h", "x1", "y1"),
)  # fmt: skip
"""Other orders with a system."""

_OTHER = tuple(
    words
    for form in (CORNERS, CENTRES, SIZES)
    for words in permutations(form)
    if words not in _USUAL and words not in _ORDERLY
)


@dataclass(frozen=True)
class Look:
    """One run on a real picture of which a part is left, and the rest is grey.

    Attributes:
        outputs: the outputs by name.
        region: left, top, right, bottom of the part, px of the input: what is detected lies there.
    """

    outputs: Outputs
    region: tuple[float, float, float, float]


@dataclass(frozen=True)
class Best:
    """The rows with the best scores of several looks.

    Attributes:
        boxes: float32 (n, 4), the columns of the boxes as they are.
        scores: float32 (n,).
        labels: intp (n,).
        looks: intp (n,), number of the look of each row.
        regions: float32 (n, 4), region of its look.
        size: the input, (height, width) in px.
        others: float32 (m, 4), the columns of the boxes in rows of any score, evenly spaced.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]
    looks: NDArray[np.intp]
    regions: NDArray[np.float32]
    size: tuple[int, int]
    others: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))

    @property
    def objects(self) -> float:
        """Number of looks that show an object, as the sum of their best scores; noise is left out."""
        greatest = [float(self.scores[self.looks == look].max()) for look in np.unique(self.looks)]
        return sum(each for each in greatest if each >= _NOISE)

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weight of each row, by its score; those of a look add up to its best score, however many rows it has."""
        squares = self.scores.astype(np.float64) ** 2
        weights = np.zeros(len(squares))
        for look in np.unique(self.looks):
            mine = self.looks == look
            weights[mine] = squares[mine] / squares[mine].sum() * self.scores[mine].max()
        return weights


@dataclass(frozen=True)
class BoxFit:
    """How well an order of columns explains the boxes.

    Attributes:
        words: the columns of the boxes.
        shares: they are shares of the input's size.
        share: part of the area of the boxes that lies in the regions, weighted by score.
        valid: part of the area of boxes of any score that lies on the input.
    """

    words: tuple[str, ...]
    shares: bool
    share: float
    valid: float

    @property
    def total(self) -> float:
        """How well the order explains boxes of any score."""
        return self.share * self.valid


def is_whole(values: NDArray[np.generic]) -> bool:
    """Return whether all values are whole numbers."""
    return bool((np.rint(values) == values).all())


def is_unit(values: NDArray[np.generic]) -> bool:
    """Return whether all values lie within 0 and 1, up to rounding."""
    return not values.size or bool(values.min() >= -_UNIT and values.max() <= 1 + _UNIT)


def falls(scores: NDArray[np.float32]) -> bool:
    """Return whether scores are sorted, the greatest first."""
    return bool((np.diff(scores) <= 0).all())


def are_shares(boxes: NDArray[np.float32]) -> bool:
    """Return whether the columns of boxes, float32 (n, 4), are shares of the picture, not px."""
    return bool(len(boxes)) and bool(np.abs(boxes).max() <= _MOST_SHARE)


def shares_inside(boxes: NDArray[np.float32], regions: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the part of the area of each box, float32 (n, 4), that lies in its region; 0 for one without area."""
    wide = boxes.astype(np.float64)
    sides = wide[:, 2:] - wide[:, :2]
    common = np.minimum(wide[:, 2:], regions[:, 2:]) - np.maximum(wide[:, :2], regions[:, :2])
    valid = (sides > 0).all(axis=1)
    area = np.where(valid, sides.prod(axis=1), 1.0)
    return np.where(valid, common.clip(0).prod(axis=1) / np.maximum(area, _TINY), 0.0)


def share_inside(best: Best, words: Sequence[str], shares: bool) -> float:
    """Return the part of the boxes' area in their regions if the columns hold these words, weighted by score."""
    boxes = corners_of(_by_word(best.boxes, words), best.size, shares)
    weights = best.weights
    return float((shares_inside(boxes, best.regions) * weights).sum() / max(weights.sum(), _TINY))


def fit(best: Best, words: tuple[str, ...], shares: bool) -> BoxFit:
    """Return how well an order of columns explains the boxes."""
    valid = 1.0
    if len(best.others):
        canvas = np.array([[0, 0, best.size[1], best.size[0]]], np.float32)
        valid = float(shares_inside(corners_of(_by_word(best.others, words), best.size, shares), canvas).mean())
    return BoxFit(words, shares, share_inside(best, words, shares), valid)


def _by_word(boxes: NDArray[np.float32], words: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    return {word: boxes[:, number] for number, word in enumerate(words)}


def box_fits(best: Best, any_order: bool, clear: float) -> list[BoxFit]:
    """Return how well orders of columns explain the boxes, the best first.

    Args:
        best: the rows.
        any_order: also try orders that no known exporter uses. Those that explain less than a usual one are left out,
            and usual ones that explain clearly less than another.
        clear: how much less.
    """
    shares = are_shares(best.boxes)
    fits: list[BoxFit] = []
    for orders in (_USUAL, _ORDERLY, _OTHER) if any_order else (_USUAL,):
        tried = [fit(best, words, shares) for words in orders]
        most = max((each.total for each in fits), default=-1.0)
        better = [each for each in tried if each.total > most + _LITTLE]
        if max((each.total for each in better), default=0.0) > most + clear:
            fits = better if fits else tried
        else:
            fits += better
    return sorted(fits, key=lambda each: -round(each.total, 3))


def other_scale(best: Best) -> tuple[int, float] | None:
    """Return the side of the input that boxes, as corners in px, seem to be of if it is not that of the model.

    Returns:
        The greater side of that input in px, or 100 or 1000 for percent and thousandths; and the part of the boxes'
        area that then lies in the regions, weighted by score. None if no usual size explains them nearly all.
    """
    sides = np.array([best.size[1], best.size[0]], np.float64)
    weights, found = best.weights, []
    for side in _SIDES:
        factors = sides / side if side in _WHOLES else np.full(2, sides.max() / side)
        if not np.allclose(factors, 1):
            inside = shares_inside((best.boxes * np.tile(factors, 2)).astype(np.float32), best.regions)
            found.append(
                (float((inside * weights).sum() / max(weights.sum(), _TINY)), -abs(np.log(factors).sum()), side)
            )
    share, _, side = max(found)
    return (side, share) if share >= _NEARLY_ALL else None


def duplicates(best: Best, words: Sequence[str], shares: bool) -> float:
    """Return the part of the objects that overlap a better one of their class and look.

    Boxes of low score repeat also in networks that give each object once.
    """
    boxes = corners_of(_by_word(best.boxes, words), best.size, shares)
    order = np.argsort(-best.scores, kind="stable")
    order = order[best.scores[order] >= _OBJECT]
    boxes, labels, looks = boxes[order], best.labels[order], best.looks[order]
    same = (labels[:, None] == labels) & (looks[:, None] == looks)
    overlaps = np.tril((box_iou(boxes, boxes) > _SAME) & same, -1)
    return float(overlaps.any(axis=1).mean()) if len(boxes) else 0.0


def is_strong(first: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return where a column that may be an objectness, float32 (n,), is great."""
    return np.asarray(first > max(0.2, float(first.max(initial=0.0)) / 2))


def objectness_told(looks: Sequence[NDArray[np.float32]], first: int, others: Sequence[int]) -> bool | None:
    """Return whether a column is an objectness of the columns after it, as `has_objectness`.

    Args:
        looks: tables, float32 (rows, columns).
        first: number of the column.
        others: numbers of the columns after it.
    """
    ends = slice(others[0], others[-1] + 1)
    column = np.concatenate([look[:, first] for look in looks])
    if float(column.min(initial=1.0)) > 1 - _UNIT:  # YOLOv6 has a column of ones
        return True if len(column) else None
    # Where the column is great the others tell. If it is nowhere great all rows do, unless no class has a score.
    judged = is_strong(column)
    if not judged.any():
        if max((float(look[:, ends].max()) for look in looks if len(look)), default=0.0) <= _SURE_CLASS:
            return None
        judged = np.ones_like(judged)
    parts = np.split(judged, np.cumsum([len(look) for look in looks])[:-1])
    greatest = [look[part, ends].max(axis=1) for look, part in zip(looks, parts, strict=True)]
    return has_objectness(column[judged], np.concatenate(greatest))


def has_objectness(first: NDArray[np.float32], greatest: NDArray[np.float32]) -> bool | None:
    """Return whether a column is an objectness, or the score of a class like the columns after it; None: unclear.

    Where an objectness is great a class is; where the score of a class is great no other one is.

    Args:
        first: float32 (n,), the column.
        greatest: float32 (n,), the greatest value of the columns after it.
    """
    if not len(first):
        return None
    strong = is_strong(first)
    if strong.any():
        typical = float(np.median(greatest[strong]))
        return None if 0.1 < typical < 0.25 else typical >= 0.25
    return False if float((first * greatest).max()) < 0.02 and float(greatest.max()) > _SURE_CLASS else None
