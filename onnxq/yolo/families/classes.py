"""Classifiers: one score per class and image."""

from onnxq._text import shape_text
from onnxq.yolo.families.tables import selects_boxes
from onnxq.yolo.output_layout import Clues, Family, OutputLayout


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    shape = clues.by_name[output]
    if len(clues.by_name) != 1 or len(shape) != 2 or not clues.is_float(output):
        return None
    if clues.task not in ("", "classify") or clues.classes not in (0, shape[1]):
        return None
    if shape[0] not in (0, clues.batch or 1) or shape[1] < 2 or selects_boxes(clues.graph):
        return None
    return OutputLayout(CLASSES, "classify", (output,), f"output {shape_text(shape)} has a score per class")


CLASSES = Family(
    "classes", "(batch, nc): scores of the whole image", _recognize, scores=lambda shapes: (0, shapes[0][1])
)
