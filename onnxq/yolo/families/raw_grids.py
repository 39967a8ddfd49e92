"""Heads with anchors whose decode is not in the graph: YOLOv5, YOLOv3 and YOLOv7, one output per stride."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from onnxq._text import size_text
from onnxq.errors import ModelError
from onnxq.yolo.columns import sigmoid
from onnxq.yolo.detections import Detections
from onnxq.yolo.families.tables import STRIDES, boxes_above, grid_cells
from onnxq.yolo.output_layout import Clues, Family, OutputLayout, Reading, Shape

Anchors = Mapping[int, tuple[tuple[int, ...], ...]]
"""By number of strides: width and height in px of the three anchors of each stride, as published for COCO."""

_P6_ANCHORS = (
    (19, 27, 44, 40, 38, 94), (96, 68, 86, 152, 180, 137), (140, 301, 303, 264, 238, 542),
    (436, 615, 739, 380, 925, 792),
)  # fmt: skip
"""Anchors of models with a fourth stride: YOLOv5's P6, YOLOv7's W6 and larger."""

_V5_ANCHORS = {
    2: ((10, 14, 23, 27, 37, 58), (81, 82, 135, 169, 344, 319)),
    3: ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    4: _P6_ANCHORS,
}
_V7_ANCHORS = {
    3: ((12, 16, 19, 36, 40, 28), (36, 75, 76, 55, 72, 146), (142, 110, 192, 243, 459, 401)),
    4: _P6_ANCHORS,
}


def _recognize(clues: Clues, output: str) -> OutputLayout | None:
    """Recognize the last Convs of a network with anchors, as they are or after a Sigmoid."""
    grids = {name: shape for name, shape in clues.of_rank(4, 5).items() if _stride(shape, clues.size)}
    strides = sorted(_stride(shape, clues.size) for shape in grids.values())
    widths = {_width(shape) for shape in grids.values()}
    if output not in grids or tuple(strides) not in ((16, 32), *STRIDES[:2]) or len(widths) != 1:
        return None
    tails = [clues.tail(name) for name in grids]
    [width] = widths
    if any(tail.layers != 1 or tail.arithmetic - {"Sigmoid"} for tail in tails):
        return None
    if width < 6 or clues.classes not in (0, width - 5):
        return None
    names = sorted(grids, key=lambda name: _stride(grids[name], clues.size))
    return OutputLayout(
        V5_RAW,
        "detect",
        tuple(names),
        f"{len(names)} outputs have three boxes per cell and no decode",
        activated=all(tail.arithmetic for tail in tails),
        assumed="the anchors of its boxes are not in the file: "
        "give --family v5-raw (those of YOLOv5, v3 and v7-tiny) or v7-raw (YOLOv7) "
        "to python -m onnxq.evaluate or onnxq.compare",
    )


def _recognize_v7(clues: Clues, output: str) -> OutputLayout | None:
    layout = _recognize(clues, output)
    return layout and replace(layout, record=V7_RAW)


def _stride(shape: Shape, size: tuple[int, int]) -> int:
    """Px of a cell's side if (batch, 3, H, W, columns) or (batch, 3 columns, H, W) is a grid of cells, else 0."""
    if shape[1] != 3 if len(shape) == 5 else shape[1] % 3:
        return 0
    rows, columns = shape[2:4]
    fits = rows and columns and size[0] % rows == 0 and rows * size[1] == columns * size[0]
    return size[0] // rows if fits else 0


def _width(shape: Shape) -> int:
    return shape[4] if len(shape) == 5 else shape[1] // 3


def _read(by_stride: Anchors, reading: Reading) -> Detections:
    """Read grids with YOLOv5's decode, s being the Sigmoid's result.

    centre = (2 s - 0.5 + cell) * stride, size = (2 s)^2 * anchor.
    """
    columns, layout = reading.columns(), reading.layout
    anchors = by_stride.get(len(layout.outputs))
    if anchors is None:
        raise ModelError(
            f"family {layout.family} has no anchors for {len(layout.outputs)} outputs: give another --family"
        )
    scales = []
    for index, sides in enumerate(anchors):
        grid = reading.own_table(index)
        if grid.ndim == 3:
            grid = grid.reshape(3, -1, *grid.shape[1:]).transpose(0, 2, 3, 1)
        stride, width = _stride((1, *grid.shape), reading.size), grid.shape[3]
        if not stride:
            raise ModelError(
                f"family {layout.family}: output {layout.outputs[index]} is {grid.shape[1]} x {grid.shape[2]} cells, "
                f"which do not fit {size_text(reading.size)} px: give another --family"
            )
        shares = (grid if layout.activated else sigmoid(grid)).reshape(3, -1, width)
        cells = grid_cells(reading.size, (stride,))
        centres = (2 * shares[..., 0:2] - 0.5 + cells[:, :2]) * cells[:, 2:]
        sizes = (2 * shares[..., 2:4]) ** 2 * np.array(sides, np.float32).reshape(3, 1, 2)
        scales.append(np.concatenate([centres, sizes, shares[..., 4:]], axis=2).reshape(-1, width))
    return boxes_above(np.concatenate(scales), columns, reading.confidence)


V5_RAW = Family(
    "v5-raw",
    "2 to 4 of (batch, 3, H, W, 5 + nc) or (batch, 3 (5 + nc), H, W), one per stride: as v5, before the decode or "
    "after its Sigmoid, with the anchors of YOLOv5, v3 and v7-tiny",
    _recognize,
    partial(_read, _V5_ANCHORS),
    scores=lambda shapes: (5, _width(shapes[0])),
)

V7_RAW = Family(
    "v7-raw",
    "as v5-raw, with the anchors of YOLOv7",
    _recognize_v7,
    partial(_read, _V7_ANCHORS),
    scores=lambda shapes: (5, _width(shapes[0])),
)
