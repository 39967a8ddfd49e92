import numpy as np
import pytest
from histograms import HISTOGRAMS, SAMPLES, cost, each_asymmetric, each_sample, histogram

from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.range_methods.mse import mse
from onnxq.numerics.scheme import Scheme


@pytest.mark.slow
@each_asymmetric
@each_sample
def test_is_no_worse_than_any_other_method(scheme, name):
    h = HISTOGRAMS[name]
    own = cost(h, scheme, mse(h, scheme))
    others = {method: cost(h, scheme, METHODS[method].fit(h, scheme)) for method in ("uh", "minmax", "percentile")}
    assert own <= min(others.values()) * (1 + 1e-3), others


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", ["normal", "behind SiLU", "heavy tails", "two hills"])
def test_is_about_as_good_as_the_best_of_a_lattice_of_both_bounds(bits, name):
    h, scheme = HISTOGRAMS[name], Scheme(bits)
    lows = np.linspace(min(h.low, 0), 0, 40)
    highs = np.linspace(0, h.high, 41)[1:]
    best = min(squared_error(h, scheme, np.full(highs.shape, low), highs).min() for low in lows)
    assert cost(h, scheme, mse(h, scheme)) <= best * 1.02


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_few_outliers_on_both_sides_are_clipped_where_that_is_better(bits):
    h, scheme = histogram(np.concatenate([SAMPLES["normal"], [-60, 80]])), Scheme(bits)
    lows, highs = np.linspace(-60, 0, 100), np.linspace(0, 80, 101)[1:]
    best = min(squared_error(h, scheme, np.full(100, low), highs).min() for low in lows)
    assert cost(h, scheme, mse(h, scheme)) <= best * 1.02


@pytest.mark.parametrize("bits", [3, 8])
def test_a_mirrored_distribution_is_fitted_as_well(bits):
    h, mirrored, scheme = HISTOGRAMS["skewed"], histogram(-SAMPLES["skewed"]), Scheme(bits)
    assert cost(mirrored, scheme, mse(mirrored, scheme)) == pytest.approx(cost(h, scheme, mse(h, scheme)), rel=0.02)
