import math

import numpy as np
import pytest
from graphs import csp, feed

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.facts import Probe, Speed
from onnxq.ir import Model
from onnxq.passes.measure_speed import MeasureSpeed, summary
from onnxq.pipeline import Facts
from onnxq.targets import OPENVINO, ORT, TENSORRT


def paired(before, after):
    return summary("onnxruntime", np.array([before, after]))


def test_the_ratio_is_that_of_the_least_times():
    found = paired([2.0, 3.0, 9.0], [4.0, 1.0, 1.0])
    assert found == Speed("onnxruntime", ratio=2.0, median=3.0, rounds=3)
    assert not found.gains_nothing


@pytest.mark.parametrize(
    ("before", "after", "nothing"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], True),
        ([1.0, 3.0, 3.0], [2.0, 2.0, 2.0], False),  # slower by the least times only
        ([2.0, 2.0, 2.0], [1.0, 3.0, 3.0], False),  # slower by the median only
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], False),
    ],
)
def test_a_result_gains_nothing_if_both_measures_say_so(before, after, nothing):
    assert paired(before, after).gains_nothing == nothing


def test_what_was_not_measured_is_not_slow():
    assert math.isnan(Speed().ratio)
    assert not Speed().gains_nothing


def measured(target, feeds):
    return MeasureSpeed(csp(), target).run(Model(csp()), Facts([Probe(tuple(feeds))]))


def test_both_models_run_in_the_runtime_of_the_target():
    found = measured(ORT, [feed(csp())])
    assert found.runtime == "onnxruntime"
    assert found.rounds >= 3
    assert found.ratio > 0
    assert found.median > 0


def test_openvino_measures_its_own_files():
    pytest.importorskip("openvino")
    assert measured(OPENVINO, [feed(csp())]).runtime == "OpenVINO"


def test_nothing_is_measured_without_a_runtime_or_a_sample():
    assert measured(TENSORRT, [feed(csp())]).rounds == 0
    assert measured(ORT, []).rounds == 0


def test_a_measurement_changes_no_byte():
    feeds = [feed(csp(), seed) for seed in range(2)]
    plain, timed = (quantize(csp(), feeds, Config(), speed=speed) for speed in (False, True))
    assert plain.model.SerializeToString(deterministic=True) == timed.model.SerializeToString(deterministic=True)
    assert Speed not in plain.facts
    assert timed.facts[Speed].rounds >= 3
