"""Errors are measured on the samples, behind the real SiLU."""

import numpy as np
import pytest
from histograms import SAMPLES, each_scheme, histogram, rounded

from onnxq.numerics.before_silu import before_silu
from onnxq.numerics.range_methods.minmax import minmax
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.silu import SILU_FLAT_BELOW, silu

MEANS = (-4.0, -1.0, 0.5, 3.0)


def pre_activations(mean):
    rng = np.random.default_rng(11)
    x = rng.normal(mean, 2.5, 20_000)
    return np.concatenate([x, rng.uniform(-40, -10, 200)]).astype(np.float32)


def measured(x, scheme, bounds):
    return float(np.mean((silu(rounded(x, scheme, bounds.low, bounds.high)) - silu(x.astype(np.float64))) ** 2))


@each_scheme
@pytest.mark.parametrize("mean", MEANS)
def test_is_no_worse_behind_silu_than_minmax(scheme, mean):
    x = pre_activations(mean)
    own = measured(x, scheme, before_silu(histogram(x, SILU_FLAT_BELOW), scheme))
    everything = measured(x, scheme, minmax(histogram(x), scheme))
    floored = measured(x, scheme, minmax(histogram(x, SILU_FLAT_BELOW), scheme))
    assert own <= min(everything, floored)


@pytest.mark.parametrize("mean", MEANS)
def test_is_much_better_than_minmax_at_8_bits(mean):
    x = pre_activations(mean)
    own = measured(x, Scheme(8), before_silu(histogram(x, SILU_FLAT_BELOW), Scheme(8)))
    assert own < 0.5 * measured(x, Scheme(8), minmax(histogram(x), Scheme(8)))


@pytest.mark.slow
@pytest.mark.parametrize("bits", [5, 6, 8])
@pytest.mark.parametrize("mean", MEANS)
def test_is_about_as_good_as_the_best_of_a_lattice_of_both_bounds(bits, mean):
    x, scheme = pre_activations(mean)[::4], Scheme(bits)
    lows, highs = np.linspace(-10, 0, 24), np.linspace(x.max() / 24, x.max(), 24)
    best = min(measured(x, scheme, Range(low, high)) for low in lows for high in highs)
    own = measured(x, scheme, before_silu(histogram(x, SILU_FLAT_BELOW), scheme))
    assert own <= 1.15 * best


@pytest.mark.slow
@pytest.mark.parametrize("bits", [3, 6, 8])
@pytest.mark.parametrize("mean", MEANS)
def test_has_the_least_error_to_first_order(bits, mean):
    h, scheme = histogram(pre_activations(mean), SILU_FLAT_BELOW), Scheme(bits)
    counts, edges = h.occupied()
    x = (edges[:-1] + edges[1:]) / 2
    slope = (silu(x + 1e-5) - silu(x - 1e-5)) / 2e-5

    def expected(low, high):
        low, high, step = scheme.reach(low, high)
        inside = (x >= low) & (x < high)
        clipped = (silu(x) - silu(np.clip(x, low, high))) ** 2
        return np.sum(counts * np.where(inside, slope**2 * step**2 / 12, clipped))

    least = min(expected(low, high) for low in np.linspace(h.low, 0, 64) for high in np.linspace(0, h.high, 65)[1:])
    bounds = before_silu(h, scheme)
    assert expected(bounds.low, bounds.high) <= least * 1.005


@each_scheme
def test_values_below_the_floor_make_no_difference(scheme):
    x = SAMPLES["normal"] * 4
    far = histogram(np.concatenate([x, [-11, -25, -900, -1e6]]), SILU_FLAT_BELOW)
    near = histogram(np.concatenate([x, [-10, -10, -10, -10]]), SILU_FLAT_BELOW)
    bounds = before_silu(far, scheme)
    assert bounds == before_silu(near, scheme)
    assert bounds.low >= SILU_FLAT_BELOW


def test_the_flat_part_of_silu_is_clipped():
    bounds = before_silu(histogram(np.linspace(-10, 10, 20_001)), Scheme(8))
    assert -10 < bounds.low < -3
    assert bounds.high > 9.8
