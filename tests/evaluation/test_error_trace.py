import itertools
import math

import numpy as np
import onnx
import pytest
from graphs import (
    Net,
    conditional,
    copy,
    csp,
    feed,
    initializers,
    quantized,
    run,
    saturating,
    silu_chain,
    sqnr,
    v8,
    v10,
    with_float16,
    with_initializers_as_inputs,
    with_random_names,
)
from onnx import helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.evaluation.error_trace import ErrorTrace, worst_first
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.targets import TARGETS


def traced(reference, model, seeds=(0, 1)):
    trace, noise = ErrorTrace(reference, model, 1), SqnrMeter()
    for seed in seeds:
        noise.merge(trace(feed(reference, seed)))
    return {each.tensor: each for each in trace.result(noise)}


def with_weight(model, name, change):
    """The model, with one weight changed."""
    model = copy(model)
    [weight] = [w for w in model.graph.initializer if w.name == name]
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)).astype(np.float32), name))
    return model


def test_noise_is_that_of_each_tensor_over_all_samples():
    model = silu_chain()
    other = with_weight(model, "conv1_weight", lambda w: 1.02 * w)
    found = traced(model, other)
    for tensor in ("conv1_out", "mul2_out", "output"):
        expected, actual = (
            np.concatenate([run(each, feed(model, seed), [tensor])[tensor] for seed in (0, 1)])
            for each in (model, other)
        )
        assert found[tensor].sqnr == pytest.approx(sqnr(expected, actual), abs=0.01)


def test_tensors_stand_in_the_order_of_the_graph_and_in_front_of_the_change_they_are_exact():
    model = silu_chain()
    found = traced(model, with_weight(model, "conv1_weight", lambda w: 1.02 * w))
    assert list(found) == [name for node in model.graph.node for name in node.output]
    assert [name for name, each in found.items() if each.sqnr == math.inf] == ["conv0_out", "sigmoid0_out", "mul0_out"]
    assert (found["mul0_out"].drop, found["mul0_out"].added) == (0, 0)


@pytest.mark.parametrize("name", ["conv0", "conv3"])
def test_error_enters_at_the_node_that_was_changed(name):
    model = silu_chain(layers=5)
    found = traced(model, with_weight(model, f"{name}_weight", lambda w: w + 0.1 * np.abs(w).max()))
    first = next(each for each in found.values() if each.added > 0)
    assert (first.tensor, first.node, first.op, first.drop) == (f"{name}_out", name, "Conv", math.inf)
    assert first.added == pytest.approx(10 ** (-first.sqnr / 10))


def test_the_worst_first():
    model = silu_chain(layers=3)
    other = with_weight(model, "conv0_weight", lambda w: 1.01 * w)
    worst = worst_first(traced(model, with_weight(other, "last_weight", lambda w: -w)).values())
    assert worst[0].tensor == "output"
    assert worst[0].added > 1
    assert all(a.added >= b.added for a, b in itertools.pairwise(worst))


def test_drop_is_measured_from_the_worst_input():
    model = csp()
    found = traced(model, with_weight(model, "conv1_weight", lambda w: 1.02 * w))
    added = found["add0_out"]
    inputs = [found[name] for node in model.graph.node if node.output[0] == "add0_out" for name in node.input]
    assert added.drop == pytest.approx(min(each.sqnr for each in inputs) - added.sqnr)
    before = max(10 ** (-each.sqnr / 10) for each in inputs)
    assert added.added == pytest.approx(10 ** (-added.sqnr / 10) - before)


def test_tensors_that_one_model_lacks_are_passed_through():
    model = silu_chain()
    other = with_weight(model, "conv0_weight", lambda w: 1.02 * w)
    for node in other.graph.node:
        for names in (node.input, node.output):
            names[:] = ["elsewhere" if name == "mul0_out" else name for name in names]
    found = traced(model, other)
    assert "mul0_out" not in found
    assert 0 < found["conv1_out"].drop + found["conv1_out"].sqnr < 60
    worst = min(found["conv0_out"].sqnr, found["sigmoid0_out"].sqnr)
    assert found["conv1_out"].drop == pytest.approx(worst - found["conv1_out"].sqnr)


