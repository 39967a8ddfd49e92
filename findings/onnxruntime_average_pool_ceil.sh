#!/usr/bin/env bash
# onnxruntime averages other last windows once an AveragePool with `ceil_mode` and `count_include_pad` is quantized. Its
# QLinearAveragePool divides windows that reach beyond the padding by the whole kernel. PyTorch's AvgPool2d counts the
# padding unless told otherwise, so `AvgPool2d(2, 2, ceil_mode=True)`, as in ResNet-vd, is exported like this.
#
# Expected: what lies beyond the padding does not count, quantized or not.
# Seen with onnxruntime 1.32.0, kernel and stride 2, no padding, the row 1 2 3 4 5 in steps of 1/8:
#   float                       1.5 3.5 5.0
#   uint8, AveragePool          1.5 3.5 5.0
#   uint8, QLinearAveragePool   1.5 3.5 2.5
# onnx's reference evaluator gives the first row for both models. Without `count_include_pad` QLinearAveragePool is right.
# Nothing is logged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FEED = {"x": np.tile(np.arange(1, 6, dtype=np.float32), (1, 1, 5, 1))}


def model(quantized: bool) -> onnx.ModelProto:
    grid = ["scale", "zero"] if quantized else []
    before = [("QuantizeLinear", ["x", *grid], "xq"), ("DequantizeLinear", ["xq", *grid], "xd")] if quantized else []
    behind = [("QuantizeLinear", ["y", *grid], "yq"), ("DequantizeLinear", ["yq", *grid], "yd")] if quantized else []
    pool = helper.make_node(
        "AveragePool", ["xd" if quantized else "x"], ["y"],
        kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1,
    )
    nodes = [
        *(helper.make_node(op, inputs, [output]) for op, inputs, output in before), pool,
        *(helper.make_node(op, inputs, [output]) for op, inputs, output in behind),
    ]
    constants = [numpy_helper.from_array(np.float32(1 / 8), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    graph = helper.make_graph(
        nodes, "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 5, 5])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, [1, 1, 3, 3])],
        constants if quantized else [],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made: onnx.ModelProto, level: str) -> list[float]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, FEED)[0][0, 0, 0].tolist()


for quantized, level, title, expected in (
    (False, "ORT_ENABLE_ALL", "float", 5.0),
    (True, "ORT_ENABLE_BASIC", "uint8, AveragePool", 5.0),
    (True, "ORT_ENABLE_ALL", "uint8, QLinearAveragePool", 2.5),
):
    made = model(quantized)
    found = run(made, level)
    print(f"{title:<27}", *found)
    assert ReferenceEvaluator(made).run(None, FEED)[0][0, 0, 0].tolist() == [1.5, 3.5, 5.0], "the reference does otherwise"
    assert found == [1.5, 3.5, expected], "onnxruntime does otherwise than it did"
PYTHON
