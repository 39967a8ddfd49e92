#!/usr/bin/env bash
# OpenVINO quantizes the float output of a ReduceMax, ReduceMin or GlobalMaxPool in front of a Conv in the wrong order. It
# rounds the value to a whole number and clips it to 0 ... 255, and divides by the scale then.
#
# Expected: the same numbers as from any other operator in front of the QuantizeLinear.
# Seen with openvino 2026.4.1, CPU, float32 inference precision, uint8 with a zero point of 0. The Conv is 1 x 1 with a weight
# of 1, all reduced values are equal:
#   scale 0.25
#   value                -3.00   0.20   0.50   0.80   1.30   2.50
#   ReduceMean            0.00   0.25   0.50   0.75   1.25   2.50
#   ReduceMax             0.00   0.00   0.00   1.00   1.00   2.00
#   ReduceMin             0.00   0.00   0.00   1.00   1.00   2.00
#   GlobalMaxPool         0.00   0.00   0.00   1.00   1.00   2.00
#   ReduceMax, no Conv    0.00   0.25   0.50   0.75   1.25   2.50
#   Q/DQ, ReduceMax       0.00   0.25   0.50   0.75   1.25   2.50
# The last row has another Q/DQ pair in front of the reduction. With int8 and a zero point of 0, ReduceMean gives -3 for -3,
# and ReduceMax gives 0. A Relu, a Mul by 1 or a Transpose behind the reduction changes nothing. A 3 x 3 Conv of 64 channels,
# whose values are normally distributed and quantized in steps of 4/255, has an SQNR of 16 dB behind a ReduceMax. onnx's
# reference evaluator is right for all of them. Nothing is logged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

VALUES = [-3.0, 0.2, 0.5, 0.8, 1.3, 2.5]
RIGHT = [0, 0.25, 0.5, 0.75, 1.25, 2.5]
WRONG = [0, 0, 0, 1, 1, 2]


def model(op: str, dtype: type, conv: bool, paired: bool) -> onnx.ModelProto:
    """The reduction -> Q/DQ -> Conv, whose weight is 1."""
    constants = {
        "axes": np.array([2, 3]), "scale": np.float32(0.25), "zero": dtype(0), "w": np.ones((1, 1, 1, 1), np.int8),
        "w_scale": np.ones(1, np.float32), "w_zero": np.zeros(1, np.int8),
    }
    nodes = []

    def pair(tensor: str, output: str) -> str:
        nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [output]))
        return output

    start = pair("x", "x_dq") if paired else "x"
    nodes.append(helper.make_node(op, [start] if op == "GlobalMaxPool" else [start, "axes"], ["reduced"]))
    pair("reduced", "reduced_dq" if conv else "y")
    if conv:
        nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_dq"], axis=0))
        nodes.append(helper.make_node("Conv", ["reduced_dq", "w_dq"], ["y"]))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "reduction", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])],
        [numpy_helper.from_array(values, name) for name, values in constants.items() if name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def row(op: str, dtype: type = np.uint8, conv: bool = True, paired: bool = False) -> list[float]:
    made, core = model(op, dtype, conv, paired), openvino.Core()
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    images = [np.full((1, 1, 4, 4), value, np.float32) for value in VALUES]
    reference = [ReferenceEvaluator(made).run(None, {"x": image})[0].item() for image in images]
    assert reference == (RIGHT if dtype is np.uint8 else [-3, *RIGHT[1:]]), "onnx's reference does otherwise"
    return [compiled([image])[0].item() for image in images]


print(f"{'value':<18}", *(f"{value:6.2f}" for value in VALUES))
for title, found, expected in (
    ("ReduceMean", row("ReduceMean"), RIGHT),
    ("ReduceMax", row("ReduceMax"), WRONG),
    ("ReduceMin", row("ReduceMin"), WRONG),
    ("GlobalMaxPool", row("GlobalMaxPool"), WRONG),
    ("ReduceMax, no Conv", row("ReduceMax", conv=False), RIGHT),
    ("Q/DQ, ReduceMax", row("ReduceMax", paired=True), RIGHT),
    ("ReduceMean, int8", row("ReduceMean", np.int8), [-3, *RIGHT[1:]]),
    ("ReduceMax, int8", row("ReduceMax", np.int8), WRONG),
):
    print(f"{title:<18}", *(f"{value:6.2f}" for value in found))
    assert np.allclose(found, expected, atol=1e-4), "OpenVINO does otherwise than it did"
PYTHON
