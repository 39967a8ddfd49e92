from dataclasses import replace

import numpy as np
import pytest
from cases import fast_first
from graphs import (
    Net,
    csp,
    feed,
    initializers,
    leaky_net,
    nodes,
    pan,
    planned,
    products,
    quantized,
    relu_net,
    run,
    samples,
    saturating,
    v8,
    yolox,
)

from onnxq.facts import FittedRanges, Plan, QuantizationParameters, Statistics
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.passes.fit_ranges import FitRanges
from onnxq.passes.observe import Observe
from onnxq.pipeline import Facts, Pipeline
from onnxq.qdq.pair_limit import PairLimits
from onnxq.reconstruction.im2col import Im2col
from onnxq.targets import GENERIC, OPENVINO, ORT

every_method = pytest.mark.parametrize("method", ["minmax", "mse"])


# --- the limit of CPUs without VNNI -----------------------------------------------------------------------------------


def shares(model, target, **options):
    """The greatest sums of two products of each output channel, as shares of the limit, and the facts."""
    working, plan = planned(model, target)
    data = samples([feed(model, seed) for seed in range(4)])
    steps = [Observe(data, every_conv=True), FitRanges("minmax"), ComputeQparams(**options)]
    facts = Pipeline(steps, pinned=[plan]).run(working)
    parameters, nodes = facts[QuantizationParameters], working.nodes
    limits = PairLimits(working, facts[Statistics].channels)
    found = {}
    for weight in plan.weights:
        limit = limits.of([nodes[name] for name in weight.users], weight.scheme, parameters.activations)
        if limit is not None:
            integers = parameters.quantized(weight.tensor, initializers(working.to_proto())[weight.tensor])
            found[weight.tensor] = limit.shares_of(integers, weight.scheme.axis)
    return found, facts


@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda t: t.name)
@pytest.mark.parametrize("build", fast_first([saturating, products, csp, pan], 2))
@pytest.mark.parametrize("options", [{"feedback": True}, {"feedback": False}], ids=["feedback", "nearest"])
def test_no_output_channel_exceeds_the_limit(build, target, options):
    found, facts = shares(build(), target, **options)
    assert found
    assert max(each.max() for each in found.values()) <= 1
    without, full = shares(build(), target, limited=False, **options)
    assert max(each.max() for each in without.values()) > 1
    limited = facts[QuantizationParameters].limited
    at_fault = {name: int((each > 1).sum()) for name, each in without.items() if each.max() > 1}
    assert limited == at_fault or options["feedback"]
    for name, count in at_fault.items():
        assert 0.8 * count <= limited[name]
    for name, qparams in full[QuantizationParameters].weights.items():
        wider = facts[QuantizationParameters].weights[name].scale > qparams.scale
        assert wider.sum() == limited.get(name, 0)


def test_without_limit_and_feedback_integers_are_the_nearest():
    _, facts = shares(csp(), OPENVINO, limited=False, feedback=False)
    parameters = facts[QuantizationParameters]
    assert not parameters.integers
    assert not parameters.limited
    for name, qparams in parameters.weights.items():
        weight = initializers(csp())[name]
        assert np.array_equal(parameters.quantized(name, weight), qparams.quantize(weight))
        assert np.array_equal(qparams.scale, np.abs(weight).reshape(len(weight), -1).max(axis=1) / np.float32(127))


def test_without_statistics_every_input_reaches_every_integer():
    model = csp()
    working, plan = planned(model, OPENVINO)
    data = samples([feed(model)])
    seen = Pipeline([Observe(data), FitRanges("minmax")], pinned=[plan]).run(working)
    known = ComputeQparams().run(working, seen)
    unknown = ComputeQparams().run(working, Facts([plan, seen[FittedRanges]]))
    assert sum(unknown.limited.values()) > sum(known.limited.values()) > 0
    assert unknown.limited["conv0_weight"] == known.limited["conv0_weight"]  # it reads images


