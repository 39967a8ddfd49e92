import numpy as np
import onnx
import pytest
from graphs import attention, nodes, ops, prepared, rewrite, rewrite_checked, run, v6, v8
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.passes.expand_softmax import ExpandSoftmax

STEPS = ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]


def softmax(shape, axis, opset=13):
    """A model of one Softmax."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    attributes = {} if axis is None else {"axis": axis}
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"], "softmax", **attributes)], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def both(shape, axis, values, opset=13):
    """Return the outputs before and after the pass."""
    model = softmax(shape, axis, opset)
    after, edits = rewrite(ExpandSoftmax(), model)
    assert edits == 1
    return run(model, {"x": values})["y"], run(after, {"x": values})["y"]


@pytest.mark.parametrize("build", [v6, v8], ids=lambda b: b.__name__)
def test_the_integral_over_box_distributions(build):
    before = prepared(build()).to_proto()
    after, edits = rewrite_checked(ExpandSoftmax(), before)
    assert edits == ops(before).count("Softmax") > 0
    assert "Softmax" not in ops(after)
    assert list(after.graph.output) == list(before.graph.output)


def test_a_softmax_over_the_last_axis_stays():
    before = prepared(attention()).to_proto()
    assert "Softmax" in ops(before)
    assert rewrite_checked(ExpandSoftmax(), before)[1] == 0
    assert rewrite(ExpandSoftmax(), softmax([2, 3, 4], None))[1] == 0
    assert rewrite(ExpandSoftmax(), softmax([2, 3, 4], 2))[1] == 0


@settings(max_examples=20, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    data=st.data(),
    opset=st.sampled_from([13, 17, 18]),
    scale=st.sampled_from([1e-3, 1.0, 100.0, 1e30]),
    seed=st.integers(0, 9),
)
def test_the_numbers_stay_for_any_axis_and_any_size(shape, data, opset, scale, seed):
    axis = data.draw(st.integers(0, len(shape) - 2))
    axis -= len(shape) * data.draw(st.integers(0, 1))
    values = (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)
    expected, found = both(shape, axis, values, opset)
    assert np.allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert np.allclose(found.sum(axis=axis), 1, atol=1e-5)


def test_the_steps_are_valid_and_named_after_it():
    for opset in (13, 18):
        after, _ = rewrite(ExpandSoftmax(), softmax([1, 16, 4, 8], 1, opset))
        onnx.checker.check_model(after, full_check=True)
        assert [n.op_type for n in after.graph.node] == STEPS
        assert list(nodes(after)) == [f"softmax_{op}" for op in STEPS]


def test_one_of_unknown_rank_stays():
    model = softmax([1, 16, 4, 8], 1)
    model.graph.node.insert(0, helper.make_node("NonZero", ["x"], ["places"], "nonzero"))
    model.graph.node.insert(1, helper.make_node("Cast", ["places"], ["cast"], "cast", to=TensorProto.FLOAT))
    assert rewrite(ExpandSoftmax(), model)[1] == 1
    nodes(model)["softmax"].input[0] = "cast"
    assert rewrite(ExpandSoftmax(), model)[1] == 0


def test_what_is_said_of_the_softmax_is_said_of_each_step():
    model = softmax([2, 3, 4], 1)
    model.graph.node[0].doc_string = "probabilities"
    model.graph.node[0].metadata_props.add(key="where", value="head")
    after, _ = rewrite(ExpandSoftmax(), model)
    assert [node.doc_string for node in after.graph.node] == ["probabilities"] * len(STEPS)
    assert [[(p.key, p.value) for p in node.metadata_props] for node in after.graph.node] == [[("where", "head")]] * 5
