import math

import numpy as np
import pytest
from histograms import HISTOGRAMS, cost, each_sample, histogram

from onnxq.numerics.bounds import alternate_bounds, best_high, observed, prefix_sums
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import Range, Scheme


def test_observed_are_the_extremes():
    assert observed(histogram([3.0, -1.5, 2.0])) == (-1.5, 3.0)
    assert observed(Histogram()) == (0.0, 0.0)


def test_prefix_sums_start_at_zero():
    assert prefix_sums(np.array([1, 2, 3])).tolist() == [0, 1, 3, 6]
    assert prefix_sums(np.array([], np.int64)).tolist() == [0]


@each_sample
def test_the_best_high_keeps_the_lower_bound(name):
    h = HISTOGRAMS[name]
    for low in (h.low, -0.5, -100.0):
        bounds = best_high(h, Scheme(8), low)
        assert bounds.low == low
        assert 0 < bounds.high <= h.high


@each_sample
def test_the_bounds_of_a_symmetric_grid_are_within_each_other(name):
    h = HISTOGRAMS[name]
    bounds = best_high(h, Scheme(4, symmetric=True), h.low)
    assert bounds.low == max(h.low, -bounds.high)


def test_without_values_above_zero_the_greatest_is_the_bound():
    assert best_high(histogram([-3.0, -2.0]), Scheme(8), -3.0) == Range(-3.0, -2.0)


@pytest.mark.parametrize("bits", [2, 4, 8])
@each_sample
def test_alternating_ends_where_neither_bound_gains_by_moving(bits, name):
    h, scheme = HISTOGRAMS[name], Scheme(bits)
    found = alternate_bounds(h, scheme, *observed(h))
    own = cost(h, scheme, found)
    assert own <= cost(h, scheme, Range(*observed(h))) * (1 + 1e-9)
    assert own <= cost(h, scheme, best_high(h, scheme, found.low)) * 1.001
    assert math.isfinite(own)
