"""Finished boxes of all images of a batch in one list: YOLOv7 end to end, YOLO-NAS's flat format."""

import numpy as np

from onnxq._text import shape_text
from onnxq.yolo.detections import Detections, without_extras
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    shape = clues.by_name[output]
    is_list = len(shape) == 2 and shape[1] == 7 and clues.is_float(output)
    if not is_list or not any(node.op_type == "NonMaxSuppression" for node in clues.graph.node):
        return None
    why = f"output {shape_text(shape)} has finished boxes with image, score and class"
    return OutputLayout(NMS_ROWS, "detect", (output,), why)


def _read(reading: Reading) -> Detections:
    """Exporters differ in the order of the last two columns: classes are whole numbers, and scores are not."""
    rows = reading.tables[0].astype(np.float32, copy=False)
    class_first = bool((rows[:, 5] == np.rint(rows[:, 5])).all())
    labels, scores = (rows[:, 5], rows[:, 6]) if class_first else (rows[:, 6], rows[:, 5])
    mine = (rows[:, 0] == reading.index) & (scores > reading.confidence)
    return without_extras(rows[mine, 1:5], scores[mine], labels[mine].astype(np.intp))


NMS_ROWS = Family(
    "nms-rows",
    "(n, 7): number of the image in the batch, x1, y1, x2, y2 in px, class and score in either order",
    _recognize,
    _read,
    is_finished=True,
    tells_batch=False,  # the first axis counts boxes, not images
)
