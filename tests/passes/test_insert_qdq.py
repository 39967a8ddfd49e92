from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import pytest
from cases import paired
from graphs import (
    BACKBONES,
    DETECTORS,
    Net,
    conditional,
    csp,
    feed,
    initializers,
    nodes,
    ops,
    pan,
    prepared,
    quantized,
    quantizing,
    run,
    silu_chain,
    sqnr,
    with_metadata,
)
from inference import makers, readers

from onnxq.facts import Plan
from onnxq.ir import Model
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.pipeline import Pipeline
from onnxq.targets import OPENVINO, TARGETS

ALL = {**BACKBONES, **DETECTORS}
PAIR = {"QuantizeLinear", "DequantizeLinear", "Clip"}


PAIRS = paired(ALL, TARGETS, first=1)
"""Each network with two targets, mostly others than in the tests of all passes."""


@cache
def result(name, target):
    """A network, quantized, and the facts found on the way; not to be edited."""
    return quantized(ALL[name](), TARGETS[target], matmul=False)


# --- the graph --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_the_result_is_a_valid_model_with_the_same_outputs(name, target):
    model = ALL[name]()
    after, _ = result(name, target)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.output) == list(model.graph.output)
    assert list(after.graph.input) == list(model.graph.input)
    known = {t.name for t in after.graph.input} | initializers(after).keys() | {""}
    for node in after.graph.node:
        assert set(node.input) <= known, "not in topological order"
        known |= set(node.output)
    assert len({node.name for node in after.graph.node}) == len(after.graph.node)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_every_planned_tensor_has_one_quantize_and_one_dequantize(name, target):
    after, facts = result(name, target)
    quantizers = [node.input[0] for node in after.graph.node if node.op_type == "QuantizeLinear"]
    expected = [f"{p.tensor}_float" if p.is_output else p.tensor for p in facts[Plan].points if p.users or p.is_output]
    assert Counter(quantizers) == Counter(expected)
    by_name = nodes(after)
    for point in facts[Plan].points:
        if not point.users or point.is_output:
            continue
        first, second = by_name[f"{point.tensor}_QuantizeLinear"], by_name[f"{point.tensor}_DequantizeLinear"]
        assert list(first.output) == [f"{point.tensor}_quantized"]
        assert list(second.input) == [f"{point.tensor}_quantized", *first.input[1:]]
        assert list(second.output) == [f"{point.tensor}_dequantized"]
        assert {node.name for node in readers(after, second.output[0])} == set(point.users)
        others = {node.name for node in readers(after, point.tensor)} - {first.name}
        assert not others & set(point.users)
    assert len(after.graph.node) == len(ops(after))
    weights = [n for n in after.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in initializers(after)]
    assert len(weights) == len(facts[Plan].weights)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ["csp", "relu_net", "v8", "yolox"])
def test_without_the_pairs_the_graph_is_what_it_was(name, target):
    after, _ = result(name, target)
    before = prepared(ALL[name]()).to_proto()
    source = {n.output[0]: n.input[0] for n in after.graph.node if n.op_type in PAIR}

    def origin(tensor):
        while tensor in source:
            tensor = source[tensor]
        return tensor.removesuffix("_quantized").removesuffix("_float")

    kept = [n for n in after.graph.node if n.op_type not in PAIR]
    assert [(n.name, n.op_type, [t.removesuffix("_float") for t in n.output]) for n in kept] == [
        (n.name, n.op_type, list(n.output)) for n in before.graph.node
    ]
    for node, old in zip(kept, before.graph.node):
        assert [origin(t) for t in node.input] == list(old.input)
        assert list(node.attribute) == list(old.attribute)


def test_pairs_stand_directly_behind_what_makes_the_tensor():
    after, facts = quantized(csp(), OPENVINO)
    order = [node.name for node in after.graph.node]
    for point in facts[Plan].points:
        at = order.index(f"{point.tensor}_QuantizeLinear")
        assert order[at + 1] == f"{point.tensor}_DequantizeLinear"
        if point.tensor == "images":
            assert at == 0
        else:
            assert point.tensor in after.graph.node[at - 1].output


