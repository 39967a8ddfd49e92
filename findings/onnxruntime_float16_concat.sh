#!/usr/bin/env bash
# onnxruntime refuses a valid model in which a Concat stands between float16 DequantizeLinear and QuantizeLinear: its own
# optimizer fuses them into a QLinearConcat, which takes no float16 scales.
#
# Expected: the model runs, as it does without optimizations. ONNX allows float16 scales since opset 19.
# Seen with onnxruntime 1.32.0, CPU:
#   scales   optimizations   result
#   float32  none            runs
#   float32  all             runs
#   float16  none            runs
#   float16  all             INVALID_GRAPH: Type 'tensor(float16)' of input parameter (scale) of operator (QLinearConcat)
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
from onnxruntime import GraphOptimizationLevel


def model(kind: type) -> onnx.ModelProto:
    """Two tensors of integers, dequantized, joined and quantized."""
    constants = [numpy_helper.from_array(np.array(0.5, kind), "scale"),
                 numpy_helper.from_array(np.array(0, np.uint8), "zero_point")]
    grid = ["scale", "zero_point"]
    nodes = [
        helper.make_node("DequantizeLinear", ["a", *grid], ["left"]),
        helper.make_node("DequantizeLinear", ["b", *grid], ["right"]),
        helper.make_node("Concat", ["left", "right"], ["joined"], axis=0),
        helper.make_node("QuantizeLinear", ["joined", *grid], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.UINT8, [size]) for name, size in (("a", 3), ("b", 3), ("y", 6))]
    graph = helper.make_graph(nodes, "concat", values[:2], values[2:], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def result(kind: type, level: GraphOptimizationLevel) -> str:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model(kind).SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    values = np.arange(3, dtype=np.uint8)
    [y] = session.run(None, {"a": values, "b": values})
    assert y.tolist() == [0, 1, 2, 0, 1, 2]
    return "runs"


print("scales   optimizations   result")
for kind in (np.float32, np.float16):
    for level in (GraphOptimizationLevel.ORT_DISABLE_ALL, GraphOptimizationLevel.ORT_ENABLE_ALL):
        found = result(kind, level)
        is_all = level == GraphOptimizationLevel.ORT_ENABLE_ALL
        print(f"{kind.__name__}  {'all ' if is_all else 'none'}            {found}")
        if kind is np.float16 and is_all:
            assert "operator (QLinearConcat)" in found, "onnxruntime does otherwise than it did"
        else:
            assert found == "runs"
PYTHON
