import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    NARROW_TENSORRT,
    Net,
    copy,
    csp,
    initializers,
    nodes,
    quantized,
    relu_net,
    with_constant_nodes,
)
from onnx import TensorProto, helper, numpy_helper

from onnxq.targets import GENERIC, OPENVINO, TENSORRT
from onnxq.targets.tensorrt_parser import violations

ALL = {**BACKBONES, **DETECTORS}


@pytest.fixture(scope="module")
def good():
    """A quantized model without faults."""
    return quantized(csp(), NARROW_TENSORRT)[0]


def store(model, name, values):
    """Give an initializer other values, or add it."""
    tensor = next((w for w in model.graph.initializer if w.name == name), None)
    (model.graph.initializer.add() if tensor is None else tensor).CopyFrom(
        numpy_helper.from_array(np.asarray(values), name)
    )


def put_before(model, name, node):
    """Insert a node before another."""
    place = [n.name for n in model.graph.node].index(name)
    model.graph.node.insert(place, node)


# --- what is written has none -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", [TENSORRT, NARROW_TENSORRT], ids=["narrow Convs float", "all Convs"])
@pytest.mark.parametrize("kind", ALL)
def test_what_is_quantized_for_tensorrt_has_no_violations(kind, target):
    after, _ = quantized(ALL[kind](), target)
    assert violations(after) == []
    assert "QuantizeLinear" in {node.op_type for node in after.graph.node}


@pytest.mark.parametrize("weight_bits", [2, 4, 7])
@pytest.mark.parametrize("symmetric", [False, True])
def test_options_do_not_make_violations(weight_bits, symmetric):
    assert violations(quantized(csp(), NARROW_TENSORRT, weight_bits=weight_bits, symmetric=symmetric)[0]) == []


@pytest.mark.parametrize("exclude", ["conv0", "conv2", "conv3", "add0", "concat0", "split0", "op:Sigmoid", "re:[13]$"])
def test_nodes_kept_float_do_not_make_violations(exclude):
    assert violations(quantized(csp(), NARROW_TENSORRT, exclude=[exclude])[0]) == []


@pytest.mark.parametrize("opset", [11, 13, 17])
def test_opsets_that_are_read_or_raised(opset):
    assert violations(quantized(csp(opset=opset), NARROW_TENSORRT)[0]) == []


def test_a_float_model_has_no_violations():
    assert violations(csp()) == []
    assert violations(with_constant_nodes(relu_net())) == []


def test_constants_may_be_made_by_nodes(good):
    assert violations(with_constant_nodes(good)) == []


def test_the_model_is_not_touched(good):
    before = good.SerializeToString(deterministic=True)
    violations(good)
    assert good.SerializeToString(deterministic=True) == before


# --- faults, one at a time --------------------------------------------------------------------------------------------


def uint8_weight(model):
    store(model, "conv4_weight_quantized", np.zeros((8, 12, 1, 1), np.uint8))
    store(model, "conv4_weight_zero_point", np.zeros(8, np.uint8))


def int32_pair(model):
    """Without a zero point, its type is that of the data."""
    store(model, "conv4_weight_quantized", np.zeros((8, 12, 1, 1), np.int32))
    del nodes(model)["conv4_weight_DequantizeLinear"].input[2]


def output_type_of_a_pair(model):
    quantize = nodes(model)["mul0_out_QuantizeLinear"]
    del quantize.input[2]
    quantize.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT16))


def zero_point(model):
    store(model, "conv4_weight_zero_point", np.array([0, 0, 0, 1, 0, 0, 0, 0], np.int8))


def computed_zero_point(model):
    put_before(
        model, "conv4_weight_DequantizeLinear", helper.make_node("Identity", ["conv4_weight_zero_point"], ["computed"])
    )
    model.graph.value_info.append(helper.make_tensor_value_info("computed", TensorProto.INT8, [8]))
    nodes(model)["conv4_weight_DequantizeLinear"].input[2] = "computed"


def one_zero_point_for_many_scales(model):
    store(model, "conv4_weight_zero_point", np.int8(0))


def computed_scale(model):
    put_before(
        model, "conv4_weight_DequantizeLinear", helper.make_node("Identity", ["conv4_weight_scale"], ["computed"])
    )
    nodes(model)["conv4_weight_DequantizeLinear"].input[1] = "computed"


def scale_of(*values, dtype=np.float32):
    def edit(model):
        scale = initializers(model)["conv4_weight_scale"].astype(dtype)
        scale[: len(values)] = values
        store(model, "conv4_weight_scale", scale)

    return edit


