"""How a model's outputs are read: the record of a head family, and what is known of the outputs.

`families` has a file with a record for each head family. A family is recognized by the shapes of the outputs, by the
operators in front of them and by the metadata that Ultralytics documents (`names`, `task`, `kpt_shape`); never by the
names of nodes or tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.ir import LAYERS, MOVES_VALUES, ProtoIndex
from onnxq.yolo.columns import Columns
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.preprocess import Preprocess

UNKNOWN = "unknown"
"""Name of the family of outputs that no family recognizes."""

GIVEN_LAYOUT = "as --layout says"
"""Evidence for a layout that the user states."""

_LAYERS = LAYERS | {"ConvInteger", "QLinearConv", "QLinearMatMul"}  # of models that are quantized already, too

Shape = tuple[int, ...]
"""Shape of a tensor; 0 for an axis of unknown length."""


# The record of a family, and how a model's outputs are read


@dataclass(frozen=True)
class Family:
    """A head family: all that is known of outputs of one layout.

    Attributes:
        name: what `--family` takes.
        description: its outputs and their columns. N is the number of boxes, nc of classes, K of finished detections.
        recognize: returns the layout if the named output is the one that has this family's boxes (without boxes: its
            scores), else None.
        read: returns the objects on one image; None: the family has no boxes.
        scores: from the shapes of the outputs in the layout's order, the column of the first class score, and the
            number of columns; None: the shapes do not show the number of classes.
        fits: whether outputs of this shape, for an input of (height, width) px, can be read.
        assume: returns the layout if the user names the family, whatever the shapes; None: as recognized.
        is_finished: the model removes duplicates itself.
        tells_batch: the first axis of the first output is the batch.
        preprocess: the input that models with this head take; None: that of Ultralytics.
    """

    name: str
    description: str
    recognize: Callable[["Clues", str], "OutputLayout | None"]
    read: Callable[["Reading"], Detections] | None = None
    scores: Callable[[Sequence[Shape]], tuple[int, int]] | None = None
    fits: Callable[[Shape, tuple[int, int]], bool] = lambda shape, size: True
    assume: Callable[["Clues"], "OutputLayout"] | None = None
    is_finished: bool = False
    tells_batch: bool = True
    preprocess: Preprocess | None = None


UNKNOWN_FAMILY = Family(UNKNOWN, "outputs that no family recognizes", lambda clues, output: None)


@dataclass(frozen=True)
class ScoreColumns:
    """The columns of a table of boxes that hold class scores.

    Attributes:
        first: the first class score; an objectness stands before it if this is 5.
        classes: number of class scores; the columns that a task has beside boxes follow.
    """

    first: int
    classes: int


@dataclass(frozen=True)
class OutputLayout:
    """How a model's outputs are read.

    Attributes:
        record: the head family.
        task: "detect", "segment", "pose", "obb" or "classify"; "detect" if the family is unknown.
        outputs: names of the outputs that the family consists of, in its order; none if it is unknown.
        why: the phrase that names the evidence for the family.
        prototypes: name of the output with the prototypes of masks; empty if there is none.
        keypoints: number of keypoints of a pose, and of values of each (2 or 3); (0, 0) for other tasks.
        activated: raw grids come from a Sigmoid.
        assumed: what is assumed and must be given for exact boxes; empty if nothing is.
        tried: names of the families that were tried, if none was recognized.
        stated: what the columns hold, if words state it; None: as the family has it.
        sure: how sure the layout is: what the values of real runs say of it; empty if they were not looked at.
    """

    record: Family
    task: str
    outputs: tuple[str, ...]
    why: str
    prototypes: str = ""
    keypoints: tuple[int, int] = (0, 0)
    activated: bool = False
    assumed: str = ""
    tried: tuple[str, ...] = ()
    stated: Columns | None = None
    sure: str = ""

    @property
    def family(self) -> str:
        """Name of the family, or "unknown"."""
        return self.record.name

    @property
    def is_given(self) -> bool:
        """Whether `--layout` states it."""
        return self.why == GIVEN_LAYOUT

    @property
    def has_boxes(self) -> bool:
        """Whether objects can be read from the outputs."""
        return self.record.read is not None

    @property
    def is_finished(self) -> bool:
        """Whether the model removes duplicates itself."""
        return self.record.is_finished if self.stated is None else bool(self.stated.finished)

    @property
    def why_no_precision(self) -> str:
        """Why average precision cannot be measured; empty if it can."""
        if self.family == UNKNOWN:
            families = ", ".join(self.tried)
            return (
                f"is not recognized ({self.why}): give --family to python -m onnxq.evaluate, one of {families}; "
                "or --layout, as in --layout x1 y1 x2 y2 score label"
            )
        if self.task == "classify":
            return "its task is classify, and AP is measured of boxes"
        return self.assumed

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of all outputs that are read."""
        return (*self.outputs, self.prototypes) if self.prototypes else self.outputs

    def columns(self, shapes: Mapping[str, Shape], named: int) -> ScoreColumns | None:
        """Return the columns with class scores; None if the shapes do not show them.

        Args:
            shapes: shapes of the outputs by name.
            named: number of classes that the metadata names; 0: none.

        Raises:
            ModelError: the outputs have too few columns.
        """
        if self.stated is not None:
            classes = self.stated.classes([shapes[name] for name in self.outputs], named)
            return None if classes is None else ScoreColumns(0, classes)
        if self.record.scores is None:
            return None
        first, width = self.record.scores([shapes[name] for name in self.outputs])
        extras = {"segment": shapes.get(self.prototypes, (0, 0))[1], "pose": int(np.prod(self.keypoints)), "obb": 1}
        room = width - first - extras.get(self.task, 0)
        if room < max(named, 1):
            raise self.mismatch(self.outputs[-1], shapes[self.outputs[-1]])
        return ScoreColumns(first, named or room)

    def mismatch(self, output: str, shape: Shape) -> ModelError:
        """Return the error for an output whose shape does not fit the family."""
        return ModelError(
            f"output {output} {shape} is not one of family {self.family}: give --family auto, or another one"
        )


