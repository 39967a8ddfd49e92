"""A detector's output to boxes, in numpy: the decode of each family, and non-maximum suppression."""

import numpy as np
from numpy.typing import NDArray

from onnxq.detector import RAW_STRIDES, Detector
from onnxq.errors import ModelError

MOST_CANDIDATES = 30_000
"""Boxes of one picture that duplicates are looked for among; those of the least score are left out."""
MOST_DETECTIONS = 300
"""Boxes of one picture that are scored."""


_GREATEST_LOG_SIZE = 20.0  # exp of more cells than any picture has; keeps exp finite


def class_count(detector: Detector, shape: tuple[int, ...]) -> int | None:
    """How many classes an output of this shape (batch, rows, columns) has; None where it does not show.

    Raises:
        ModelError: the family's outputs do not look like this.
    """
    unfit = ModelError(f"output {detector.output_name} {shape} is not one of family {detector.family}")
    if len(shape) != 3:
        raise unfit
    if detector.family == "end2end":
        if shape[2] < 6:
            raise unfit
        return len(detector.names) or None
    if detector.family == "yolox-raw" and max(shape[1:]) != len(_cells(detector.size)):
        raise unfit
    room = min(shape[1:]) - _first_score(detector.family)
    if room < max(len(detector.names), 1):
        raise unfit
    return len(detector.names) or room


def _first_score(family: str) -> int:
    return 4 if family == "v8" else 5


def decode(
    table: NDArray[np.float32], detector: Detector, confidence: float, classes: int | None
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.intp]]:
    """Turn a model's output for one picture into boxes.

    Args:
        table: float32 (boxes, columns) or (columns, boxes), as the family has them.
        detector: its family and input size count.
        confidence: each (box, class) pair of a score above this gives a box.
        classes: how many columns are class scores; not needed for end2end.

    Returns:
        Boxes, float32 (n, 4), xyxy in px of the model's input; scores, float32 (n,); classes, intp (n,).
    """
    if detector.family == "end2end":
        finished = table[table[:, 4] > confidence]
        return finished[:, :4], finished[:, 4], finished[:, 5].astype(np.intp)
    if table.shape[0] < table.shape[1]:
        table = table.T
    if detector.family == "yolox-raw":
        table = _decode_cells(table, detector.size)
    first = _first_score(detector.family)
    if first == 5:
        table = table[table[:, 4] > confidence]  # no class score is above 1, and this spares most of the work
    scores = table[:, first : first + (classes or 0)]
    if first == 5:
        scores = scores * table[:, 4:5]
    rows, labels = np.nonzero(scores > confidence)
    centres, halves = table[rows, 0:2], table[rows, 2:4] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1), scores[rows, labels], labels


def _decode_cells(table: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """YOLOX (Ge et al. 2021): centre = (p + cell) * stride, size = exp(p) * stride."""
    cells = _cells(size)
    strides = cells[:, 2:]
    centres = (table[:, 0:2] + cells[:, :2]) * strides
    sizes = np.exp(np.minimum(table[:, 2:4], _GREATEST_LOG_SIZE)) * strides
    return np.concatenate([centres, sizes, table[:, 4:]], axis=1)


def _cells(size: tuple[int, int]) -> NDArray[np.float32]:
    """The cells of YOLOX's grids, float32 (N, 3): column, row, stride in px; row by row, scale by scale."""
    grids = []
    for stride in RAW_STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride].reshape(2, -1)
        grids.append(np.stack([columns, rows, np.full_like(rows, stride)], axis=1))
    return np.concatenate(grids).astype(np.float32)


def suppress(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.intp], iou: float
) -> NDArray[np.intp]:
    """Class-wise non-maximum suppression: from the best on, a box goes that overlaps a better one of its class.

    Args:
        boxes: float32 (n, 4), xyxy.
        scores: float32 (n,).
        labels: intp (n,), the class of each box.
        iou: more intersection over union than this is an overlap.

    Returns:
        Indices of the boxes that stay, best first; at most `MOST_DETECTIONS`, among the best `MOST_CANDIDATES`.
    """
    best = np.argsort(-scores, kind="stable")[:MOST_CANDIDATES]
    # Each class stands in one piece, best first, so that the boxes which a box can suppress are one slice.
    order = best[np.argsort(labels[best], kind="stable")]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order].T)
    areas = (x2 - x1) * (y2 - y1)
    ends = np.searchsorted(labels[order], labels[order], side="right")
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for here in np.argsort(-scores[order], kind="stable").tolist():
        if not alive[here]:
            continue
        kept.append(here)
        if len(kept) == MOST_DETECTIONS:
            break
        worse = slice(here + 1, ends[here])
        width = np.minimum(x2[here], x2[worse]) - np.maximum(x1[here], x1[worse])
        height = np.minimum(y2[here], y2[worse]) - np.maximum(y1[here], y1[worse])
        overlap = width.clip(0) * height.clip(0)
        alive[worse] &= overlap <= iou * (areas[here] + areas[worse] - overlap)
    return order[kept]
