import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saturation import saturating_sums

from onnxq.numerics.pair_sums import LARGEST_SUM, greatest_pair_sums


def made(seed, outputs, channels, positions, rows=1):
    """A weight, peaks and pair peaks of this many rows."""
    rng = np.random.default_rng(seed)
    weight = rng.integers(-127, 128, (outputs, channels, positions))
    peaks = rng.integers(0, 256, (rows, channels)).astype(float)
    first, second = peaks[:, : channels // 2 * 2 : 2], peaks[:, 1::2]
    least = np.maximum(first, second)
    pair_peaks = np.floor(least + rng.random(first.shape) * (first + second - least))
    return weight, peaks, pair_peaks


def pair_sums(weight, values):
    """The sums of all pairs of neighbors of one output channel, in the order of kernels: positions, then channels.

    A single channel has all pairs of positions.
    """
    products = (weight * values).T.reshape(-1)
    if len(weight) == 1:
        return np.array([sum(pair) for pair in itertools.combinations(products, 2)])
    return products[:-1] + products[1:] if len(weight) % 2 else products[0::2] + products[1::2]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 7), st.integers(1, 4))
def test_no_activations_within_the_peaks_give_more(seed, outputs, channels, positions):
    weight, peaks, pair_peaks = made(seed, outputs, channels, positions)
    bounds = greatest_pair_sums(weight, peaks, pair_peaks)
    rng = np.random.default_rng(seed)
    for _ in range(50):
        values = rng.integers(0, peaks[0].astype(int) + 1, (positions, channels)).T
        values = np.where(rng.random(values.shape) < 0.5, values, peaks[0, :, None])
        for pair in range(channels // 2):
            over = values[2 * pair] + values[2 * pair + 1] > pair_peaks[0, pair]
            values[2 * pair + 1, over] = pair_peaks[0, pair] - values[2 * pair, over]
        for output in range(outputs):
            sums = pair_sums(weight[output], values)
            assert sums.size == 0 or np.abs(sums).max() <= bounds[output]


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4))
def test_of_an_even_number_of_channels_it_is_attained(seed, outputs, half, positions):
    weight, peaks, pair_peaks = made(seed, outputs, 2 * half, positions)
    expected = np.zeros(outputs)
    for output, pair, position in itertools.product(range(outputs), range(half), range(positions)):
        first, second = weight[output, 2 * pair : 2 * pair + 2, position]
        peak0, peak1 = peaks[0, 2 * pair : 2 * pair + 2]
        both = pair_peaks[0, pair]
        corners = [(0, 0), (peak0, 0), (0, peak1), (peak0, both - peak0), (both - peak1, peak1)]
        assert all(0 <= a <= peak0 and 0 <= b <= peak1 and a + b <= both for a, b in corners)
        expected[output] = max(expected[output], *(abs(first * a + second * b) for a, b in corners))
    np.testing.assert_array_equal(greatest_pair_sums(weight, peaks, pair_peaks), expected)


def test_of_an_odd_number_of_channels_pairs_span_positions():
    weight = np.zeros((1, 3, 2))
    weight[0, 2, 0], weight[0, 0, 1] = 100, 27  # last channel of the first position, first of the second
    peaks = np.array([[10.0, 20.0, 30.0]])
    assert greatest_pair_sums(weight, peaks, np.zeros((1, 1))) == [100 * 30 + 27 * 10]
    weight[0, 2, 0], weight[0, 0, 1], weight[0, 0, 0], weight[0, 2, 1] = 0, 0, 100, 27
    assert greatest_pair_sums(weight, peaks, np.zeros((1, 1))) == [100 * 10]


def test_of_a_single_channel_any_two_positions_are_a_pair():
    weight = np.zeros((3, 1, 9))
    weight[0, 0, [0, 3]] = 100, 27
    weight[1, 0, [2, 8]] = -100, 27
    weight[2, 0, [1, 4, 7]] = -100, -90, -80
    assert greatest_pair_sums(weight, np.array([[10.0]]), np.zeros((1, 0))).tolist() == [1270, 1000, 1900]
    assert greatest_pair_sums(weight[:, :, :1], np.array([[10.0]]), np.zeros((1, 0))).tolist() == [1000, 0, 0]


def test_pair_peaks_of_an_odd_number_of_channels_are_not_used():
    weight, peaks, pair_peaks = made(0, 4, 5, 9)
    found = greatest_pair_sums(weight, peaks, pair_peaks)
    assert np.array_equal(found, greatest_pair_sums(weight, peaks, np.zeros((1, 0))))


def test_products_of_different_signs_cancel():
    peaks, pair_peaks = np.array([[255.0, 200.0]]), np.array([[455.0]])
    assert greatest_pair_sums(np.array([[[127], [-127]]]), peaks, pair_peaks) == [127 * 255]
    assert greatest_pair_sums(np.array([[[100], [-127]]]), peaks, pair_peaks) == [100 * 255]
    assert greatest_pair_sums(np.array([[[-127], [-127]]]), peaks, pair_peaks) == [127 * 455]


def test_each_output_channel_may_have_peaks_of_its_own():
    weight = np.full((2, 2, 1), 100)
    peaks, pair_peaks = np.array([[1.0, 2.0], [30.0, 40.0]]), np.array([[3.0], [50.0]])
    assert greatest_pair_sums(weight, peaks, pair_peaks).tolist() == [300, 5000]


@pytest.mark.parametrize("channels", [2, 3])
def test_no_output_channels_have_no_sums(channels):
    found = greatest_pair_sums(np.zeros((0, channels, 4)), np.ones((1, channels)), np.ones((1, channels // 2)))
    assert found.shape == (0,)


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_up_to_the_largest_are_exact_and_those_beyond_are_not(sign):
    left = np.array([LARGEST_SUM // 127, LARGEST_SUM % 127])
    assert saturating_sums(left, sign * np.array([127, 1])) == sign * LARGEST_SUM
    assert abs(saturating_sums(left + np.array([1, 0]), sign * np.array([127, 1]))) < LARGEST_SUM + 127


@pytest.mark.parametrize("channels", [1, 5, 6])
@pytest.mark.parametrize("rows", [1, 7])
def test_a_large_weight_is_bounded_in_parts(monkeypatch, channels, rows):
    given = made(0, 7, channels, 3, rows)
    whole = greatest_pair_sums(*given)
    monkeypatch.setattr("onnxq.numerics.pair_sums._BLOCK", 2 * channels * 3)
    assert np.array_equal(greatest_pair_sums(*given), whole)
