"""What head families share whose boxes are the rows, or the columns, of one table.

The first four columns are the centre x and y, width and height in px. Then come an objectness in some families, the
class scores, and what the task has beside boxes: coefficients of the masks whose prototypes are a second output (batch,
coefficients, rows, columns), keypoints (x, y in px and perhaps a visibility), or the angle of a rotated box, radians.
Either order of the last two axes is understood.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq._text import shape_text
from onnxq.yolo.detections import Detections, to_corners
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading, ScoreColumns, Shape
from onnxq.yolo.preprocess import Preprocess

STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))
"""Strides of the usual detectors: px of a cell's side on each of their grids."""


# Recognition


@dataclass(frozen=True)
class Table:
    """An output of shape (batch, rows, columns) or (batch, columns, rows), with a row per box.

    Attributes:
        name: the output.
        shape: its shape.
        clues: what is known of all outputs.
    """

    name: str
    shape: Shape
    clues: Clues

    @property
    def width(self) -> int:
        """Number of columns."""
        return min(self.shape[1:])

    @property
    def is_columns_first(self) -> bool:
        """Whether the columns stand before the rows."""
        return self.shape[1] < self.shape[2]

    @property
    def boxes_per_cell(self) -> int:
        """1 or 3 if the rows fill grids of the usual strides, else 0."""
        return boxes_per_cell(max(self.shape[1:]), self.clues.size)

    @property
    def is_without_objectness(self) -> bool:
        """Whether one box per cell stands as in YOLOv8: columns first, or without room for an objectness."""
        return self.boxes_per_cell == 1 and (self.is_columns_first or self.width == 4 + self.clues.classes)

    @property
    def has_objectness(self) -> bool:
        """Whether boxes on grids have room for an objectness beside their class scores."""
        fits = self.width >= 5 + max(self.clues.classes, 1)
        return bool(self.boxes_per_cell) and not self.is_without_objectness and fits


def boxes_per_cell(boxes: int, size: tuple[int, int]) -> int:
    """Return 1 or 3 if the boxes fill grids of the usual strides, else 0."""
    for strides in STRIDES:
        cells = sum((size[0] // stride) * (size[1] // stride) for stride in strides)
        if cells and boxes in (cells, 3 * cells):
            return boxes // cells
    return 0


def table_layout(family: Family, name: str, why: str, clues: Clues) -> OutputLayout:
    """Return the layout of a table: its task by the metadata, else by the prototypes of masks among the outputs."""
    if clues.task == "pose" and all(clues.keypoints):
        return OutputLayout(family, "pose", (name,), why, keypoints=clues.keypoints)
    if clues.task == "obb":
        return OutputLayout(family, "obb", (name,), why)
    prototypes = _prototypes(clues, name)
    if not prototypes:
        return OutputLayout(family, "detect", (name,), why)
    why = f"{why}, and {shape_text(clues.shapes[prototypes])} are prototypes of masks"
    return OutputLayout(family, "segment", (name,), why, prototypes=prototypes)


def _prototypes(clues: Clues, table: str) -> str:
    """The one output that is an image, at least a sixteenth of the input wide, with a coefficient for each channel."""
    width = min(clues.by_name[table][1:], default=0)
    # Beside the coefficients: box, score and class; or box, perhaps objectness, and the scores of all classes.
    others = (6, 4 + clues.classes, 5 + clues.classes)
    height = clues.size[0]
    fitting = [
        name
        for name, shape in clues.of_rank(4).items()
        if 0 < shape[1] < width and (width - shape[1] in others or not clues.classes)
        and all(shape[2:]) and height * shape[3] == clues.size[1] * shape[2] and 16 * shape[2] >= height
    ]  # fmt: skip
    return fitting[0] if len(fitting) == 1 else ""


def selects_boxes(graph: onnx.GraphProto) -> bool:
    """Return whether the graph removes duplicates, or takes boxes above a score."""
    return any("NonMaxSuppression" in node.op_type or "NMS" in node.op_type for node in graph.node)


# Reading


def read_table(reading: Reading) -> Detections:
    """Read the boxes of a table without a decode left to do."""
    return boxes_above(rows_first(reading.own_table()), reading.columns(), reading.confidence)


def rows_first(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a table, float32 (rows, columns) or (columns, rows), with its rows first; they are more."""
    return table.T if table.shape[0] < table.shape[1] else table


def boxes_above(table: NDArray[np.float32], columns: ScoreColumns, confidence: float) -> Detections:
    """Return each (box, class) pair of a score above `confidence`.

    Args:
        table: float32 (boxes, columns), beginning with centre x, y, width, height in px.
        columns: where its class scores are; with an objectness before them, the score is the product of both.
        confidence: least score.
    """
    first, end = columns.first, columns.first + columns.classes
    if first == 5:
        table = table[table[:, 4] > confidence]  # no class score is above 1, and this spares most of the work
    scores = table[:, first:end]
    if first == 5:
        scores = scores * table[:, 4:5]
    rows, labels = np.nonzero(scores > confidence)
    return Detections(to_corners(table[rows, :4]), scores[rows, labels], labels, table[rows, end:])


def grid_cells(size: tuple[int, int], strides: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the cells of grids, float32 (N, 3): column, row, stride in px; row by row, stride by stride."""
    grids = []
    for stride in strides:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride].reshape(2, -1)
        grids.append(np.stack([columns, rows, np.full_like(rows, stride)], axis=1))
    return np.concatenate(grids).astype(np.float32)


# The record


def table_family(
    name: str,
    description: str,
    evidence: Callable[[Table], str],
    *,
    first_score: int,
    read: Callable[[Reading], Detections] = read_table,
    fits: Callable[[Shape, tuple[int, int]], bool] = lambda shape, size: len(shape) == 3,
    is_finished: bool = False,
    preprocess: Preprocess | None = None,
) -> Family:
    """Return the record of a family whose boxes are one table.

    Args:
        name: what `--family` takes.
        description: the outputs and their columns.
        evidence: returns the phrase that follows "output (1, 84, 8)" if a table is of this family, else "".
        first_score: column of the first class score; 5: after an objectness. Without meaning for finished boxes.
        read, fits, is_finished, preprocess: as of `Family`.
    """

    def recognize(clues: Clues, output: str) -> OutputLayout | None:
        shape = clues.by_name[output]
        found = evidence(Table(output, shape, clues)) if len(shape) == 3 else ""
        return table_layout(family, output, f"output {shape} {found}", clues) if found else None

    def assume(clues: Clues) -> OutputLayout:
        output = next(iter(clues.of_rank(3)), "") or clues.graph.output[0].name
        return table_layout(family, output, "the family was given", clues)

    family = Family(
        name,
        description,
        recognize,
        read,
        scores=None if is_finished else lambda shapes: (first_score, min(shapes[0][1:])),
        fits=fits,
        assume=assume,
        is_finished=is_finished,
        preprocess=preprocess,
    )
    return family
