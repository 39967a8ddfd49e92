import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import (
    assert_same_numbers,
    copy,
    csp,
    feed,
    ops,
    quantized,
    run,
    saturating,
    shared_head,
    sqnr,
    v8,
    with_float16,
)
from onnx import helper

from onnxq.errors import ModelError
from onnxq.facts import Plan
from onnxq.runtime import RUNTIMES, OpenVino, OperatorTime
from onnxq.runtime.base import summed_times
from onnxq.targets import TARGETS

ROOT = Path(__file__).parents[2]

LOADS = """
import sys
from pathlib import Path
from onnxq.runtime import RUNTIMES
RUNTIMES[sys.argv[1]](Path(sys.argv[2]))
"""


@pytest.fixture(params=RUNTIMES.values(), ids=RUNTIMES)
def runtime(request):
    if not request.param.is_installed():
        pytest.skip(f"{request.param.title} is not installed")
    return request.param


@pytest.fixture
def target(runtime):
    """The target that the runtime runs."""
    found = next((target for target in TARGETS.values() if RUNTIMES.get(target.runtime) is runtime), None)
    if found is None:
        pytest.skip("no target is for this runtime")
    return found


def test_the_outputs_are_those_of_the_model(runtime):
    model = v8()
    values = feed(model)
    found = runtime(model).run(values)
    expected = run(model, values)
    assert found.keys() == expected.keys()
    assert all(sqnr(expected[name], found[name]) > 80 for name in expected)


def test_float32_feeds_a_model_that_takes_float16(runtime):
    model = with_float16(csp())
    found = runtime(model).run(feed(csp()))["output"]
    assert found.dtype == np.float16
    assert sqnr(run(csp())["output"], found.astype(np.float32)) > 40
    assert runtime.operator_times(model, feed(csp()), rounds=1)


def test_outputs_that_are_one_tensor_have_each_its_name(runtime):
    model = copy(csp())
    model.graph.node.append(helper.make_node("Identity", ["output"], ["again"], "identity"))
    model.graph.output.append(helper.make_tensor_value_info("again", 1, [1, 4, 16, 16]))
    found = runtime(model).run(feed(model))
    assert {"output", "again"} <= found.keys()
    assert np.array_equal(found["output"], found["again"])


@pytest.mark.parametrize("threads", [1, 2])
def test_several_runs_at_the_same_time_do_not_mix(runtime, threads):
    model = csp()
    feeds = [{"images": np.random.default_rng(seed).random((1, 3, 32, 32), np.float32)} for seed in range(24)]
    alone = runtime(model, threads=1)
    expected = [alone.run(each)["output"] for each in feeds]
    assert not np.allclose(expected[0], expected[1])
    loaded = runtime(model, threads=threads, at_once=3)
    with ThreadPoolExecutor(5) as pool:
        found = list(pool.map(loaded.run, feeds))
    for wanted, got in zip(expected, found, strict=True):
        np.testing.assert_allclose(got["output"], wanted, rtol=1e-4, atol=1e-5)


def test_a_run_that_fails_leaves_room_for_the_next(runtime):
    model = csp()
    loaded = runtime(model)
    with pytest.raises(ModelError):
        loaded.run({"images": np.zeros((1, 5, 32, 32), np.float32)})
    assert loaded.run(feed(model)).keys() == {"output"}


def test_the_version_is_that_of_the_installed_package(runtime):
    package = "openvino" if runtime is OpenVino else "onnxruntime"
    assert runtime.version() == metadata.version(package)
    assert re.fullmatch(rf"{runtime.title} {runtime.version()}( \(exact\))?", runtime.described())


def test_a_model_is_also_loaded_from_a_file(runtime, tmp_path):
    model = csp()
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    outputs = [runtime(source, threads=1).run(feed(model))["output"] for source in (path, model)]
    assert np.array_equal(*outputs)


def test_a_model_that_cannot_be_loaded_says_why(runtime):
    model = copy(csp())
    model.graph.node[2].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match=f"{runtime.title} cannot load the model: .+"):
        runtime(model)


def test_a_feed_of_another_shape_is_refused(runtime):
    with pytest.raises(ModelError, match=f"{runtime.title} cannot run the model: .+"):
        runtime(csp()).run({"images": np.zeros((1, 5, 32, 32), np.float32)})


def test_every_conv_is_timed(runtime):
    model = csp()
    times = runtime.operator_times(model, feed(model), rounds=3)
    convs = sum(time.count for name, time in times.items() if "Conv" in name)
    assert convs == ops(model).count("Conv")
    assert all(time.seconds > 0 for name, time in times.items() if "Conv" in name)
    assert [time.seconds for time in times.values()] == sorted((t.seconds for t in times.values()), reverse=True)


@pytest.mark.slow
def test_times_of_a_quantized_model_show_its_integers(runtime, target):
    model = csp()
    times = runtime.operator_times(quantized(model, target)[0], feed(model), rounds=2)
    on_integers = ("QLinearConv", "QGemm", "Convolution I8")
    assert sum(time.count for name, time in times.items() if name in on_integers) >= 4


@pytest.mark.slow
def test_layers_on_integers(runtime, target):
    model = v8()
    after, facts = quantized(model, target)
    loaded = runtime(after)
    found = loaded.integer_layers(after, facts[Plan].layers)
    assert (found.wanted, found.others) == (facts[Plan].layers, 0)
    first, *others = facts[Plan].layers
    assert loaded.integer_layers(after, others).others == 1
    assert runtime(model).integer_layers(model, [first]).wanted == ()


def test_without_saturation_a_model_is_what_it_is_compared_with(runtime, target):
    """The products are the largest, so that sums of them saturate where they can."""
    other, opened = runtime.without_saturation(quantized(saturating(), target, limited=False)[0])
    found, expected = opened.run(feed(saturating()))["output"], run(other)["output"]
    np.testing.assert_allclose(found, expected, rtol=0.01)


def test_without_saturation_layers_may_share_a_weight(runtime, target):
    after, _ = quantized(shared_head(), target)
    other, opened = runtime.without_saturation(after)
    found, expected = opened.run(feed(after)), run(other)
    assert all(sqnr(expected[name], found[name]) > 30 for name in expected)


def test_no_runtime_changes_the_model(runtime):
    model = csp()
    before = copy(model)
    loaded = runtime(model)
    loaded.run(feed(model))
    loaded.integer_layers(model, [])
    assert_same_numbers(before, model)
    assert before == model


def test_operators_are_summed_by_the_least_time_of_each_node():
    spans = [("Conv", "a", 3.0), ("Conv", "b", 1.0), ("Add", "c", 9.0), ("Conv", "a", 2.0), ("Add", "c", 4.0)]
    times = summed_times(spans)
    assert list(times.items()) == [("Add", OperatorTime(1, 4.0)), ("Conv", OperatorTime(2, 3.0))]
    assert summed_times([]) == {}


def test_operators_that_take_equally_long_are_in_the_order_of_their_names():
    assert list(summed_times([("b", "1", 2.0), ("a", "2", 2.0)])) == ["a", "b"]


@pytest.mark.slow
def test_nothing_is_kept_beside_the_model(runtime, tmp_path):
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()
    onnx.save(csp(), tmp_path / "a.onnx")
    left_out = ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "CI")
    places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary"), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    name = next(name for name, each in RUNTIMES.items() if each is runtime)
    subprocess.run([sys.executable, "-c", LOADS, name, str(tmp_path / "a.onnx")], env={**kept, **places}, check=True)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.onnx", "home", "temporary"]
