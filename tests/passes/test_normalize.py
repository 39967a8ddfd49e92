import re
from collections import Counter

import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    ULTRALYTICS,
    Net,
    assert_same_numbers,
    assert_untouched,
    attention,
    conditional,
    copy,
    csp,
    dropout_chain,
    feed,
    initializers,
    nodes,
    ops,
    rewrite,
    rewrite_checked,
    run,
    silu_chain,
    sqnr,
    v8,
    with_constant_nodes,
    with_initializers_as_inputs,
    with_metadata,
    with_node_names,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxq import Config, quantize
from onnxq.errors import ModelError
from onnxq.ir import INTEGER_OPS, QDQ_OPS
from onnxq.passes.normalize import Normalize

STEP = Normalize()
ALL = {**BACKBONES, **DETECTORS, "conditional": conditional}


def unchecked(net, x, shape):
    """The model of a net with nodes that onnx.checker refuses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx.checker, "check_model", lambda *args, **options: None)
        return net.model(x, shape=shape)


def with_constant(**value):
    """Return a model y = x + constant; the constant comes from a Constant node with this attribute."""
    net = Net()
    constant = net.add("Constant", name="constant", **value)
    return net.model(net.add("Add", "images", net.add("Cast", constant, to=TensorProto.FLOAT)))


# --- operator set -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("opset", [11, 12])
@pytest.mark.parametrize("name", ALL)
def test_older_operator_sets_are_converted_to_13(name, opset):
    after, edits = rewrite_checked(STEP, ALL[name](opset=opset))
    assert edits > 0
    assert [(entry.domain, entry.version) for entry in after.opset_import] == [("", 13)]


@pytest.mark.parametrize("opset", [13, 14, 15, 16, 17])
def test_newer_operator_sets_are_kept(opset):
    assert_untouched(STEP, csp(opset=opset))


@pytest.mark.parametrize("opset", [18, 20])
@pytest.mark.parametrize("target", ["ort", "tensorrt", "qnn"])
def test_group_normalization_with_a_scale_for_each_group_is_quantized(target, opset):
    net = Net(opset=opset)
    x = net.block("images", 64)
    scale, bias = net.const(net.normal(4, scale=0.3) + 1), net.const(net.normal(4, scale=0.3))
    x = net.add("GroupNormalization", net.conv(x, 64), scale, bias, num_groups=4, epsilon=1e-3)
    x = net.block(net.block(net.silu(x), 64), 64)
    model = unchecked(net, net.conv(x, 8), [1, 8, 32, 32])
    after, edits = rewrite(Normalize(), model)
    assert (edits, "GroupNormalization" in ops(after)) == (1, False)
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(model, after)
    made = quantize(model, [feed(model, seed) for seed in (0, 1)], Config(target=target)).model
    assert sqnr(run(model)["output"], run(made)["output"]) > 25


def test_a_model_that_cannot_be_converted_is_refused_with_the_cause():
    net = Net()
    model = net.model(net.add("ThresholdedRelu", net.conv("images", 8)))
    model.opset_import[0].version = 9
    with pytest.raises(ModelError, match=r"converted from opset 9 to 13 \(.+\); export it again with opset 17"):
        rewrite(STEP, model)


def test_a_conversion_keeps_other_operator_domains():
    before = csp(opset=12)
    before.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    after, _ = rewrite(STEP, before)
    assert {entry.domain: entry.version for entry in after.opset_import} == {"": 13, "com.microsoft": 1}


# --- constants --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ({"value": numpy_helper.from_array(np.array([1, 2, 3], np.uint8))}, np.array([1, 2, 3], np.uint8)),
        ({"value_float": 1.5}, np.array(1.5, np.float32)),
        ({"value_floats": [1.5] * 32}, np.full(32, 1.5, np.float32)),
        ({"value_int": 3}, np.array(3, np.int64)),
        ({"value_ints": [3] * 32}, np.full(32, 3, np.int64)),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_each_kind_of_constant_node_becomes_an_initializer(attribute, expected):
    if "value" in attribute:
        expected = np.resize(expected, 32)
        attribute = {"value": numpy_helper.from_array(expected)}
    after, edits = rewrite_checked(STEP, with_constant(**attribute))
    assert edits == 1
    assert ops(after) == ["Cast", "Add"]
    stored = initializers(after)["constant_out"]
    assert stored.dtype == expected.dtype
    assert stored.shape == expected.shape
    assert (stored == expected).all()


def test_all_constant_nodes_of_a_detector_become_initializers():
    before = v8()
    after, edits = rewrite_checked(STEP, with_constant_nodes(before))
    assert edits == len(before.graph.initializer)
    assert ops(after) == ops(before)
    stored = initializers(after)
    assert stored.keys() == initializers(before).keys()
    assert all(np.array_equal(stored[name], values) for name, values in initializers(before).items())


def test_a_constant_node_that_makes_an_output_stays():
    net = Net()
    made = net.add("Constant", value_float=2.0)
    assert_untouched(STEP, net.model(net.conv("images", 4), made))


def test_a_constant_that_is_no_number_stays():
    net = Net()
    text = net.add("Constant", value_string="1.5")
    assert_untouched(STEP, net.model(net.add("Add", "images", net.add("Cast", text, to=TensorProto.FLOAT))))


def test_a_constant_node_read_by_a_subgraph_becomes_an_initializer():
    net = Net()
    half = net.add("Constant", value_float=0.5)
    positive = net.add("Greater", net.add("ReduceMax", "images", keepdims=0), half)
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node(op, ["images", half], [f"{kind}_out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)],
        )
        for kind, op in (("then", "Add"), ("else", "Mul"))
    }
    after, edits = rewrite_checked(STEP, net.model(net.add("If", positive, **branches)))
    assert edits == 1
    assert "Constant" not in ops(after)


# --- identities -------------------------------------------------------------------------------------------------------


def with_dropout(ratio: float | None = None, training: bool | None = None, mask: str = "") -> onnx.ModelProto:
    """A Dropout (ONNX, opset 13) between two Convs."""
    model = silu_chain(1)
    last = nodes(model)["last"]
    inputs = [last.input[0]]
    for name, value in (("ratio", ratio), ("training", training)):
        if value is not None:
            kind = np.bool_ if name == "training" else np.float32
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, kind), name))
            inputs.append(name)
    dropout = helper.make_node("Dropout", inputs, ["kept", *filter(None, [mask])], "dropout")
    last.input[0] = "kept"
    model.graph.node.insert(ops(model).index("Conv", 1), dropout)
    return model


def test_identities_and_dropouts_between_nodes_go_and_the_one_in_front_of_an_output_stays():
    before = dropout_chain()
    after, edits = rewrite_checked(STEP, before)
    assert edits == 4
    assert Counter(ops(before)) - Counter(ops(after)) == Counter(Identity=3, Dropout=1)
    last = after.graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Identity", ["output"])


def test_an_identity_between_an_input_and_an_output_stays():
    net = Net()
    assert_untouched(STEP, net.model(net.add("Identity", "images"), net.conv("images", 4)))


@pytest.mark.parametrize("options", [{}, {"ratio": 0.3}, {"ratio": 0.3, "training": False, "mask": "m"}])
def test_a_dropout_that_does_not_drop_goes(options):
    before = with_dropout(**options)
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert "Dropout" not in ops(after)


def test_a_dropout_that_drops_or_whose_mask_is_wanted_stays():
    assert_untouched(STEP, with_dropout(ratio=0.0, training=True))
    read = with_dropout(mask="m")
    read.graph.output.append(helper.make_tensor_value_info("m", onnx.TensorProto.BOOL, None))
    assert_untouched(STEP, read)


def test_all_readers_of_an_identity_read_its_input():
    net = Net()
    x = net.add("Identity", net.conv("images", 4, name="before"))
    before = net.model(net.silu(x), net.add("Add", x, x))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    found = nodes(after)
    assert list(found["sigmoid0"].input) == ["before_out"]
    assert list(found["mul0"].input) == ["before_out", "sigmoid0_out"]
    assert list(found["add0"].input) == ["before_out", "before_out"]


def test_an_identity_of_a_weight_goes_and_the_weight_is_read_itself():
    before = silu_chain()
    before.graph.node.insert(0, helper.make_node("Identity", ["conv0_weight"], ["other"], "identity"))
    before.graph.node[1].input[1] = "other"
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert list(nodes(after)["conv0"].input) == ["images", "conv0_weight", "conv0_bias"]


def test_an_identity_read_by_a_subgraph_goes():
    before = conditional()
    at = ops(before).index("If")
    before.graph.node.insert(at, helper.make_node("Identity", ["read_inside_out"], ["same"], "identity"))
    for attribute in nodes(before)["if0"].attribute:
        attribute.g.node[0].input[1] = "same"
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert all(list(a.g.node[0].input) == ["mul0_out", "read_inside_out"] for a in nodes(after)["if0"].attribute)


# --- names ------------------------------------------------------------------------------------------------------------


def test_empty_names_at_the_end_of_the_inputs_go_and_those_before_others_stay():
    net = Net()
    x = net.add("ConvTranspose", net.conv("images", 4), net.const(np.ones((4, 4, 2, 2))), "", strides=[2, 2])
    x = net.add("Clip", net.add("Clip", x, "", net.const(6)), net.const(0), "")
    before = net.model(net.add("ReduceSum", x, ""))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 3
    assert [len(node.input) for node in after.graph.node if node.op_type != "Conv"] == [2, 3, 2, 1]
    assert_same_numbers(before, after)


def test_nodes_without_a_name_are_named_after_their_operator_and_place():
    before = with_node_names(silu_chain(), [])
    after, edits = rewrite_checked(STEP, before)
    assert edits == len(before.graph.node)
    assert [node.name for node in after.graph.node][:3] == ["Conv_0", "Sigmoid_1", "Mul_2"]


def test_of_nodes_with_one_name_the_first_keeps_it():
    before = silu_chain()
    after, edits = rewrite(STEP, with_node_names(before, ["same", "same", "other", "same", *"abcdef"]))
    assert edits == 2
    assert [node.name for node in after.graph.node][:4] == ["same", "same_1", "other", "same_3"]
    assert_same_numbers(before, after)
    assert rewrite(STEP, after)[1] == 0


def test_a_new_name_is_not_one_that_a_later_node_has():
    after, edits = rewrite(STEP, with_node_names(silu_chain(layers=1), ["", "Conv_0", "x", "Sigmoid_1"]))
    assert edits == 1
    assert [node.name for node in after.graph.node] == ["Conv_0_", "Conv_0", "x", "Sigmoid_1"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(["", "a", "b", "a_1", "Conv_0", "Sigmoid_1", "Sigmoid_1_"]), min_size=10, max_size=10))
def test_names_are_unique_afterwards_and_first_owners_keep_theirs(names):
    after, edits = rewrite(STEP, with_node_names(silu_chain(), names))
    found = [node.name for node in after.graph.node]
    assert all(found)
    assert len(set(found)) == len(found)
    firsts = [index for index, name in enumerate(names) if name and names.index(name) == index]
    assert [found[index] for index in firsts] == [names[index] for index in firsts]
    assert edits == len(names) - len(firsts)
    assert rewrite(STEP, after)[1] == 0


# --- inputs, metadata, refusals ---------------------------------------------------------------------------------------


def test_initializers_are_no_longer_inputs():
    before = with_initializers_as_inputs(csp())
    after, _ = rewrite(STEP, before)
    assert [t.name for t in after.graph.input] == ["images"]
    assert run(after).keys() == {"output"}
    assert np.array_equal(run(after)["output"], run(before)["output"])


def test_a_model_of_ir_version_3_becomes_a_valid_one():
    before = with_initializers_as_inputs(csp())
    after, _ = rewrite(STEP, before)
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(STEP, after)


@pytest.mark.parametrize("opset", [11, 12])
def test_a_model_of_ir_version_3_is_converted_to_opset_13(opset):
    before = with_initializers_as_inputs(csp(opset=opset))
    after, _ = rewrite(STEP, before)
    assert after.opset_import[0].version == 13
    assert [t.name for t in after.graph.input] == ["images"]
    values = feed(after)
    assert np.abs(run(after, values)["output"] - run(before, values)["output"]).max() < 1e-5
    onnx.checker.check_model(after, full_check=True)


@pytest.mark.parametrize("opset", [11, 13])
def test_what_a_model_says_of_itself_is_kept(opset):
    before = with_metadata(with_constant_nodes(csp(opset=opset)))
    before.producer_name, before.producer_version, before.doc_string = "pytorch", "2.4", "a detector"
    before.graph.doc_string = "its graph"
    before.graph.node[-1].doc_string = "the last layer"
    after, edits = rewrite(STEP, before)
    assert edits > 0
    assert {p.key: p.value for p in after.metadata_props} == ULTRALYTICS
    assert (after.producer_name, after.producer_version, after.doc_string) == ("pytorch", "2.4", "a detector")
    assert after.graph.doc_string == "its graph"
    assert after.graph.node[-1].doc_string == "the last layer"


@pytest.mark.parametrize("opset", [11, 13])
def test_metadata_of_nodes_and_of_the_graph_are_kept(opset):
    before = with_constant_nodes(csp(opset=opset))
    before.graph.metadata_props.add(key="exporter", value="dynamo")
    before.graph.node[-1].metadata_props.add(key="pkg.torch.onnx.name_scopes", value="model.22")
    after, _ = rewrite(STEP, before)
    assert [(p.key, p.value) for p in after.graph.metadata_props] == [("exporter", "dynamo")]
    assert [p.value for p in after.graph.node[-1].metadata_props] == ["model.22"]


@pytest.mark.parametrize("op", sorted(QDQ_OPS | INTEGER_OPS))
def test_a_model_that_is_already_quantized_is_refused(op):
    model = copy(silu_chain())
    nodes(model)["sigmoid1"].op_type = op
    with pytest.raises(ModelError, match=re.escape(f"already quantized: node 'sigmoid1' is a {op}; give the float")):
        rewrite(STEP, model)


# --- nothing to do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(ALL.keys() - {"dropout_chain"}))
def test_a_model_in_normal_form_is_not_touched(name):
    assert_untouched(STEP, with_metadata(ALL[name]()))


def test_a_model_of_dynamic_size_is_not_touched():
    assert_untouched(STEP, csp(dynamic=True))


def test_a_dropout_that_makes_an_output_is_not_touched():
    net = Net()
    assert_untouched(STEP, net.model(net.conv("images", 4), net.add("Dropout", "images")))


def test_an_attention_block_in_normal_form_is_not_touched_at_any_seed():
    assert_untouched(STEP, attention(seed=7))
