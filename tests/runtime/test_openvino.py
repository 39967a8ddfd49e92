import sys

import numpy as np
import onnx
import pytest
from graphs import copy, csp, feed, nodes, quantized
from installed import needs_openvino

from onnxq.errors import ConfigError, ModelError
from onnxq.facts import Plan
from onnxq.runtime import OpenVino
from onnxq.targets import OPENVINO


def test_without_the_library_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match=r"^OpenVINO is not installed; pip install 'onnxq\[openvino\]'$"):
        OpenVino(csp())


@needs_openvino
def test_its_telemetry_is_hidden_from_it_alone():
    OpenVino(csp())
    assert sys.modules.get("openvino_telemetry", "not imported") is not None


@needs_openvino
def test_an_error_is_the_cause_and_not_the_places_that_it_passed():
    model = copy(csp())
    nodes(model)["last"].op_type = "NoSuchOperator"
    with pytest.raises(ModelError) as caught:
        OpenVino(model)
    message = str(caught.value)
    assert "NoSuchOperator" in message
    assert "\n" not in message
    assert "Exception from" not in message


@needs_openvino
def test_a_float_model_is_computed_in_float32():
    model = csp()
    times = OpenVino.operator_times(model, feed(model), threads=1, rounds=1)
    convs = {name: time.count for name, time in times.items() if name.startswith("Convolution")}
    assert sum(convs.values()) > 0
    assert not any(name.endswith(("I8", "BF16", "FP16")) for name in convs)


@needs_openvino
def test_layers_without_a_bias_are_known_too():
    model = csp(batch_norm=True)
    without = copy(model)
    for node in without.graph.node:
        if node.op_type == "Conv":
            del node.input[2:]
    after, facts = quantized(without, OPENVINO)
    layers = facts[Plan].layers
    assert OpenVino(after).integer_layers(after, layers).wanted == layers


@needs_openvino
def test_layers_are_known_whose_names_have_commas_or_hold_other_names():
    model = copy(csp())
    renamed = {"conv2": "b", "conv3": "a,b"}
    for node in model.graph.node:
        node.name = renamed.get(node.name, f"{node.name}, of a net")
    after, facts = quantized(model, OPENVINO, exclude=["b"])
    layers = facts[Plan].layers
    assert "a,b" in layers
    found = OpenVino(after).integer_layers(after, [*layers, "b"])
    assert (found.wanted, found.others) == (layers, 0)


@pytest.mark.slow
@needs_openvino
def test_float16_and_float64_feeds_are_taken():
    model = csp()
    values = feed(model)
    expected = OpenVino(model).run(values)["output"]
    for kind in (np.float16, np.float64):
        found = OpenVino(model).run({name: array.astype(kind) for name, array in values.items()})["output"]
        np.testing.assert_allclose(found, expected, atol=0.02 * float(np.abs(expected).max()))


@needs_openvino
def test_inputs_that_no_node_reads_are_left_out():
    model = copy(csp())
    model.graph.input.insert(0, onnx.helper.make_tensor_value_info("unused", onnx.TensorProto.FLOAT, [1, 2]))
    [expected] = OpenVino(csp()).run(feed(csp())).values()
    [found] = OpenVino(model).run({"unused": np.zeros((1, 2), np.float32), **feed(csp())}).values()
    assert np.array_equal(found, expected)
    assert any(name.startswith("Convolution") for name in OpenVino.operator_times(model, feed(model), rounds=1))
