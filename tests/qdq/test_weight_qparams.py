import numpy as np
import pytest
from graphs import Net, feed, quantized, run
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.facts import FittedRange, FittedRanges, Plan, QuantizationPoint, QuantizedWeight
from onnxq.ir import Model
from onnxq.numerics.scheme import INT8, UINT8, Range, Scheme
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.pipeline import Facts
from onnxq.qdq.weight_qparams import weight_qparams

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
    return ComputeQparams(method, limited=False).run(model, facts).weights["weight"]


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


# --- other schemes ----------------------------------------------------------------------------------------------------

ASYMMETRIC = Scheme(8, UINT8, axis=0)


@pytest.mark.parametrize("shrink", [False, True])
def test_asymmetric_weights_have_a_zero_point_for_each_channel(shrink):
    weight = np.stack([np.linspace(-1, 3, 81), np.linspace(0, 2, 81), np.linspace(-4, -1, 81)]).astype(np.float32)
    grid = weight_qparams(ASYMMETRIC, weight, least_scale=np.zeros(1), shrink=shrink)
    assert grid.zero_point.dtype == np.uint8
    assert grid.zero_point.tolist() == [64, 0, 255]
    assert np.allclose(grid.scale, np.array([4, 2, 4]) / 255, rtol=0.02 if shrink else 1e-6)
    assert np.abs(grid.dequantize(grid.quantize(weight)) - weight).max() <= 0.51 * grid.scale.max() + 0.02 * shrink * 4


def test_asymmetric_scales_have_a_least_size_too():
    weight = np.full((2, 4), 1e-6, np.float32)
    grid = weight_qparams(ASYMMETRIC, weight, least_scale=np.array([0.01, 0.0]))
    assert grid.scale[0] == pytest.approx(0.01)
    assert grid.scale[1] == pytest.approx(1e-6 / 255)


def test_symmetric_unsigned_weights_have_their_zero_point_at_128():
    grid = weight_qparams(Scheme(8, UINT8, True, 0), np.array([[-1, 2]], np.float32), least_scale=np.zeros(1))
    assert (grid.zero_point.tolist(), grid.quantize(np.array([[-1, 2]], np.float32)).tolist()) == ([128], [[64, 255]])
