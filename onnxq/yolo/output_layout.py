"""How the outputs of a YOLO are read: which of them has what, in which layout.

Told by the shapes of the outputs, by the operators in front of them and by the metadata that Ultralytics documents
(`names`, `task`, `kpt_shape`); never by the names of nodes or tensors. N is the number of boxes, nc of classes, K of
finished detections:

    family      outputs                     what they are
    v5          (batch, N, 5 + nc)          centre x, y, width, height in px, objectness, class scores; YOLOv5, v6, v7
    v8          (batch, 4 + nc, N)          the same without objectness; YOLOv8 and later
    yolox       (batch, N, 5 + nc)          as v5
    yolox-raw   (batch, N, 5 + nc)          as v5 before the decode: boxes are in units of their cells, sizes logarithms
    v5-raw      2 to 4 of                   as v5 before the decode, one per stride, also after the Sigmoid; or each
                (batch, 3, H, W, 5 + nc)    (batch, 3 (5 + nc), H, W); of YOLOv5, v3 and v7-tiny by their anchors
    v7-raw      the same                    of YOLOv7 by its anchors
    separate    (batch, N, 4), scores       x1, y1, x2, y2 in px, and (batch, N, nc) or (batch, nc, N); in either order
    end2end     (batch, K, 6)               x1, y1, x2, y2 in px, score, class; duplicates are already removed
    nms-rows    (n, 7)                      picture of the batch, x1, y1, x2, y2, class and score in either order
    nms-counted (batch), (n, 6)             how many rows each picture has; class, score, x1, y1, x2, y2
    nms-tables  (batch, 1), (batch, K, 4),  how many count; x1, y1, x2, y2; scores; classes
                (batch, K), (batch, K)
    classes     (batch, nc)                 scores of the whole picture

The last axis of v5, v8 and end2end goes on with what a task has beside boxes: coefficients of the masks whose
prototypes are a second output (batch, coefficients, rows, columns), keypoints (x, y in px and perhaps a visibility), or
the angle of a rotated box, radians, of which the first four columns are the centre, width and height in every family.
Either order of the last two axes is understood.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx

from onnxq._text import shape_text
from onnxq.errors import ModelError
from onnxq.ir import LAYERS, MOVES_VALUES, ProtoIndex

TASKS = ("detect", "segment", "pose", "obb", "classify")

FAMILIES = (
    "v5", "v8", "yolox", "yolox-raw", "v5-raw", "v7-raw", "separate", "end2end",
    "nms-rows", "nms-counted", "nms-tables", "classes",
)  # fmt: skip

UNKNOWN = "unknown"

_STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32), (16, 32))

_LAYERS = LAYERS | {"ConvInteger", "QLinearConv", "QLinearMatMul"}  # of models that are quantized already, too

_TABLES = ("v5", "v8", "yolox", "yolox-raw", "end2end")

_GRIDS = ("v5-raw", "v7-raw")

_FINISHED = ("end2end", "nms-rows", "nms-counted", "nms-tables")

Shape = tuple[int, ...]
"""Of a tensor; 0 where an axis is not known."""


@dataclass(frozen=True)
class OutputLayout:
    """How a model's outputs are read.

    Attributes:
        family: one of `FAMILIES`, or "unknown".
        task: one of `TASKS`; "detect" where the family is unknown.
        outputs: names of those that the family consists of, in its order; none when it is unknown.
        why: the phrase that tells what told the family.
        prototypes: name of the output with the prototypes of masks; empty where there are none.
        keypoints: how many a pose has, and with how many numbers each (2 or 3); (0, 0) for other tasks.
        activated: of raw grids: behind their Sigmoid.
        assumed: what had to be assumed and would have to be given for exact boxes; empty where nothing had.
    """

    family: str
    task: str
    outputs: tuple[str, ...]
    why: str
    prototypes: str = ""
    keypoints: tuple[int, int] = (0, 0)
    activated: bool = False
    assumed: str = ""

    @property
    def has_boxes(self) -> bool:
        """Whether objects can be read from the outputs."""
        return self.family not in (UNKNOWN, "classes")

    @property
    def is_finished(self) -> bool:
        """Whether the model removes duplicates itself."""
        return self.family in _FINISHED

    @property
    def why_no_precision(self) -> str:
        """Why average precision of boxes cannot be measured; empty where it can."""
        if self.family == UNKNOWN:
            families = ", ".join(FAMILIES)
            return f"is not recognized ({self.why}): give --family to python -m onnxq.evaluate, one of {families}"
        if self.task in ("obb", "classify"):
            return f"its task is {self.task}, and AP is measured of upright boxes"
        return self.assumed

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all outputs that are read."""
        return (*self.outputs, self.prototypes) if self.prototypes else self.outputs


