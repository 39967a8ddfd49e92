import logging

import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    Net,
    assert_same_numbers,
    assert_untouched,
    conditional,
    copy,
    csp,
    feed,
    nodes,
    pan,
    rewrite,
    run,
    silu_chain,
    v8,
)
from onnx import helper

from onnxq.ir import Model, Variable
from onnxq.passes.infer_shapes import InferShapes
from onnxq.pipeline import Facts

STEP = InferShapes()
ALL = {**BACKBONES, **DETECTORS}


def inferred(model):
    """The tensors by name after the pass, and its number of edits."""
    working = Model(copy(model))
    edits = STEP.run(working, Facts())
    return working.graph.tensors(), edits


def computed(model):
    """Return the names of the tensors that nodes compute."""
    return [name for node in model.graph.node for name in node.output if name]


def chain_around_an_unknown_node(behind):
    """Return a model: Conv, a node of an unknown domain, the nodes that `behind` adds, and a Conv."""
    net = Net()
    x = net.conv("images", 4, name="before")
    x = net.add("Mystery", x, name="mystery", domain="made.up")
    x = behind(net, x)
    net.channels[x] = 4
    y = net.conv(x, 8, name="after")
    graph = helper.make_graph(
        net.nodes,
        "net",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, net.shape)],
        [helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, ["a", "b", "c", "d"])],
        net.weights,
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("made.up", 1)], ir_version=8
    )


@pytest.mark.parametrize("name", ALL)
def test_shapes_and_types_are_those_that_the_tensors_turn_out_to_have(name):
    before = ALL[name]()
    values = feed(before)
    actual = run(before, values, outputs=computed(before))
    tensors, edits = inferred(before)
    assert edits > 0
    for tensor, array in actual.items():
        assert tensors[tensor].dtype == array.dtype, tensor
        assert len(tensors[tensor].shape) == array.ndim, tensor
        for dim, size in zip(tensors[tensor].shape, array.shape):
            assert dim == size or not isinstance(dim, int), tensor
    if name != "v7_end2end":  # how many boxes NonMaxSuppression picks is not known before
        assert all(list(tensors[tensor].shape) == list(array.shape) for tensor, array in actual.items())


def test_the_graph_computes_what_it_did_and_stays_valid():
    before = v8()
    after, edits = rewrite(STEP, before)
    assert edits > 0
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(before, after)
    assert [n.name for n in after.graph.node] == [n.name for n in before.graph.node]


@pytest.mark.parametrize("name", ALL)
def test_a_second_run_learns_nothing(name):
    after, _ = rewrite(STEP, ALL[name]())
    assert_untouched(STEP, after)


@pytest.mark.parametrize("build", [silu_chain, csp, pan])
def test_a_second_run_learns_nothing_of_a_model_of_dynamic_size(build):
    after, edits = rewrite(STEP, build(dynamic=True))
    assert edits > 0
    assert_untouched(STEP, after)


def test_a_second_run_learns_nothing_of_a_dynamic_model_with_subgraphs():
    after, edits = rewrite(STEP, conditional(dynamic=True))
    assert edits > 0
    assert_untouched(STEP, after)


def test_a_graph_whose_shapes_are_all_known_is_not_touched():
    model = onnx.shape_inference.infer_shapes(csp(), data_prop=True)
    assert_untouched(STEP, model)


def test_named_dimensions_keep_their_names():
    tensors, _ = inferred(csp(dynamic=True))
    assert tensors["conv0_out"].shape[:2] == ["batch", 8]
    assert tensors["concat0_out"].shape[:2] == ["batch", 12]
    assert tensors["concat0_out"].dtype == np.float32


def test_weights_of_any_size_take_part_and_keep_their_values():
    net = Net()
    before = net.model(net.conv(net.conv("images", 32, 3), 32, 3, name="large"))
    assert np.prod(before.graph.initializer[2].dims) > 1024
    tensors, _ = inferred(before)
    assert list(tensors["conv0_out"].shape) == [1, 32, 32, 32]
    assert np.array_equal(tensors["large_weight"].values, onnx.numpy_helper.to_array(before.graph.initializer[2]))


def test_shapes_that_are_computed_from_shapes_are_followed():
    net = Net(opset=14)
    x = net.conv("images", 4)
    height = net.add("Gather", net.add("Shape", x), net.const(2, np.int64), axis=0)
    twice = net.add("Mul", net.unsqueeze(height, 0), net.ints(2))
    net.add("Reshape", x, net.concat(net.ints(1, 64), twice, axis=0), name="reshaped")
    tensors, _ = inferred(net.model(net.add("Neg", "reshaped_out")))
    assert list(tensors["reshaped_out"].shape) == [1, 64, 64]


def test_behind_an_unknown_node_shapes_are_taken_up_again_where_they_are_known():
    tensors, edits = inferred(chain_around_an_unknown_node(lambda net, x: net.reshape(x, 1, 4, 16, 64)))
    assert edits > 0
    assert list(tensors["before_out"].shape) == [1, 4, 32, 32]
    assert tensors["mystery_out"].shape is None
    assert tensors["mystery_out"].dtype is None


def test_behind_an_unknown_node_nothing_is_made_up():
    tensors, _ = inferred(chain_around_an_unknown_node(lambda net, x: net.add("Sigmoid", x)))
    assert isinstance(tensors["sigmoid0_out"], Variable)
    assert tensors["sigmoid0_out"].shape is None
    assert tensors["sigmoid0_out"].dtype is None


def test_what_a_file_wrongly_says_of_its_shapes_is_corrected():
    before = silu_chain()
    before.graph.value_info.append(helper.make_tensor_value_info("sigmoid1_out", onnx.TensorProto.DOUBLE, [7, 7]))
    tensors, _ = inferred(before)
    assert list(tensors["sigmoid1_out"].shape) == [1, 8, 32, 32]
    assert tensors["sigmoid1_out"].dtype == np.float32


def test_what_a_file_says_of_shapes_that_cannot_be_inferred_is_kept():
    before = chain_around_an_unknown_node(lambda net, x: net.add("Sigmoid", x))
    before.graph.value_info.append(helper.make_tensor_value_info("mystery_out", onnx.TensorProto.FLOAT, [1, 4, 32, 32]))
    tensors, _ = inferred(before)
    assert list(tensors["mystery_out"].shape) == [1, 4, 32, 32]
    assert tensors["mystery_out"].dtype == np.float32


def test_a_graph_that_inference_refuses_is_left_as_it_is_and_logged(caplog):
    before = silu_chain()
    nodes(before)["sigmoid1"].domain = "not.imported"
    with caplog.at_level(logging.WARNING):
        tensors, edits = inferred(before)
    assert edits == 0
    assert tensors["conv0_out"].shape is None
    assert "shapes could not be inferred" in caplog.text
