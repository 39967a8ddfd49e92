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


@given(values=st.integers(1, 10**7), counted=st.integers(1, 10**4))
def test_spacing_is_1_or_prime_and_counts_about_as_many(values, counted):
    found = spacing(values, counted)
    assert found >= max(1, values // counted)
    assert all(found % factor for factor in range(2, int(found**0.5) + 1))
