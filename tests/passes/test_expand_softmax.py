import numpy as np
import onnx
import pytest
from graphs import attention, nodes, ops, prepared, rewrite, rewrite_checked, run, v6, v8
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.passes.expand_softmax import ExpandSoftmax

STEPS = {13: ["Split", "Max", "Sub", "Exp", "ReduceSum", "Div"], 18: ["ReduceMax", "Sub", "Exp", "ReduceSum", "Div"]}
"""Opset -> operators."""


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
    for opset, steps in STEPS.items():
        after, _ = rewrite(ExpandSoftmax(), softmax([1, 16, 4, 8], 1, opset))
        onnx.checker.check_model(after, full_check=True)
        assert ops(after) == steps
        assert list(nodes(after)) == [f"softmax_{op}" for op in steps]


@pytest.mark.parametrize("size", ["bins", 0, 257])
def test_an_axis_that_no_short_list_of_slices_covers_stays_below_opset_18(size):
    assert rewrite(ExpandSoftmax(), softmax([1, size, 4, 8], 1, 13))[1] == 0
    assert rewrite(ExpandSoftmax(), softmax([1, size, 4, 8], 1, 18))[1] == 1


def test_a_converter_that_knows_no_operator_can_raise_the_opset():
    values = {"x": np.random.default_rng(0).normal(size=[1, 16, 4, 8]).astype(np.float32)}
    after, _ = rewrite(ExpandSoftmax(), softmax([1, 16, 4, 8], 1, 13))
    expected = run(after, values)["y"]
    for opset in range(14, 26):
        after.opset_import[0].version = opset
        after.ir_version = 10
        onnx.checker.check_model(after, full_check=True)
        assert np.array_equal(run(after, values)["y"], expected)


@pytest.mark.parametrize("extreme", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_give_the_same_in_both_forms(extreme):
    values = np.zeros([1, 3, 4], np.float32)
    values[0, 1, 2] = extreme
    found = [both([1, 3, 4], 1, values, opset)[1] for opset in STEPS]
    assert np.array_equal(*found, equal_nan=True)


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
    assert {node.doc_string for node in after.graph.node} == {"probabilities"}
    assert all([(p.key, p.value) for p in node.metadata_props] == [("where", "head")] for node in after.graph.node)
