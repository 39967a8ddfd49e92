import math

import numpy as np

from onnxq.numerics.sqnr import SqnrMeter


def test_energies_are_summed_over_samples():
    noise = SqnrMeter()
    noise.add({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 5.0])})
    noise.add({"y": np.array([5.0, 0.0])}, {"y": np.array([5.0, 2.0])})
    assert noise.decibels() == {"y": 10 * math.log10(50 / 5)}


def test_equal_outputs_have_no_noise():
    noise = SqnrMeter()
    noise.add({"y": np.ones(3)}, {"y": np.ones(3)})
    assert noise.decibels() == {"y": math.inf}


def test_outputs_that_cannot_be_compared_do_not_count():
    noise = SqnrMeter()
    noise.add(
        {"shape": np.ones(3), "whole": np.ones(2, np.int64), "infinite": np.array([np.inf])},
        {"shape": np.ones(4), "whole": np.ones(2, np.int64), "infinite": np.array([1.0])},
    )
    assert noise.decibels() == {}


def test_what_others_have_summed_is_added():
    noise, other = SqnrMeter(), SqnrMeter()
    noise.add({"y": np.array([3.0, 4.0])}, {"y": np.array([3.0, 5.0])})
    other.add({"y": np.array([5.0, 0.0]), "z": np.ones(2)}, {"y": np.array([5.0, 2.0]), "z": np.zeros(2)})
    noise.merge(other)
    assert noise.ratios() == {"y": 5 / 50, "z": 1}
    assert noise.decibels() == {"y": 10 * math.log10(50 / 5), "z": 0}


def test_outputs_that_are_not_finite_any_more_are_all_noise():
    noise = SqnrMeter()
    noise.add({"y": np.ones(2), "z": np.ones(2)}, {"y": np.array([1, np.nan]), "z": np.array([1, np.inf])})
    assert noise.decibels() == {"y": -math.inf, "z": -math.inf}
