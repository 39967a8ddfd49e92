"""Outputs whose columns are stated word by word: by `--layout`, or as their values show."""

from dataclasses import replace

from onnxq.yolo.columns import Columns
from onnxq.yolo.detections import Detections
from onnxq.yolo.families.tables import table_layout
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    """Shapes do not state columns."""
    return None


def _read(reading: Reading) -> Detections:
    return reading.stated.read(reading.tables, reading.size, reading.named, reading.confidence, reading.index)


COLUMNS = Family("columns", "outputs whose columns --layout states, or their values show", _recognize, _read)


def columns_layout(columns: Columns, clues: Clues, why: str) -> OutputLayout:
    """Return how outputs with these columns are read.

    Args:
        columns: what the columns hold.
        clues: what is known of the outputs.
        why: the phrase that names the evidence.

    Raises:
        ConfigError: the layout has more outputs than the model.
    """
    names = columns.names(list(clues.by_name))
    layout = OutputLayout(COLUMNS, columns.task, names, why, stated=columns)
    if "extras" not in columns.words:
        return layout
    table = next(name for name, group in zip(names, columns.read_groups, strict=True) if "extras" in group)
    found = table_layout(COLUMNS, table, why, clues)
    return replace(layout, task=found.task, prototypes=found.prototypes, keypoints=found.keypoints)