def test_a_product_of_rows_whose_heads_are_as_many_as_channels_is_no_conv():
    net = Net()
    x = net.block("images", 8)
    rows = net.reshape(x, 1, 4, 64, 32)
    rows = net.add("MatMul", rows, net.const(np.full((32, 8), 0.5)), name="mix")
    y = net.reshape(rows, 1, 8, 16, 16)
    net.channels[y] = 8
    found, facts = shares(net.model(net.conv(y, 4)), GENERIC)
    assert "mix" in facts[Plan].layers
    assert max(each.max() for each in found.values()) <= 1


# --- rounding with error feedback -------------------------------------------------------------------------------------


def output_error(model, target, feedback):
    """The error of the outputs of each layer that weights alone cause, as variances on the calibration data."""
    working, plan = planned(model, target)
    data = samples([feed(model, seed) for seed in range(4)])
    steps = [Observe(data, every_conv=True), FitRanges("minmax"), ComputeQparams(feedback=feedback)]
    facts = Pipeline(steps, pinned=[plan]).run(working)
    parameters, statistics, nodes = facts[QuantizationParameters], facts[Statistics], working.nodes
    found = {}
    for weight in plan.weights:
        layer = weight.users[0]
        if layer in statistics.inputs:
            values = initializers(working.to_proto())[weight.tensor]
            integers = parameters.quantized(weight.tensor, values)
            off = parameters.weights[weight.tensor].dequantize(integers) - values
            found[layer] = statistics.inputs[layer].error(Im2col.of(nodes[layer]).matrix(off)).sum()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda t: t.name)
@pytest.mark.parametrize("build", [csp, pan, v8, yolox])
def test_the_outputs_of_layers_err_less_with_feedback(build, target):
    nearest, fed_back = (output_error(build(), target, feedback) for feedback in (False, True))
    assert len(nearest) >= 4
    for layer, error in fed_back.items():
        assert error <= nearest[layer] * 1.001, layer
    assert sum(fed_back.values()) < 0.8 * sum(nearest.values())


def test_two_layers_of_one_weight_have_the_same_integers():
    net = Net()
    x, y = net.block("images", 8), net.block("images", 8)
    weight = net.const(net.normal(8, 8, 3, 3))
    ends = [net.add("Conv", each, weight, pads=[1, 1, 1, 1]) for each in (x, y)]
    for end in ends:
        net.channels[end] = 8
    model = net.model(net.conv(net.concat(*ends), 4))
    made, facts = quantized(model, OPENVINO, feedback=True)
    shared = [weight for weight in facts[Plan].weights if len(weight.users) == 2]
    assert len(shared) == 1
    assert shared[0].tensor in facts[QuantizationParameters].integers
    run(made, feed(model))


@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda t: t.name)
def test_layers_of_one_weight_may_have_other_groups(target):
    net = Net()
    x = net.block("images", 16)
    weight, bias = net.const(net.normal(16, 8, 3, 3)), net.const(net.normal(16))
    y = net.silu(net.add("Conv", x, weight, bias, pads=[1] * 4, group=2, name="grouped"))
    net.channels[y] = 16
    z = net.silu(net.add("Conv", net.block(y, 8), weight, bias, pads=[1] * 4, name="whole"))
    net.channels[z] = 16
    found, facts = shares(net.model(net.conv(z, 4)), target)
    assert any({"grouped", "whole"} == set(each.users) for each in facts[Plan].weights)
    assert max(each.max() for each in found.values()) <= 1


def test_statistics_need_no_covariance_of_rows():
    net = Net()
    x = net.block("images", 8)
    rows = net.reshape(x, 1, 8, 1024)
    rows = net.add("Conv", rows, net.const(net.normal(8, 8, 3)), name="along", pads=[1, 1])
    y = net.reshape(rows, 1, 8, 32, 32)
    net.channels[y] = 8
    working, plan = planned(net.model(net.conv(y, 4)), GENERIC)
    assert "along" in plan.layers
    steps = [FitRanges("minmax"), ComputeQparams(feedback=True)]
    data = samples([feed(working.to_proto(), seed) for seed in range(4)])
    found = Pipeline([Observe(data, every_conv=True), *steps], pinned=[plan]).run(working)
    given = Pipeline(steps, pinned=[plan, found[Statistics]]).run(working)
    for name, integers in found[QuantizationParameters].integers.items():
        assert np.array_equal(given[QuantizationParameters].integers[name], integers)