def test_the_number_of_edits_is_that_of_inserted_nodes():
    model = csp()
    working = Model(model)
    steps = quantizing(model, matmul=False)
    facts = Pipeline(steps[:-2]).run(working)
    before = len(working.graph.nodes)
    edits = InsertQdq().run(working, facts)
    assert edits == len(working.graph.nodes) - before
    assert edits == 2 * len(facts[Plan].points) + len(facts[Plan].weights)


def test_a_second_run_makes_no_edit():
    model = csp()
    working = Model(model)
    facts = Pipeline(quantizing(model)).run(working)
    once = working.to_proto().SerializeToString(deterministic=True)
    assert InsertQdq().run(working, facts) == 0
    assert working.to_proto().SerializeToString(deterministic=True) == once


def test_names_that_are_taken_are_given_a_number():
    model = csp()
    for tensor in ("mul0_out_scale", "conv1_weight_quantized", "mul0_out_QuantizeLinear"):
        model.graph.node.append(onnx.helper.make_node("Sigmoid", ["images"], [tensor], f"{tensor}_node"))
        model.graph.output.append(onnx.helper.make_tensor_value_info(tensor, 1, [1, 3, 32, 32]))
    after, _ = quantized(model, matmul=False)
    onnx.checker.check_model(after, full_check=True)
    by_name = nodes(after)
    assert by_name["mul0_out_QuantizeLinear_2"].input[1] == "mul0_out_scale_2"
    assert by_name["conv1_weight_DequantizeLinear"].input[0] == "conv1_weight_quantized_2"
    assert {"mul0_out_scale", "conv1_weight_quantized"} <= {t.name for t in after.graph.output}


def test_a_tensor_that_nothing_reads_gets_no_pair():
    net = Net()
    left, right = net.split(net.block(net.block("images", 8), 8, kernel=1), 4, 4)
    del right
    model = net.model(net.conv(net.block(left, 8), 4))
    after, facts = quantized(model)
    assert "split0_out1" in {p.tensor for p in facts[Plan].points}
    assert "split0_out1_quantized" not in makers(after)
    assert list(nodes(after)["split0"].output) == ["split0_out0", "split0_out1"]


def test_an_output_of_the_model_that_is_read_as_integers_stays_float():
    net = Net()
    x = net.block("images", 8)
    model = net.model(x, net.conv(net.block(x, 8), 4))
    after, _ = quantized(model)
    assert makers(after)["output0"].name == "mul0"
    assert np.array_equal(run(after)["output0"], run(model)["output0"])
    assert nodes(after)["conv1"].input[0] == "output0_dequantized"


def test_readers_that_are_not_planned_go_on_reading_float():
    after, _ = quantized(csp(), replace(OPENVINO, bypasses_dq=frozenset({"Add"})))
    by_name = nodes(after)
    assert by_name["conv2"].input[0] == "split0_out1_dequantized"
    assert by_name["add0"].input[0] == "split0_out1"


def test_metadata_stays():
    after, _ = quantized(with_metadata(csp()))
    assert {p.key for p in after.metadata_props} == {"author", "description", "stride", "task", "imgsz", "names"}


def test_a_subgraph_stays_what_it_was():
    model = conditional()
    after, _ = quantized(model, OPENVINO)
    onnx.checker.check_model(after, full_check=True)
    before = {a.name: a.g for a in nodes(model)["if0"].attribute}
    for attribute in nodes(after)["if0"].attribute:
        assert list(attribute.g.node[0].input) == list(before[attribute.name].node[0].input)


def test_new_names_are_not_those_within_a_subgraph():
    model = conditional()
    for attribute in nodes(model)["if0"].attribute:
        attribute.g.output[0].name = attribute.g.node[0].output[0] = "images_quantized"
    after, _ = quantized(model, OPENVINO)
    onnx.checker.check_model(after, full_check=True)
    assert nodes(after)["images_QuantizeLinear"].output == ["images_quantized_2"]


@pytest.mark.parametrize("build", [csp, pan, silu_chain])
def test_a_model_of_dynamic_size_takes_any_size(build):
    model = build(dynamic=True)
    after, _ = quantized(model)
    for sizes in ({"batch": 1, "height": 64, "width": 32}, {"batch": 3, "height": 32, "width": 32}):
        values = feed(model, 0, sizes)
        assert sqnr(*(run(m, values)[model.graph.output[0].name] for m in (model, after))) > 20
