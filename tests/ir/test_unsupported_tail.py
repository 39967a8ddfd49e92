import numpy as np
import onnx
import pytest
from graphs import DETECTORS, conditional, copy, feed, nodes, ops, run, silu_chain, v7_end2end, with_opaque_nms
from onnx import TensorProto, helper

from onnxq.errors import ModelError
from onnxq.ir.unsupported_tail import detach


@pytest.mark.parametrize("name", DETECTORS)
def test_a_model_that_can_be_run_is_whole(name):
    model = DETECTORS[name]()
    assert detach(model) == (model, None)


@pytest.mark.parametrize("domain", ["TRT", ""])
def test_what_stands_before_it_can_be_run(domain):
    whole = with_opaque_nms(silu_chain(), domain)
    before = copy(whole)
    front, tail = detach(whole)
    assert whole == before
    onnx.checker.check_model(front, full_check=True)
    assert [output.name for output in front.graph.output] == ["output"]
    assert np.array_equal(run(front)["output"], run(silu_chain())["output"])
    assert tail.unsupported == (f"'nms' ({'TRT.' if domain else ''}EfficientNMS_TRT)",)


@pytest.mark.parametrize("domain", ["TRT", ""])
def test_the_rest_is_put_back_as_it_was(domain):
    whole = with_opaque_nms(silu_chain(), domain)
    front, tail = detach(whole)
    tail.reattach(front)
    assert sorted(map(str, front.graph.node)) == sorted(map(str, whole.graph.node))
    assert front.graph.output == whole.graph.output
    assert sorted(w.name for w in front.graph.initializer) == sorted(w.name for w in whole.graph.initializer)


def test_a_constant_that_only_the_rest_reads_comes_back():
    whole = with_opaque_nms(silu_chain())
    front, tail = detach(whole)
    assert "limit_node" not in nodes(front)
    tail.reattach(front)
    assert nodes(front).keys() == nodes(whole).keys()


def test_what_others_made_constants_is_not_made_twice():
    whole = with_opaque_nms(silu_chain())
    front, tail = detach(whole)
    front.graph.initializer.append(helper.make_tensor("limit", 1, [], [0.25]))
    tail.reattach(front)
    assert ops(front).count("Constant") == 0


def test_outputs_that_can_be_run_stay_and_come_first():
    whole = with_opaque_nms(silu_chain())
    inner = nodes(whole)["conv1"].output[0]
    whole.graph.output.append(helper.make_tensor_value_info(inner, 1, [1, 8, 32, 32]))
    front, tail = detach(whole)
    assert [output.name for output in front.graph.output] == [inner, "output"]
    tail.reattach(front)
    assert [output.name for output in front.graph.output] == ["count", "shifted", inner]


def test_integers_may_cross():
    whole = copy(v7_end2end())
    whole.graph.node.append(helper.make_node("Gather_TRT", ["output"], ["rows"], domain="TRT"))
    whole.graph.output[0].name = "rows"
    front, _ = detach(whole)
    assert run(front, feed(whole))["output"].dtype == np.int64


def test_one_that_nobody_reads_changes_nothing_else():
    whole = copy(silu_chain())
    whole.graph.node.append(helper.make_node("Print", ["output"], ["said"], "print", domain="debug"))
    front, _ = detach(whole)
    assert front.graph.node == silu_chain().graph.node


def test_in_the_middle_of_the_network_it_is_refused():
    model = copy(silu_chain())
    nodes(model)["sigmoid1"].domain = "my.ops"
    message = r"does not know 'sigmoid1' \(my.ops.Sigmoid\), and 'conv2' \(Conv\) depends on it; export"
    with pytest.raises(ModelError, match=message):
        detach(model)


def test_in_front_of_the_network_it_is_to_be_cut_off():
    model = copy(silu_chain())
    model.graph.node.insert(0, helper.make_node("DecodeImage", ["file"], ["images"], "decode", domain="my.ops"))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("file", TensorProto.UINT8, ["bytes"]))
    message = r"'decode' \(my.ops.DecodeImage\), which reads the model's input, .*cut it off with onnx.utils.Extractor"
    with pytest.raises(ModelError, match=message):
        detach(model)


def test_one_within_a_subgraph_is_found():
    model = copy(conditional())
    branch = nodes(model)["if0"].attribute[0].g
    branch.node[0].domain = "my.ops"
    with pytest.raises(ModelError, match=r"does not know 'if0' \(my.ops.(Add|Sub)\)"):
        detach(model)


def test_what_it_reads_must_have_a_known_shape():
    model = with_opaque_nms(silu_chain())
    model.graph.node.insert(0, helper.make_node("Reshape", ["images", "sizes"], ["cut"], "cut"))
    model.graph.input.append(helper.make_tensor_value_info("sizes", 7, ["n"]))
    nodes(model)["nms"].input[1] = "cut"
    with pytest.raises(ModelError, match="the shape of tensor 'cut', which 'nms'"):
        detach(model)


@pytest.mark.parametrize("op", ["Unsqueeze", "Softmax"])
def test_nodes_behind_it_that_mean_something_else_in_another_operator_set_are_refused(op):
    whole = with_opaque_nms(silu_chain(opset=12))
    front, tail = detach(whole)
    front.opset_import[0].version = 13
    tail.reattach(front)
    whole.graph.node.append(helper.make_node(op, ["shifted"], ["more"], "more", axis=0))
    front, tail = detach(whole)
    front.opset_import[0].version = 13
    with pytest.raises(ModelError, match=rf"'more' \({op}\) depends on .+ from opset 12 to 13"):
        tail.reattach(front)
