"""Finished boxes in one table: YOLOv10, YOLO26, and Ultralytics' exports with NMS."""

import numpy as np

from onnxq.yolo.detections import Detections, with_corners
from onnxq.yolo.families.tables import Table, table_family
from onnxq.yolo.output_layout import Reading


def _evidence(table: Table) -> str:
    width = table.shape[2]
    has_extras = table.clues.task in ("segment", "pose", "obb") or _has_masks(table)
    fits = width == 6 or (width > 6 and not table.is_columns_first and has_extras)
    return "has finished boxes with score and class" if fits and not table.boxes_per_cell else ""


def _has_masks(table: Table) -> bool:
    """Whether another output has a channel for each column after the sixth."""
    return any(other[1] == table.shape[2] - 6 for other in table.clues.of_rank(4).values())


def _read(reading: Reading) -> Detections:
    table = reading.own_table()
    above = table[table[:, 4] > reading.confidence]
    found = Detections(above[:, :4], above[:, 4], above[:, 5].astype(np.intp), above[:, 6:])
    return with_corners(found) if reading.layout.task == "obb" else found


END2END = table_family(
    "end2end",
    "(batch, K, 6): x1, y1, x2, y2 in px (of rotated boxes centre x, y, width, height), score, class",
    _evidence,
    first_score=4,
    read=_read,
    fits=lambda shape, size: len(shape) == 3 and shape[2] >= 6,
    is_finished=True,
)
