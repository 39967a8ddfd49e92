"""Heads of YOLOv5, YOLOv6 and YOLOv7: one table with an objectness."""

from onnxq.yolo.families.tables import Table, table_family


def _evidence(table: Table) -> str:
    tail = table.clues.tail(table.name)
    if not table.has_objectness or tail.is_raw:
        return ""
    if table.boxes_per_cell == 3:
        return "has three boxes per cell"
    return "" if tail.has_exp else "has one box per cell and objectness, decoded without Exp"


V5 = table_family(
    "v5",
    "(batch, N, 5 + nc): centre x, y, width, height in px, objectness, class scores",
    _evidence,
    first_score=5,
)
