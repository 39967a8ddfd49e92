import math
import re
from dataclasses import replace

import numpy as np
import pytest
from graphs import Net, csp, feed, pan, planned, quantized, quantizing, samples, silu_chain, v8, yolox
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import DataError
from onnxq.facts import FittedRanges, Plan, QuantizationParameters, QuantizationPoint, Statistics
from onnxq.ir import Model
from onnxq.numerics.before_silu import before_silu
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.scheme import INT8, UINT16, Range, Scheme
from onnxq.numerics.silu import SILU_MINIMUM
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.find_sizes import FindSizes
from onnxq.passes.fit_ranges import FitRanges
from onnxq.passes.observe import Observe
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Facts, Pipeline
from onnxq.targets import GENERIC, OPENVINO, ORT, TARGETS

MODEL = Model(silu_chain())
every_method = pytest.mark.parametrize("method", METHODS)


def histogram_of(values, floor=-math.inf):
    histogram = Histogram(floor)
    histogram.add(np.asarray(values, np.float32))
    return histogram


def fit(points, values, method="minmax"):
    """The ranges of points, given the values of tensors or their histograms."""
    histograms = {n: v if isinstance(v, Histogram) else histogram_of(v) for n, v in values.items()}
    plan = Plan(tuple(points), (), frozenset(), (), {})
    facts = Facts([plan, Statistics(histograms, 1, MODEL.digest())])
    return FitRanges(method).run(MODEL, facts).groups


def alone(tensor="x", **marks):
    """A point with a grid of its own."""
    return QuantizationPoint(tensor, Scheme(), tensor, (), (tensor,), **marks)


def drawn(seed, size=4000, low=-0.27846454):
    """Values like the output of a SiLU: crowded at the lower bound, with a long tail."""
    x = np.random.default_rng(seed).exponential(1.0, size).astype(np.float32)
    return np.maximum(x - 0.5, low)


# --- what is known or fixed -------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("target", ["ort", "generic"])
def test_a_sigmoid_has_the_scale_1_256_and_the_zero_point_0(method, target):
    _, facts = quantized(csp(), TARGETS[target], method=method)
    sigmoids = [p for p in facts[Plan].points if p.tensor.startswith("sigmoid")]
    assert sigmoids
    for point in sigmoids:
        grid = facts[QuantizationParameters].activations[point.tensor]
        assert (float(grid.scale), int(grid.zero_point)) == (1 / 256, 0)
        assert facts[FittedRanges].groups[point.group].method == "known"


def test_a_range_that_is_known_needs_no_statistics():
    known = replace(alone(), sources=(), known=Range(-1.0, 2.0))
    fitted = fit([known], {})["x"]
    assert (fitted.bounds, fitted.method) == (Range(-1.0, 2.0), "known")
    assert math.isnan(fitted.sqnr)


def test_behind_a_silu_uh_takes_the_lower_bound_of_silu():
    fitted = fit([alone(silu_output=True)], {"x": drawn(0)}, "uh")["x"]
    assert fitted.bounds.low == -0.27846454
    assert fitted.method == "uh"
    assert 0 < fitted.bounds.high <= drawn(0).max()


def test_elsewhere_uh_takes_the_observed_minimum():
    values = drawn(0, low=-0.2)
    assert fit([alone()], {"x": values}, "uh")["x"].bounds.low == float(values.min())


def test_the_bounds_of_a_network_are_those_of_silu():
    _, facts = quantized(v8(), method="uh")
    marked = [p for p in facts[Plan].points if p.silu_output]
    assert len(marked) >= 5
    assert all(facts[FittedRanges].groups[p.group].bounds.low == SILU_MINIMUM for p in marked)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"uh"}))
def test_behind_a_silu_other_methods_look_at_the_values_alone(method):
    values = drawn(0, low=-0.2)
    fitted = fit([alone(silu_output=True)], {"x": values}, method)["x"]
    assert fitted.bounds == METHODS[method].fit(histogram_of(values), Scheme())


@every_method
def test_the_input_takes_the_observed_minimum_and_maximum(method):
    values = np.append(np.full(5000, 0.5), [0.0, 1.0])
    fitted = fit([alone("images")], {"images": values}, method)["images"]
    assert (fitted.bounds, fitted.method, fitted.clipped) == (Range(0.0, 1.0), "minmax", 0)


