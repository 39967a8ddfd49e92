"""Files for QNN: uint16 up to where boxes and scores are joined, and float from there on."""

import numpy as np
import onnx
import pytest
from graphs import Net, copy, csp, depthwise_net, feed, initializers, planned, run, sqnr, v5, v8, v10, yolox
from inference import makers
from onnx import TensorProto
from plans import code, point

from onnxq import Config, quantize
from onnxq.config import ConfigError
from onnxq.facts import QuantizationParameters
from onnxq.numerics.scheme import UINT8, UINT16
from onnxq.targets import QNN


def quantized(model, **options):
    return quantize(model, [feed(model, seed) for seed in range(4)], Config(target="qnn", **options))


def opset(model):
    return next(entry.version for entry in model.opset_import if entry.domain == "")


def integer_types(model):
    """Types of the integers of the activations."""
    types = {w.name: w.data_type for w in model.graph.initializer}
    return {types[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"}


# --- placement --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [v5, v8, yolox])
def test_all_but_the_joined_outputs_run_on_integers(build):
    model, plan = planned(build(), QNN)
    assert {code(plan, name) for name in plan.skipped} <= {"joins-scores", "float-decode"}
    joined = [name for name in plan.skipped if code(plan, name) == "joins-scores"]
    assert joined
    assert {model.nodes[name].op for name in joined} == {"Concat"}
    assert {node.name for node in model.graph.nodes if node.op == "Conv"} <= set(plan.layers)


def test_depthwise_convs_run_on_integers():
    model, plan = planned(depthwise_net(), QNN)
    assert any(node.attrs.get("group", 1) > 1 for node in model.graph.nodes)
    assert not plan.skipped


def test_what_follows_the_joined_outputs_stays_float():
    model, plan = planned(v10(), QNN)
    float_nodes = {name for name in plan.skipped if code(plan, name) == "float-decode"}
    assert float_nodes
    behind = {t.name for name in plan.skipped for t in model.nodes[name].outputs}
    assert all({t.name for t in model.nodes[name].inputs} & behind for name in float_nodes)


@pytest.mark.parametrize("pattern", ["op:Concat", "re:decode_"])
def test_include_puts_the_joined_outputs_on_integers_too(pattern):
    _, plan = planned(v8(), QNN, include=[pattern])
    assert not plan.skipped
    assert next(p for p in plan.points if p.is_output)


def test_with_8_bits_the_decode_is_float():
    model, plan = planned(v8(), QNN, act_bits=8)
    assert {code(plan, name) for name in plan.skipped} == {"decode"}
    assert {p.scheme.container for p in plan.points} == {UINT8}
    assert {node.name for node in model.graph.nodes if node.op == "Conv" and "decode" not in node.name} == set(
        plan.layers
    )


@pytest.mark.parametrize("bits", [4, 12])
def test_activations_fill_their_type(bits):
    with pytest.raises(ConfigError, match=rf"^act_bits: {bits} bits: QNN has no Clip of .+; use 16 or 8 bits"):
        Config(target="qnn", act_bits=bits)


# --- SiLUs that QNN computes wrongly ----------------------------------------------------------------------------------


def silu_net(side, **options):
    """A SiLU whose output has this many rows and columns."""
    net = Net(size=side, **options)
    return net.model(net.conv(net.silu(net.conv("images", 8)), 4, name="last"))


@pytest.mark.parametrize(
    ("side", "bits"), [(7, 16), (8, 16), (9, 8), (10, 8), (12, 8), (13, 16), (20, 16), (80, 16)], ids=str
)
def test_gates_have_8_bits_where_the_fused_silu_is_wrong(side, bits):
    _, plan = planned(silu_net(side), QNN)
    gate, before, after = (point(plan, f"{name}_out") for name in ("sigmoid0", "conv0", "mul0"))
    assert gate.scheme.bits == bits
    assert (before.scheme.container, after.scheme.container) == (UINT16, UINT16)
    assert gate.known.high == pytest.approx(1 - 2.0**-bits)


@pytest.mark.parametrize(
    ("height", "width", "is_wrong"),
    [(8, 4, False), (9, 4, True), (12, 40, True), (13, 9, False), (13, 8, True), (80, 8, True), (80, 80, False)],
)
def test_sizes_at_which_the_fused_silu_is_wrong(height, width, is_wrong):
    assert QNN.misfused_silu(height, width) == is_wrong


def test_gates_of_unknown_size_have_8_bits():
    _, plan = planned(silu_net(20, dynamic=True), QNN)
    assert point(plan, "sigmoid0_out").scheme.bits == 8
    assert point(plan, "mul0_out").scheme.bits == 16


def test_a_sigmoid_that_is_no_gate_keeps_16_bits():
    net = Net(size=10)
    x = net.add("Sigmoid", net.conv("images", 8))
    _, plan = planned(net.model(net.conv(x, 4, name="last")), QNN)
    assert point(plan, "sigmoid0_out").scheme.bits == 16


def test_with_8_bits_all_gates_have_8():
    _, plan = planned(silu_net(10), QNN, act_bits=8)
    assert {p.scheme.container for p in plan.points} == {UINT8}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [csp, v8])
def test_files_are_valid_and_have_uint16_activations_and_int8_weights(build):
    model = build()
    after = quantized(model).model
    onnx.checker.check_model(after, full_check=True)
    assert opset(after) == 21
    assert integer_types(after) <= {TensorProto.UINT16, TensorProto.UINT8}
    assert TensorProto.UINT16 in integer_types(after)
    stored = initializers(after)
    dequantized = [n for n in after.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    assert {stored[node.input[0]].dtype for node in dequantized} == {np.dtype(np.int8)}
    assert list(after.graph.output) == list(model.graph.output)


def test_an_activation_has_one_scale():
    after = quantized(v8()).model
    stored = initializers(after)
    quantizers = [node for node in after.graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    assert {stored[node.input[1]].shape for node in quantizers} == {()}


def test_8_bits_need_no_new_opset():
    after = quantized(v8(), act_bits=8).model
    assert (opset(after), integer_types(after)) == (13, {TensorProto.UINT8})


def test_the_concat_of_boxes_and_scores_makes_the_output():
    after = quantized(v8()).model
    made = makers(after)
    concat = made[after.graph.output[0].name]
    assert concat.op_type == "Concat"
    assert {made[name].op_type for name in concat.input} == {"DequantizeLinear"}


def boxes_and_scores(model, found):
    [output] = run(found, feed(model)).values()
    return output[:, :4], output[:, 4:]


def test_scores_lose_less_than_on_a_scale_for_pixels():
    model = v8()
    expected = boxes_and_scores(model, model)
    apart = boxes_and_scores(model, quantized(model).model)
    together = boxes_and_scores(model, quantized(model, include=("op:Concat",)).model)
    assert sqnr(expected[1], apart[1]) > sqnr(expected[1], together[1]) + 1
    assert sqnr(expected[0], apart[0]) > 38


def with_rounded_weights(model, result):
    """The float model with the weights that the quantized one has."""
    rounded = copy(model)
    grids = result.facts[QuantizationParameters].weights
    for tensor in rounded.graph.initializer:
        if tensor.name in grids:
            grid, values = grids[tensor.name], onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(grid.dequantize(grid.quantize(values)), tensor.name))
    return rounded


@pytest.mark.parametrize(("build", "least"), [(csp, 60), (v5, 60), (v8, 60), (yolox, 60)])
def test_16_bits_lose_next_to_nothing(build, least):
    """Beside the rounding of weights; some gates have 8 bits at this size."""
    model = build(size=128) if build is csp else build()
    result = quantized(model, equalize=False, keep_bias=True)
    [expected] = run(with_rounded_weights(model, result), feed(model)).values()
    [found] = run(result.model, feed(model)).values()
    assert sqnr(expected, found) > least


def test_onnxruntime_computes_the_same_with_and_without_optimizations():
    model = v8()
    after = quantized(model).model
    [plain], [optimized] = run(after, feed(model)).values(), run(after, feed(model), optimized=True).values()
    assert sqnr(plain, optimized) > 60
