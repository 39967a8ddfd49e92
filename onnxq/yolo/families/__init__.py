"""Head families: one file per family, with the record of all that is known of it.

To add a family, write its file with a `Family`, and put the record into `STAGES`. The `--family` choices, recognition,
decode, class count and preprocessing follow from the record. A stage is tried after the stages above it, so a family
that takes a shape of others stands before them. Templates, by what a row of the output is:

- a cell of a grid, boxes and scores apart: `separate`, for each stride `picodet`; in one table: `v5`
- a finished detection of one of the images: `nms_rows`; of the image of its table: `end2end`
"""

from dataclasses import replace
from itertools import chain

from onnxq._text import shape_text
from onnxq.errors import ModelError
from onnxq.yolo.families.classes import CLASSES
from onnxq.yolo.families.end2end import END2END
from onnxq.yolo.families.nms_counted import NMS_COUNTED
from onnxq.yolo.families.nms_rows import NMS_ROWS
from onnxq.yolo.families.nms_tables import NMS_TABLES
from onnxq.yolo.families.picodet import PICODET
from onnxq.yolo.families.raw_grids import V5_RAW, V7_RAW
from onnxq.yolo.families.separate import SEPARATE
from onnxq.yolo.families.v5 import V5
from onnxq.yolo.families.v8 import V8
from onnxq.yolo.families.yolox import YOLOX, YOLOX_RAW
from onnxq.yolo.output_layout import UNKNOWN_FAMILY, Clues, Family, OutputLayout

STAGES: tuple[tuple[Family, ...], ...] = (
    (PICODET,),  # before what takes two of its tables
    (SEPARATE,),  # its scores alone would pass for a table of v5
    (V5, V8, YOLOX, YOLOX_RAW, END2END),  # before the grids that some exports give beside their table
    (V5_RAW, V7_RAW),  # the same outputs: v7-raw must be given
    (NMS_TABLES,),  # its scores alone would pass for rows of seven
    (NMS_ROWS, NMS_COUNTED),  # a list of boxes alone would pass for class scores
    (CLASSES,),
)
"""All families, in the order in which they are tried; those of a stage together, for one output after the other."""


_MOST_OUTPUTS = 100
"""Outputs of a model beyond which none is looked at, because each is compared with all others; detectors have 24."""


def family_names() -> tuple[str, ...]:
    """Return the names of all families, in the order in which they are tried."""
    return tuple(family.name for family in chain(*STAGES))


def family_of(name: str) -> Family:
    """Return the record of a family by its name, which may be "unknown"."""
    return next((family for family in chain(*STAGES) if family.name == name), UNKNOWN_FAMILY)


def recognize(clues: Clues) -> OutputLayout:
    """Return how a model's outputs are read; of the family "unknown" if no family recognizes them."""
    count = len(clues.graph.output)
    if count > _MOST_OUTPUTS:
        why = f"{count} outputs are more than a detector has"
        return OutputLayout(UNKNOWN_FAMILY, "detect", (), why, tried=family_names())
    for stage in STAGES:
        for output in clues.by_name:
            for family in stage:
                layout = family.recognize(clues, output)
                if layout is not None:
                    return layout
    tables = clues.of_rank(3).values()
    listed = ", ".join(map(shape_text, tables))
    why = f"outputs {listed} fit no family" if tables else "no output is a table of boxes"
    return OutputLayout(UNKNOWN_FAMILY, "detect", (), why, tried=family_names())


def read_as(name: str, clues: Clues) -> OutputLayout:
    """Return how the outputs are read as those of a given family.

    Raises:
        ModelError: they cannot be read so.
    """
    family = family_of(name)
    if family.assume is not None:
        return family.assume(clues)
    for output in clues.by_name:
        layout = family.recognize(clues, output)
        if layout is not None:
            return replace(layout, why="the family was given", assumed="")
    listed = ", ".join(map(shape_text, clues.by_name.values()))
    raise ModelError(f"outputs {listed} are not those of family {name}: give --family auto, or another one")
