#!/usr/bin/env bash
# OpenVINO averages a quantized tensor with a padding that counts (`count_include_pad`) as if the padding were the integer 0
# rather than the value 0. With a zero point of 10 and a scale of 1/8 each padded value is -1.25.
#
# Expected: the same numbers as from the AveragePool of floats between the same Q/DQ pairs.
# Seen with openvino 2026.4.1, CPU, float32 inference precision, 3 x 3 with a padding of 1, the row 1 2 3 4 5:
#   float                 1.000 2.0 3.0 4.0 3.000
#   uint8, zero point 0   1.000 2.0 3.0 4.0 3.000
#   uint8, zero point 10  0.625 2.0 3.0 4.0 2.625
#   int8, zero point -10  1.375 2.0 3.0 4.0 3.375
# onnxruntime and onnx's reference evaluator give the first row for all of them. Nothing is logged.
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

FEED = {"x": np.tile(np.arange(1, 6, dtype=np.float32), (1, 4, 5, 1))}


def model(zero_point: np.generic | None) -> onnx.ModelProto:
    """AveragePool, between Q/DQ pairs of this zero point if there is one."""
    nodes, constants, names = [], [], iter(("y", "z"))
    if zero_point is not None:
        constants = [numpy_helper.from_array(np.float32(1 / 8), "scale"), numpy_helper.from_array(zero_point, "zero")]

    def pair(tensor: str) -> str:
        if zero_point is None:
            return tensor
        nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [f"{tensor}_dq"]))
        return f"{tensor}_dq"

    attributes = {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}
    nodes.append(helper.make_node("AveragePool", [pair("x")], [next(names)], **attributes))
    output = pair("y")
    graph = helper.make_graph(
        nodes, "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 5, 5])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 4, 5, 5])], constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


core = openvino.Core()
for title, zero_point, edges in (
    ("float", None, (1.0, 3.0)),
    ("uint8, zero point 0", np.uint8(0), (1.0, 3.0)),
    ("uint8, zero point 10", np.uint8(10), (0.625, 2.625)),
    ("int8, zero point -10", np.int8(-10), (1.375, 3.375)),
):
    made = model(zero_point)
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    row = compiled(FEED)[0][0, 0, 2]
    print(f"{title:<22}", f"{row[0]:.3f}", *row[1:4], f"{row[4]:.3f}")
    reference = ReferenceEvaluator(made).run(None, FEED)[0][0, 0, 2]
    assert np.allclose(reference, [1, 2, 3, 4, 3]), "onnx's reference does otherwise"
    assert np.allclose(row, [edges[0], 2, 3, 4, edges[1]], atol=1e-4), "OpenVINO does otherwise than it did"
PYTHON
