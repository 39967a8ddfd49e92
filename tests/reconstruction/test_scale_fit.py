from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.scale_fit import Reader, fit_scales

CHANNELS, COUNT = 16, 1024
UNEQUAL = np.geomspace(1, 20, CHANNELS)
ONE_GREAT = np.where(np.arange(CHANNELS) == 3, 12.0, 1.0)


class Input:
    """An input with channels of these peaks, and a Conv whose weights are of these sizes."""

    def __init__(self, peaks, sizes, weight_bits, act_bits, kernel=1, group=1, rare=0, seed=0):
        rng = np.random.default_rng(seed)
        per_group = CHANNELS // group
        im2col = Im2col((24, per_group, kernel, kernel), group, (1, 1), (1, 1), (0, 0, 0, 0))
        taps = kernel * kernel
        shape = (group, per_group, taps, COUNT)
        inputs = rng.uniform(0, 1, shape) * peaks.reshape(group, per_group, 1, 1)
        if rare:
            inputs[..., rng.permutation(COUNT) >= COUNT // rare] /= peaks.reshape(group, per_group, 1, 1)
        weight = rng.normal(size=(group, 24 // group, per_group, taps))
        weight *= sizes.reshape(group, 1, per_group, 1) / np.sqrt(np.square(weight).mean(axis=(1, 3), keepdims=True))
        inputs = inputs.reshape(group, -1, COUNT).astype(np.float32)
        weight = weight.reshape(group, 24 // group, -1)
        outputs = (weight @ inputs + 1).astype(np.float32)
        scheme = Scheme(weight_bits, INT8, symmetric=True, axis=0)
        self.reader = Reader(im2col, scheme, weight, True, inputs, outputs, np.ones(COUNT, np.float32))
        logs = np.log(peaks)
        self.whole = np.exp(logs - logs.mean())
        self.scales = np.sqrt(self.whole).astype(np.float32)
        self.peaks = peaks / self.scales
        self.fitted = Scheme(act_bits).qparams(Range(0.0, float(self.peaks.max())))

    def fit(self, readers=None, ranges=False, pool=None):
        return fit_scales(self.scales, self.fitted, self.peaks, readers or [self.reader], ranges=ranges, pool=pool)


def narrow_input(**options):
    """Inputs have few levels, and weights that make channels count alike: each must have a scale of its own."""
    return Input(UNEQUAL, 1 / UNEQUAL, 8, 3, **options)


def narrow_weight(**options):
    """Weights have few levels and are alike, and an input is seldom great: its weights must not be enlarged."""
    return Input(ONE_GREAT, np.ones(CHANNELS), 3, 8, rare=COUNT, **options)


@pytest.mark.parametrize("options", [{}, {"kernel": 3}, {"group": 4}], ids=str)
@pytest.mark.parametrize("ranges", [False, True])
def test_narrow_inputs_are_divided_by_their_peaks(options, ranges):
    given = narrow_input(**options)
    found = given.fit(ranges=ranges)
    np.testing.assert_allclose(found.scales, given.whole, rtol=1e-5)
    assert found.qparams.scheme == given.fitted.scheme
    # The peaks of all quotients are the same.
    assert ranges or found.qparams.high == pytest.approx(UNEQUAL[0] / given.whole[0], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"kernel": 3}, {"group": 4}], ids=str)
def test_inputs_of_narrow_weights_are_not_divided(options):
    given = narrow_weight(**options)
    found = given.fit()
    assert np.all(found.scales == 1)
    assert found.qparams.high == pytest.approx(12, rel=1e-5)


def test_scales_that_are_best_keep_the_fitted_range():
    given = Input(np.ones(CHANNELS), np.ones(CHANNELS), 8, 4)
    found = given.fit()
    assert np.array_equal(found.scales, given.scales)
    assert found.qparams == given.fitted


def test_readers_count_alike_whatever_the_size_of_their_outputs():
    wide, small = narrow_input(), Input(UNEQUAL, np.ones(CHANNELS), 2, 3, seed=1)
    assert not np.array_equal(wide.fit().scales, wide.fit([small.reader]).scales)
    found = wide.fit([wide.reader, small.reader])
    for factor in (1e-3, 1e3):
        great = replace(
            small.reader, weight=small.reader.weight * factor, outputs=small.reader.outputs * np.float32(factor)
        )
        for readers in ([wide.reader, great], [great, wide.reader]):
            again = wide.fit(readers)
            assert np.array_equal(again.scales, found.scales)
            assert again.qparams == found.qparams


def test_ranges_are_chosen_for_all_readers_at_once():
    given = narrow_input()
    rare = given.reader.inputs.copy()
    rare[:, :, ::16] *= 4
    outputs = (given.reader.weight @ rare + 1).astype(np.float32)
    given.peaks = 4 * given.peaks
    given.fitted = given.fitted.scheme.qparams(Range(0.0, 4 * given.fitted.high))
    clipping = replace(given.reader, inputs=rare, outputs=outputs)
    once = given.fit([given.reader], ranges=True)
    both = given.fit([given.reader, clipping], ranges=True)
    assert once.qparams.high < both.qparams.high


def test_positions_that_count_for_nothing_change_nothing():
    given = narrow_weight()
    roots = np.ones(COUNT, np.float32)
    roots[::2] = 0
    wrong = given.reader.outputs.copy()
    wrong[:, :, ::2] = 100
    counted = replace(
        given.reader,
        inputs=given.reader.inputs[:, :, 1::2],
        outputs=given.reader.outputs[:, :, 1::2],
        roots=np.ones(COUNT // 2, np.float32),
    )
    all_ = replace(given.reader, outputs=wrong, roots=roots)
    assert np.array_equal(given.fit([all_]).scales, given.fit([counted]).scales)
    assert all_.energy == pytest.approx(counted.energy, rel=1e-4)


def test_powers_that_are_tried_at_the_same_time_give_the_same():
    given = narrow_input()
    with ThreadPoolExecutor(3) as pool:
        at_once = given.fit(ranges=True, pool=pool)
    found = given.fit(ranges=True)
    assert np.array_equal(at_once.scales, found.scales)
    assert at_once.qparams == found.qparams