@dataclass(frozen=True)
class Clues:
    """What is known of a model's outputs.

    Attributes:
        graph: the graph.
        shapes: of the outputs by name, where they are known.
        size: of the input, (height, width) in px.
        batch: how many pictures the input takes; 0: any number.
        classes: how many the metadata names; 0: none.
        task: as the metadata has it; empty where it does not.
        keypoints: as the metadata has them, or (0, 0).
    """

    graph: onnx.GraphProto
    shapes: Mapping[str, Shape]
    size: tuple[int, int]
    batch: int = 0
    classes: int = 0
    task: str = ""
    keypoints: tuple[int, int] = (0, 0)

    @property
    def by_name(self) -> dict[str, Shape]:
        """The outputs' shapes in the graph's order; () where one is not known."""
        return {output.name: self.shapes.get(output.name, ()) for output in self.graph.output}

    def of_rank(self, *ranks: int) -> dict[str, Shape]:
        """Those outputs that have so many axes."""
        return {name: shape for name, shape in self.by_name.items() if len(shape) in ranks}

    def is_float(self, name: str) -> bool:
        """Whether an output has floats."""
        kinds = {output.name: output.type.tensor_type.elem_type for output in self.graph.output}
        return kinds[name] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def recognize(clues: Clues) -> OutputLayout:
    """Tell how a model's outputs are read; of family "unknown" where they are not understood."""
    for find in _FINDERS:
        layout = find(clues)
        if layout is not None:
            return layout
    tables = clues.of_rank(3).values()
    listed = ", ".join(map(shape_text, tables))
    why = f"outputs {listed} fit no family" if tables else "no output is a table of boxes"
    return OutputLayout(UNKNOWN, "detect", (), why)


def read_as(family: str, clues: Clues) -> OutputLayout:
    """How the outputs are read as those of a family that was given.

    Raises:
        ModelError: they cannot be.
    """
    why = "the family was given"
    if family in _TABLES:
        name = next(iter(clues.of_rank(3)), "") or clues.graph.output[0].name
        return _with_task(family, name, why, clues)
    finders = [find for find in _FINDERS if find is not _tables]
    for layout in filter(None, (find(clues) for find in finders)):
        if layout.family == family or {layout.family, family} == set(_GRIDS):
            return replace(layout, family=family, why=why, assumed="")
    listed = ", ".join(map(shape_text, clues.by_name.values()))
    raise ModelError(f"outputs {listed} are not those of family {family}: give --family auto, or another one")


# The families


def _nms_tables(clues: Clues) -> OutputLayout | None:
    """EfficientNMS of TensorRT and what is laid out like it: count, boxes, scores, classes."""
    shapes = clues.by_name
    boxes = next((name for name, shape in clues.of_rank(3).items() if shape[2] == 4), "")
    pairs = [name for name, shape in clues.of_rank(2).items() if boxes and shape[1] == shapes[boxes][1]]
    counts = [name for name, shape in clues.of_rank(1, 2).items() if name not in pairs and shape[1:] in ((), (1,))]
    if len(shapes) != 4 or len(pairs) != 2 or len(counts) != 1 or clues.is_float(counts[0]):
        return None
    scores, labels = sorted(pairs, key=clues.is_float, reverse=True)
    why = f"outputs {shape_text(shapes[boxes])} and {shape_text(shapes[scores])} have finished boxes and their number"
    return OutputLayout("nms-tables", "detect", (counts[0], boxes, scores, labels), why)


