from dataclasses import replace

import numpy as np
import pytest
from graphs import Net, csp, feed, initializers, leaky_net, nodes, pan, quantized, relu_net, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.facts import FittedRange, FittedRanges, Plan, QuantizationParameters, QuantizationPoint, QuantizedWeight
from onnxq.ir import Model
from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.pipeline import Facts
from onnxq.targets import GENERIC, OPENVINO

every_method = pytest.mark.parametrize("method", ["minmax", "mse"])


def weights_grid(weight, bias=None, method="minmax", axis=0, bits=8, input_range=(0.0, 1.0)):
    """The grid of a weight (out, in, k, k), or (in, out, k, k) with axis 1."""
    net = Net()
    inputs = ["images", net.const(weight, name="weight")] + ([net.const(bias, name="bias")] if bias is not None else [])
    net.channels["images"] = 3
    op = "Conv" if axis == 0 else "ConvTranspose"
    model = Model(net.model(net.add(op, *inputs, name="layer")))
    point = QuantizationPoint("images", Scheme(), "images", ("layer",), (), known=Range(*input_range))
    planned = QuantizedWeight("weight", Scheme(bits, INT8, True, axis), ("layer",))
    plan = Plan((point,), (planned,), frozenset({"layer"}), ("layer",), {})
    facts = Facts([plan, FittedRanges({"images": FittedRange(point.known)})])
    return ComputeQparams(method).run(model, facts).weights["weight"]


def squared_error(weight, grid, axis=0):
    """Per channel."""
    error = np.square(grid.dequantize(grid.quantize(weight)) - weight, dtype=np.float64)
    return np.moveaxis(error, axis, 0).reshape(weight.shape[axis], -1).sum(axis=1)


def random_weight(seed, *shape):
    rng = np.random.default_rng(seed)
    return (rng.standard_t(2, shape) * rng.uniform(0.01, 3, (shape[0], *[1] * (len(shape) - 1)))).astype(np.float32)


# --- minmax and mse ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("axis", [0, 1])
def test_minmax_takes_the_greatest_magnitude_of_each_channel(axis, bits):
    weight = random_weight(0, 3, 3, 2, 2)
    grid = weights_grid(weight, axis=axis, bits=bits)
    greatest = np.abs(np.moveaxis(weight, axis, 0).reshape(3, -1)).max(axis=1)
    most = 2 ** (bits - 1) - 1
    assert grid.scale.shape == (3,)
    assert np.allclose(grid.scale, greatest / most, rtol=1e-6)
    assert grid.zero_point.dtype == np.int8
    assert not grid.zero_point.any()
    stored = grid.quantize(weight)
    assert stored.dtype == np.int8
    assert (np.abs(np.moveaxis(stored, axis, 0).reshape(3, -1)).max(axis=1) == most).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), axis=st.sampled_from([0, 1]))
def test_mse_has_no_more_error_than_minmax_in_any_channel(seed, bits, axis):
    weight = random_weight(seed, 3, 3, 3, 3)
    least = squared_error(weight, weights_grid(weight, method="mse", axis=axis, bits=bits), axis)
    plain = squared_error(weight, weights_grid(weight, axis=axis, bits=bits), axis)
    assert (least <= plain).all()


def test_mse_lets_go_of_an_outlier():
    weight = np.random.default_rng(0).uniform(-0.1, 0.1, (2, 3, 16, 16)).astype(np.float32)
    weight[0, 0, 0, 0] = 0.3
    one, other = weights_grid(weight, method="mse", bits=4), weights_grid(weight, bits=4)
    assert one.scale[0] < 0.9 * other.scale[0]
    assert squared_error(weight, one)[0] < 0.8 * squared_error(weight, other)[0]


