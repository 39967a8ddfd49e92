from dataclasses import replace

import numpy as np
import pytest
from graphs import feed, v8
from net import Net

from onnxq import Config, quantize
from onnxq.facts import FittedRanges, Migration, Plan, QuantizationParameters, QuantizationPoint, Reconstruction
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.silu import silu
from onnxq.pipeline import Facts
from onnxq.qdq.migration import divided_name
from onnxq.qdq.tensor_result import expected, final_migration, final_qparams, tensor_results


@pytest.fixture(scope="module")
def facts():
    return quantize(v8(), [feed(v8(), seed) for seed in range(2)], Config(target="generic")).facts


def test_each_point_has_its_fit_and_grid(facts):
    found = list(tensor_results(facts))
    assert [outcome.point for outcome in found] == list(facts[Plan].points)
    for outcome in found:
        assert outcome.fit is facts[FittedRanges].groups[outcome.point.group]
        assert outcome.qparams is facts[QuantizationParameters].activations[outcome.point.tensor]
        assert (outcome.values is None) == (not outcome.point.sources)


@pytest.mark.slow
def test_alternatives_are_those_of_the_methods(facts):
    found = list(tensor_results(facts))
    for outcome in found:
        assert list(outcome.alternatives()) == (list(METHODS) if outcome.values is not None else [])
    chosen = [outcome for outcome in found if outcome.fit.method == "uh"]
    assert any(outcome.point.silu_output for outcome in chosen)
    assert all(outcome.alternatives()["uh"] == outcome.fit for outcome in chosen)


def test_ranges_that_were_adjusted_cost_what_they_cost(facts):
    first = next(outcome for outcome in tensor_results(facts) if outcome.values is not None)
    name = first.point.tensor
    adjusted = facts[QuantizationParameters].activations[name].rescaled(first.qparams.scale / 4)
    rebuilt = Reconstruction({}, {}, {name: adjusted})
    changed = Facts([*(fact for fact in facts if not isinstance(fact, Reconstruction)), rebuilt])
    assert final_qparams(changed).activations[name] is adjusted
    outcome = next(outcome for outcome in tensor_results(changed) if outcome.point.tensor == name)
    assert outcome.fit.method == "error of outputs"
    assert (outcome.fit.bounds.low, outcome.fit.bounds.high) == (adjusted.low, adjusted.high)
    assert outcome.fit.clipped > 0
    assert outcome.fit.sqnr < first.fit.sqnr


def test_a_small_tensor_in_a_group_of_great_values_has_its_own_noise():
    net = Net()
    # Only the Concat reads it, so its scale is that of the Concat in any case.
    small = net.block("images", 16)
    great = net.conv("images", 16, gain=50.0)
    joined = net.block(net.concat(small, great), 16)
    model = net.model(net.conv(joined, 8))
    quantized = quantize(model, [feed(model, 0)], Config(target="generic"))
    outcomes = {outcome.point.tensor: outcome for outcome in tensor_results(quantized.facts)}
    found, of_joined = outcomes[small], outcomes["concat0_out"]
    assert found.point.group == of_joined.point.group
    assert found.own.bounds == found.fit.bounds
    assert found.own.sqnr < of_joined.own.sqnr - 10
    docs = {node.input[0]: node.doc_string for node in quantized.model.graph.node if node.op_type == "QuantizeLinear"}
    assert f"{found.own.sqnr:.1f} dB" in docs[small]


def test_in_front_of_a_silu_the_noise_behind_it_counts():
    values = np.random.default_rng(0).normal(-2, 3, 100_000).astype(np.float32)
    histogram = Histogram()
    histogram.add(values)
    point = QuantizationPoint("x", Scheme(), "x", ("conv",), ("x",))
    bounds = Range(-5.0, 12.0)
    qparams = Scheme().qparams(bounds)
    rounded = qparams.dequantize(qparams.quantize(values))
    for silu_input, exact, found in ((False, values, rounded), (True, silu(values), silu(rounded))):
        ratio = 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())
        cost = expected(histogram, replace(point, silu_input=silu_input), bounds, "mse")
        assert cost.sqnr == pytest.approx(ratio, abs=0.2)
    assert cost.clipped == pytest.approx(np.mean(values < -5), abs=0.01)
    assert (
        unilateral_histogram(histogram, Scheme()).low < -10
    )  # which is why the plain noise of such a range would mislead


def test_values_divided_by_other_scales_say_nothing_of_a_range(facts):
    first = next(outcome for outcome in tensor_results(facts) if outcome.values is not None)
    point = replace(first.point, tensor=divided_name("x"))
    plan = replace(facts[Plan], points=(point,))
    qparams = QuantizationParameters({point.tensor: first.qparams}, {})
    others = [fact for fact in facts if not isinstance(fact, Plan | QuantizationParameters | Reconstruction)]
    for scales, known in (({}, True), ({"x": np.ones(8, np.float32)}, False)):
        rebuilt = Reconstruction({}, {}, {point.tensor: first.qparams.rescaled(first.qparams.scale / 4)}, scales)
        [outcome] = tensor_results(Facts([*others, plan, qparams, rebuilt]))
        assert (outcome.values is not None) == known
        assert np.isnan(outcome.own.sqnr) != known
        assert bool(outcome.alternatives()) == known


def test_scales_of_the_reconstruction_replace_those_before():
    half = np.full(4, 0.5, np.float32)
    chosen = Migration({"a": half, "b": half, "c": half}, "why")
    assert final_migration(Facts([chosen])) is chosen
    assert final_migration(Facts([])) == Migration({})
    found = final_migration(Facts([chosen, Reconstruction({}, {}, {}, {"b": 2 * half, "c": half / 2})]))
    assert (list(found.scales), found.why_none) == (["a", "c"], "why")
    assert np.all(found.scales["a"] == half)
    assert np.all(found.scales["c"] == half / 2)
