#!/usr/bin/env bash
# onnxruntime's MatMulInteger gives wrong integers on CPUs with AVX2 and without VNNI if the values are uint8 and the weights
# int8, also with all graph optimizations off: a file with integer operators is then not computed exactly.
#
# Expected: the int32 sums that ONNX defines. Its text on MatMulInteger (opset 10): the production must never overflow, the
# accumulation may overflow if and only if in 32 bits.
# Seen with onnxruntime 1.32.0 on a Haswell, emulated by qemu-user 7.2; sums of 64 products, weights of 127. The columns:
# right, optimized, not optimized, optimized with session.x64quantprecision=1, not optimized with it.
#   MatMulInteger, uint8 and int8     2072640 1048544 1048544 2072640 1048544
#   MatMulInteger, uint8 and uint8    2072640 2072640 2072640 2072640 2072640
#   MatMulInteger, int8 and int8      1032256 1032256 1032256 1032256 1032256
#   ConvInteger, uint8 and int8       2072640 2072640 2072640 2072640 2072640
# The remedy session.x64quantprecision is an optimization, and does nothing without them. CPUs with VNNI and -cpu Nehalem
# (SSE4.2) are right.
# Needs a CPU with AVX2 and without VNNI, or qemu-x86_64 (Debian: qemu-user).
set -euo pipefail
emulator=()
if grep -qE 'avx512_vnni|avx_vnni' /proc/cpuinfo; then
    command -v qemu-x86_64 >/dev/null || { echo "this CPU has VNNI: install qemu-x86_64 (Debian: qemu-user)" >&2; exit 2; }
    emulator=(qemu-x86_64 -cpu Haswell)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
OPENBLAS_NUM_THREADS=1 "${emulator[@]}" "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

COUNT, WEIGHT = 64, 127


def model(operator: str, values: type, weights: type) -> onnx.ModelProto:
    """One operator with constant weights."""
    shape, ones, made = {
        "MatMulInteger": ([4, COUNT], [COUNT, 16], [4, 16]),
        "ConvInteger": ([1, COUNT, 4, 4], [16, COUNT, 1, 1], [1, 16, 4, 4]),
    }[operator]
    kinds = {np.uint8: TensorProto.UINT8, np.int8: TensorProto.INT8}
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])], "integers",
        [helper.make_tensor_value_info("x", kinds[values], shape)],
        [helper.make_tensor_value_info("y", TensorProto.INT32, made)],
        [numpy_helper.from_array(np.full(ones, WEIGHT, weights), "w")],
    )
    integers = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(integers, full_check=True)
    return integers


def found(made: onnx.ModelProto, value: int, values: type, optimized: bool, precise: bool) -> int:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if precise:
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"x": np.full(session.get_inputs()[0].shape, value, values)})
    assert (y == y.flat[0]).all()
    return int(y.flat[0])


ways = [(True, False), (False, False), (True, True), (False, True)]
rows = []
for operator, value, values, weights in (
    ("MatMulInteger", 255, np.uint8, np.int8), ("MatMulInteger", 255, np.uint8, np.uint8),
    ("MatMulInteger", 127, np.int8, np.int8), ("ConvInteger", 255, np.uint8, np.int8),
):
    made = model(operator, values, weights)
    row = [found(made, value, values, optimized, precise) for optimized, precise in ways]
    right = value * WEIGHT * COUNT
    rows.append([way == right for way in row])
    print(f"{operator}, {values.__name__} and {weights.__name__}".ljust(33), right, *row)
assert rows == [[False, False, True, False], [True] * 4, [True] * 4, [True] * 4], "other sums are right"
PYTHON
