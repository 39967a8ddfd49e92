from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import (
    DETECTORS,
    Net,
    assert_untouched,
    csp,
    feed,
    initializers,
    nodes,
    ops,
    quantized,
    rewrite,
    rewrite_checked,
    run,
    silu_chain,
    sqnr,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.targets import OPENVINO, ORT


def rewritten(model, target=ORT, exact=True):
    """Return the quantized model with plain Convs, the model after the pass, and its edits.

    Their numbers are the same, but where the rounding of a bias puts a value behind it on the next level.
    """
    before, _ = quantized(model, target, matmul=False)
    if exact:
        return before, *rewrite_checked(PointwiseToMatmul(), before)
    after, edits = rewrite(PointwiseToMatmul(), before)
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(PointwiseToMatmul(), after)
    values = feed(before)
    expected, found = run(before, values), run(after, values)
    assert all(sqnr(expected[name], found[name] + 1e-9) > 40 for name in expected)
    return before, after, edits


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_the_last_layers_of_a_detector_become_matmuls(name):
    for_units = {"levels": False} if name == "yolox" else {}
    before, after, edits = rewritten(DETECTORS[name](**for_units), replace(ORT, float_last=None), exact=name != "yolox")
    now = nodes(after)
    changed = [n.name for n in before.graph.node if n.op_type == "Conv" and now[n.name].op_type == "Gemm"]
    assert len(changed) == edits >= 3
    quantizers = {n.input[0] for n in before.graph.node if n.op_type == "QuantizeLinear"}
    assert not quantizers & {nodes(before)[n].output[0] for n in changed}
    assert ops(after).count("Conv") == ops(before).count("Conv") - edits


@pytest.mark.parametrize("options", [{"dynamic": True}, {"batch": 3}, {"opset": 11}, {"opset": 17}], ids=str)
def test_of_other_shapes_and_opsets(options):
    assert rewritten(csp(**options), exact=False)[2] == 2


def test_every_1x1_conv_with_a_float_output():
    before, _, edits = rewritten(csp(), OPENVINO, exact=False)
    kernels = [onnx.helper.get_node_attr_value(n, "kernel_shape") for n in before.graph.node if n.op_type == "Conv"]
    assert edits == kernels.count([1, 1]) == 3


def last_conv(channels=8, outputs=4, bias=True, dynamic=False, **attributes):
    """A block and a Conv named `last`, with the weight `weight` and the bias `bias`."""
    net = Net(dynamic=dynamic)
    x = net.block("images", channels)
    weight = net.const(net.normal(outputs, channels // attributes.get("group", 1), 1, 1, scale=0.2), name="weight")
    extra = [net.const(net.normal(outputs), name="bias")] if bias else []
    y = net.add("Conv", x, weight, *extra, name="last", **attributes)
    net.channels[y] = outputs
    return net.model(y)


@settings(max_examples=15, deadline=None)
@given(channels=st.integers(1, 9), outputs=st.integers(1, 9), bias=st.booleans())
def test_of_any_width_with_and_without_bias(channels, outputs, bias):
    _, after, edits = rewritten(last_conv(channels, outputs, bias))
    assert edits == 1
    assert len(nodes(after)["last"].input) == 2 + bias


@pytest.mark.parametrize("bias", [False, True])
def test_images_of_unknown_size_have_a_matmul(bias):
    _, after, edits = rewritten(last_conv(bias=bias, dynamic=True))
    assert edits == 1
    assert nodes(after)["last"].op_type == "MatMul"
    assert ops(after).count("Add") == bias


def test_the_bias_stands_on_the_grid_of_the_products():
    before, after, _ = rewritten(last_conv())
    stored = initializers(after)
    scale = stored["mul0_out_scale"] * stored["weight_scale"]
    assert stored["bias_quantized"].dtype == np.int32
    assert np.array_equal(stored["bias_scale"], scale)
    assert np.abs(stored["bias_quantized"] * scale - initializers(before)["bias"]).max() <= 0.51 * scale.max()


def test_a_bias_that_int32_cannot_hold_is_added():
    model = last_conv()
    weight = next(w for w in model.graph.initializer if w.name == "bias")
    weight.CopyFrom(numpy_helper.from_array(np.full(4, 3e9, np.float32), "bias"))
    before, _ = quantized(last_conv(), matmul=False)
    bias = next(w for w in before.graph.initializer if w.name == "bias")
    bias.CopyFrom(weight)
    after, edits = rewrite_checked(PointwiseToMatmul(), before)
    assert edits == 1
    assert nodes(after)["last"].op_type == "MatMul"


def test_the_matrix_holds_the_integers_of_the_weight():
    before, after, _ = rewritten(last_conv())
    matrix = initializers(after)["weight_quantized_matrix"]
    assert matrix.dtype == np.int8
    assert np.array_equal(matrix, initializers(before)["weight_quantized"][:, :, 0, 0].T)
    dequantize = next(n for n in after.graph.node if n.output[0] == nodes(after)["last"].input[1])
    assert list(dequantize.input) == ["weight_quantized_matrix", "weight_scale", "weight_zero_point"]
    assert onnx.helper.get_node_attr_value(dequantize, "axis") == 1


def test_a_weight_that_layers_share_is_turned_once():
    net = Net()
    weight = net.const(net.normal(4, 8, 1, 1, scale=0.2), name="weight")
    x = net.block("images", 8)
    ends = [net.add("Conv", net.block(x, 8), weight, name=f"end{k}") for k in range(2)]
    net.channels.update(dict.fromkeys(ends, 4))
    _, after, edits = rewritten(net.model(*ends))
    assert edits == 2
    assert nodes(after)["end0"].input[1] == nodes(after)["end1"].input[1]


@pytest.mark.parametrize("attributes", [{"group": 2}, {"strides": [2, 2]}, {"pads": [1, 1, 1, 1]}], ids=str)
def test_convs_that_are_no_product_at_every_position_stay(attributes):
    _, after, _ = rewritten(last_conv(**attributes), OPENVINO)
    assert nodes(after)["last"].op_type == "Conv"


def test_convs_of_floats_and_those_with_a_quantized_output_stay():
    _, after, edits = rewritten(silu_chain())
    assert edits == 1
    assert {nodes(after)[f"conv{k}"].op_type for k in range(3)} == {"Conv"}


def test_a_bias_that_is_computed_keeps_the_conv():
    net = Net()
    x = net.block("images", 8)
    before, _ = quantized(net.model(net.conv(x, 4, name="last")), matmul=False)
    last = nodes(before)["last"]
    before.graph.node.insert(0, onnx.helper.make_node("Identity", [last.input[2]], ["computed"], "identity"))
    last.input[2] = "computed"
    _, edits = rewrite_checked(PointwiseToMatmul(), before)
    assert edits == 0
