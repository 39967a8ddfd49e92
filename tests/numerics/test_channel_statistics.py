import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.channel_statistics import ChannelSums, spacing


def summed(images):
    sums = ChannelSums()
    extremes = [sums.add(image) for image in images]
    return sums.statistics(), extremes


def drawn(images, channels, size, seed=0):
    return np.random.default_rng(seed).normal(size=(images, channels, size, size)).astype(np.float32)


@given(channels=st.integers(1, 9), size=st.sampled_from([1, 5, 40, 300]), images=st.integers(1, 3))
def test_statistics_are_those_of_all_values(channels, size, images):
    values = drawn(images, channels, size)
    found, extremes = summed(values)
    by_channel = values.swapaxes(0, 1).reshape(channels, -1)
    even = channels // 2 * 2
    assert np.array_equal(found.peaks, by_channel.max(axis=1))
    assert np.array_equal(found.pair_peaks, (by_channel[0:even:2] + by_channel[1:even:2]).max(axis=1))
    np.testing.assert_allclose(found.means, by_channel.mean(axis=1, dtype=np.float64), atol=1e-5)
    assert extremes == [(image.min(), image.max()) for image in values]


@pytest.mark.parametrize("size", [3, 16])
def test_of_small_images_variances_are_those_of_all_values(size):
    values = drawn(4, 3, size)
    found, _ = summed(values)
    np.testing.assert_allclose(found.variances, values.var(axis=(0, 2, 3), dtype=np.float64), rtol=1e-5)


def test_of_large_images_variances_are_estimated():
    values = drawn(4, 3, 200) * np.array([1, 2, 4], np.float32)[:, None, None]
    found, _ = summed(values)
    np.testing.assert_allclose(found.variances, [1, 4, 16], rtol=0.2)


def test_the_order_of_images_makes_no_difference():
    values = drawn(5, 4, 17)
    first, second = summed(values)[0], summed(values[::-1])[0]
    assert all(np.array_equal(a, b) for a, b in zip(vars(first).values(), vars(second).values(), strict=True))


def in_parts(draw, items):
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=4)))
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


@given(st.data(), st.integers(1, 5))
def test_merged_they_are_those_of_all_images_to_the_bit(data, channels):
    values = drawn(6, channels, 5)
    values[data.draw(st.integers(0, 5))] = data.draw(st.sampled_from([0.0, -0.0, -1.0, 1e30]))
    merged = ChannelSums()
    for part in in_parts(data.draw, data.draw(st.permutations(range(6)))):
        sums = ChannelSums()
        for k in part:
            sums.add(values[k])
        merged.merge(sums)
    assert merged.images == 6
    found, whole = merged.statistics(), summed(values)[0]
    assert [a.tobytes() for a in vars(found).values()] == [a.tobytes() for a in vars(whole).values()]


@pytest.mark.parametrize("first", [0.0, -0.0])
def test_of_both_zeros_the_peak_is_the_positive_one(first):
    values = np.full((2, 3, 4, 4), first, np.float32)
    values[1] = -first
    for images in (values, values[:1], values[1:]):
        found = summed(images)[0]
        assert not np.signbit(found.peaks).any()
        assert not np.signbit(found.pair_peaks).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_image_that_is_not_finite_is_refused_and_not_added(bad):
    values = drawn(2, 3, 8)
    sums = ChannelSums()
    sums.add(values[0])
    spoiled = values[1].copy()
    spoiled[1, 4, 4] = bad
    with pytest.raises(FloatingPointError, match="NaN or infinite values"):
        sums.add(spoiled)
    assert sums.images == 1
    assert np.array_equal(sums.statistics().peaks, values[0].max(axis=(1, 2)))


@given(shape=st.lists(st.integers(1, 200), min_size=1, max_size=4).map(tuple), counted=st.integers(1, 10**4))
def test_spacing_is_1_or_prime_and_counts_about_as_many(shape, counted):
    found = spacing(shape, counted)
    assert found >= max(1, math.prod(shape) // counted)
    assert all(found % factor for factor in range(2, int(found**0.5) + 1))


@pytest.mark.parametrize("shape", [(1, 1024, 48), (32, 32, 48), (30, 42, 48), (48, 128, 128), (3, 160, 160)], ids=str)
def test_what_is_counted_is_of_all_columns_and_rows_alike(shape):
    found = spacing(shape, 1 << 14)
    assert found > 1
    places = np.unravel_index(np.arange(0, math.prod(shape), found), shape)
    for axis, length in enumerate(shape):
        numbers = np.bincount(places[axis], minlength=length)
        assert numbers.max() - numbers.min() <= numbers.mean() / 10 + 1


@given(channels=st.integers(1, 9), shift=st.sampled_from([-3.0, 0.0, 3.0]), seed=st.integers(0, 20))
def test_statistics_of_divided_channels(channels, shift, seed):
    values = drawn(2, channels, 8, seed) + np.float32(shift)
    scales = np.exp(np.random.default_rng(seed).normal(size=channels)).astype(np.float32)
    found, expected = summed(values)[0].divided(scales), summed(values / scales[:, None, None])[0]
    np.testing.assert_allclose(found.peaks, expected.peaks, rtol=1e-5)
    np.testing.assert_allclose(found.means, expected.means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variances, expected.variances, rtol=1e-4)
    assert np.all(found.pair_peaks >= expected.pair_peaks - 1e-5 * np.abs(expected.pair_peaks))
    ones = summed(values)[0].divided(np.ones(channels, np.float32))
    if shift > 0:
        np.testing.assert_allclose(ones.pair_peaks, summed(values)[0].pair_peaks)
