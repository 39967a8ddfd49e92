import numpy as np
import pytest
from graphs import feed, ops, quantized, run, saturating

from onnxq.facts import Plan
from onnxq.runtime import RUNTIMES, ExactRuntime, OnnxRuntime
from onnxq.targets import GENERIC, OPENVINO, ORT


@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda target: target.name)
def test_sums_that_saturate_on_some_cpus_are_those_of_the_file(target):
    model = saturating()
    expected = run(model)["output"]
    found = ExactRuntime(quantized(model, target, limited=False)[0], threads=1).run(feed(model))["output"]
    assert float(np.abs(found - expected).max()) < 0.02 * float(expected.max())


def test_no_layer_is_an_integer_layer():
    after, facts = quantized(saturating())
    layers = facts[Plan].layers
    assert OnnxRuntime(after).integer_layers(after, layers).wanted == layers
    found = ExactRuntime(after).integer_layers(after, layers)
    assert (found.wanted, found.others) == ((), 0)


def test_the_operators_that_run_are_those_of_the_file():
    after, _ = quantized(saturating())
    times = ExactRuntime.operator_times(after, feed(after), threads=1, rounds=1)
    assert "QLinearConv" not in times
    assert sum(time.count for name, time in times.items() if "Conv" in name) == ops(after).count("Conv")


def test_its_description_tells_it_from_the_usual_runtime():
    assert RUNTIMES["exact"].described() == f"{OnnxRuntime.described()} (exact)"
