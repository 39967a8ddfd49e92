"""Heads of YOLOX (Ge et al. 2021): one table with an objectness and one box per cell, with and without its decode."""

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.detections import Detections
from onnxq.yolo.families.tables import Table, boxes_above, grid_cells, rows_first, table_family
from onnxq.yolo.output_layout import Reading, Shape
from onnxq.yolo.preprocess import YOLOX as YOLOX_PREPROCESS

_STRIDES = (8, 16, 32)
"""Px of a cell's side on each grid, in the order in which their boxes stand."""

_GREATEST_LOG_SIZE = 20.0  # exp of more cells than any image has; keeps exp finite


def _evidence(table: Table) -> str:
    fits = table.has_objectness and table.boxes_per_cell == 1 and table.clues.tail(table.name).has_exp
    return "has one box per cell, decoded with Exp" if fits else ""


def _raw_evidence(table: Table) -> str:
    tail = table.clues.tail(table.name)
    fits = table.has_objectness and table.boxes_per_cell == 1 and tail.is_raw and not tail.has_exp
    return "has one box per cell and no decode" if fits else ""


def _fits_raw(shape: Shape, size: tuple[int, int]) -> bool:
    return len(shape) == 3 and max(shape[1:]) == len(grid_cells(size, _STRIDES))


def _read_raw(reading: Reading) -> Detections:
    table = _decode(rows_first(reading.own_table()), reading.size)
    return boxes_above(table, reading.columns(), reading.confidence)


def _decode(table: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the table with centre = (p + cell) * stride and size = exp(p) * stride, in px."""
    cells = grid_cells(size, _STRIDES)
    strides = cells[:, 2:]
    centres = (table[:, 0:2] + cells[:, :2]) * strides
    sizes = np.exp(np.minimum(table[:, 2:4], _GREATEST_LOG_SIZE)) * strides
    return np.concatenate([centres, sizes, table[:, 4:]], axis=1)


YOLOX = table_family(
    "yolox",
    "(batch, N, 5 + nc): centre x, y, width, height in px, objectness, class scores",
    _evidence,
    first_score=5,
    preprocess=YOLOX_PREPROCESS,
)

YOLOX_RAW = table_family(
    "yolox-raw",
    "(batch, N, 5 + nc): as yolox, before the decode: centres in cells from their own, logarithms of sizes in cells",
    _raw_evidence,
    first_score=5,
    read=_read_raw,
    fits=_fits_raw,
    preprocess=YOLOX_PREPROCESS,
)