def activation_per_channel(model):
    store(model, "mul0_out_scale", np.ones(8, np.float32))
    store(model, "mul0_out_zero_point", np.zeros(8, np.int8))


def scales_too_few(model):
    store(model, "conv4_weight_scale", np.ones(7, np.float32))
    store(model, "conv4_weight_zero_point", np.zeros(7, np.int8))


def scales_of_blocks(model):
    store(model, "conv4_weight_scale", np.ones((8, 2, 1, 1), np.float32))
    store(model, "conv4_weight_zero_point", np.zeros((8, 2, 1, 1), np.int8))


def scale_with_an_axis(model):
    store(model, "mul0_out_scale", np.ones(1, np.float32))
    store(model, "mul0_out_zero_point", np.zeros(1, np.int8))


def half_scale(model):
    store(model, "conv4_weight_scale", np.ones(8, np.float16))


def scales_of_inputs(model):
    store(model, "conv4_weight_scale", np.ones(12, np.float32))
    store(model, "conv4_weight_zero_point", np.zeros(12, np.int8))
    nodes(model)["conv4_weight_DequantizeLinear"].attribute[0].i = 1


def other_type_behind(model):
    store(model, "other", np.uint8(0))
    nodes(model)["mul0_out_DequantizeLinear"].input[2] = "other"


def quantized_integers(model):
    model.graph.value_info.append(helper.make_tensor_value_info("whole", TensorProto.INT32, None))
    nodes(model)["mul0_out_QuantizeLinear"].input[0] = "whole"


def float_data(model):
    nodes(model)["conv1"].input[0] = "mul0_out"


def float_weight(model):
    store(model, "float", np.zeros((8, 8, 1, 1), np.float32))
    nodes(model)["conv1"].input[1] = "float"


DQ = "DequantizeLinear conv4_weight_DequantizeLinear: "
FAULTS: list[tuple[Callable[[onnx.ModelProto], None], list[str]]] = [
    (uint8_weight, [f"{DQ}its integers are UINT8, TensorRT takes INT8; quantize with --target tensorrt"]),
    (int32_pair, [f"{DQ}its integers are INT32, TensorRT takes INT8; quantize with --target tensorrt"]),
    (
        output_type_of_a_pair,
        [
            "QuantizeLinear mul0_out_QuantizeLinear: its integers are INT16, TensorRT takes INT8; quantize with "
            "--target tensorrt",
            "DequantizeLinear mul0_out_DequantizeLinear: its integers are INT16 but INT8 in the QuantizeLinear before; "
            "give both one zero point",
        ],
    ),
    (zero_point, [f"{DQ}its zero point is not 0; TensorRT quantizes symmetrically: use --target tensorrt"]),
    (computed_zero_point, [f"{DQ}its zero point is computed; make it a constant 0"]),
    (one_zero_point_for_many_scales, [f"{DQ}it has 1 zero points for 8 scales; give each scale one"]),
    (computed_scale, [f"{DQ}its scale is computed; make it a constant"]),
    (scale_of(0.0), [f"{DQ}its scale is not positive and finite; calibrate again with other data"]),
    (scale_of(0.1, -0.1), [f"{DQ}its scale is not positive and finite; calibrate again with other data"]),
    (scale_of(np.inf), [f"{DQ}its scale is not positive and finite; calibrate again with other data"]),
    (scale_of(np.nan), [f"{DQ}its scale is not positive and finite; calibrate again with other data"]),
    (
        activation_per_channel,
        [
            f"{op}Linear mul0_out_{op}Linear: an activation has 8 scales; give the tensor one scale"
            for op in ("Quantize", "Dequantize")
        ],
    ),
    (scales_too_few, [f"{DQ}7 scales along axis 0 of 8 x 12 x 1 x 1; give each channel one"]),
    (
        scales_of_blocks,
        [
            f"{DQ}its scale has 4 axes; store one scale as a scalar, several in one axis",
            f"{DQ}16 scales along axis 0 of 8 x 12 x 1 x 1; give each channel one",
        ],
    ),
    (
        scale_with_an_axis,
        ["Conv conv1: runs in float, as the scale of its data has the shape (1,); store it as a scalar"],
    ),
    (
        half_scale,
        ["Conv conv4: the scales of its data and its weight are FLOAT and FLOAT16; give both one type"],
    ),
    (scales_of_inputs, ["Conv conv4: the scales of its weight lie along axis 1; put them along axis 0"]),
    (
        other_type_behind,
        [
            "DequantizeLinear mul0_out_DequantizeLinear: its integers are UINT8, TensorRT takes INT8; quantize with "
            "--target tensorrt",
            "DequantizeLinear mul0_out_DequantizeLinear: its integers are INT8 but UINT8 in the QuantizeLinear before; "
            "give both one zero point",
        ],
    ),
    (quantized_integers, ["QuantizeLinear mul0_out_QuantizeLinear: quantizes INT32; let it read float32"]),
    (
        float_data,
        ["Conv conv1: its weight is quantized, its data is not; quantize its data too, or exclude it"],
    ),
    (float_weight, ["Conv conv1: its data is quantized, its weight is not; quantize both, or let it read float"]),
]


