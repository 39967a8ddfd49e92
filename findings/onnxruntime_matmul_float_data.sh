#!/usr/bin/env bash
# onnxruntime rounds the data of a MatMul to 8 bits if only the weight is int8, or if the data are uint16: with all
# optimizations DequantizeLinear and MatMul become MatMulNBits, whose accuracy_level is 4, "int8", unless the option
# session.qdq_matmulnbits_accuracy_level says otherwise. The name tells of few bits and the schema of blocks; one scale per
# column or one for the matrix is enough. It depends on how the axis is written: with -1 for 1 nothing is fused.
#
# Expected: data that are float stay float, and data of 16 bits keep them. An optimization keeps the numbers to rounding of
# float32, as up to ORT_ENABLE_BASIC.
# Seen with onnxruntime 1.32.0, CPU, 20 x 64 normally distributed values times 64 x 32; SQNR in dB against no optimizations:
#   data                   weight                 all optimizations   with the option = 1
#   float                  int8, axis=1                        44.9                 equal
#   float                  int8, axis=-1                      equal                 equal
#   float                  int8, one scale                     44.8                 equal
#   uint16, Q and DQ       int8, axis=1                        44.9                 equal
#   uint16, Q and DQ       int8, axis=-1                      equal                 equal
#   uint8, Q and DQ        int8, axis=1                       equal                 equal
# "equal" is more than 120 dB. Nothing is logged.
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

ROWS, DEPTH, COLUMNS = 20, 64, 32
RANDOM = np.random.default_rng(0)
FEED = {"x": RANDOM.normal(0, 1, (ROWS, DEPTH)).astype(np.float32)}
WEIGHT = RANDOM.integers(-60, 61, (DEPTH, COLUMNS)).astype(np.int8)
SCALES = RANDOM.uniform(0.001, 0.002, COLUMNS).astype(np.float32)


def model(data: type | None, axis: int | None) -> onnx.ModelProto:
    """A MatMul with an int8 weight, and data that are float or have a Q/DQ pair of this type."""
    constants = {"w": WEIGHT, "w_scale": SCALES[0] if axis is None else SCALES}
    nodes, rows = [], "x"
    if data is not None:
        steps = np.iinfo(data).max
        constants |= {"scale": np.float32(10 / steps), "zero": data(steps // 2 + 1)}
        nodes.append(helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_dq"]))
        rows = "x_dq"
    nodes.append(helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_dq"], axis=1 if axis is None else axis))
    nodes.append(helper.make_node("MatMul", [rows, "w_dq"], ["y"]))
    graph = helper.make_graph(
        nodes, "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ROWS, DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [ROWS, COLUMNS])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made: onnx.ModelProto, level: str, accuracy: str | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if accuracy is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", accuracy)
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, FEED)[0].astype(np.float64)


def sqnr(right: np.ndarray, found: np.ndarray) -> float:
    noise = np.mean((found - right) ** 2)
    return float(10 * np.log10(np.mean(right**2) / noise)) if noise else np.inf


for data, axis, fused in (
    (None, 1, True), (None, -1, False), (None, None, True), (np.uint16, 1, True), (np.uint16, -1, False), (np.uint8, 1, False),
):
    made = model(data, axis)
    right = run(made, "ORT_DISABLE_ALL")
    found = [sqnr(right, run(made, "ORT_ENABLE_ALL", accuracy)) for accuracy in (None, "1")]
    print(f"{'float' if data is None else data.__name__:<7} axis={axis!s:<5}", *(f"{value:6.1f}" for value in found))
    assert sqnr(right, ReferenceEvaluator(made).run(None, FEED)[0]) > 120, "the reference does otherwise"
    assert sqnr(right, run(made, "ORT_ENABLE_BASIC")) > 120, "basic optimizations change the numbers"
    assert 40 < found[0] < 50 if fused else found[0] > 120, "onnxruntime does otherwise than it did"
    assert found[1] > 120, "the option does otherwise than it did"
PYTHON