def _separate(clues: Clues) -> OutputLayout | None:
    """Boxes and scores as two tables with a row per cell."""
    tables = clues.of_rank(3)
    boxes = next((n for n, shape in tables.items() if shape[2] == 4 and _boxes_per_cell(shape[1], clues.size)), "")
    if not boxes:
        return None
    rows = tables[boxes][1]
    for name, shape in tables.items():
        classes = shape[2] if shape[1] == rows else shape[1]
        fits = name != boxes and rows in shape[1:] and (classes == clues.classes or not clues.classes)
        if fits and not _tail(clues.graph, name).is_raw:
            why = f"outputs {shape_text(tables[boxes])} and {shape_text(shape)} have boxes and scores apart"
            return OutputLayout("separate", "detect", (boxes, name), why)
    return None


def _tables(clues: Clues) -> OutputLayout | None:
    """Everything of a box in one row, or one column."""
    for name, shape in clues.of_rank(3).items():
        found = _family_of(shape, clues, _tail(clues.graph, name))
        if found is not None:
            return _with_task(found[0], name, f"output {shape} {found[1]}", clues)
    return None


def _with_task(family: str, name: str, why: str, clues: Clues) -> OutputLayout:
    """The task by the metadata, else by the prototypes of masks among the outputs."""
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
    """The one output that is a picture, at least a sixteenth of the input wide, with a coefficient for each channel."""
    columns = min(clues.by_name[table][1:], default=0)
    # Beside the coefficients: box, score and class, or box, perhaps objectness, and the scores of all classes.
    others = (6, 4 + clues.classes, 5 + clues.classes)
    fitting = [
        name
        for name, shape in clues.of_rank(4).items()
        if 0 < shape[1] < columns and (columns - shape[1] in others or not clues.classes)
        and all(shape[2:]) and clues.size[0] * shape[3] == clues.size[1] * shape[2]
        and 16 * shape[2] >= clues.size[0]
    ]  # fmt: skip
    return fitting[0] if len(fitting) == 1 else ""


def _family_of(shape: Shape, clues: Clues, tail: "_Tail") -> tuple[str, str] | None:
    """The family that an output of shape (batch, rows, columns) has, and why; None where it fits none."""
    boxes, channels = max(shape[1:]), min(shape[1:])
    channels_first = shape[1] < shape[2]
    classes = clues.classes
    per_cell = _boxes_per_cell(boxes, clues.size)
    if not per_cell:
        more = shape[2] > 6 and not channels_first and (clues.task in TASKS[1:4] or _has_masks(shape, clues))
        if shape[2] == 6 or more:
            return "end2end", "has finished boxes with score and class"
        if channels_first and classes and channels >= 4 + classes:
            return "v8", f"has {classes} classes and no objectness"
        return None
    if per_cell == 1 and (channels_first or channels == 4 + classes):
        return ("v8", "has one box per cell and no objectness") if channels >= 4 + max(classes, 1) else None
    if channels < 5 + max(classes, 1):
        return None
    if per_cell == 3:
        return None if tail.is_raw else ("v5", "has three boxes per cell")
    if tail.has_exp:
        return "yolox", "has one box per cell, decoded with Exp"
    if tail.is_raw:
        return "yolox-raw", "has one box per cell and no decode"
    return "v5", "has one box per cell and objectness, decoded without Exp"


def _has_masks(shape: Shape, clues: Clues) -> bool:
    """Whether finished boxes go on with a coefficient for each channel of another output."""
    return any(other[1] == shape[2] - 6 for other in clues.of_rank(4).values())