@pytest.mark.parametrize(("edit", "expected"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_fault_is_told_with_its_node_and_remedy(good, edit, expected):
    bad = copy(good)
    edit(bad)
    assert violations(bad) == expected


@pytest.mark.parametrize("per_channel", [True, False])
def test_a_quantized_conv_transpose_is_told(per_channel):
    rules = {**NARROW_TENSORRT.rules, "ConvTranspose": GENERIC.rules["ConvTranspose"]}
    after, _ = quantized(relu_net(), replace(NARROW_TENSORRT, rules=rules))
    if not per_channel:
        dequantize = nodes(after)["upsample_weight_DequantizeLinear"]
        store(after, dequantize.input[1], np.float32(0.1))
        store(after, dequantize.input[2], np.int8(0))
    assert violations(after) == [
        "ConvTranspose upsample: runs in float; keep it float in the file too: --exclude op:ConvTranspose"
    ]


@pytest.mark.parametrize(("transposed", "axis"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("along", [0, 1])
def test_the_scales_of_a_gemm_lie_along_its_outputs(transposed, axis, along):
    net = Net()
    x = net.const(np.ones((1, 8)), name="data")
    data = net.add("DequantizeLinear", net.add("QuantizeLinear", x, net.const(0.1)), net.const(0.1))
    weight = net.const(np.ones((8, 8)), np.int8, name="weight")
    weight = net.add("DequantizeLinear", weight, net.const(np.ones(8)), axis=along, name="dq")
    y = net.add("Gemm", data, weight, transB=int(transposed), name="gemm")
    found = violations(unchecked(net, y))
    wrong = [f"Gemm gemm: the scales of its weight lie along axis {along}; put them along axis {axis}"]
    assert found == ([] if along == axis else wrong)


def unchecked(net, output):
    """The model without input; onnx.checker, which `Net.model` asks, would infer shapes."""
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(net.nodes, "net", [], [result], net.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def test_weights_may_be_quantized_in_the_graph(good):
    model = copy(good)
    store(model, "conv1_weight", np.ones((8, 8, 1, 1), np.float32))
    dequantize = nodes(model)["conv1_weight_DequantizeLinear"]
    quantize = onnx.NodeProto()
    quantize.CopyFrom(dequantize)
    quantize.op_type, quantize.name, quantize.input[0] = "QuantizeLinear", "quantize", "conv1_weight"
    quantize.output[0] = dequantize.input[0] = "made"
    put_before(model, dequantize.name, quantize)
    assert violations(model) == []


def test_products_of_two_activations_may_be_of_integers_in_part(good):
    model = copy(good)
    model.graph.node.append(helper.make_node("MatMul", ["mul0_out_dequantized", "mul0_out"], ["one"], "one"))
    model.graph.node.append(helper.make_node("MatMul", ["mul0_out", "mul0_out_dequantized"], ["two"], "two"))
    assert violations(model) == []


@pytest.mark.parametrize("target", [OPENVINO, GENERIC], ids=lambda t: t.name)
def test_files_for_other_runtimes_are_told_apart(target):
    found = violations(quantized(csp(), target)[0])
    assert any("its integers are UINT8" in message for message in found)
    assert any("its zero point is not 0" in message for message in found)


def test_what_the_parser_takes_is_not_told():
    after = quantized(csp(), NARROW_TENSORRT)[0]
    store(after, "least", np.int8(-8))
    put_before(
        after, "mul0_out_DequantizeLinear", helper.make_node("Clip", ["mul0_out_quantized", "least"], ["c"], "clip")
    )
    nodes(after)["mul0_out_DequantizeLinear"].input[0] = "c"
    nodes(after)["conv4_weight_DequantizeLinear"].domain = "com.microsoft"
    after.opset_import[0].version = 25
    assert violations(after) == []


def test_nodes_without_names_are_told_by_what_they_make(good):
    bad = copy(good)
    float_data(bad)
    nodes(bad)["conv1"].name = ""
    assert re.match(r"Conv conv1_out: its weight is quantized", violations(bad)[0])
