import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.channel_scales import channel_scales

PEAKS = st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=20).map(lambda values: np.array(values, np.float32))


def test_a_scale_grows_with_the_root_of_the_peak():
    assert channel_scales(np.array([1, 4, 16], np.float32)) == pytest.approx([0.5, 1, 2])


def test_scales_that_cost_weights_nothing_are_the_peaks():
    peaks = np.float32([1, 4, 16])
    assert channel_scales(peaks, whole=True) == pytest.approx(peaks / 4)


@given(PEAKS)
def test_their_geometric_mean_is_one(peaks):
    scales = channel_scales(peaks)
    assert scales.dtype == np.float32
    assert scales.shape == peaks.shape
    assert np.log(scales.astype(np.float64)).mean() == pytest.approx(0, abs=1e-5)


@given(PEAKS)
def test_channels_come_closer_to_each_other_and_keep_their_order(peaks):
    divided = peaks / channel_scales(peaks)
    assert divided.max() / divided.min() <= peaks.max() / peaks.min() * (1 + 1e-5)
    order = np.argsort(peaks, kind="stable")
    assert np.all(np.diff(divided[order]) >= -1e-5 * divided.max())


@given(PEAKS, st.floats(0.01, 100))
def test_the_unit_of_the_tensor_does_not_matter(peaks, unit):
    assert channel_scales((peaks * np.float32(unit)).astype(np.float32)) == pytest.approx(
        channel_scales(peaks), rel=1e-3
    )


@given(PEAKS)
def test_no_channel_is_enlarged_beyond_measure(peaks):
    scales = channel_scales(peaks)
    assert scales.max() / scales.min() <= 20**0.5 * (1 + 1e-5)


@pytest.mark.parametrize(
    "peaks",
    [[3, 3, 3], [3, 3.1, 2.9], [0, 0], [-1, -2], [1, np.nan], [1, np.inf], [5]],
    ids=["equal", "alike", "zero", "negative", "nan", "infinite", "one"],
)
def test_channels_that_are_alike_or_unknown_stay(peaks):
    assert np.all(channel_scales(np.array(peaks, np.float32)) == 1)


def test_a_dead_channel_counts_as_a_small_one():
    assert channel_scales(np.array([20, 0], np.float32)) == pytest.approx(channel_scales(np.array([20, 1], np.float32)))