def test_channels_are_fitted_by_themselves():
    weight = random_weight(1, 4, 3, 3, 3)
    together = weights_grid(weight, method="mse", bits=4).scale
    apart = [float(weights_grid(weight[k : k + 1], method="mse", bits=4).scale[0]) for k in range(4)]
    assert together.tolist() == apart


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), bits=st.integers(2, 8), method=st.sampled_from(["minmax", "mse"]))
def test_integers_stay_within_the_symmetric_levels(seed, bits, method):
    weight = random_weight(seed, 3, 3, 3, 3)
    stored = weights_grid(weight, method=method, bits=bits).quantize(weight)
    most = 2 ** (bits - 1) - 1
    assert stored.min() >= -most
    assert stored.max() <= most


# --- channels of little or nothing ------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("bias", [None, [0.5, 0.5]], ids=["no bias", "bias"])
def test_a_dead_channel_gets_a_grid_that_holds_its_zeros(method, bias):
    weight = random_weight(0, 2, 3, 1, 1)
    weight[1] = 0
    grid = weights_grid(weight, bias, method)
    assert np.isfinite(grid.scale).all()
    assert (grid.scale > 0).all()
    assert not grid.quantize(weight)[1].any()
    assert grid.scale[0] == weights_grid(weight[:1], None, method).scale[0]


@every_method
def test_a_bias_does_not_overflow_in_steps_of_32_bits(method):
    weight = random_weight(0, 2, 3, 1, 1)
    weight[1] *= 1e-9
    bias = np.array([0.1, -40.0], np.float32)
    grid = weights_grid(weight, bias, method, input_range=(0.0, 2.0))
    steps = bias / (2.0 / 255 * grid.scale.astype(np.float64))
    assert np.abs(steps).max() <= 2**30 * 1.001
    assert grid.scale[0] == weights_grid(weight, None, method).scale[0]
    assert grid.scale[1] > weights_grid(weight, None, method).scale[1]


def test_a_finer_input_needs_a_coarser_weight():
    weight = np.full((1, 3, 1, 1), 1e-9, np.float32)
    coarse = weights_grid(weight, np.array([10.0]), input_range=(0.0, 4.0)).scale
    fine = weights_grid(weight, np.array([10.0]), input_range=(0.0, 1.0)).scale
    assert np.allclose(fine, 4 * coarse, rtol=1e-3)


def tiny_channel(bias):
    """A Conv with one channel of almost no weights, as a BatchNormalization of great variance leaves it."""
    net = Net()
    x = net.block("images", 8)
    weight = net.normal(8, 8, 1, 1, scale=0.3)
    weight[3] = 1e-9
    shift = net.normal(8, scale=0.2)
    shift[3] = bias
    y = net.add("Conv", x, net.const(weight), net.const(shift), name="tiny")
    net.channels[y] = 8
    return net.model(net.conv(net.silu(y), 4))


@every_method
@pytest.mark.parametrize("bias", [40.0, -0.25])
def test_a_channel_of_almost_no_weights_keeps_its_bias_in_onnxruntime(method, bias):
    model = tiny_channel(bias)
    after, facts = quantized(model, weight_method=method)
    assert "tiny" in facts[Plan].layers
    values = feed(model)
    expected = run(model, values)["output"]
    for optimized in (False, True):
        actual = run(after, values, optimized=optimized)["output"]
        assert np.abs(actual - expected).max() < 0.04 * np.abs(expected).max()


@pytest.mark.parametrize("sizes", [(0.2, 50.0), (None, 50.0), (50.0, None)], ids=str)
def test_a_weight_that_layers_share_lets_no_bias_of_them_overflow(sizes):
    net = Net()
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 1, 1, scale=1e-6), name="weight")
    ends = []
    for size in sizes:
        bias = [] if size is None else [net.const(net.normal(8, scale=size))]
        ends.append(net.silu(net.add("Conv", x, weight, *bias)))
    y = net.add("Add", *ends)
    net.channels[y] = 8
    model = net.model(net.conv(y, 4))
    after, _ = quantized(model)
    values = feed(model)
    expected = run(model, values)["output"]
    assert np.abs(run(after, values, optimized=True)["output"] - expected).max() < 0.05 * np.abs(expected).max()


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
