#!/usr/bin/env bash
# QNN fuses Conv, Sigmoid and Mul of uint16 into one operator, and computes it wrongly for outputs of 9 to 12 rows, or of
# more rows and at most 8 columns. The stride 32 of a YOLO for 320 or 384 px has 10 and 12 rows.
#
# Expected: x * sigmoid(x) to a few steps of uint16, as at other sizes; an error or the CPU where it is not possible.
# Seen with onnxruntime-qnn 2.7.0 (QNN 2.51), Hexagon's simulator for the SoC 57; 32 channels, SQNR in dB against onnxruntime
# without optimizations:
#   rows x columns    uint16    gate in uint8    activations in uint8
#      8 x 8            78.4             54.2                    40.7
#     10 x 10            4.3             54.4                    41.1
#     12 x 40            1.0             56.0                    40.7
#     13 x 13           78.1             53.8                    40.2
#     13 x 8             1.8             55.3                    41.2
#     20 x 20           78.3             54.0                    40.6
# Other SoCs and finalization modes give the same. A Conv without SiLU and a SiLU without Conv are right at each size, and so is
# the SiLU if its gate, the output of the Sigmoid, has 8 bits: QNN then does not fuse it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnxruntime-qnn==2.7.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
cat > one.py <<'PYTHON'
"""Print the SQNR of one model; a process of its own, because the simulator keeps its memory."""
import sys

import numpy as np
import onnx
import onnxruntime
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 32
kind, height, width = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
activation = np.uint8 if kind == "uint8" else np.uint16
gate = np.uint16 if kind == "uint16" else np.uint8
random = np.random.default_rng(0)
constants, nodes = {}, []


def add(op: str, *inputs: str, **attributes: object) -> str:
    nodes.append(helper.make_node(op, inputs, [f"t{len(nodes)}"], **attributes))
    return nodes[-1].output[0]


def constant(values: object) -> str:
    constants[f"c{len(constants)}"] = np.asarray(values)
    return f"c{len(constants) - 1}"


def pair(tensor: str, low: float, high: float, dtype: type) -> str:
    """QuantizeLinear and DequantizeLinear."""
    scale = np.float32((high - low) / np.iinfo(dtype).max)
    grid = [constant(scale), constant(dtype(round(-low / scale)))]
    return add("DequantizeLinear", add("QuantizeLinear", tensor, *grid), *grid)


weight = random.normal(size=(CHANNELS, CHANNELS, 1, 1)) / np.sqrt(CHANNELS)
steps = (np.abs(weight).max(axis=(1, 2, 3)) / 127).astype(np.float32)
integers = np.rint(weight / steps[:, None, None, None]).astype(np.int8)
grid = [constant(integers), constant(steps), constant(np.zeros(CHANNELS, np.int8))]
x = pair(add("Conv", pair("x", -4, 4, activation), add("DequantizeLinear", *grid, axis=0)), -5, 5, activation)
sigmoid = pair(add("Sigmoid", x), 0, 1, gate)
pair(add("Mul", x, sigmoid), -0.28, 5, activation)

shape = [1, CHANNELS, height, width]
graph = helper.make_graph(
    nodes, "silu", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
    [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
    [numpy_helper.from_array(values, name) for name, values in constants.items()],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model, full_check=True)

feed = {"x": np.clip(random.normal(size=shape), -4, 4).astype(np.float32)}
plain = onnxruntime.SessionOptions()
plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
expected = onnxruntime.InferenceSession(model.SerializeToString(), plain, ["CPUExecutionProvider"]).run(None, feed)[0]

onnxruntime.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "qnn"]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
options.add_provider_for_devices(
    devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": "57"}
)
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
on_cpu = {
    node.op_type
    for part in session.get_provider_graph_assignment_info() if part.ep_name == "CPUExecutionProvider"
    for node in part.get_nodes()
}
assert on_cpu <= {"QuantizeLinear", "DequantizeLinear"}, on_cpu
noise = session.run(None, feed)[0] - expected
print(f"\n{10 * np.log10(np.square(expected).sum() / np.square(noise).sum()):.1f}")
PYTHON
"$work/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

KINDS = ("uint16", "gate", "uint8")


def decibels(kind: str, height: int, width: int) -> float:
    command = [sys.executable, "one.py", kind, str(height), str(width)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


print("rows x columns    uint16    gate in uint8    activations in uint8")
for height, width in ((8, 8), (10, 10), (12, 40), (13, 13), (13, 8), (20, 20)):
    found = {kind: decibels(kind, height, width) for kind in KINDS}
    print("{:>6} x {:<8}   {:>6.1f}    {:>13.1f}    {:>20.1f}".format(height, width, *found.values()))
    is_wrong = 9 <= height <= 12 or (height > 12 and width <= 8)
    assert (found["uint16"] < 20) == is_wrong, "uint16 is wrong at other sizes than it was"
    assert found["gate"] > 45 and found["uint8"] > 30, "8 bits are wrong"
PYTHON
