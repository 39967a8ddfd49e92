from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.qdq.pair_limit import PairLimit
from onnxq.qdq.weight_qparams import weight_qparams
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.layer_fit import fit_range, fit_weight
from onnxq.reconstruction.least_squares import Means, Moments, refit

CONV = Im2col((6, 4, 3, 3), 1, (1, 1), (1, 1), (0, 0, 0, 0))
GROUPS = Im2col((6, 2, 3, 3), 3, (1, 1), (1, 1), (0, 0, 0, 0))
TRANSPOSED = Im2col((4, 6, 2, 2), 1, (1, 1), (1, 1), (0, 0, 0, 0), transposed=True)
GEMM = Im2col((12, 6), 1, (1, 1), (1, 1), (0, 0, 0, 0), rows=True, outputs_last=True)
LAYERS = {"Conv": CONV, "Conv in groups": GROUPS, "ConvTranspose": TRANSPOSED, "Gemm": GEMM}

SMALLEST = np.array([1e-12])


class Layer:
    """A float layer, its correlated float inputs, and its float outputs."""

    def __init__(self, im2col, seed=0, count=500):
        rng = np.random.default_rng(seed)
        self.im2col = im2col
        self.axis = 1 if im2col.transposed or im2col.outputs_last else 0
        self.weight = rng.normal(size=im2col.shape).astype(np.float32)
        groups, _, inputs = im2col.matrix(self.weight).shape
        mixing = rng.normal(size=(groups, inputs, inputs))
        self.inputs = (mixing @ rng.normal(size=(groups, inputs, count)) / 3 + 1).astype(np.float32)
        self.outputs = (im2col.matrix(self.weight) @ self.inputs + 2).astype(np.float32)

    def scheme(self, bits):
        return Scheme(bits, INT8, symmetric=True, axis=self.axis)

    def moments(self, step=1.0):
        """Moments of inputs that are rounded to multiples of the step."""
        moments = Moments.zeros(len(self.inputs), self.outputs.shape[1], self.inputs.shape[1])
        moments.add(np.rint(self.inputs / step).astype(np.float32) * np.float32(step), self.outputs)
        return moments.centered()

    def fit(self, bits, step=1.0, least_scale=SMALLEST, limit=None):
        scheme = self.scheme(bits)
        rounded = weight_qparams(scheme, self.weight, least_scale=least_scale)
        nearest = rounded, rounded.quantize(self.weight)
        return fit_weight(self.weight, scheme, self.im2col, self.moments(step), nearest, least_scale, limit), rounded

    def error(self, weight, step=1.0):
        return float(self.moments(step).error(self.im2col.matrix(weight)).sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), bits=st.integers(2, 8), step=st.sampled_from([0.01, 0.5, 2.0]))
