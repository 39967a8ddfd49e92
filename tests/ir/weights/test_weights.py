"""Models whose weights stay in files are quantized as others, in less memory."""

import gc
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import fast_first
from graphs import Net, conditional, feed, v8
from onnx import helper

from onnxq import Config, quantize
from onnxq.evaluation.predictor import Predictor, Settings
from onnxq.facts import Sensitivities, Verification
from onnxq.ir.storage import digest, load_proto, size
from onnxq.ir.weights import links
from onnxq.ir.weights.links import has_links
from onnxq.runtime import RUNTIMES
from onnxq.runtime.streaming import Sessions

TARGETS = ["openvino", "tensorrt", "qnn", "generic"]


@pytest.fixture
def linked(monkeypatch, tmp_path):
    """A function that saves a model and returns its path, or that of a copy with its weights in another file."""
    monkeypatch.setattr(links, "LARGE", 1000)

    def save(model, outside=False):
        path = tmp_path / "float.onnx"
        copied = onnx.ModelProto()
        copied.CopyFrom(model)
        onnx.save(copied, path, save_as_external_data=outside, location="float.data", size_threshold=0)
        return path

    return save


@pytest.mark.parametrize(
    ("target", "outside", "opset"),
    fast_first([("ort", True, 11), *((target, number % 2 == 0, 13) for number, target in enumerate(TARGETS))], 2),
)
def test_the_file_is_the_same(linked, monkeypatch, target, outside, opset):
    model = v8(opset=opset)
    path, data = linked(model, outside), [feed(model, seed) for seed in range(3)]
    assert has_links(load_proto(path))
    found = quantize(path, data, Config(target=target))
    monkeypatch.setattr(links, "LARGE", 10**9)
    assert not has_links(found.model)
    for given in (model, path):
        expected = quantize(given, data, Config(target=target))
        assert found.model.SerializeToString() == expected.model.SerializeToString()
        assert found.facts[Verification] == expected.facts[Verification]


@pytest.mark.parametrize(
    "options", fast_first([{"pack": "int4"}, {"requantize": True}, {"weight_bits": 4}, {"float_type": "fp16"}], 2)
)
def test_with_other_options_too(linked, monkeypatch, options):
    model, target = v8(), "tensorrt" if "float_type" in options else "ort"
    if "pack" in options:
        options = {**options, "weight_bits": 4, "reconstruct": False}
    data = [feed(model, seed) for seed in range(3)]
    if "requantize" in options:
        model = quantize(model, data).model
    found = quantize(linked(model), data, Config(target=target, **options))
    monkeypatch.setattr(links, "LARGE", 10**9)
    assert found.model == quantize(model, data, Config(target=target, **options)).model


@pytest.mark.parametrize("outside", [False, True])
def test_weights_that_subgraphs_read_too(linked, monkeypatch, outside):
    model = conditional(size=16)
    net = Net()
    weight = net.const(net.normal(1, 8, 16, 16), name="weight")  # the branches add it to the features
    model.graph.initializer.extend(net.weights)
    for attribute in next(node for node in model.graph.node if node.op_type == "If").attribute:
        attribute.g.node[0].input[1] = weight
    model.graph.node.append(helper.make_node("ReduceSum", [weight], ["sum"], "reader", keepdims=0))
    model.graph.node.append(helper.make_node("Mul", ["images", "sum"], ["weighed"], "weighing"))
    model.graph.output.append(helper.make_tensor_value_info("weighed", onnx.TensorProto.FLOAT, [1, 3, 16, 16]))
    path, data = linked(model, outside), [feed(model, seed) for seed in range(3)]
    assert has_links(load_proto(path))
    found = quantize(path, data, Config(target="openvino"))
    monkeypatch.setattr(links, "LARGE", 10**9)
    expected = quantize(model, data, Config(target="openvino"))
    assert found.model.SerializeToString() == expected.model.SerializeToString()


def test_a_digest_and_a_size_are_those_of_the_whole_model(linked):
    model = load_proto(linked(v8()))
    assert digest(model) == digest(v8())
    assert size(model) == pytest.approx(size(v8()), abs=300)


@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
def test_runtimes_read_the_files(linked, runtime):
    if not runtime.is_installed():
        pytest.skip(f"{runtime.title} is not installed")
    given = feed(v8())
    found, expected = runtime(load_proto(linked(v8()))).run(given), runtime(v8()).run(given)
    for name, values in expected.items():
        assert np.array_equal(found[name], values)


def test_what_is_sent_to_other_processes_holds_its_weights(linked):
    path = linked(v8())
    assert pickle.loads(pickle.dumps(Sessions(load_proto(path)))).model == v8()
    predictor = Predictor.load(load_proto(path), Settings())
    assert predictor.__getstate__()["source"] == v8()


def test_a_search_and_sensitivities_take_links(linked, monkeypatch):
    path, data = linked(v8()), [feed(v8(), seed) for seed in range(3)]
    found = quantize(path, data, sensitivity=True).facts[Sensitivities]
    monkeypatch.setattr(links, "LARGE", 10**9)
    assert found == quantize(v8(), data, sensitivity=True).facts[Sensitivities]


def test_no_pass_copies_the_weights_as_a_whole(linked):
    net = Net()
    x = net.conv("images", 8, kernel=3, stride=8)
    for _ in range(12):
        x = net.block(x, 1024, kernel=1)
    model = net.model(net.conv(x, 4, name="last"))
    data, weights = [feed(model)], size(model)
    quantize(linked(v8()), [feed(v8())])  # what is imported or cached once
    path = linked(model)
    del model, net
    held: dict[str, float] = {}
    peaks: dict[str, float] = {}

    def hook(step, model, result, seconds):
        held[step.name], peaks[step.name] = (bytes_ / weights for bytes_ in tracemalloc.get_traced_memory())
        tracemalloc.reset_peak()

    gc.collect()
    tracemalloc.start()
    try:
        quantize(path, data, hooks=[hook])
    finally:
        tracemalloc.stop()
    # Statistics of 1x1 Convs take as much as their weights; rounding takes some weights at a time.
    most = {"observe": 2.0, "compute-qparams": 1.5, "correct-bias": 1.2}
    assert {name: peak for name, peak in peaks.items() if peak > most.get(name, 0.9)} == {}
    assert max(held.values()) < 0.9


RESIDENT = """
import re, sys
from pathlib import Path
import numpy as np
import onnxq
from onnxq.ir.weights import links
links.LARGE = 1000

def status(key):
    return 1024 * int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def run(path):
    onnxq.quantize(path, [{"images": np.ones((1, 3, 32, 32), np.float32)}]).save(path + ".int8")

run(sys.argv[1])
before = status("VmRSS")
run(sys.argv[2])
print((status("VmHWM") - before) / Path(sys.argv[2]).stat().st_size)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the peak of memory")
def test_the_peak_of_a_run_is_at_most_thrice_the_weights(tmp_path):
    net = Net()
    x = net.conv("images", 8, kernel=3, stride=8)
    for _ in range(14):
        x = net.block(x, 1024, kernel=1)
    onnx.save(net.model(net.conv(x, 4, name="last")), tmp_path / "large.onnx")
    onnx.save(v8(), tmp_path / "small.onnx")
    command = [sys.executable, "-c", RESIDENT, str(tmp_path / "small.onnx"), str(tmp_path / "large.onnx")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert float(printed) < 3
