"""Heads of YOLOv8 and later: one table without an objectness."""

from onnxq.yolo.families.tables import Table, table_family


def _evidence(table: Table) -> str:
    classes = table.clues.classes
    if table.width < 4 + max(classes, 1):
        return ""
    if table.is_without_objectness:
        return "has one box per cell and no objectness"
    # Grids of unusual strides: the number of classes must be known, and finished boxes have six columns last.
    on_other_grids = not table.boxes_per_cell and table.is_columns_first and table.shape[2] != 6
    return f"has {classes} classes and no objectness" if on_other_grids and classes else ""


V8 = table_family("v8", "(batch, 4 + nc, N): centre x, y, width, height in px, class scores", _evidence, first_score=4)
