#!/usr/bin/env bash
# onnxruntime changes int8 activations of QDQ models to uint8, and so loses nearly all of each positive value on CPUs with
# AVX2 and without VNNI, where its int8 kernels are exact.
#
# Expected: int8 activations and int8 weights are computed as int8, or at least with the same result: both kernels exist.
# Seen with onnxruntime 1.32.0 on a Haswell, emulated by qemu-user 7.2. A 1x1 Conv of 16 equal channels and weights of 1, in
# steps of 1/127, that is followed by a QuantizeLinear in steps of 16/127:
#   value    right    as it is    session.qdqisint8allowed=1    session.x64quantprecision=1
#   -1.00   -16.00      -16.00                        -16.00                         -16.00
#    0.25     4.03        0.13                          4.03                           4.03
#    1.00    16.00        0.13                         16.00                          16.00
# The optimizer adds 128 to values and zero points. Two products of up to 255 * 127 then saturate in 16 bits, and the products
# with 128 are subtracted behind. CPUs with VNNI and -cpu Nehalem (SSE4.2) are right.
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

CHANNELS, SIDE = 16, 8
constants = {
    "scale": np.float32(1 / 127), "zero": np.int8(0), "w": np.full((CHANNELS, CHANNELS, 1, 1), 127, np.int8),
    "w_scale": np.full(CHANNELS, 1 / 127, np.float32), "w_zero": np.zeros(CHANNELS, np.int8),
    "y_scale": np.float32(CHANNELS / 127),
}
nodes = [
    helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_float"]),
    helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], axis=0),
    helper.make_node("Conv", ["x_float", "w_float"], ["sum"]),
    helper.make_node("QuantizeLinear", ["sum", "y_scale", "zero"], ["y_q"]),
    helper.make_node("DequantizeLinear", ["y_q", "y_scale", "zero"], ["y"]),
]
shape = [1, CHANNELS, SIDE, SIDE]
graph = helper.make_graph(
    nodes, "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
onnx.checker.check_model(model, full_check=True)


def found(value: float, option: str | None, optimized: bool = True) -> float:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if option is not None:
        options.add_session_config_entry(f"session.{option}", "1")
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    [y] = session.run(None, {"x": np.full(shape, value, np.float32)})
    assert (y == y.flat[0]).all()
    return float(y.flat[0])


for value in (-1.0, 0.25, 1.0):
    right = found(value, None, optimized=False)
    row = [found(value, option) for option in (None, "qdqisint8allowed", "x64quantprecision")]
    print(f"{value:5.2f}  {right:7.2f}     {row[0]:7.2f}                       {row[1]:7.2f}                        {row[2]:7.2f}")
    assert row[1] == row[2] == right, "an option is no remedy"
    assert (row[0] == right) if value < 0 else (row[0] < 0.3), "positive values are computed rightly"
PYTHON