@dataclass(frozen=True)
class Reading:
    """The outputs of one run, and which objects to read from them.

    Attributes:
        layout: how the outputs are read.
        outputs: arrays by name.
        size: the model's input, (height, width) in px.
        named: number of classes that the metadata names; 0: none.
        confidence: only (box, class) pairs of a score above this are read.
        index: number of the image in the batch.
    """

    layout: OutputLayout
    outputs: Outputs
    size: tuple[int, int]
    named: int
    confidence: float
    index: int = 0

    @property
    def tables(self) -> list[NDArray[Any]]:
        """The layout's outputs in its order, for all images of the batch."""
        return [np.asarray(self.outputs[name]) for name in self.layout.outputs]

    @property
    def stated(self) -> Columns:
        """What the columns hold; the layout must state it."""
        assert self.layout.stated is not None
        return self.layout.stated

    def own_table(self, output: int = 0) -> NDArray[np.float32]:
        """Return the image's part of the layout's n-th output, float32; the first axis must be the batch."""
        return np.asarray(self.tables[output][self.index], np.float32)

    def columns(self) -> ScoreColumns:
        """Return the columns with class scores.

        Raises:
            ModelError: the outputs have too few columns, or the family does not show them.
        """
        columns = self.layout.columns({name: np.shape(array) for name, array in self.outputs.items()}, self.named)
        if columns is None:
            raise ModelError(f"outputs of family {self.layout.family} do not show their classes")
        return columns


# What is known of a model's outputs


@dataclass(frozen=True)
class Clues:
    """What is known of a model's outputs.

    Attributes:
        graph: the graph.
        shapes: shapes of the outputs by name, as far as known.
        size: the input, (height, width) in px.
        batch: number of images that the input takes; 0: any number.
        classes: number of classes that the metadata names; 0: none.
        task: the task in the metadata; empty if it has none.
        keypoints: number and values of keypoints in the metadata, or (0, 0).
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
        """The outputs' shapes in the graph's order; () for an unknown shape."""
        return {output.name: self.shapes.get(output.name, ()) for output in self.graph.output}

    def of_rank(self, *ranks: int) -> dict[str, Shape]:
        """Return the outputs with one of these numbers of axes."""
        return {name: shape for name, shape in self.by_name.items() if len(shape) in ranks}

    def is_float(self, name: str) -> bool:
        """Return whether an output holds floats."""
        kinds = {output.name: output.type.tensor_type.elem_type for output in self.graph.output}
        return kinds[name] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)

    def tail(self, output: str) -> "OutputTail":
        """Return the part of the graph between an output and the nearest layers before it."""
        return _tail(self.graph, output)


# The operators in front of an output


@dataclass(frozen=True)
class OutputTail:
    """The operators between an output and the nearest layers before it.

    Attributes:
        is_raw: a layer's result arrives unchanged, only moved.
        arithmetic: operators that do more than move values.
        layers: number of the nearest layers.
    """

    is_raw: bool
    arithmetic: frozenset[str]
    layers: int

    @property
    def has_exp(self) -> bool:
        """Whether an Exp is among the operators."""
        return "Exp" in self.arithmetic


def _tail(graph: onnx.GraphProto, output: str) -> OutputTail:
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
    return OutputTail(is_raw, frozenset(arithmetic), len(layers))


def _is_bias(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether the node adds its bias to a MatMul, which has no input for one."""
    made_by = [producers[name].op_type for name in node.input if name in producers]
    return node.op_type == "Add" and "MatMul" in made_by
