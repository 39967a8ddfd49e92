import numpy as np
import pytest
from graphs import csp, quantized, silu_chain, v8
from onnx import TensorProto, helper, numpy_helper

from onnxq.compilers.layers import file_layers, prepared
from onnxq.facts import Plan
from onnxq.targets import TARGETS


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "qnn", "generic"])
def test_the_layers_that_were_planned_are_wanted(target):
    after, facts = quantized(v8(), TARGETS[target])
    wanted = [layer.name for layer in file_layers(after) if layer.is_wanted]
    assert sorted(wanted) == sorted(facts[Plan].layers)


def test_a_float_model_wants_nothing():
    layers = file_layers(csp())
    assert layers
    assert not any(layer.is_wanted for layer in layers)
    assert {layer.why_float() for layer in layers} == {"not quantized in the file"}


def test_the_types_are_those_of_the_file():
    after, _ = quantized(silu_chain(), TARGETS["tensorrt"])
    assert {layer.types for layer in file_layers(after) if layer.is_wanted} <= {"int8 x int8"}
    after, _ = quantized(silu_chain(), TARGETS["openvino"])
    assert {layer.types for layer in file_layers(after) if layer.is_wanted} == {"uint8 x int8"}


def small(nodes, weights, shape=(1, 4)):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "small", values[:1], values[1:], stored))


def test_a_layer_of_which_one_half_is_quantized_is_not_wanted():
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["w_float"]),
        helper.make_node("MatMul", ["x", "w_float"], ["y"], name="product"),
    ]
    [layer] = file_layers(small(nodes, {"w": np.ones((4, 4), np.int8), "s": np.float32(0.1)}))
    assert not layer.is_wanted
    assert layer.why_float() == "only its weights are quantized in the file"


def test_a_product_of_two_computed_matrices_is_no_layer():
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    assert file_layers(small(nodes, {})) == []


def test_nodes_get_names_of_their_own():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], name="same"),
        helper.make_node("Relu", ["b"], ["y"], name="same"),
    ]
    model = small(nodes, {})
    names = [node.name for node in prepared(model, {}).graph.node]
    assert names == ["Relu:a", "same", "same:y"]
    assert [node.name for node in model.graph.node] == ["", "same", "same"]


def test_unknown_sizes_become_those_of_the_feed():
    model = small([helper.make_node("Relu", ["x"], ["y"])], {}, ("batch", 4))
    dims = prepared(model, {"x": np.zeros((2, 4), np.float32)}).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [2, 4]
