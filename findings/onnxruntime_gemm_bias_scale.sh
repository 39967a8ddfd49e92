#!/usr/bin/env bash
# onnxruntime adds the int32 bias of a quantized Gemm as if its scale were that of the data times that of the weight,
# whatever scale its DequantizeLinear has. A Conv with the same bias is right: it is then not fused.
#
# Expected: the bias that the DequantizeLinear gives, or no fusion to QGemm.
# Seen with onnxruntime 1.32.0, CPU. The data are 0, so each output is the bias, 1.5; steps of the output are 1/16:
#   layer  scale of the bias, / (data * weight)   int32 bias   no optimizations   all optimizations
#   Gemm                                    1         1536               1.5                 1.5
#   Gemm                                    4          384               1.5                 0.375
#   Gemm                                 1/16        24576               1.5                 7.9375
#   Conv                                    4          384               1.5                 1.5
#   Conv                                 1/16        24576               1.5                 1.5
# 7.9375 is the largest value of the output. onnx's reference evaluator gives 1.5 for all of them. Nothing is logged. Whoever
# changes a scale of the data or of the weight of a finished file has to requantize the bias of a Gemm.
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

SIZE, BIAS, STEP = 16, 1.5, 1 / 1024


def model(op: str, factor: float) -> onnx.ModelProto:
    """A layer of int8 whose bias is 1.5, in steps of `factor` times those of its products."""
    tail = () if op == "Gemm" else (1, 1)
    constants = {
        "scale": np.float32(1 / 16), "zero": np.int8(0), "w_scale": np.float32(16 * STEP), "b_scale": np.float32(factor * STEP),
        "w": np.ones((SIZE, SIZE, *tail), np.int8), "b": np.full(SIZE, BIAS / STEP / factor, np.int32), "b_zero": np.int32(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "zero"], ["w_dq"]),
        helper.make_node("DequantizeLinear", ["b", "b_scale", "b_zero"], ["b_dq"]),
        helper.make_node(op, ["x_dq", "w_dq", "b_dq"], ["z"]),
        helper.make_node("QuantizeLinear", ["z", "scale", "zero"], ["z_q"]),
        helper.make_node("DequantizeLinear", ["z_q", "scale", "zero"], ["y"]),
    ]
    shape = [1, SIZE, *tail]
    graph = helper.make_graph(
        nodes, "layer", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made: onnx.ModelProto, level: str) -> float:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    return one(session.run(None, feed(made))[0])


def feed(made: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {"x": np.zeros([size.dim_value for size in made.graph.input[0].type.tensor_type.shape.dim], np.float32)}


def one(values: np.ndarray) -> float:
    assert np.all(values == values.flat[0]), "the outputs differ"
    return values.flat[0].item()


for op, factor, expected in (
    ("Gemm", 1, 1.5), ("Gemm", 4, 0.375), ("Gemm", 1 / 16, 7.9375), ("Conv", 4, 1.5), ("Conv", 1 / 16, 1.5),
):
    made = model(op, factor)
    plain, found = run(made, "ORT_DISABLE_ALL"), run(made, "ORT_ENABLE_ALL")
    print(f"{op}  {factor:>7}  {plain:>6}  {found:>6}")
    assert one(ReferenceEvaluator(made).run(None, feed(made))[0]) == BIAS, "the reference does otherwise"
    assert plain == BIAS, "onnxruntime is wrong without optimizations"
    assert found == expected, "onnxruntime does otherwise than it did"
PYTHON