def _boxes_per_cell(boxes: int, size: tuple[int, int]) -> int:
    """1 or 3 where the boxes fill grids of the usual strides, else 0."""
    for strides in _STRIDES:
        cells = sum((size[0] // stride) * (size[1] // stride) for stride in strides)
        if cells and boxes in (cells, 3 * cells):
            return boxes // cells
    return 0


def _raw_grids(clues: Clues) -> OutputLayout | None:
    """The last Convs of a network with anchors, one per stride, as they are or behind a Sigmoid."""
    grids = {name: shape for name, shape in clues.of_rank(4, 5).items() if _grid_stride(shape, clues.size)}
    tails = [_tail(clues.graph, name) for name in grids]
    strides = sorted(_grid_stride(shape, clues.size) for shape in grids.values())
    widths = {shape[4] if len(shape) == 5 else shape[1] // 3 for shape in grids.values()}
    alike = tuple(strides) in ((16, 32), *_STRIDES[:2]) and len(widths) == 1
    if not alike or any(tail.layers != 1 or tail.arithmetic - {"Sigmoid"} for tail in tails):
        return None
    [width] = widths
    if width < 6 or clues.classes not in (0, width - 5):
        return None
    names = sorted(grids, key=lambda name: _grid_stride(grids[name], clues.size))
    return OutputLayout(
        "v5-raw", "detect", tuple(names), f"{len(names)} outputs have three boxes per cell and no decode",
        activated=all(tail.arithmetic for tail in tails),
        assumed="the anchors of its boxes are not in the file: "
        "give --family v5-raw (those of YOLOv5, v3 and v7-tiny) or v7-raw (YOLOv7) "
        "to python -m onnxq.evaluate or onnxq.compare",
    )  # fmt: skip


def _grid_stride(shape: Shape, size: tuple[int, int]) -> int:
    """Px of a cell's side where (batch, 3, H, W, columns) or (batch, 3 columns, H, W) is a grid of cells, else 0."""
    if shape[1] != 3 if len(shape) == 5 else shape[1] % 3:
        return 0
    rows, columns = shape[2:4]
    fits = rows and columns and size[0] % rows == 0 and rows * size[1] == columns * size[0]
    return size[0] // rows if fits else 0


def _nms_rows(clues: Clues) -> OutputLayout | None:
    """Rows of all pictures of a batch behind NonMaxSuppression, of seven, or of six and how many each picture has."""
    if not any(node.op_type == "NonMaxSuppression" for node in clues.graph.node):
        return None
    counts = [name for name in clues.of_rank(1) if not clues.is_float(name)]
    for name, shape in clues.of_rank(2).items():
        if shape[1] == 7 and clues.is_float(name):
            why = f"output {shape_text(shape)} has finished boxes with picture, score and class"
            return OutputLayout("nms-rows", "detect", (name,), why)
        if shape[1] == 6 and clues.is_float(name) and len(counts) == 1:
            rows, count = shape_text(shape), shape_text(clues.shapes[counts[0]])
            why = f"output {rows} has finished boxes with class and score, and {count} how many each picture"
            return OutputLayout("nms-counted", "detect", (counts[0], name), f"{why} has")
    return None


def _classes(clues: Clues) -> OutputLayout | None:
    """One score per class and picture."""
    pairs = clues.of_rank(2)
    if len(clues.by_name) != 1 or not pairs or clues.task not in ("", "classify"):
        return None
    [(name, shape)] = pairs.items()
    if not clues.is_float(name):
        return None
    if shape[0] not in (0, clues.batch or 1) or shape[1] < 2 or clues.classes not in (0, shape[1]):
        return None
    return OutputLayout("classes", "classify", (name,), f"output {shape_text(shape)} has a score per class")


_FINDERS: tuple[Callable[[Clues], OutputLayout | None], ...] = (
    _nms_tables, _separate, _tables, _raw_grids, _nms_rows, _classes,
)  # fmt: skip
"""The first that finds something is right; a table of scores alone would pass for one of boxes."""


# What stands in front of an output


@dataclass(frozen=True)
class _Tail:
    """What stands between an output and the nearest layers before it."""

    is_raw: bool
    """Some layer's result comes out unchanged, only moved."""
    arithmetic: frozenset[str]
    """Operators that do more than to move values."""
    layers: int
    """How many layers are nearest."""

    @property
    def has_exp(self) -> bool:
        return "Exp" in self.arithmetic


def _tail(graph: onnx.GraphProto, output: str) -> _Tail:
    producers = ProtoIndex(graph).producers
    pending, seen = [(output, True)], set()
    is_raw, arithmetic, layers = False, set(), set()
    while pending:
        tensor, unchanged = step = pending.pop()
        node = producers.get(tensor)
        if step in seen or node is None or node.op_type in ("Shape", "Constant"):
            continue
        seen.add(step)
        if node.op_type in _LAYERS or _is_bias(node, producers):
            is_raw |= unchanged
            layers.add(tensor)
            continue
        if node.op_type not in MOVES_VALUES:
            arithmetic.add(node.op_type)
            unchanged = False
        pending += [(name, unchanged) for name in node.input]
    return _Tail(is_raw, frozenset(arithmetic), len(layers))


def _is_bias(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the node adds its bias to a MatMul, which has no input for one."""
    made_by = [producers[name].op_type for name in node.input if name in producers]
    return node.op_type == "Add" and "MatMul" in made_by
