"""A model's outputs to objects, in numpy: the decode of each family, and non-maximum suppression."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.yolo.detections import Detections, Outputs, to_corners, with_corners, without_extras
from onnxq.yolo.detector import Detector
from onnxq.yolo.nms import MOST_DETECTIONS, suppress, suppress_rotated

_YOLOX_STRIDES = (8, 16, 32)
"""Px of a cell's side on each of YOLOX's scales, in the order in which their boxes stand."""

_ANCHORS = {
    ("v5-raw", 2): ((10, 14, 23, 27, 37, 58), (81, 82, 135, 169, 344, 319)),
    ("v5-raw", 3): ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    ("v7-raw", 3): ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401)),
}  # fmt: skip
"""By family and number of strides: width and height in px of the anchors of each stride, as published for COCO."""

_LARGE_ANCHORS = (
    (19, 27, 44, 40, 38, 94), (96, 68, 86, 152, 180, 137), (140, 301, 303, 264, 238, 542),
    (436, 615, 739, 380, 925, 792),
)  # fmt: skip
"""Of models with a fourth stride, YOLOv5's P6 and YOLOv7's W6 and larger."""

_GREATEST_LOG_SIZE = 20.0  # exp of more cells than any picture has; keeps exp finite


@dataclass(frozen=True)
class _Columns:
    """What the columns of a table are.

    Attributes:
        first: the first class score; an objectness stands before it where this is 5.
        classes: how many class scores there are; what the task has beside them follows.
    """

    first: int
    classes: int


def class_count(detector: Detector, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """How many classes a model's outputs have; None where they do not show it.

    Args:
        detector: how to read them.
        shapes: of the outputs by name.

    Raises:
        ModelError: outputs of these shapes cannot be read so.
    """
    head = detector.outputs
    for name in head.outputs:
        if not _fits(detector, shapes[name]):
            raise ModelError(f"output {name} {shapes[name]} is not one of family {detector.family}")
    if head.is_finished or not head.outputs:
        return len(detector.names) or None
    return _columns(detector, shapes).classes


def _fits(detector: Detector, shape: tuple[int, ...]) -> bool:
    family = detector.family
    if family == "end2end":
        return len(shape) == 3 and shape[2] >= 6
    if family == "yolox-raw":
        return len(shape) == 3 and max(shape[1:]) == len(_cells(detector.size, _YOLOX_STRIDES))
    return len(shape) == 3 or family not in ("v5", "v8", "yolox")


def _columns(detector: Detector, shapes: Mapping[str, tuple[int, ...]]) -> _Columns:
    """What the columns of a table of candidates are.

    Raises:
        ModelError: there are too few of them.
    """
    head, names = detector.outputs, len(detector.names)
    shape = shapes[head.outputs[-1]]
    match head.family:
        case "separate":
            first, width = 0, shape[2] if shape[1] == shapes[head.outputs[0]][1] else shape[1]
        case "classes":
            first, width = 0, shape[1]
        case "v5-raw" | "v7-raw":
            first, width = 5, shape[4] if len(shape) == 5 else shape[1] // 3
        case family:
            first, width = 4 if family == "v8" else 5, min(shape[1:])
    extras = {"segment": shapes.get(head.prototypes, (0, 0))[1], "pose": int(np.prod(head.keypoints)), "obb": 1}
    room = width - first - extras.get(head.task, 0)
    if room < max(names, 1):
        raise ModelError(f"output {head.outputs[-1]} {shape} is not one of family {head.family}")
    return _Columns(first, names or room)


def find(outputs: Outputs, detector: Detector, confidence: float, iou: float, picture: int = 0) -> Detections:
    """The objects on one picture of a batch, without duplicates.

    Args:
        outputs: those that the head reads.
        detector: how to read them; its head has boxes.
        confidence: each (box, class) pair of a score above this counts.
        iou: of two boxes of a class that overlap more than this, the one of lower score goes.
        picture: its number in the batch.

    Returns:
        At most `MOST_DETECTIONS`, best first.

    Raises:
        ModelError: the outputs do not fit the head.
    """
    found = decode(outputs, detector, confidence, picture)
    if detector.outputs.is_finished:
        return found.take(np.argsort(-found.scores, kind="stable")[:MOST_DETECTIONS])
    if detector.outputs.task == "obb":
        return found.take(suppress_rotated(found, iou))
    return found.take(suppress(found.boxes, found.scores, found.labels, iou))


def decode(outputs: Outputs, detector: Detector, confidence: float, picture: int = 0) -> Detections:
    """Turn a model's outputs into boxes, duplicates among them but where the model removes them itself.

    Args, Raises:
        as of `find`.
    """
    head = detector.outputs
    tables = [np.asarray(outputs[name]) for name in head.outputs]
    found = _READERS[head.family](tables, detector, _Read(confidence, picture, outputs))
    return with_corners(found) if head.task == "obb" and head.is_finished else found


@dataclass(frozen=True)
class _Read:
    """What is to be read: of which picture, above which score."""

    confidence: float
    picture: int
    outputs: Outputs

    def columns(self, detector: Detector) -> _Columns:
        return _columns(detector, {name: np.shape(array) for name, array in self.outputs.items()})


_Tables = list[NDArray[Any]]


def _read_table(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    table = tables[0][what.picture].astype(np.float32, copy=False)
    if table.shape[0] < table.shape[1]:
        table = table.T
    if detector.family == "yolox-raw":
        table = _decode_cells(table, detector.size)
    return _above(table, what.columns(detector), what.confidence)


def _above(table: NDArray[np.float32], columns: _Columns, confidence: float) -> Detections:
    """Boxes of a table, float32 (boxes, columns), that begins with centre x, y, width, height."""
    first, end = columns.first, columns.first + columns.classes
    if first == 5:
        table = table[table[:, 4] > confidence]  # no class score is above 1, and this spares most of the work
    scores = table[:, first:end]
    if first == 5:
        scores = scores * table[:, 4:5]
    rows, labels = np.nonzero(scores > confidence)
    return Detections(to_corners(table[rows, :4]), scores[rows, labels], labels, table[rows, end:])


def _decode_cells(table: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """YOLOX (Ge et al. 2021): centre = (p + cell) * stride, size = exp(p) * stride."""
    cells = _cells(size, _YOLOX_STRIDES)
    strides = cells[:, 2:]
    centres = (table[:, 0:2] + cells[:, :2]) * strides
    sizes = np.exp(np.minimum(table[:, 2:4], _GREATEST_LOG_SIZE)) * strides
    return np.concatenate([centres, sizes, table[:, 4:]], axis=1)


def _cells(size: tuple[int, int], strides: tuple[int, ...]) -> NDArray[np.float32]:
    """The cells of grids, float32 (N, 3): column, row, stride in px; row by row, scale by scale."""
    grids = []
    for stride in strides:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride].reshape(2, -1)
        grids.append(np.stack([columns, rows, np.full_like(rows, stride)], axis=1))
    return np.concatenate(grids).astype(np.float32)


def _read_grids(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    """YOLOv5's decode: centre = (2 s - 0.5 + cell) * stride, size = (2 s)^2 * anchor, where s is the Sigmoid."""
    columns = what.columns(detector)
    anchors = _ANCHORS.get((detector.family, len(tables)), _LARGE_ANCHORS)
    if len(anchors) != len(tables):
        raise ModelError(f"family {detector.family} has no anchors for {len(tables)} outputs: give another --family")
    scales = []
    for table, sides in zip(tables, anchors, strict=True):
        grid = table[what.picture].astype(np.float32, copy=False)
        if grid.ndim == 3:
            grid = grid.reshape(3, -1, *grid.shape[1:]).transpose(0, 2, 3, 1)
        rows, width = grid.shape[1], grid.shape[3]
        shares = (grid if detector.outputs.activated else _sigmoid(grid)).reshape(3, -1, width)
        cells = _cells(detector.size, (detector.size[0] // rows,))
        centres = (2 * shares[..., 0:2] - 0.5 + cells[:, :2]) * cells[:, 2:]
        sizes = (2 * shares[..., 2:4]) ** 2 * np.array(sides, np.float32).reshape(3, 1, 2)
        scales.append(np.concatenate([centres, sizes, shares[..., 4:]], axis=2).reshape(-1, width))
    return _above(np.concatenate(scales), columns, what.confidence)


def _sigmoid(values: NDArray[np.float32]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-values)))


