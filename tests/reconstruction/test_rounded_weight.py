import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.input_covariance import CovarianceSums
from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.qdq.pair_limit import PairLimit
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.rounded_weight import RoundedWeight, round_weight


def drawn(groups=1, outputs=6, channels=12, kernel=3, bits=8, seed=0):
    """The product of a Conv, its weight, the weight rounded to nearest, and correlated inputs of it."""
    rng = np.random.default_rng(seed)
    shape = (groups * outputs, channels, kernel, kernel)
    weight = rng.normal(size=shape).astype(np.float32)
    im2col = Im2col(shape, groups, (1, 1), (1, 1), (0, 0, 0, 0))
    bound = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    qparams = Scheme(bits, INT8, symmetric=True, axis=0).qparams(Range(-bound, bound))
    inputs = im2col.inputs
    mixing = rng.normal(size=(groups, inputs, max(1, inputs // 3)))
    columns = mixing @ rng.normal(size=(groups, mixing.shape[2], 2000)) + 0.05 * rng.normal(size=(groups, inputs, 2000))
    sums = CovarianceSums(groups, channels, kernel * kernel)
    sums.add((columns + 2).astype(np.float32))
    return im2col, weight, RoundedWeight(qparams, qparams.quantize(weight)), sums.covariance(), columns


def output_error(im2col, weight, rounded, columns):
    """The variance of each output's error."""
    off = im2col.matrix(rounded.qparams.dequantize(rounded.integers)) - im2col.matrix(weight)
    return (off @ columns).var(axis=2).reshape(-1)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 3]), st.integers(2, 8), st.integers(0, 9))
def test_no_output_gets_worse_and_scales_stay(groups, channels, kernel, bits, seed):
    im2col, weight, start, covariance, _ = drawn(groups, channels=channels, kernel=kernel, bits=bits, seed=seed)
    found = round_weight(weight, start, im2col, covariance)
    assert found.integers.shape == weight.shape
    assert found.integers.dtype == start.integers.dtype
    assert np.abs(found.integers.astype(int)).max() <= start.qparams.scheme.qmax
    assert np.array_equal(found.qparams.scale, start.qparams.scale)
    exact = im2col.matrix(weight)
    before, after = (
        covariance.error(im2col.matrix(each.qparams.dequantize(each.integers)) - exact) for each in (start, found)
    )
    assert (after <= before * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize(("groups", "channels", "kernel"), [(1, 12, 3), (1, 40, 1), (4, 1, 3), (2, 20, 3)])
@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_err_much_less_than_rounded_to_nearest(groups, channels, kernel, bits):
    im2col, weight, start, covariance, columns = drawn(groups, channels=channels, kernel=kernel, bits=bits)
    found = round_weight(weight, start, im2col, covariance)
    before, after = (output_error(im2col, weight, each, columns).mean() for each in (start, found))
    assert after < 0.5 * before


def limit_of(weight, share):
    """A limit that a share of the greatest possible integers keeps."""
    channels = weight.shape[1]
    return PairLimit(np.full((1, channels), 255 * share), np.full((1, channels // 2), 510 * share))


@pytest.mark.parametrize("share", [0.6, 0.8, 1.0])
def test_the_limit_is_kept_and_few_scales_are_wider(share):
    im2col, weight, start, covariance, columns = drawn(outputs=30)
    limit = limit_of(weight, share)
    shares = limit.shares_of(start.integers, 0)
    assert shares.max() > 1
    wider = start.qparams.rescaled(start.qparams.scale * np.maximum(1, shares * 1.01))
    start = RoundedWeight(wider, wider.quantize(weight))
    assert limit.shares_of(start.integers, 0).max() <= 1
    found = round_weight(weight, start, im2col, covariance, limit)
    assert limit.shares_of(found.integers, 0).max() <= 1
    assert (found.qparams.scale >= start.qparams.scale).all()
    assert (found.qparams.scale <= start.qparams.scale * 1.1).all()
    before, after = (output_error(im2col, weight, each, columns).mean() for each in (start, found))
    assert after < 0.5 * before


def test_a_channel_that_no_scale_brings_within_the_limit_stays_as_it_was():
    im2col, weight, start, covariance, _ = drawn()
    nothing = RoundedWeight(start.qparams, np.zeros_like(start.integers))
    found = round_weight(weight, nothing, im2col, covariance, limit_of(weight, 1e6))
    assert np.array_equal(found.integers, nothing.integers)
    assert np.array_equal(found.qparams.scale, nothing.qparams.scale)


def test_a_large_weight_is_rounded_in_parts(monkeypatch):
    im2col, weight, start, covariance, _ = drawn(groups=6, channels=2)
    whole = round_weight(weight, start, im2col, covariance, limit_of(weight, 0.7))
    monkeypatch.setattr("onnxq.numerics.input_covariance._PART", 1)
    parts = round_weight(weight, start, im2col, covariance, limit_of(weight, 0.7))
    assert np.array_equal(parts.integers, whole.integers)
    assert np.array_equal(parts.qparams.scale, whole.qparams.scale)


def test_rounding_takes_little_more_than_the_weight():
    im2col, weight, start, covariance, _ = drawn(outputs=512, channels=2048, kernel=1)
    assert len(covariance.channels) == 8
    tracemalloc.start()
    try:
        round_weight(weight, start, im2col, covariance)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * weight.nbytes
