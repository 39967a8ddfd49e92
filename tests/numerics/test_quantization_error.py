import math

import numpy as np
import pytest
from histograms import HISTOGRAMS, SAMPLES, SCHEMES, cost, each_sample, each_spread_sample, histogram, label, rounded
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import clipped_share, expected_sqnr, squared_error
from onnxq.numerics.range_methods.minmax import minmax
from onnxq.numerics.range_methods.percentile import percentile
from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.numerics.silu import SILU_MINIMUM


def brute_force_error(h, scheme, low, high, points=400):
    """Sum of the squared errors of values drawn evenly in every bin."""
    counts, edges = h.occupied()
    shares = (np.arange(points) + 0.5) / points
    total = 0.0
    for count, left, right in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            x = left + shares * (right - left)
            total += count * np.mean((x - rounded(x, scheme, low, high)) ** 2)
    return total


class TestSquaredError:
    @settings(max_examples=60, deadline=None)
    @given(
        st.sampled_from(SCHEMES),
        st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=12),
        st.lists(st.tuples(st.floats(-1.5, 0), st.floats(0.01, 1.5)), min_size=1, max_size=4),
        st.sampled_from([1e-3, 1.0, 1e4]),
    )
    def test_equals_the_error_of_values_spread_evenly_in_the_bins(self, scheme, items, bounds, magnitude):
        h = histogram(np.asarray(items) * magnitude)
        low, high = np.asarray(bounds).T * magnitude
        expected = [brute_force_error(h, scheme, lo, hi) for lo, hi in zip(low, high, strict=True)]
        # What 400 points in a bin cannot see: a share of a step that is narrower than the bin.
        np.testing.assert_allclose(squared_error(h, scheme, low, high), expected, rtol=5e-3, atol=1e-9 * magnitude**2)

    @pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, INT8), Scheme(8, INT8, True), Scheme(2)], ids=label)
    @each_spread_sample
    def test_is_close_to_the_error_of_the_samples_themselves(self, scheme, name):
        x, h = SAMPLES[name].astype(np.float64), HISTOGRAMS[name]
        for share in (0.3, 1.0):
            bounds = Range(h.low * share, h.high * share)
            expected = np.sum((x - rounded(x, scheme, bounds.low, bounds.high)) ** 2)
            assert cost(h, scheme, bounds) == pytest.approx(expected, rel=0.05)

    def test_values_between_two_grid_points_are_off_by_a_twelfth_of_the_step_squared(self):
        h = histogram(np.linspace(0, 255, 1_000_001))
        assert cost(h, Scheme(8), Range(0, 255)) / h.total == pytest.approx(1 / 12, rel=1e-3)

    def test_of_a_constant_on_the_grid_is_zero_and_off_the_grid_its_distance(self):
        h = histogram([3.0] * 10)
        scheme = Scheme(2)
        assert cost(h, scheme, Range(0, 3)) == pytest.approx(0, abs=1e-12)
        assert cost(h, scheme, Range(0, 4.5)) == pytest.approx(0, abs=1e-12)
        assert cost(h, scheme, Range(0, 6)) == pytest.approx(10 * 1**2)
        assert cost(h, scheme, Range(0, 2)) == pytest.approx(10 * 1**2)
        assert cost(h, scheme, Range(-3, 0)) == pytest.approx(10 * 3**2)

    @pytest.mark.parametrize("tiny", [1e-6, 1e-12, 1e-16, 1e-20, 1e-30])
    @pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, INT8), Scheme(8, INT8, True)], ids=label)
    def test_an_outermost_bin_that_is_cut_to_almost_nothing_counts_as_what_it_holds(self, scheme, tiny):
        x = np.concatenate([np.random.default_rng(0).uniform(0, 1, 10_000), np.full(10_000, -tiny)])
        for high in (0.3, 0.7, 1.0):
            expected = np.sum((x - rounded(x, scheme, SILU_MINIMUM, high)) ** 2)
            assert cost(histogram(x), scheme, Range(SILU_MINIMUM, high)) == pytest.approx(expected, rel=0.02)

    def test_scores_many_candidates_like_each_alone(self):
        h, scheme = HISTOGRAMS["behind SiLU"], Scheme(5)
        highs = np.linspace(0.5, h.high, 9)
        together = squared_error(h, scheme, np.full(9, h.low), highs)
        assert together.shape == (9,)
        np.testing.assert_allclose(together, [cost(h, scheme, Range(h.low, high)) for high in highs])


class TestWhatARangeCosts:
    @pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, INT8), Scheme(8, INT8, True)], ids=label)
    @each_spread_sample
    def test_sqnr_is_close_to_that_of_the_samples(self, scheme, name):
        x, h = SAMPLES[name].astype(np.float64), HISTOGRAMS[name]
        for bounds in (minmax(h, scheme), percentile(h, scheme, 0.99)):
            noise = np.sum((x - rounded(x, scheme, bounds.low, bounds.high)) ** 2)
            assert expected_sqnr(h, scheme, bounds) == pytest.approx(10 * math.log10(np.sum(x**2) / noise), abs=0.3)

    def test_each_bit_is_worth_six_decibels(self):
        h = histogram(np.linspace(-1, 1, 100_000))
        by_bits = [expected_sqnr(h, Scheme(bits), Range(-1, 1)) for bits in range(4, 9)]
        assert np.diff(by_bits) == pytest.approx([6.02] * 4, abs=0.7)

    def test_sqnr_without_values_or_signal_is_not_a_number(self):
        assert math.isnan(expected_sqnr(Histogram(), Scheme(8), Range(0, 1)))
        assert math.isnan(expected_sqnr(histogram([0.0, 0.0]), Scheme(8), Range(0, 1)))

    def test_sqnr_of_a_constant_on_the_grid_has_no_bound(self):
        assert expected_sqnr(histogram([1.0] * 5), Scheme(8), Range(0, 255)) == math.inf

    @pytest.mark.parametrize("scheme", [Scheme(8), Scheme(8, INT8, True), Scheme(4)], ids=label)
    def test_clipped_share_is_that_of_the_samples(self, scheme):
        x, h = SAMPLES["normal"], HISTOGRAMS["normal"]
        for low, high in ((-1, 1), (-0.5, 2), (0, 3), (h.low, h.high)):
            reach_low, reach_high, step = scheme.reach(low, high)
            expected = np.mean((x < reach_low - step / 2) | (x > reach_high + step / 2))
            assert clipped_share(h, scheme, Range(low, high)) == pytest.approx(expected, abs=0.002)

    @each_sample
    def test_minmax_clips_nothing(self, name):
        h = HISTOGRAMS[name]
        assert clipped_share(h, Scheme(8), minmax(h, Scheme(8))) == 0
