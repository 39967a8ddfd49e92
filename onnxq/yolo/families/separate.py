"""Boxes and scores as two tables with a row per cell: PP-YOLOE, DAMO-YOLO, YOLO-NAS."""

import numpy as np

from onnxq._text import shape_text
from onnxq.yolo.detections import Detections, without_extras
from onnxq.yolo.families.tables import boxes_per_cell
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading, Shape


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    tables = clues.of_rank(3)
    boxes = tables.get(output, ())
    if boxes[2:] != (4,) or not boxes_per_cell(boxes[1], clues.size):
        return None
    for name, shape in tables.items():
        if name == output or boxes[1] not in shape[1:]:
            continue
        classes = _class_count(boxes, shape)
        if clues.classes in (0, classes) and not clues.tail(name).is_raw:
            why = f"outputs {shape_text(boxes)} and {shape_text(shape)} have boxes and scores apart"
            return OutputLayout(SEPARATE, "detect", (output, name), why)
    return None


def _class_count(boxes: Shape, scores: Shape) -> int:
    return scores[2] if scores[1] == boxes[1] else scores[1]


def _read(reading: Reading) -> Detections:
    boxes, scores = reading.own_table(0), reading.own_table(1)
    if len(scores) != len(boxes):
        scores = scores.T
    rows, labels = np.nonzero(scores[:, : reading.columns().classes] > reading.confidence)
    return without_extras(boxes[rows], scores[rows, labels], labels)


SEPARATE = Family(
    "separate",
    "(batch, N, 4): x1, y1, x2, y2 in px; and (batch, N, nc) or (batch, nc, N): class scores; in either order",
    _recognize,
    _read,
    scores=lambda shapes: (0, _class_count(*shapes)),
)
