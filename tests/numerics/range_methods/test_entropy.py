import math

import numpy as np
import pytest
from histograms import HISTOGRAMS, SAMPLES, each_asymmetric, each_scheme, each_symmetric, histogram

from onnxq.numerics.quantization_error import clipped_share
from onnxq.numerics.range_methods.entropy import entropy
from onnxq.numerics.range_methods.minmax import minmax
from onnxq.numerics.scheme import INT8, Scheme


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


@each_scheme
def test_clips_a_heavy_tail_that_minmax_keeps(scheme):
    h = HISTOGRAMS["heavy tails"] if scheme.symmetric else histogram(np.abs(SAMPLES["heavy tails"]))
    bounds = entropy(h, scheme)
    assert bounds != minmax(h, scheme)
    assert bounds.high < 0.5 * max(h.high, -h.low)
    assert clipped_share(h, scheme, bounds) < 0.5


@each_asymmetric
def test_keeps_the_lower_bound_of_asymmetric_grids(scheme):
    for name, h in HISTOGRAMS.items():
        assert entropy(h, scheme).low == h.low, name


@each_symmetric
def test_bounds_of_symmetric_grids_mirror_each_other(scheme):
    for name, h in HISTOGRAMS.items():
        bounds = entropy(h, scheme)
        assert bounds.low == -bounds.high, name


@pytest.mark.parametrize("bits", [6, 8])
def test_does_not_clip_what_is_spread_evenly(bits):
    h = histogram(np.linspace(0, 1, 200_000))
    assert entropy(h, Scheme(bits)).high > 0.95


@each_scheme
def test_the_zeros_of_a_relu_take_nothing_from_the_rest(scheme):
    values = np.abs(SAMPLES["normal"])
    plain, rectified = histogram(values), histogram(np.concatenate([values, np.zeros(values.size)]))
    assert entropy(rectified, scheme).high == pytest.approx(entropy(plain, scheme).high, rel=0.05)


@pytest.mark.parametrize("bits", [4, 7, 8])
def test_the_divergence_is_near_the_least_that_a_slow_reference_finds(bits):
    h = histogram(TAIL)
    assert h.width == 1
    counts = np.bincount(TAIL.astype(int)).tolist()
    check(counts, entropy(h, Scheme(bits)).high, 2**bits)


@pytest.mark.parametrize("bits", [5, 8])
def test_on_a_symmetric_grid_it_is_that_of_the_absolute_values(bits):
    h = histogram(TAIL * np.where(np.arange(TAIL.size) % 3, 1, -1))
    assert h.width == 2
    counts = np.bincount(TAIL.astype(int) // 2).tolist()
    check(counts, entropy(h, Scheme(bits, INT8, True)).high / 2, 2 ** (bits - 1))


TAIL = np.repeat(np.arange(1200) + 0.5, [3 + round(3000 * math.exp(-i / 60)) + (i % 7 == 0) for i in range(1200)])
"""An exponential tail in bins of width 1, of which none is empty."""


def check(counts, bound, levels):
    keeps = range(levels, len(counts) + 1, 9)
    by_keep = [divergence(counts, keep, levels) for keep in keeps]
    assert divergence(counts, math.ceil(bound), levels) <= min(by_keep) * 1.03
    # The bound matters: most others would be worse.
    assert np.median(by_keep) > min(by_keep) * 1.1