@every_method
def test_beyond_8_bits_nothing_is_cut_off(method):
    values = np.append(drawn(0), [300.0])  # not counted if every second value is
    histogram = Histogram()
    histogram.add(values[::-1], every=2, extremes=(float(values.min()), 300.0))
    wide = replace(alone(), scheme=Scheme(bits=16, container=UINT16))
    fitted = fit([wide], {"x": histogram}, method)["x"]
    assert (fitted.bounds, fitted.method) == (Range(float(np.float32(values.min())), 300.0), "minmax")


@every_method
def test_the_input_of_a_model_takes_minimum_and_maximum_of_the_feeds(method):
    model = csp()
    _, facts = quantized(model, OPENVINO, method=method)
    images = np.stack([feed(model, seed)["images"] for seed in range(4)])
    assert facts[FittedRanges].groups["images"].bounds == Range(float(images.min()), float(images.max()))


@pytest.mark.slow
@every_method
def test_a_group_with_the_input_takes_minimum_and_maximum(method):
    _, facts = quantized(yolox(), GENERIC, method=method)
    assert facts[FittedRanges].groups["images"].method == "minmax"
    assert "concat0_out" in {p.tensor for p in facts[Plan].groups()["images"]}


@every_method
def test_the_input_of_a_silu_is_judged_by_the_error_behind_it(method):
    histogram = histogram_of(np.random.default_rng(0).normal(0, 4, 5000), floor=-10)
    fitted = fit([alone(silu_input=True)], {"x": histogram}, method)["x"]
    assert fitted.bounds == before_silu(histogram, Scheme())
    assert fitted.method == "error behind SiLU"


# --- methods and groups -----------------------------------------------------------------------------------------------


@every_method
def test_everything_else_is_fitted_by_the_method(method):
    values = np.random.default_rng(0).normal(0, 1, 5000)
    scheme = Scheme(bits=6, container=INT8, symmetric=True)
    fitted = fit([replace(alone(), scheme=scheme)], {"x": values}, method)["x"]
    assert fitted.bounds == METHODS[method].fit(histogram_of(values), scheme)
    assert fitted.method == method
    assert fitted.sqnr > 20


@every_method
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-3, 3), scale=st.floats(0.1, 10))
def test_a_group_is_fitted_to_the_values_of_all_its_sources(method, seed, shift, scale):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(0, 1, 1000), rng.normal(shift, scale, 3000)
    points = [
        QuantizationPoint("one", Scheme(), "one", (), ("one",)),
        QuantizationPoint("moved", Scheme(), "one", (), ("one",)),
        QuantizationPoint("joined", Scheme(), "one", (), ("one", "other")),
    ]
    fitted = fit(points, {"one": one, "other": other}, method)
    assert fitted.keys() == {"one"}
    union = histogram_of(np.concatenate([one, other]))
    assert fitted["one"].bounds == METHODS[method].fit(union, Scheme())


def test_a_source_of_several_members_of_a_group_counts_once():
    common, rare = np.zeros(100) + 0.1, np.linspace(0, 4, 100)
    points = [QuantizationPoint(f"p{k}", Scheme(), "p0", (), ("common",)) for k in range(5)]
    points.append(QuantizationPoint("rare", Scheme(), "p0", (), ("rare",)))
    fitted = fit(points, {"common": common, "rare": rare}, "percentile")["p0"]
    assert fitted.bounds == METHODS["percentile"].fit(histogram_of(np.concatenate([common, rare])), Scheme())


def test_histograms_of_a_group_are_not_written_to():
    one, other = histogram_of([0, 1]), histogram_of([2, 3])
    fit([QuantizationPoint("x", Scheme(), "x", (), ("one", "other"))], {"one": one, "other": other})
    assert (one.total, one.high, other.total, other.low) == (2, 1, 2, 2)


def test_each_group_has_one_range():
    _, facts = quantized(pan())
    assert facts[FittedRanges].groups.keys() == facts[Plan].groups().keys()


def test_minmax_covers_all_that_was_seen():
    model = pan()
    _, facts = quantized(model, method="minmax")
    for group, points in facts[Plan].groups().items():
        fitted = facts[FittedRanges].groups[group]
        if fitted.method == "minmax":
            seen = [facts[Statistics].histograms[s] for p in points for s in p.sources]
            assert fitted.bounds == Range(min(h.low for h in seen), max(h.high for h in seen))
            assert fitted.clipped == 0