def test_a_conv_whose_bias_is_computed_is_rounded_to_nearest():
    net = Net()
    bias = net.add("Mul", net.add("ReduceMean", "images", axes=[0, 2, 3], keepdims=0), net.const(np.ones(3)))
    x = net.block("images", 8)
    y = net.add("Conv", x, net.const(net.normal(3, 8, 1, 1)), bias, name="computed")
    net.channels[y] = 3
    working, plan = planned(net.model(net.conv(y, 4, name="plain")), OPENVINO)
    data = samples([feed(working.to_proto())])
    steps = [Observe(data, every_conv=True), FitRanges("minmax"), ComputeQparams(limited=False, feedback=True)]
    integers = Pipeline(steps, pinned=[plan]).run(working)[QuantizationParameters].integers
    of_layer = {layer: weight.tensor for weight in plan.weights for layer in weight.users}
    assert "computed" in of_layer
    assert of_layer["plain"] in integers
    assert of_layer["computed"] not in integers


# --- whole networks ---------------------------------------------------------------------------------------------------


def test_a_conv_transpose_has_a_scale_per_output_channel():
    model = relu_net()
    _, facts = quantized(model, GENERIC)
    grid = facts[QuantizationParameters].weights["upsample_weight"]
    weight = initializers(model)["upsample_weight"]
    assert grid.scheme.axis == 1
    assert np.allclose(grid.scale, np.abs(weight).max(axis=(0, 2, 3)) / 127, rtol=1e-6)


@pytest.mark.parametrize("group", [2, 8])
def test_groups_of_a_conv_transpose_share_scales_that_hold_the_bias_of_each(group):
    net = Net()
    x = net.block("images", 8, act="Relu")
    weight = net.const(net.normal(8, 8 // group, 2, 2, scale=1e-6), name="weight")
    bias = np.linspace(-50, 50, 8)
    y = net.add("ConvTranspose", x, weight, net.const(bias), name="upsample", strides=[2, 2], group=group)
    net.channels[y] = 8
    model = net.model(net.conv(y, 4))
    after, facts = quantized(model, GENERIC)
    grid = facts[QuantizationParameters].weights["weight"]
    assert grid.scale.shape == (8 // group,)
    steps = (
        np.abs(bias).reshape(group, -1)
        / facts[QuantizationParameters].activations[nodes(model)["upsample"].input[0]].scale
    )
    assert (steps / grid.scale).max() <= 2**30 * (1 + 1e-6)
    values = feed(model)
    expected = run(model, values)["output"]
    assert np.abs(run(after, values)["output"] - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("build", [csp, pan, leaky_net])
def test_every_point_and_weight_has_a_grid(build):
    _, facts = quantized(build(), OPENVINO)
    plan, grid = facts[Plan], facts[QuantizationParameters]
    assert grid.weights.keys() == {w.tensor for w in plan.weights}
    assert grid.activations.keys() == {p.tensor for p in plan.points}
    for point in plan.points:
        expected = point.scheme.qparams(facts[FittedRanges].groups[point.group].bounds)
        found = grid.activations[point.tensor]
        assert (found.scale, found.zero_point, found.scheme) == (expected.scale, expected.zero_point, point.scheme)


@every_method
def test_two_fits_are_equal(method):
    one, other = (
        quantized(csp(), weight_method=method, weight_bits=4)[1][QuantizationParameters].weights for _ in range(2)
    )
    assert all(np.array_equal(one[name].scale, other[name].scale) for name in one)


def test_weights_are_not_written_to():
    model = csp()
    before = initializers(model)
    quantized(model, weight_method="mse")
    assert all(np.array_equal(values, before[name]) for name, values in initializers(model).items())


def test_grids_cannot_be_written_to():
    _, facts = quantized(csp())
    grid = next(iter(facts[QuantizationParameters].weights.values()))
    with pytest.raises(ValueError, match="read-only"):
        grid.scale[0] = 1
    assert replace(grid).scale is grid.scale
