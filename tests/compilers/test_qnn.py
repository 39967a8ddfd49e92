import sys

import numpy as np
import pytest
from graphs import csp, quantized
from installed import interpreter, needs_compiler
from onnx import helper

from onnxq.compilers.base import Job, Ran
from onnxq.compilers.layers import file_layers
from onnxq.compilers.qnn import Qnn, on_npu, why_float
from onnxq.errors import ConfigError
from onnxq.ir import ProtoIndex
from onnxq.targets import TARGETS


def graph(nodes, **tensors):
    """A graph as onnxruntime-qnn 2.7.0 writes it, with the keys that are read."""
    return {
        "op_types": [],
        "graph": {
            "nodes": {
                name: {"type": kind, "input_names": inputs, "output_names": ["y"], "package": "qti.aisw"}
                for name, (kind, inputs) in nodes.items()
            },
            "tensors": {name: {"data_type": kind, "dims": [1]} for name, kind in tensors.items()},
        },
    }


TENSORS = {"a8": 1032, "a16": 1046, "w8": 776, "f": 562, "half": 534, "b": 818}


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["a8", "w8", "b"], Ran("uint8 x int8", True)),
        (["a16", "w8", "b"], Ran("uint16 x int8", True)),
        (["f", "f", "f"], Ran("float16", False)),
        (["half", "half"], Ran("float16", False)),
    ],
)
def test_layers_have_the_types_of_their_data_and_weight(inputs, expected):
    made = graph({"/head/Conv_token_75": ("Conv2d", inputs), "/Add": ("ElementWiseAdd", inputs)}, **TENSORS)
    assert on_npu([made, {"summary": {}}]) == {"/head/Conv": expected}


def test_several_graphs_and_kinds_of_layers():
    first = graph({"a": ("FullyConnected", ["a8", "w8"])}, **TENSORS)
    second = graph({"b_token_1": ("DepthWiseConv2d", ["f", "w8"])}, **TENSORS)
    assert on_npu([first, second]) == {"a": Ran("uint8 x int8", True), "b": Ran("float16", False)}


@pytest.mark.parametrize(
    ("target", "on_cpu", "expected"),
    [
        ("generic", {}, ""),
        ("generic", {"conv1": "Conv"}, "left to the CPU"),
        ("openvino", {}, "no QuantizeLinear behind it"),
        (
            "openvino",
            {"conv1_weight_DequantizeLinear": "DequantizeLinear"},
            "no QuantizeLinear behind it; its weight is dequantized on the CPU",
        ),
    ],
)
def test_the_reason_of_a_layer_in_float(target, on_cpu, expected):
    model, _ = quantized(csp(), TARGETS[target])
    layer = next(layer for layer in file_layers(model) if layer.name == "conv1")
    assert why_float(ProtoIndex(model.graph), layer, on_cpu) == expected


def test_an_activation_may_stand_before_the_q():
    model, _ = quantized(csp(), TARGETS["generic"])
    layer = next(layer for layer in file_layers(model) if layer.name == "conv1")
    output = layer.node.output[0]
    quantize = next(node for node in model.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == output)
    place = list(model.graph.node).index(quantize)
    model.graph.node.insert(place, helper.make_node("Relu", [output], ["clipped"], name="clip"))
    quantize.input[0] = "clipped"
    assert why_float(ProtoIndex(model.graph), layer, {}) == ""


def test_where_it_is_not_installed_a_line_tells_how_to_get_it(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    with pytest.raises(ConfigError, match=r"^onnxruntime's QNN provider is not installed; pip install 'onnxq\[qnn\]'$"):
        Qnn().require(str(python))


def test_a_device_is_a_number(tmp_path):
    model = csp()
    with pytest.raises(ConfigError, match=r"--device sm8650: expected the number of the SoC \(soc_model\), 57"):
        Qnn().build(Job(model, file_layers(model), [], tmp_path, "sm8650", sys.executable, 60))


@pytest.mark.slow
@needs_compiler("qnn")
def test_a_file_runs_in_the_simulator(tmp_path):
    model, _ = quantized(csp(), TARGETS["generic"])
    [value] = model.graph.input
    shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    feed = {value.name: np.random.default_rng(0).random(shape, np.float32)}
    job = Job(model, file_layers(model), [feed], tmp_path, "", interpreter("qnn") or sys.executable, 300.0)
    built = Qnn().build(job)
    assert all(built.layers[layer.name].on_integers for layer in job.layers if layer.is_wanted)
    [outputs] = built.outputs
    assert set(outputs) == {output.name for output in model.graph.output}
    assert built.on_cpu