def test_models_that_share_no_tensor_have_nothing_to_trace():
    model = silu_chain()
    other = copy(model)
    for node in other.graph.node:
        for tensors in (node.input, node.output):
            tensors[:] = [f"other_{t}" if t.endswith("_out") else t for t in tensors]
    assert list(traced(model, other)) == ["output"]
    del model.graph.node[:-1]
    model.graph.node[0].CopyFrom(helper.make_node("Relu", ["images"], ["output"]))
    other.graph.output[0].name = other.graph.node[-1].output[0] = "boxes"
    assert traced(model, other) == {}


def test_nodes_that_only_move_values_add_none():
    found = traced(csp(), with_weight(csp(), "conv1_weight", lambda w: 1.02 * w))
    moved = {name for name, each in found.items() if each.only_moves}
    assert {found[name].op for name in moved} == {"Split", "Concat"}
    adding = {name for name, each in found.items() if each.added > 0}
    assert adding & moved
    assert {each.tensor for each in worst_first(found.values())} == adding - moved


def test_a_tensor_that_is_not_finite_any_more_is_the_worst():
    model = silu_chain()
    found = traced(model, with_weight(model, "conv1_weight", lambda w: np.inf * np.sign(w)))
    assert (found["conv1_out"].sqnr, found["conv1_out"].drop) == (-math.inf, math.inf)
    assert worst_first(found.values())[0].tensor == "conv1_out"
    assert all(not math.isnan(each.drop + each.added) for each in found.values() if each.drop != math.inf)


@pytest.mark.parametrize("target", TARGETS)
def test_what_onnxq_writes_keeps_the_names(target):
    model = v8(size=64)
    result, _ = quantized(model, TARGETS[target])
    found = traced(model, result, seeds=(0,))
    convs = [node.output[0] for node in model.graph.node if node.op_type == "Conv"]
    assert set(convs) <= found.keys()
    assert len(found) > 0.9 * sum(node.op_type not in ("Constant", "Shape") for node in model.graph.node)
    assert found["output"].sqnr == pytest.approx(sqnr(*(run(each)["output"] for each in (model, result))), abs=1)


@pytest.mark.parametrize("target", TARGETS)
def test_no_sum_saturates_on_any_cpu(target):
    found = traced(saturating(), quantized(saturating(), TARGETS[target], limited=False)[0])
    assert {"conv", "output"} & found.keys()
    assert min(each.sqnr for each in found.values()) > 60


def test_floats_are_given_in_the_type_that_a_model_takes():
    model = with_float16(silu_chain())
    trace, values = ErrorTrace(model, model, 1), feed(silu_chain())
    assert {value.dtype for value in values.values()} == {np.dtype(np.float32)}
    assert {each.sqnr for each in trace.result(trace(values))} == {math.inf}


@pytest.mark.parametrize("build", [v10, conditional])
def test_integers_and_branches_are_left_out(build):
    found = traced(build(), build())
    assert found
    assert all(each.sqnr == math.inf for each in found.values())
    assert not {each.op for each in found.values()} & {"Mod", "Greater"}


def test_sequences_of_tensors_are_left_out():
    net = Net()
    parts = net.add("SplitToSequence", net.block("images", 8), net.ints(4, 4), axis=1)
    first, second = (net.add("SequenceAt", parts, net.const(k, np.int64)) for k in (0, 1))
    net.channels.update({first: 4, second: 4})
    model = net.model(net.conv(net.concat(second, first), 4, name="last"))
    found = traced(model, model)
    assert {first, second, "output"} <= found.keys()
    assert parts not in found


def test_models_that_share_nothing_have_no_tensors():
    model = silu_chain()
    assert traced(model, with_random_names(model)).keys() == {"output"}
    other = copy(model)
    other.graph.output[0].name = other.graph.node[-1].output[0] = "elsewhere"
    assert traced(model, with_random_names(other)) == {}


def test_tensors_of_constants_alone_are_not_traced():
    model = silu_chain()
    nodes = [helper.make_node("Exp", ["conv0_bias"], ["of_constants"], "constant"), *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert "conv0_bias" in initializers(model)
    for each in (model, with_initializers_as_inputs(model)):
        trace, noise = ErrorTrace(each, each, 1), SqnrMeter()
        noise.merge(trace(feed(model)))
        assert "of_constants" not in {found.tensor for found in trace.result(noise)}


def test_a_model_that_cannot_be_loaded():
    broken = onnx.ModelProto()
    broken.CopyFrom(silu_chain())
    broken.graph.node[0].op_type = "Nonsense"
    with pytest.raises(ModelError, match="onnxruntime cannot load the model"):
        ErrorTrace(silu_chain(), broken, 1)
