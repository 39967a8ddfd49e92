"""Finished boxes in four tables: TensorRT's EfficientNMS, and YOLO-NAS's batch format, which is laid out like it."""

import numpy as np

from onnxq._text import shape_text
from onnxq.yolo.detections import Detections, without_extras
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    shapes = clues.by_name
    boxes = shapes[output]
    if len(shapes) != 4 or len(boxes) != 3 or boxes[2] != 4:
        return None
    pairs = [name for name, shape in clues.of_rank(2).items() if shape[1] == boxes[1]]
    counts = [name for name, shape in clues.of_rank(1, 2).items() if name not in pairs and shape[1:] in ((), (1,))]
    if len(pairs) != 2 or len(counts) != 1 or clues.is_float(counts[0]):
        return None
    scores, labels = sorted(pairs, key=clues.is_float, reverse=True)
    why = f"outputs {shape_text(boxes)} and {shape_text(shapes[scores])} have finished boxes and their number"
    return OutputLayout(NMS_TABLES, "detect", (counts[0], output, scores, labels), why)


def _read(reading: Reading) -> Detections:
    counts, boxes, scores, labels = (table[reading.index] for table in reading.tables)
    valid = np.flatnonzero(scores[: int(np.max(counts))] > np.float32(reading.confidence))
    return without_extras(
        boxes[valid].astype(np.float32), scores[valid].astype(np.float32), labels[valid].astype(np.intp)
    )


NMS_TABLES = Family(
    "nms-tables",
    "(batch, 1): number of boxes; (batch, K, 4): x1, y1, x2, y2 in px; (batch, K): scores; (batch, K): classes",
    _recognize,
    _read,
    is_finished=True,
)