def test_what_a_range_leaves_out_is_said():
    values = np.append(np.random.default_rng(0).normal(0, 1, 99_000), np.full(1000, 50.0))
    scheme = Scheme(bits=2)
    fitted = fit([replace(alone(), scheme=scheme)], {"x": values}, "percentile")["x"]
    assert fitted.clipped == 0
    values = np.append(np.random.default_rng(0).normal(0, 1, 99_995), np.full(5, 500.0))
    fitted = fit([alone()], {"x": values}, "percentile")["x"]
    assert fitted.bounds.high < 10
    assert 0 < fitted.clipped < 3e-4


@pytest.mark.slow
def test_two_fits_are_equal():
    for method in METHODS:
        first, second = (quantized(csp(), method=method)[1][FittedRanges].groups for _ in range(2))
        assert {g: f.bounds for g, f in first.items()} == {g: f.bounds for g, f in second.items()}


# --- statistics from elsewhere ----------------------------------------------------------------------------------------


def statistics_of(model, target=ORT):
    working, plan = planned(model, target)
    return Pipeline([Observe(samples([feed(model)]))], pinned=[plan]).run(working)[Statistics]


def test_statistics_of_the_same_model_are_taken():
    model = csp()
    given_ones = statistics_of(model)
    _, facts = quantized(model, facts=[given_ones])
    assert facts[Statistics] is given_ones


def test_statistics_of_another_model_are_refused():
    other = statistics_of(csp(seed=1))
    with pytest.raises(
        DataError,
        match=r"made with another model, .+--migrate or --target; calibrate this one",
    ):
        quantized(csp(), facts=[other])


def test_statistics_that_were_found_on_the_way_are_not_asked_where_they_come_from():
    working, plan = planned(csp())
    steps = {step.name: step for step in quantizing(csp())}
    facts = Pipeline([steps["observe"], steps["fit-ranges"]], pinned=[plan]).run(working)
    assert facts[FittedRanges].groups


def test_statistics_for_another_target_are_refused_by_the_tensor_that_they_lack():
    model = csp()
    for_openvino = statistics_of(model, OPENVINO)
    message = "the calibration has no tensor 'conv1_out': it was made for another target or with other options"
    with pytest.raises(DataError, match=re.escape(message)):
        quantized(model, ORT, facts=[for_openvino])


def test_statistics_without_covariances_are_refused_where_every_conv_needs_one():
    working, plan = planned(csp())
    pins = [plan, statistics_of(csp())]
    assert Pipeline([FitRanges()], pinned=pins).run(working)[FittedRanges].groups
    with pytest.raises(DataError, match=r"no covariance of the inputs of 'conv1': it was made with --rounding nearest"):
        Pipeline([FitRanges(every_conv=True)], pinned=pins).run(working)


def test_statistics_without_a_layer_are_refused_though_another_layer_reads_its_input():
    net = Net()
    ends = [net.silu(net.conv("images", 8, kernel, name=f"kernel{kernel}")) for kernel in (3, 1)]
    for end in ends:
        net.channels[end] = 8
    model = net.model(net.conv(net.concat(*ends), 4))
    fewer = quantized(model, OPENVINO, exclude=("kernel1",))[1][Statistics]
    with pytest.raises(DataError, match="no inputs of the layer 'kernel1'"):
        quantized(model, OPENVINO, facts=[fewer])
    more = quantized(model, OPENVINO)[1][Statistics]
    made = [quantized(model, OPENVINO, given, exclude=("kernel1",))[0] for given in ([], [more])]
    assert made[0] == made[1]


def test_a_lacking_tensor_is_named():
    with pytest.raises(DataError, match="has no tensor 'other'"):
        fit([QuantizationPoint("x", Scheme(), "x", (), ("x", "other"))], {"x": [0, 1]})


def test_the_graph_is_not_touched():
    working, plan = planned(csp())
    facts = Pipeline([Observe(samples([feed(csp())]))], pinned=[plan]).run(working)
    before = working.to_proto().SerializeToString(deterministic=True)
    assert isinstance(FitRanges().run(working, facts), FittedRanges)
    assert working.to_proto().SerializeToString(deterministic=True) == before


def test_without_a_plan_there_is_nothing_to_fit():
    assert FitRanges.needs == (Plan, Statistics)
    assert Pipeline(
        [FindDecode(), FindSizes(), PlanQuantization(ORT), Observe(samples([feed(csp())])), FitRanges()]
    ).passes
