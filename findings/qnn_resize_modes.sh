#!/usr/bin/env bash
# QNN resizes by other coordinates than ONNX's. It hardly reads `nearest_mode`: with half_pixel or align_corners it always
# rounds, halves up, and with asymmetric it takes round_prefer_ceil for floor. In linear mode it takes the ratio of the sizes
# for the scale, which differs if the size of the output is rounded down.
#
# Expected: ONNX's definition, or the node is left to the CPU, as it is with asymmetric and ceil or round_prefer_floor.
# Seen with onnxruntime-qnn 2.7.0 (QNN 2.51), Hexagon's simulator for the SoC 57, uint8, uint16 and float16 alike:
#   nearest, 2 times, of 0 1 2 3 ...     onnxruntime         QNN
#   asymmetric, floor                    0 0 1 1 2 2 3 3     the same
#   asymmetric, round_prefer_ceil        0 1 1 2 2 3 3 4     0 0 1 1 2 2 3 3
#   half_pixel, round_prefer_floor       0 0 1 1 2 2 3 3     the same
#   half_pixel, floor                    0 0 0 1 1 2 2 3     0 0 1 1 2 2 3 3
#   align_corners, ceil                  0 1 1 2 2 3 3 4     0 0 1 1 2 2 3 3
#   nearest, 0.5 times
#   half_pixel, round_prefer_floor       0 2 4               1 3 5
#   linear, 0.5 times, of 9 values
#   asymmetric                           0 2 4 6             0 2.25 4.5 6.75
# All of these run on the NPU, and nothing is logged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnxruntime-qnn==2.7.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
cat > one.py <<'PYTHON'
"""Print a row of one model's output in onnxruntime and in QNN."""
import json
import sys

import numpy as np
import onnx
import onnxruntime
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

kind, size, scale, attributes = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
constants, nodes = [numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")], []


def pair(tensor: str) -> str:
    """QuantizeLinear and DequantizeLinear with a step that holds quarters."""
    if kind == "float16":
        return tensor
    nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [f"{tensor}_dq"]))
    return f"{tensor}_dq"


if kind != "float16":
    constants.append(numpy_helper.from_array(np.float32(1 / 8), "scale"))
    constants.append(numpy_helper.from_array(np.dtype(kind).type(0), "zero"))
nodes.append(helper.make_node("Resize", [pair("x"), "", "scales"], ["y"], **attributes))
output = pair("y")
graph = helper.make_graph(
    nodes, "resize", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, size, size])],
    [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], constants,
)
model = onnx.shape_inference.infer_shapes(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
)
onnx.checker.check_model(model, full_check=True)
feed = {"x": np.tile(np.arange(size, dtype=np.float32), (1, 32, size, 1))}
expected = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]

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
print("\n" + json.dumps([expected[0, 0, 1].tolist(), session.run(None, feed)[0][0, 0, 1].tolist()]))
PYTHON
"$work/venv/bin/python" - <<'PYTHON'
import json
import subprocess
import sys

import numpy as np

FLOOR = [0, 0, 1, 1, 2, 2, 3, 3]
CEIL = [0, 1, 1, 2, 2, 3, 3, 4]


def nearest(coordinates: str, rounding: str) -> dict:
    return {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}


LINEAR = {"mode": "linear", "coordinate_transformation_mode": "asymmetric"}
for size, scale, attributes, wanted, seen in (
    (8, 2, nearest("asymmetric", "floor"), FLOOR, FLOOR),
    (8, 2, nearest("asymmetric", "round_prefer_ceil"), CEIL, FLOOR),
    (8, 2, nearest("half_pixel", "round_prefer_floor"), FLOOR, FLOOR),
    (8, 2, nearest("half_pixel", "floor"), [0, 0, 0, 1, 1, 2, 2, 3], FLOOR),
    (8, 2, nearest("align_corners", "ceil"), CEIL, FLOOR),
    (8, 0.5, nearest("half_pixel", "round_prefer_floor"), [0, 2, 4], [1, 3, 5]),
    (9, 0.5, LINEAR, [0, 2, 4, 6], [0, 2.25, 4.5, 6.75]),
):
    for kind in ("uint8", "uint16", "float16"):
        command = [sys.executable, "one.py", kind, str(size), str(scale), json.dumps(attributes)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        expected, found = (np.array(row)[: len(wanted)] for row in json.loads(text))
        print(f"{scale:<4}{' '.join(attributes.values()):<38}{kind:<8}", "expected", *expected, " found", *found.round(2))
        assert np.allclose(expected, wanted), "onnxruntime does otherwise"
        assert np.allclose(found, seen, atol=0.02), "QNN does otherwise than it did"
PYTHON
