from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from histograms import histogram

from onnxq.errors import DataError
from onnxq.facts import (
    CorrectedBiases,
    LayerSensitivity,
    Plan,
    QuantizationParameters,
    QuantizationPoint,
    QuantizedWeight,
    Reconstruction,
    Sensitivities,
    Statistics,
)
from onnxq.numerics.scheme import INT8, UINT8, Range, Scheme


def point(tensor, group=None, sources=None, **more):
    return QuantizationPoint(
        tensor, Scheme(), group or tensor, ("user",), (tensor,) if sources is None else sources, **more
    )


class TestPlan:
    def test_observed_are_the_sources_of_what_is_not_known(self):
        points = (
            point("a"),
            point("b"),
            point("pooled", group="a", sources=("a",)),
            point("joined", sources=("a", "b")),
            point("gate", sources=(), known=Range(0, 1)),
        )
        plan = Plan(points, (), frozenset(), (), {})
        assert {name: p.tensor for name, p in plan.observed().items()} == {"a": "a", "b": "b"}

    def test_groups_keep_the_order_of_the_plan(self):
        points = (point("c"), point("a", group="g"), point("b"), point("d", group="g"))
        groups = Plan(points, (), frozenset(), (), {}).groups()
        assert {name: [p.tensor for p in group] for name, group in groups.items()} == {
            "c": ["c"], "g": ["a", "d"], "b": ["b"]
        }  # fmt: skip
        assert list(groups) == ["c", "g", "b"]

    def test_only_keeps_what_the_named_nodes_read(self):
        points = (replace(point("a"), users=("conv1", "conv2")), replace(point("b"), users=("conv3",)))
        weights = (QuantizedWeight("w", Scheme(8, INT8, True, 0), ("conv2", "conv3")),)
        plan = Plan(points, weights, frozenset({"conv1", "conv2", "conv3"}), ("conv1",), {}).only({"conv2"})
        assert [(p.tensor, p.users) for p in plan.points] == [("a", ("conv2",))]
        assert [(w.tensor, w.users) for w in plan.weights] == [("w", ("conv2",))]


class TestStatistics:
    HISTOGRAMS: ClassVar = {"a": histogram([1.0, 2.0]), "b": histogram([-3.0, 0.5])}

    def test_of_one_tensor_is_its_own_histogram(self):
        assert Statistics(self.HISTOGRAMS).of(["a"]) is self.HISTOGRAMS["a"]

    def test_of_several_tensors_is_that_of_all_their_values(self):
        merged = Statistics(self.HISTOGRAMS).of(["a", "b"])
        assert (merged.low, merged.high, merged.total) == (-3, 2, 4)
        assert (self.HISTOGRAMS["a"].low, self.HISTOGRAMS["a"].total) == (1, 2)

    def test_a_tensor_that_was_not_observed_is_named(self):
        with pytest.raises(DataError, match=r"the calibration has no tensor 'c'.+calibrate again"):
            Statistics(self.HISTOGRAMS).of(["a", "c"])


def qparams(scale, symmetric=False):
    return Scheme(8, INT8 if symmetric else UINT8, symmetric=symmetric).qparams(Range(-scale, scale))


class TestQuantizationParameters:
    def test_integers_are_the_nearest_unless_others_are_given(self):
        values = np.float32([[0.1, -1.0], [0.5, 2.0]])
        grid, others = qparams(1.0, symmetric=True), np.full((2, 2), 7, np.int8)
        found = QuantizationParameters({}, {"v": grid, "w": grid}, {"w": others})
        assert np.array_equal(found.quantized("v", values), grid.quantize(values))
        assert found.quantized("w", values) is others


class TestReconstruction:
    FOUND = Reconstruction(
        weights={"w": (qparams(2.0, symmetric=True), np.zeros((2, 3), np.int8))},
        biases={"conv1": np.ones(2, np.float32), "conv2": np.zeros(2, np.float32)},
        activations={"x": qparams(3.0)},
    )

    def test_what_was_found_stands_in_the_place_of_what_was_fitted(self):
        fitted = QuantizationParameters(
            {"x": qparams(1.0), "y": qparams(1.0)},
            {"w": qparams(1.0, symmetric=True), "v": qparams(1.0, symmetric=True)},
        )
        final = self.FOUND.over(fitted)
        assert final.activations == {"x": self.FOUND.activations["x"], "y": fitted.activations["y"]}
        assert final.weights == {"w": self.FOUND.weights["w"][0], "v": fitted.weights["v"]}

    def test_its_integers_stand_in_the_place_of_limited_ones(self):
        grid, integers = qparams(1.0, symmetric=True), {name: np.ones((2, 3), np.int8) for name in "vw"}
        fitted = QuantizationParameters({}, {"w": grid, "v": grid}, integers, {"v": 1, "w": 2})
        final = self.FOUND.over(fitted)
        assert final.integers == {"w": self.FOUND.weights["w"][1], "v": integers["v"]}
        assert final.limited == fitted.limited

    def test_biases_of_some_layers(self):
        assert list(self.FOUND.only({"conv2", "conv3"}).biases) == ["conv2"]
        assert list(CorrectedBiases(self.FOUND.biases).only({"conv1"}).layers) == ["conv1"]


class TestSensitivities:
    def test_boxes_that_move_count_before_noise(self):
        pieces = [
            LayerSensitivity(("quiet",), 40.0),
            LayerSensitivity(("noisy",), 10.0),
            LayerSensitivity(("moves a little",), 50.0, 0.1),
            LayerSensitivity(("moves",), 60.0, 0.4),
            LayerSensitivity(("as noisy",), 10.0),
        ]
        order = [piece.nodes[0] for piece in Sensitivities(tuple(pieces), 3).worst_first()]
        assert order == ["moves", "moves a little", "noisy", "as noisy", "quiet"]
