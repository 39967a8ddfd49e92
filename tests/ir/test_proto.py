import numpy as np
import onnx
import pytest
from graphs import assert_same_numbers, conditional, copy, initializers, silu_chain, with_initializers_as_inputs
from onnx import TensorProto, helper, numpy_helper
from texts import weighted

from onnxq.ir import names_read, opset_of, restore_weights, with_weight_inputs
from onnxq.ir.proto import copy_fields, copy_message, for_shape_inference, large_initializers, without_weights


@pytest.fixture
def wide():
    """A model with one weight of more than a thousand elements."""
    model = silu_chain()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((40, 40), np.float32), "large"))
    model.graph.node.append(helper.make_node("Identity", ["large"], ["unused"], "reads_large"))
    return model


def test_large_initializers_are_those_whose_values_no_shape_depends_on(wide):
    assert [tensor.name for tensor in large_initializers(wide)] == ["large"]
    wide.graph.initializer[-1].data_type = TensorProto.STRING
    assert not large_initializers(wide)


def test_without_weights_all_else_is_there(wide):
    before = copy(wide)
    made = without_weights(wide)
    assert wide == before
    assert initializers(made).keys() == initializers(wide).keys() - {"large"}
    del wide.graph.initializer[-1]
    assert made == wide


def test_weight_inputs_stand_for_large_constants_and_are_undone(wide):
    made = with_weight_inputs(wide)
    added = made.graph.input[-1]
    assert (added.name, added.type.tensor_type.elem_type) == ("large", TensorProto.FLOAT)
    assert [dim.dim_value for dim in added.type.tensor_type.shape.dim] == [40, 40]
    assert restore_weights(made, wide) == wide


def test_a_constant_that_is_an_input_already_stays_one(wide):
    listed = with_initializers_as_inputs(wide)
    made = with_weight_inputs(listed)
    assert [value.name for value in made.graph.input] == [value.name for value in listed.graph.input]
    restored = restore_weights(made, listed)
    assert [value.name for value in restored.graph.input] == [value.name for value in listed.graph.input]
    assert_same_numbers(silu_chain(), copy(restored))


def test_nothing_is_believed_of_shapes(wide):
    wide.graph.value_info.append(helper.make_tensor_value_info("unused", TensorProto.FLOAT, [1]))
    wide.ir_version = 3
    made = for_shape_inference(wide)
    assert not made.graph.value_info
    # Before version 4 every initializer has to be an input too.
    assert made.ir_version == 4


@pytest.mark.parametrize(
    ("opsets", "expected"),
    [([("", 17)], 17), ([("com.microsoft", 1), ("ai.onnx", 13)], 13), ([("com.microsoft", 1)], 0), ([], 0)],
)
def test_the_opset_is_that_of_the_default_domain(opsets, expected):
    model = silu_chain()
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*opset) for opset in opsets)
    assert opset_of(model) == expected


def test_a_node_reads_its_inputs_and_those_of_its_subgraphs():
    model = conditional()
    [branch] = (node for node in model.graph.node if node.op_type == "If")
    inner = {name for a in branch.attribute for node in a.g.node for name in node.input if name}
    assert set(names_read(branch)) == {*branch.input, *inner}
    assert len(inner) > 0


def test_inputs_left_out_are_not_read():
    assert names_read(helper.make_node("Clip", ["x", "", "high"], ["y"])) == ["x", "high"]


def test_a_copy_is_equal_and_separate():
    node = weighted().graph.node[0]
    made = copy_message(node)
    assert made == node
    made.name = "other"
    assert node.name == "first"


def test_all_fields_but_some_are_copied():
    made = onnx.ModelProto()
    copy_fields(weighted(), made, "graph", "functions")
    expected = weighted()
    expected.ClearField("graph")
    expected.ClearField("functions")
    assert made == expected
