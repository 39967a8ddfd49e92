import numpy as np
import pytest
from histograms import HISTOGRAMS, SAMPLES, cost, each_asymmetric, histogram

from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.range_methods.unilateral_histogram import unilateral_histogram
from onnxq.numerics.scheme import Scheme
from onnxq.numerics.silu import SILU_MINIMUM, silu


@each_asymmetric
def test_keeps_the_lower_bound(scheme):
    for name, h in HISTOGRAMS.items():
        assert unilateral_histogram(h, scheme).low == h.low, name


@each_asymmetric
@pytest.mark.parametrize("name", ["normal", "behind SiLU", "heavy tails", "outliers above", "above zero"])
def test_the_upper_bound_is_as_good_as_the_best_of_all_edges(scheme, name):
    h = HISTOGRAMS[name]
    # On fine grids the error goes up and down a little from edge to edge.
    tolerance = 1.01 if scheme.bits > 4 else 1.0001
    assert cost(h, scheme, unilateral_histogram(h, scheme)) <= best_of_all_edges(h, scheme, h.low) * tolerance


@each_asymmetric
def test_takes_the_lower_bound_that_is_known(scheme):
    h = histogram(silu(np.linspace(-1, 9, 5000)))
    bounds = unilateral_histogram(h, scheme, lower=SILU_MINIMUM)
    assert bounds.low == SILU_MINIMUM
    assert cost(h, scheme, bounds) <= best_of_all_edges(h, scheme, SILU_MINIMUM) * 1.01


def best_of_all_edges(h, scheme, low):
    edges = h.occupied()[1]
    return min(
        squared_error(h, scheme, np.full(part.shape, low), part).min() for part in np.array_split(edges[edges > 0], 16)
    )


def test_clips_the_more_the_fewer_the_bits():
    h = histogram(np.abs(SAMPLES["normal"]))
    highs = [unilateral_histogram(h, Scheme(bits)).high for bits in (2, 4, 6, 8)]
    assert highs == sorted(highs)
    assert highs[0] < 0.7 * h.high
    assert highs[-1] > 0.9 * h.high


def test_does_not_clip_what_is_spread_evenly():
    h = histogram(np.linspace(0, 10, 50_000))
    assert unilateral_histogram(h, Scheme(8)).high > 9.9
