import math

import numpy as np
import pytest

from onnxq.numerics.sqnr import SqnrMeter


def test_energies_are_summed_over_samples():
    meter = SqnrMeter()
    meter.add({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 5.0])})
    meter.add({"y": np.array([5.0, 0.0])}, {"y": np.array([5.0, 2.0])})
    assert meter.decibels() == {"y": 10 * math.log10(50 / 5)}


def test_equal_outputs_have_no_noise():
    meter = SqnrMeter()
    meter.add({"y": np.ones(3)}, {"y": np.ones(3)})
    assert meter.decibels() == {"y": math.inf}


def test_outputs_that_cannot_be_compared_do_not_count():
    meter = SqnrMeter()
    meter.add(
        {"shape": np.ones(3), "whole": np.ones(2, np.int64), "infinite": np.array([np.inf])},
        {"shape": np.ones(4), "whole": np.ones(2, np.int64), "infinite": np.array([1.0])},
    )
    assert meter.decibels() == {}


def test_what_others_have_summed_is_added():
    meter, other = SqnrMeter(), SqnrMeter()
    meter.add({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 5.0])})
    other.add({"y": np.array([5.0, 0.0]), "z": np.ones(2)}, {"y": np.array([5.0, 2.0]), "z": np.zeros(2)})
    meter.merge(other)
    assert meter.ratios() == {"y": 5 / 50, "z": 1}
    assert meter.decibels() == {"y": 10 * math.log10(50 / 5), "z": 0}


def test_outputs_that_are_not_finite_any_more_are_all_noise():
    meter = SqnrMeter()
    meter.add({"y": np.ones(2), "z": np.ones(2)}, {"y": np.array([1, np.nan]), "z": np.array([1, np.inf])})
    assert meter.decibels() == {"y": -math.inf, "z": -math.inf}


@pytest.mark.parametrize("factor", [1e-22, 1e-12, 1, 1e25])
def test_float32_gives_the_ratio_of_float64(factor):
    rng = np.random.default_rng(0)
    wanted = (rng.standard_normal(20_000) * factor).astype(np.float32)
    got = wanted + (rng.standard_normal(wanted.size) * factor / 100).astype(np.float32)
    single, double = SqnrMeter(), SqnrMeter()
    single.add({"y": wanted}, {"y": got})
    double.add({"y": wanted.astype(np.float64)}, {"y": got.astype(np.float64)})
    assert single.decibels() == pytest.approx(double.decibels(), abs=1e-5)
