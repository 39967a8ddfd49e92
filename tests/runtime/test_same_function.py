import logging

import numpy as np
import onnx
import pytest
from graphs import Net, copy, csp, feed, nodes, run, silu_chain, v8
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.runtime.same_function import find_difference, noise_feed


def declared(**inputs):
    """A model that returns inputs of these types and shapes."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    made = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in inputs]
    results = [
        helper.make_tensor_value_info(f"{name}_out", kind, None) for name, (kind, _) in inputs.items()
    ]  # fmt: skip
    return helper.make_model(
        helper.make_graph(made, "g", values, results), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )


def with_slope(model, slope):
    """Return a copy in which the LeakyRelu has another slope."""
    changed = copy(model)
    [alpha] = nodes(changed)["leaky"].attribute
    alpha.f = slope
    return changed


def leaky(net=None, behind=None):
    """Conv, LeakyRelu, Conv; `behind(net, tensor)` adds what makes the output."""
    net = net or Net()
    x = net.add("LeakyRelu", net.conv("images", 4), alpha=0.1, name="leaky")
    net.channels[x] = 4
    x = net.conv(x, 4)
    return net.model(behind(net, x) if behind is not None else x)


# --- noise_feed -------------------------------------------------------------------------------------------------------


def test_noise_has_the_types_and_shapes_of_the_inputs():
    model = declared(
        images=(TensorProto.FLOAT16, [2, 3, 8, 8]),
        bytes=(TensorProto.UINT8, [1, 100]),
        places=(TensorProto.INT64, [1, 2]),
        flags=(TensorProto.BOOL, [3]),
        number=(TensorProto.FLOAT, []),
    )
    found = noise_feed(model)
    types = {"images": "float16", "bytes": "uint8", "places": "int64", "flags": "bool", "number": "float32"}
    assert {name: array.dtype for name, array in found.items()} == types
    assert found["images"].shape == (2, 3, 8, 8)
    assert 0 <= found["images"].min() < 0.1 < 0.9 < found["images"].max() <= 1
    assert found["bytes"].min() < 50 < 200 < found["bytes"].max()
    assert (found["places"] == 1).all()
    assert found["flags"].all()
    assert find_difference(model, model, found) is None


def test_noise_is_the_same_each_time():
    model = csp()
    assert np.array_equal(noise_feed(model)["images"], noise_feed(model)["images"])


def test_open_axes_are_those_given_or_1_and_64():
    model = declared(images=(TensorProto.FLOAT, ["batch", 3, None, "width"]), sizes=(TensorProto.INT64, ["batch", 2]))
    assert {name: array.shape for name, array in noise_feed(model).items()} == {
        "images": (1, 3, 64, 64), "sizes": (1, 2),
    }  # fmt: skip
    known = noise_feed(model, {"images": (4, 1, 32, 96)})
    assert known["images"].shape == (4, 3, 32, 96)


def test_initializers_among_the_inputs_need_no_noise():
    model = csp()
    first = model.graph.initializer[0]
    model.graph.input.append(helper.make_tensor_value_info(first.name, first.data_type, first.dims))
    assert noise_feed(model).keys() == {"images"}


# --- find_difference --------------------------------------------------------------------------------------------------


def test_a_model_does_not_differ_from_itself():
    assert find_difference(csp(), csp(), feed(csp())) is None


@pytest.mark.parametrize("layers", [1, 30])
def test_the_first_node_that_differs_is_found_among_few_and_many(layers):
    before = silu_chain(layers)
    after = copy(before)
    nodes(after)["sigmoid0"].op_type = "Tanh"
    found = find_difference(before, after, feed(before))
    assert found is not None
    assert found.node.name == "sigmoid0"
    assert found.sqnr < 20
    nodes(after)["sigmoid0"].op_type = "Sigmoid"
    nodes(after)[f"sigmoid{layers - 1}"].op_type = "Tanh"
    assert find_difference(before, after, feed(before)).node.name == f"sigmoid{layers - 1}"


def test_other_shapes_and_other_places_of_nan_differ():
    before = leaky()
    for op in ("Sqrt", "GlobalMaxPool"):
        after = with_slope(before, 0.1)
        del nodes(after)["leaky"].attribute[:]
        nodes(after)["leaky"].op_type = op
        del after.graph.value_info[:], after.graph.output[0].type.tensor_type.shape.dim[2:]
        after.graph.output[0].type.tensor_type.ClearField("shape")
        found = find_difference(before, after, feed(before))
        assert found.node.name == "leaky"
        assert found.sqnr == -np.inf


def test_the_same_nan_and_infinities_are_no_difference():
    before = leaky(behind=lambda net, x: net.add("Log", net.add("Relu", net.add("Sqrt", x))))
    assert find_difference(before, copy(before), feed(before)) is None
    assert find_difference(before, with_slope(before, 0.1 + 1e-6), feed(before)) is None
    assert find_difference(before, with_slope(before, 0.5), feed(before)).node.name == "leaky"


def test_other_random_numbers_are_no_difference():
    before = leaky(behind=lambda net, x: net.add("Mul", x, net.add("RandomUniformLike", x)))
    after = copy(before)
    after.graph.node.insert(0, helper.make_node("Identity", ["images"], ["same"]))
    after.graph.node[1].input[0] = "same"
    values = feed(before)
    assert not np.array_equal(run(before, values)["output"], run(after, values)["output"])
    assert find_difference(before, after, values) is None
    assert find_difference(before, with_slope(after, 0.5), values).node.name == "leaky"


def test_a_difference_of_scores_is_found_beside_boxes_in_pixels():
    before = v8()
    after = copy(before)
    bias = next(tensor for tensor in after.graph.initializer if tensor.name == "cls0_bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.05), bias.name))
    assert find_difference(before, after, feed(before)).node.name == "cls0"


def test_a_node_under_other_names_is_named_not_the_one_behind_it():
    before = leaky()
    after = with_slope(before, 0.5)
    for node in after.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = ["other" if name == "leaky_out" else name for name in tensors]
    del after.graph.value_info[:]
    assert find_difference(before, after, feed(before)).node.name == "leaky"


def test_a_difference_without_a_node_is_that_of_the_outputs(monkeypatch):
    before = leaky()
    wanted = find_difference(before, with_slope(before, 0.5), feed(before))

    def fails(*_):
        raise ModelError("a part does not run")

    monkeypatch.setattr("onnxq.runtime.same_function._Pair.sqnr", fails)
    found = find_difference(before, with_slope(before, 0.5), feed(before))
    assert wanted.node is not None
    assert found.node is None
    assert found.sqnr < 40


def test_a_model_that_does_not_run_tells_nothing_and_one_made_of_it_must_run(caplog):
    model = leaky()
    broken = copy(model)
    nodes(broken)["leaky"].op_type = "Unknown"
    with caplog.at_level(logging.INFO):
        assert find_difference(broken, model, feed(model)) is None
    assert "it is not known whether" in caplog.text
    with pytest.raises(ModelError, match="cannot load"):
        find_difference(model, broken, feed(model))


def test_several_inputs_and_weights_that_both_parts_read():
    net = Net()
    x = net.conv("images", 4)
    sizes = net.add("Cast", "sizes", to=TensorProto.FLOAT)
    scaled = net.add("Mul", x, net.add("ReduceMax", sizes, keepdims=0))
    total = net.add("Add", scaled, net.const(np.ones((1, 4, 1, 1)), name="bias"))
    nodes_of = helper.make_graph(
        net.nodes,
        "g",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, [1, 2]),
        ],
        [helper.make_tensor_value_info(total, TensorProto.FLOAT, None)],
        net.weights,
    )
    before = helper.make_model(nodes_of, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    after = onnx.ModelProto()
    after.CopyFrom(before)
    for tensor in after.graph.initializer:
        if tensor.name == "bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full((1, 4, 1, 1), 3, np.float32), "bias"))
    assert find_difference(before, before, noise_feed(before)) is None
    assert find_difference(before, after, noise_feed(before)).node.op_type == "Add"
