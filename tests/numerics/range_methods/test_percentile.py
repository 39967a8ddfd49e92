import numpy as np
import pytest
from histograms import HISTOGRAMS, SAMPLES, each_sample, histogram

from onnxq.numerics.range_methods.minmax import minmax
from onnxq.numerics.range_methods.percentile import percentile
from onnxq.numerics.scheme import Scheme


@pytest.mark.parametrize("share", [0.9999, 0.999, 0.99, 0.9])
@pytest.mark.parametrize("name", ["normal", "heavy tails", "uniform", "skewed"])
def test_leaves_out_its_share_at_either_end(share, name):
    x, h = SAMPLES[name], HISTOGRAMS[name]
    bounds = percentile(h, Scheme(8), share)
    wanted = (1 - share) * len(x)
    for left_out, bound in ((x < bounds.low, bounds.low), (x > bounds.high, bounds.high)):
        # Within a bin the values' order is not known.
        same_bin = np.abs(x - bound) <= h.width
        assert abs(np.count_nonzero(left_out) - wanted) <= np.count_nonzero(same_bin) + 1


def test_leaves_out_far_outliers_that_minmax_keeps():
    x = np.concatenate([SAMPLES["uniform"], [-300, 400]])
    bounds = percentile(histogram(x), Scheme(8), share=0.999)
    assert -2 < bounds.low < -0.9
    assert 4.9 < bounds.high < 6


def test_of_all_is_minmax():
    h = HISTOGRAMS["normal"]
    assert percentile(h, Scheme(8), share=1.0) == minmax(h, Scheme(8))


@each_sample
def test_by_default_one_in_ten_thousand_at_either_end(name):
    h = HISTOGRAMS[name]
    assert percentile(h, Scheme(8)) == percentile(h, Scheme(8), share=0.9999)
