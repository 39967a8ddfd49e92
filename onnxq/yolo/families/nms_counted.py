"""Finished boxes of all images of a batch in one list, and how many each image has: PaddleDetection."""

import numpy as np

from onnxq._text import shape_text
from onnxq.yolo.detections import Detections, without_extras
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    shape = clues.by_name[output]
    is_list = len(shape) == 2 and shape[1] == 6 and clues.is_float(output)
    counts = [name for name in clues.of_rank(1) if not clues.is_float(name)]
    has_nms = any(node.op_type == "NonMaxSuppression" for node in clues.graph.node)
    if not is_list or len(counts) != 1 or not has_nms:
        return None
    rows, count = shape_text(shape), shape_text(clues.shapes[counts[0]])
    why = f"output {rows} has finished boxes with class and score, and {count} how many each image has"
    return OutputLayout(NMS_COUNTED, "detect", (counts[0], output), why)


def _read(reading: Reading) -> Detections:
    counts, rows = reading.tables[0], reading.tables[1].astype(np.float32, copy=False)
    start = int(counts[: reading.index].sum())
    mine = rows[start : start + int(counts[reading.index])]
    mine = mine[mine[:, 1] > reading.confidence]
    return without_extras(mine[:, 2:6], mine[:, 1], mine[:, 0].astype(np.intp))


NMS_COUNTED = Family(
    "nms-counted",
    "(batch): number of rows of each image; (n, 6): class, score, x1, y1, x2, y2 in px",
    _recognize,
    _read,
    is_finished=True,
)