def _read_separate(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    boxes, scores = (table[what.picture].astype(np.float32, copy=False) for table in tables)
    if len(scores) != len(boxes):
        scores = scores.T
    rows, labels = np.nonzero(scores[:, : what.columns(detector).classes] > what.confidence)
    return without_extras(boxes[rows], scores[rows, labels], labels)


def _read_end2end(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    table = tables[0][what.picture].astype(np.float32, copy=False)
    finished = table[table[:, 4] > what.confidence]
    return Detections(finished[:, :4], finished[:, 4], finished[:, 5].astype(np.intp), finished[:, 6:])


def _read_rows(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    """Exporters differ in the order of the last two columns: classes are whole numbers, and scores are not."""
    rows = tables[0].astype(np.float32, copy=False)
    class_first = bool((rows[:, 5] == np.rint(rows[:, 5])).all())
    labels, scores = (rows[:, 5], rows[:, 6]) if class_first else (rows[:, 6], rows[:, 5])
    mine = (rows[:, 0] == what.picture) & (scores > what.confidence)
    return without_extras(rows[mine, 1:5], scores[mine], labels[mine].astype(np.intp))


def _read_counted(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    counts, rows = tables[0], tables[1].astype(np.float32, copy=False)
    start = int(counts[: what.picture].sum())
    mine = rows[start : start + int(counts[what.picture])]
    mine = mine[mine[:, 1] > what.confidence]
    return without_extras(mine[:, 2:6], mine[:, 1], mine[:, 0].astype(np.intp))


def _read_finished(tables: _Tables, detector: Detector, what: _Read) -> Detections:
    counts, boxes, scores, labels = (table[what.picture] for table in tables)
    valid = np.flatnonzero(scores[: int(np.max(counts))] > np.float32(what.confidence))
    return without_extras(
        boxes[valid].astype(np.float32), scores[valid].astype(np.float32), labels[valid].astype(np.intp)
    )


_READERS: Mapping[str, Callable[[_Tables, Detector, _Read], Detections]] = {
    "v5": _read_table,
    "v8": _read_table,
    "yolox": _read_table,
    "yolox-raw": _read_table,
    "v5-raw": _read_grids,
    "v7-raw": _read_grids,
    "separate": _read_separate,
    "end2end": _read_end2end,
    "nms-rows": _read_rows,
    "nms-counted": _read_counted,
    "nms-tables": _read_finished,
}
