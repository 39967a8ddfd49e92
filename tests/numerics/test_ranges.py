import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import clipped_share, expected_sqnr, silu, silu_slope, squared_error
from onnxq.numerics.ranges import (
    METHODS,
    SILU_FLAT_BELOW,
    SILU_MINIMUM,
    before_silu,
    entropy,
    minmax,
    mse,
    percentile,
    unilateral_histogram,
)
from onnxq.numerics.scheme import INT8, UINT8, Range, Scheme

ASYMMETRIC = [Scheme(bits, container=INT8 if bits % 2 > 0 else UINT8) for bits in range(2, 9)]
SYMMETRIC = [Scheme(bits, container=INT8 if bits % 2 == 0 else UINT8, symmetric=True) for bits in range(2, 9)]
SCHEMES = ASYMMETRIC + SYMMETRIC


def _samples():
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(20_000)
    return {
        "normal": normal,
        "behind SiLU": silu(2 * normal),
        "behind ReLU": np.maximum(3 * normal, 0),
        "heavy tails": rng.standard_t(2, 20_000),
        "outliers above": np.concatenate([normal, rng.uniform(20, 40, 20)]),
        "skewed": rng.lognormal(0, 1.2, 20_000) - 0.3,
        "uniform": rng.uniform(-1, 5, 20_000),
        "two hills": np.concatenate([normal - 6, 0.2 * normal + 9]),
        "above zero": rng.gamma(2, 3, 20_000) + 4,
    }


SAMPLES = {name: x.astype(np.float32) for name, x in _samples().items()}


def histogram(values, floor=-math.inf):
    made = Histogram(floor)
    made.add(np.asarray(values, np.float32))
    return made


HISTOGRAMS = {name: histogram(x) for name, x in SAMPLES.items()}


def label(scheme):
    kind = "int" if scheme.container is INT8 else "uint"
    return f"{'symmetric' if scheme.symmetric else 'asymmetric'}-{kind}{scheme.bits}"


each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=label)
each_asymmetric = pytest.mark.parametrize("scheme", ASYMMETRIC, ids=label)
each_symmetric = pytest.mark.parametrize("scheme", SYMMETRIC, ids=label)
each_sample = pytest.mark.parametrize("name", SAMPLES)
# Half of what comes out of a ReLU is exactly zero, and not spread over its bin.
each_spread_sample = pytest.mark.parametrize("name", [name for name in SAMPLES if name != "behind ReLU"])


def rounded(x, scheme, low, high):
    """What is left of `x` on the grid that covers [low, high]; float64, by the definition."""
    scale, zero_point = scheme.grid(low, high)
    q = np.clip(np.rint(np.asarray(x, np.float64) / scale) + zero_point, scheme.qmin, scheme.qmax)
    return (q - zero_point) * scale


def cost(h, scheme, bounds):
    return float(squared_error(h, scheme, np.asarray(bounds.low), np.asarray(bounds.high))[0])


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


class TestMinmax:
    @each_scheme
    def test_is_exact(self, scheme):
        for name, x in SAMPLES.items():
            assert minmax(HISTOGRAMS[name], scheme) == Range(float(x.min()), float(x.max())), name


class TestPercentile:
    @pytest.mark.parametrize("share", [0.9999, 0.999, 0.99, 0.9])
    @pytest.mark.parametrize("name", ["normal", "heavy tails", "uniform", "skewed"])
    def test_leaves_out_its_share_at_either_end(self, share, name):
        x, h = SAMPLES[name], HISTOGRAMS[name]
        bounds = percentile(h, Scheme(8), share)
        wanted = (1 - share) * len(x)
        for left_out, bound in ((x < bounds.low, bounds.low), (x > bounds.high, bounds.high)):
            # Within a bin the values' order is not known.
            same_bin = np.abs(x - bound) <= h.width
            assert abs(np.count_nonzero(left_out) - wanted) <= np.count_nonzero(same_bin) + 1

    def test_leaves_out_far_outliers_that_minmax_keeps(self):
        x = np.concatenate([SAMPLES["uniform"], [-300, 400]])
        bounds = percentile(histogram(x), Scheme(8), share=0.999)
        assert -2 < bounds.low < -0.9
        assert 4.9 < bounds.high < 6

    def test_of_all_is_minmax(self):
        h = HISTOGRAMS["normal"]
        assert percentile(h, Scheme(8), share=1.0) == minmax(h, Scheme(8))

    @each_sample
    def test_by_default_one_in_ten_thousand_at_either_end(self, name):
        h = HISTOGRAMS[name]
        assert percentile(h, Scheme(8)) == percentile(h, Scheme(8), share=0.9999)