def test_it_never_errs_more_than_rounding_to_nearest(name, seed, bits, step):
    layer = Layer(LAYERS[name], seed)
    fit, rounded = layer.fit(bits, step)
    nearest = rounded.dequantize(rounded.quantize(layer.weight))
    fitted = fit.qparams.dequantize(fit.integers)
    assert layer.error(fitted, step) <= layer.error(nearest, step) * (1 + 1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_few_levels_err_much_less_than_rounded_to_nearest(name):
    errors = np.zeros(2)
    for layer in (Layer(LAYERS[name], seed) for seed in range(6)):
        fit, rounded = layer.fit(3)
        nearest = rounded.dequantize(rounded.quantize(layer.weight))
        errors += [layer.error(fit.qparams.dequantize(fit.integers)), layer.error(nearest)]
    assert errors[0] < 0.85 * errors[1]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", LAYERS)
def test_integers_are_those_of_the_scheme(name, bits):
    layer = Layer(LAYERS[name])
    fit, _ = layer.fit(bits)
    assert fit.integers.dtype == np.int8
    assert fit.integers.shape == layer.weight.shape
    assert np.abs(fit.integers).max() <= layer.scheme(bits).qmax
    assert fit.qparams.scale.shape == (layer.weight.shape[layer.axis],)


@pytest.mark.parametrize("name", LAYERS)
def test_the_bias_takes_up_the_mean_error(name):
    layer = Layer(LAYERS[name])
    fit, _ = layer.fit(4, step=2.0)
    rounded = np.rint(layer.inputs / 2) * 2
    found = layer.im2col.matrix(fit.qparams.dequantize(fit.integers)) @ rounded
    off = layer.im2col.per_channel((layer.outputs - found).mean(axis=2))
    moments = layer.moments(2.0)
    bias = fit.bias(layer.im2col, Means(moments.a, moments.t))
    np.testing.assert_allclose(bias, off, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_scales_do_not_fall_below_the_least(name):
    layer = Layer(LAYERS[name])
    least = np.full(layer.weight.shape[layer.axis], 0.9)
    fit, _ = layer.fit(8, least_scale=least)
    assert (fit.qparams.scale >= np.float32(0.9)).all()


def most_of(layer, share, **options):
    """The limit that the greatest sum of a fit without a limit reaches by this share, and the fit within it."""
    weight_shape = np.moveaxis(layer.weight, layer.axis, 0).shape
    rows, channels = (weight_shape[0] if layer.im2col.group > 1 else 1), weight_shape[1]
    free, _ = layer.fit(8, **options)
    unit = PairLimit(np.ones((rows, channels)), np.full((rows, channels // 2), 2.0))
    peak = share / unit.shares_of(free.integers, layer.axis).max()
    return PairLimit(unit.peaks * peak, unit.pair_peaks * peak), free


@pytest.mark.parametrize("name", ["Conv", "Conv in groups", "Gemm"])
@pytest.mark.parametrize("share", [1.05, 1.5, 3.0])
def test_the_integers_are_within_the_limit(name, share):
    layer = Layer(LAYERS[name])
    limit, free = most_of(layer, share, step=0.5)
    halved = weight_qparams(layer.scheme(8), layer.weight, least_scale=SMALLEST)
    halved = halved.rescaled(halved.scale * 4.0)
    fit = fit_weight(
        layer.weight, layer.scheme(8), layer.im2col, layer.moments(0.5), (halved, halved.quantize(layer.weight)),
        SMALLEST, limit,
    )  # fmt: skip
    assert limit.shares_of(free.integers, layer.axis).max() > 1
    assert limit.shares_of(fit.integers, layer.axis).max() <= 1
    of_fit, of_halved = (
        layer.error(q.dequantize(i), 0.5)
        for q, i in ((fit.qparams, fit.integers), (halved, halved.quantize(layer.weight)))
    )
    assert of_fit < of_halved


def test_if_no_fit_is_within_the_limit_the_rounded_weight_is_taken():
    layer = Layer(CONV)
    none = PairLimit(np.full((1, 4), 1e12), np.full((1, 2), 1e12))
    rounded = weight_qparams(layer.scheme(8), layer.weight, least_scale=SMALLEST)
    fit, _ = layer.fit(8, limit=none)
    assert np.array_equal(fit.integers, rounded.quantize(layer.weight))
    assert np.array_equal(fit.qparams.scale, rounded.scale)


def ones(layer):
    return np.ones(layer.inputs.shape[2], np.float32)


def test_positions_that_count_more_decide_on_the_range():
    layer = Layer(GEMM)
    rng = np.random.default_rng(0)
    layer.inputs = rng.uniform(-1, 1, layer.inputs.shape).astype(np.float32)
    layer.inputs[:, :, ::2] *= 2
    layer.outputs = GEMM.matrix(layer.weight).astype(np.float32) @ layer.inputs
    wide, found = Scheme(3).qparams(Range(-2.0, 2.0)), []
    for small, large in ((1, 0.01), (0.01, 1)):
        roots = ones(layer) * np.float32(small)
        roots[::2] = large
        found.append(fit_range(wide, layer.inputs, layer.outputs, GEMM.matrix(layer.weight), True, roots))
    assert found[0].high < 0.7 * found[1].high
    assert found[0].low > 0.7 * found[1].low


@pytest.mark.parametrize("name", LAYERS)
def test_a_range_that_is_too_wide_is_narrowed(name):
    layer = Layer(LAYERS[name])
    wide = Scheme(3).qparams(Range(2 * layer.inputs.min(), 2 * layer.inputs.max()))
    found = fit_range(wide, layer.inputs, layer.outputs, layer.im2col.matrix(layer.weight), True, ones(layer))
    assert found.scheme == wide.scheme
    assert found.high < 0.85 * wide.high
    assert found.low > 0.85 * wide.low

    def error(qparams):
        moments = Moments.zeros(len(layer.inputs), layer.outputs.shape[1], layer.inputs.shape[1])
        moments.add(qparams.dequantize(qparams.quantize(layer.inputs)), layer.outputs)
        return float(moments.centered().error(refit(moments.centered())).sum())

    assert error(found) < 0.8 * error(wide)


def test_ranges_that_are_tried_at_the_same_time_give_the_same():
    layer = Layer(next(iter(LAYERS.values())))
    wide = Scheme(3).qparams(Range(2 * layer.inputs.min(), 2 * layer.inputs.max()))
    arguments = wide, layer.inputs, layer.outputs, layer.im2col.matrix(layer.weight), True, ones(layer)
    with ThreadPoolExecutor(3) as pool:
        assert fit_range(*arguments, pool) == fit_range(*arguments)


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_range_that_fits_is_kept(has_bias):
    layer = Layer(GEMM)
    layer.inputs = np.random.default_rng(0).uniform(-1, 1, layer.inputs.shape).astype(np.float32)
    layer.outputs = GEMM.matrix(layer.weight).astype(np.float32) @ layer.inputs
    fitted = Scheme(4).qparams(Range(-1.0, 1.0))
    found = fit_range(fitted, layer.inputs, layer.outputs, GEMM.matrix(layer.weight), has_bias, ones(layer))
    assert found.high == pytest.approx(fitted.high, rel=0.15)
    assert found.low == pytest.approx(fitted.low, rel=0.15)
