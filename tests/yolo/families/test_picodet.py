"""Scores and box sides apart for each stride, without a decode."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graph_texts import model
from tables import detector, layout_of

from onnxq.yolo.decode import class_count, decode
from onnxq.yolo.detector import detect
from onnxq.yolo.output_layout import UNKNOWN
from onnxq.yolo.preprocess import IMAGENET, STRETCH

STRIDES = (8, 16, 32, 64)
SIZE = (100, 76)
GRIDS = {8: (13, 10), 16: (7, 5), 32: (4, 3), 64: (2, 2)}
OUTPUTS = (*(f"sides{stride}" for stride in STRIDES), *(f"scores{stride}" for stride in STRIDES))


def head(
    classes: int = 10, sides: int = 32, *, order: str = "scores first", scores: str = "Sigmoid", bins: str = "Identity",
    cells: tuple[int, ...] = (64, 16, 4, 1), **metadata: str,
) -> onnx.ModelProto:  # fmt: skip
    """A head on an input of 64 px."""
    pairs = [[(f"scores{s}", n, classes, scores), (f"sides{s}", n, sides, bins)] for s, n in zip(STRIDES, cells)]
    flat = [each for pair in pairs for each in pair]
    if order != "in pairs":
        flat.sort(key=lambda each: each[0].startswith("sides") == (order == "scores first"))
    nodes = "x = Conv (images, w) " + " ".join(f"{name} = {op} (x)" for name, *_, op in flat)
    return model(nodes, ", ".join(f"float[1,{count},{width}] {name}" for name, count, width, _ in flat), **metadata)


class TestRecognition:
    @pytest.mark.parametrize("order", ["scores first", "sides first", "in pairs"])
    def test_outputs_in_any_order(self, order):
        found = detect(head(order=order))
        assert (found.family, found.outputs.outputs, found.outputs.activated) == ("picodet", OUTPUTS, True)
        assert found.preprocess == replace(STRETCH, values=IMAGENET)
        assert found.why.endswith("are scores and distances as PicoDet gives them")

    @pytest.mark.parametrize(
        ("classes", "sides", "scores"),
        [
            (80, 32, "Sigmoid"),
            (80, 64, "Sigmoid"),
            (32, 32, "Sigmoid"),
            (4, 32, "Sigmoid"),
            (1, 32, "Sigmoid"),
            (10, 32, "Identity"),
            (80, 32, "Identity"),
            (10, 68, "Identity"),
        ],
    )
    def test_widths(self, classes, sides, scores):
        made = head(classes, sides, scores=scores)
        found = detect(made)
        assert (found.family, found.outputs.outputs) == ("picodet", OUTPUTS)
        assert found.outputs.activated == (scores == "Sigmoid")
        shapes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
                  for value in made.graph.output}  # fmt: skip
        assert class_count(found, shapes) == classes

    @pytest.mark.parametrize(
        "made",
        [
            head(80, 64, scores="Identity"),
            head(32, 32, scores="Identity"),
            head(10, 30),
            head(10, 4),
            head(bins="Sigmoid"),
            head(cells=(64, 16, 4, 2)),
            head(names="['one', 'two']"),
        ],
    )
    def test_others(self, made):
        assert layout_of(made)[0] != "picodet"

    def test_three_scales_are_unknown(self):
        made = head()
        for name in ("scores64", "sides64"):
            made.graph.output.remove(next(value for value in made.graph.output if value.name == name))
        assert layout_of(made) == (UNKNOWN, "detect", ())

    def test_given(self):
        assert detect(head(), family="picodet").outputs.why == "the family was given"


def outputs_of(stride: int, row: int, column: int, bins: tuple[int, ...], score: float) -> dict[str, np.ndarray]:
    """Outputs with an object of class 2, whose sides are these bins, in one cell."""
    outputs = {}
    for each, (rows, columns) in GRIDS.items():
        outputs[f"sides{each}"] = np.zeros((1, rows * columns, 32), np.float32)
        outputs[f"scores{each}"] = np.full((1, rows * columns, 3), -9.0, np.float32)
    cell = row * GRIDS[stride][1] + column
    outputs[f"scores{stride}"][0, cell, 2] = score
    for side, number in enumerate(bins):
        outputs[f"sides{stride}"][0, cell, 8 * side + number] = 50
    return outputs


class TestReading:
    @pytest.mark.parametrize(("stride", "row", "column"), [(8, 12, 9), (16, 3, 2), (64, 1, 0)])
    def test_sides_from_the_middle_of_the_cell(self, stride, row, column):
        outputs = outputs_of(stride, row, column, (1, 2, 0, 7), 0.7)
        known = detector("picodet", SIZE, outputs=OUTPUTS, activated=True)
        found = decode(outputs, known, 0.5)
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        np.testing.assert_allclose(found.boxes, [[x - stride, y - 2 * stride, x, y + 7 * stride]], rtol=1e-5)
        assert (found.scores.tolist(), found.labels.tolist()) == (pytest.approx([0.7]), [2])
        assert found.boxes.dtype == np.float32

    def test_a_side_is_the_mean_of_its_bins(self):
        outputs = outputs_of(16, 0, 0, (), 0.7)
        outputs["sides16"][0, 0, [2, 3]] = 60
        known = detector("picodet", SIZE, outputs=OUTPUTS, activated=True)
        [box] = decode(outputs, known, 0.5).boxes
        np.testing.assert_allclose(box, [8 - 2.5 * 16, 8 - 3.5 * 16, 8 + 3.5 * 16, 8 + 3.5 * 16])

    def test_logits(self):
        outputs = outputs_of(16, 3, 2, (1, 1, 1, 1), 2.0)
        found = decode(outputs, detector("picodet", SIZE, outputs=OUTPUTS), 0.5)
        assert found.scores.tolist() == pytest.approx([1 / (1 + np.exp(-2.0))])

    def test_nothing_above_the_threshold(self):
        outputs = outputs_of(16, 3, 2, (1, 1, 1, 1), 0.2)
        found = decode(outputs, detector("picodet", SIZE, outputs=OUTPUTS, activated=True), 0.5)
        assert found.boxes.shape == (0, 4)