class TestUh:
    @each_asymmetric
    def test_keeps_the_lower_bound(self, scheme):
        for name, h in HISTOGRAMS.items():
            assert unilateral_histogram(h, scheme).low == h.low, name

    @each_asymmetric
    @pytest.mark.parametrize("name", ["normal", "behind SiLU", "heavy tails", "outliers above", "above zero"])
    def test_the_upper_bound_is_as_good_as_the_best_of_all_edges(self, scheme, name):
        h = HISTOGRAMS[name]
        # On fine grids the error goes up and down a little from edge to edge.
        tolerance = 1.01 if scheme.bits > 4 else 1.0001
        assert cost(h, scheme, unilateral_histogram(h, scheme)) <= self.best_of_all_edges(h, scheme, h.low) * tolerance

    @each_asymmetric
    def test_takes_the_lower_bound_that_is_known(self, scheme):
        h = histogram(silu(np.linspace(-1, 9, 5000)))
        bounds = unilateral_histogram(h, scheme, lower=SILU_MINIMUM)
        assert bounds.low == SILU_MINIMUM
        assert cost(h, scheme, bounds) <= self.best_of_all_edges(h, scheme, SILU_MINIMUM) * 1.01

    @staticmethod
    def best_of_all_edges(h, scheme, low):
        edges = h.occupied()[1]
        return min(
            squared_error(h, scheme, np.full(part.shape, low), part).min()
            for part in np.array_split(edges[edges > 0], 16)
        )

    def test_clips_the_more_the_fewer_the_bits(self):
        h = histogram(np.abs(SAMPLES["normal"]))
        highs = [unilateral_histogram(h, Scheme(bits)).high for bits in (2, 4, 6, 8)]
        assert highs == sorted(highs)
        assert highs[0] < 0.7 * h.high
        assert highs[-1] > 0.9 * h.high

    def test_does_not_clip_what_is_spread_evenly(self):
        h = histogram(np.linspace(0, 10, 50_000))
        assert unilateral_histogram(h, Scheme(8)).high > 9.9


class TestMse:
    @each_asymmetric
    @each_sample
    def test_is_no_worse_than_any_other_method(self, scheme, name):
        h = HISTOGRAMS[name]
        own = cost(h, scheme, mse(h, scheme))
        others = {method: cost(h, scheme, METHODS[method](h, scheme)) for method in ("uh", "minmax", "percentile")}
        assert own <= min(others.values()) * (1 + 1e-3), others

    @pytest.mark.parametrize("bits", [2, 4, 8])
    @pytest.mark.parametrize("name", ["normal", "behind SiLU", "heavy tails", "two hills"])
    def test_is_about_as_good_as_the_best_of_a_lattice_of_both_bounds(self, bits, name):
        h, scheme = HISTOGRAMS[name], Scheme(bits)
        lows = np.linspace(min(h.low, 0), 0, 40)
        highs = np.linspace(0, h.high, 41)[1:]
        best = min(squared_error(h, scheme, np.full(highs.shape, low), highs).min() for low in lows)
        assert cost(h, scheme, mse(h, scheme)) <= best * 1.02

    @pytest.mark.parametrize("bits", [4, 6, 8])
    def test_a_few_outliers_on_both_sides_are_clipped_where_that_is_better(self, bits):
        h, scheme = histogram(np.concatenate([SAMPLES["normal"], [-60, 80]])), Scheme(bits)
        lows, highs = np.linspace(-60, 0, 100), np.linspace(0, 80, 101)[1:]
        best = min(squared_error(h, scheme, np.full(100, low), highs).min() for low in lows)
        assert cost(h, scheme, mse(h, scheme)) <= best * 1.02

    @pytest.mark.parametrize("bits", [3, 8])
    def test_a_mirrored_distribution_is_fitted_as_well(self, bits):
        h, mirrored, scheme = HISTOGRAMS["skewed"], histogram(-SAMPLES["skewed"]), Scheme(bits)
        assert cost(mirrored, scheme, mse(mirrored, scheme)) == pytest.approx(cost(h, scheme, mse(h, scheme)), rel=0.02)


def divergence(counts, keep, levels):
    """KL(P | Q), slowly: P the first `keep` bins with the rest in the last, Q their `levels` means; no bin is empty."""
    p = [float(c) for c in counts[:keep]]
    total, kept = float(sum(counts)), float(sum(counts[:keep]))
    p[-1] += total - kept
    result = 0.0
    for level in range(levels):
        first, last = keep * level // levels, keep * (level + 1) // levels
        mean = sum(counts[first:last]) / (last - first)
        for i in range(first, last):
            result += p[i] / total * math.log((p[i] / total) / (mean / kept))
    return result


class TestEntropy:
    @each_scheme
    def test_clips_a_heavy_tail_that_minmax_keeps(self, scheme):
        h = HISTOGRAMS["heavy tails"] if scheme.symmetric else histogram(np.abs(SAMPLES["heavy tails"]))
        bounds = entropy(h, scheme)
        assert bounds != minmax(h, scheme)
        assert bounds.high < 0.5 * max(h.high, -h.low)
        assert clipped_share(h, scheme, bounds) < 0.5

    @each_asymmetric
    def test_keeps_the_lower_bound_of_asymmetric_grids(self, scheme):
        for name, h in HISTOGRAMS.items():
            assert entropy(h, scheme).low == h.low, name

    @each_symmetric
    def test_bounds_of_symmetric_grids_mirror_each_other(self, scheme):
        for name, h in HISTOGRAMS.items():
            bounds = entropy(h, scheme)
            assert bounds.low == -bounds.high, name

    @pytest.mark.parametrize("bits", [6, 8])
    def test_does_not_clip_what_is_spread_evenly(self, bits):
        h = histogram(np.linspace(0, 1, 200_000))
        assert entropy(h, Scheme(bits)).high > 0.95

    @each_scheme
    def test_the_zeros_of_a_relu_take_nothing_from_the_rest(self, scheme):
        values = np.abs(SAMPLES["normal"])
        plain, rectified = histogram(values), histogram(np.concatenate([values, np.zeros(values.size)]))
        assert entropy(rectified, scheme).high == pytest.approx(entropy(plain, scheme).high, rel=0.05)

    @pytest.mark.parametrize("bits", [4, 7, 8])
    def test_the_divergence_is_near_the_least_that_a_slow_reference_finds(self, bits):
        h = histogram(self.TAIL)
        assert h.width == 1
        counts = np.bincount(self.TAIL.astype(int)).tolist()
        self.check(counts, entropy(h, Scheme(bits)).high, 2**bits)

    @pytest.mark.parametrize("bits", [5, 8])
    def test_on_a_symmetric_grid_it_is_that_of_the_absolute_values(self, bits):
        h = histogram(self.TAIL * np.where(np.arange(self.TAIL.size) % 3, 1, -1))
        assert h.width == 2
        counts = np.bincount(self.TAIL.astype(int) // 2).tolist()
        self.check(counts, entropy(h, Scheme(bits, INT8, True)).high / 2, 2 ** (bits - 1))

    TAIL = np.repeat(np.arange(1200) + 0.5, [3 + round(3000 * math.exp(-i / 60)) + (i % 7 == 0) for i in range(1200)])
    """An exponential tail in bins of width 1, of which none is empty."""

    @staticmethod
    def check(counts, bound, levels):
        keeps = range(levels, len(counts) + 1, 9)
        by_keep = [divergence(counts, keep, levels) for keep in keeps]
        assert divergence(counts, math.ceil(bound), levels) <= min(by_keep) * 1.03
        # The bound matters: most others would be worse.
        assert np.median(by_keep) > min(by_keep) * 1.1


class TestSymmetricGrids:
    @each_symmetric
    @pytest.mark.parametrize("method", ["uh", "mse"])
    def test_the_bound_is_as_good_as_the_best_of_all_edges(self, method, scheme):
        for name, h in HISTOGRAMS.items():
            edges = np.unique(np.abs(h.occupied()[1]))
            best = min(squared_error(h, scheme, -part, part).min() for part in np.array_split(edges[edges > 0], 16))
            assert cost(h, scheme, METHODS[method](h, scheme)) <= best * 1.01, name

    @pytest.mark.parametrize("method", ["mse", "uh", "percentile", "entropy", "minmax"])
    @pytest.mark.parametrize("signed", [False, True])
    def test_bounds_reach_no_further_than_the_values(self, method, signed):
        for name, h in HISTOGRAMS.items():
            bounds = METHODS[method](h, Scheme(8, INT8 if signed else UINT8, symmetric=True))
            reach = max(abs(h.low), abs(h.high)) + h.width
            assert max(abs(bounds.low), abs(bounds.high)) <= reach, name


class TestBeforeSilu:
    """Errors are measured on the samples, behind the real SiLU."""

    MEANS = (-4.0, -1.0, 0.5, 3.0)

    @staticmethod
    def pre_activations(mean):
        rng = np.random.default_rng(11)
        x = rng.normal(mean, 2.5, 20_000)
        return np.concatenate([x, rng.uniform(-40, -10, 200)]).astype(np.float32)

    @staticmethod
    def measured(x, scheme, bounds):
        return float(np.mean((silu(rounded(x, scheme, bounds.low, bounds.high)) - silu(x.astype(np.float64))) ** 2))

    @each_scheme
    @pytest.mark.parametrize("mean", MEANS)
    def test_is_no_worse_behind_silu_than_minmax(self, scheme, mean):
        x = self.pre_activations(mean)
        own = self.measured(x, scheme, before_silu(histogram(x, SILU_FLAT_BELOW), scheme))
        everything = self.measured(x, scheme, minmax(histogram(x), scheme))
        floored = self.measured(x, scheme, minmax(histogram(x, SILU_FLAT_BELOW), scheme))
        assert own <= min(everything, floored)

    @pytest.mark.parametrize("mean", MEANS)
    def test_is_much_better_than_minmax_at_8_bits(self, mean):
        x = self.pre_activations(mean)
        own = self.measured(x, Scheme(8), before_silu(histogram(x, SILU_FLAT_BELOW), Scheme(8)))
        assert own < 0.5 * self.measured(x, Scheme(8), minmax(histogram(x), Scheme(8)))

    @pytest.mark.parametrize("bits", [5, 6, 8])
    @pytest.mark.parametrize("mean", MEANS)
    def test_is_about_as_good_as_the_best_of_a_lattice_of_both_bounds(self, bits, mean):
        x, scheme = self.pre_activations(mean)[::4], Scheme(bits)
        lows, highs = np.linspace(-10, 0, 24), np.linspace(x.max() / 24, x.max(), 24)
        best = min(self.measured(x, scheme, Range(low, high)) for low in lows for high in highs)
        own = self.measured(x, scheme, before_silu(histogram(x, SILU_FLAT_BELOW), scheme))
        assert own <= 1.15 * best

    @pytest.mark.parametrize("bits", [3, 6, 8])
    @pytest.mark.parametrize("mean", MEANS)
    def test_has_the_least_error_to_first_order(self, bits, mean):
        h, scheme = histogram(self.pre_activations(mean), SILU_FLAT_BELOW), Scheme(bits)
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
    def test_values_below_the_floor_make_no_difference(self, scheme):
        x = SAMPLES["normal"] * 4
        far = histogram(np.concatenate([x, [-11, -25, -900, -1e6]]), SILU_FLAT_BELOW)
        near = histogram(np.concatenate([x, [-10, -10, -10, -10]]), SILU_FLAT_BELOW)
        bounds = before_silu(far, scheme)
        assert bounds == before_silu(near, scheme)
        assert bounds.low >= SILU_FLAT_BELOW

    def test_the_flat_part_of_silu_is_clipped(self):
        bounds = before_silu(histogram(np.linspace(-10, 10, 20_001)), Scheme(8))
        assert -10 < bounds.low < -3
        assert bounds.high > 9.8

    def test_silu_and_its_slope(self):
        x = np.linspace(-30, 30, 601)
        expected = x / (1 + np.exp(-x))
        np.testing.assert_allclose(silu(x), expected, rtol=1e-9, atol=1e-9)
        step = 1e-5
        np.testing.assert_allclose(silu_slope(x), (silu(x + step) - silu(x - step)) / (2 * step), atol=1e-8)
        assert silu(np.linspace(-2, -1, 100_001)).min() == pytest.approx(SILU_MINIMUM, abs=1e-8)
        assert abs(silu(np.float64(SILU_FLAT_BELOW))) < 5e-4


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


NEARLY = float(np.nextafter(np.float32(1), np.float32(2)))

DEGENERATE = {
    "nothing": [],
    "one value": [3.7],
    "one value below zero": [-3.7],
    "one zero": [0.0],
    "all equal": [0.02] * 1000,
    "all equal below zero": [-25.0] * 1000,
    "all zero": [0.0] * 1000,
    "one bin": [1.0, NEARLY, 1.0],
    "one bin below zero": [-1.0, -NEARLY, -1.0],
    "two values": [-1.0, 1.0],
    "zero and one": [0.0, 1.0],
    "tiny": [1e-30, -1e-30, 2e-30],
    "huge": [1e30, -1e30, 2e30],
    "close to each other": [100.0, 100.001],
    "below zero": [-3.0, -2.0, -1.0, -5.0],
}
ALL_METHODS = {
    **METHODS,
    "uh behind SiLU": lambda h, s: unilateral_histogram(h, s, lower=SILU_MINIMUM),
    "before SiLU": before_silu,
}


FEW_SCHEMES = [Scheme(8), Scheme(2, INT8), Scheme(8, INT8, True), Scheme(3, UINT8, True)]


@pytest.mark.parametrize("scheme", FEW_SCHEMES, ids=label)
@pytest.mark.parametrize("method", ALL_METHODS)
def test_degenerate_tensors_get_a_usable_range(method, scheme):
    for name, items in DEGENERATE.items():
        check_usable(ALL_METHODS[method], items, scheme, name)


def check_usable(method, items, scheme, name):
    h = histogram(items)
    bounds = method(h, scheme)
    assert isinstance(bounds.low, float), name
    assert isinstance(bounds.high, float), name
    assert 0 < float(scheme.qparams(bounds).scale) < math.inf, name
    assert 0 <= clipped_share(h, scheme, bounds) <= 1, name
    energy = float(np.sum(np.square(np.asarray(items, np.float64))))
    assert -1e-9 * energy <= cost(h, scheme, bounds) <= 1.001 * energy, name


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(2, INT8), Scheme(8, INT8, True)], ids=label)
@pytest.mark.parametrize("value", [3.7, -3.7, 0.0, 0.02, -1e-6, 1e6])
@pytest.mark.parametrize("method", ["uh", "mse", "minmax", "percentile", "before SiLU"])
def test_a_constant_keeps_its_value(method, value, scheme):
    value = float(np.float32(value))
    bounds = ALL_METHODS[method](histogram([value] * 100), scheme)
    assert rounded(value, scheme, bounds.low, bounds.high) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=20, deadline=None)
@given(st.sampled_from(SCHEMES), st.integers(0, 10**6))
def test_no_method_is_worse_than_all_zeros(method, scheme, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(rng.uniform(-3, 3), rng.uniform(0.1, 5), 2000)
    h = histogram(x)
    bounds = METHODS[method](h, scheme)
    assert bounds.low <= bounds.high
    assert cost(h, scheme, bounds) <= np.sum(x**2) * 1.01


def test_methods_by_name():
    by_name = {"uh": unilateral_histogram, "mse": mse, "minmax": minmax, "percentile": percentile, "entropy": entropy}
    assert by_name == METHODS
