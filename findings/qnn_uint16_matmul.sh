#!/usr/bin/env bash
# onnxruntime's QNN provider computes a MatMul of two uint16 activations with 8 bits of the second one, without a word.
#
# Expected: both operands have 16 bits, as the file says; or the MatMul in float16, or on the CPU.
# Seen with onnxruntime-qnn 2.7.0 (QNN 2.51), Hexagon's simulator for the SoC 57: the graph has a Convert of the second
# operand from uint16 to uint8. SQNR in dB against onnxruntime without optimizations, (1, 2, 100, 32) x (1, 2, 32, 100):
#   first     second    dB      types in QNN's graph
#   uint16    uint16    40.7    uint16 x uint8
#   uint16    uint8     77.4    uint16 x uint8
#   uint8     uint8     41.0    uint8 x uint8
# Attention has two such products. Int16 for the second operand ends with an error; without a QuantizeLinear behind it, the
# MatMul runs in float16.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnxruntime-qnn==2.7.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
cat > one.py <<'PYTHON'
"""Print the SQNR and the types of one model; a process of its own, because the simulator keeps its memory."""
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxruntime_qnn
from onnx import TensorProto, helper, numpy_helper

TYPES = {0x0408: "uint8", 0x0416: "uint16"}  # QnnTypes.h
kinds = {"a": sys.argv[1], "b": sys.argv[2], "product": sys.argv[1]}
ranges = {"a": 4.0, "b": 4.0, "product": 40.0}
shapes = {"a": [1, 2, 100, 32], "b": [1, 2, 32, 100], "product": [1, 2, 100, 100]}
constants, nodes = {}, []


def pair(tensor: str, output: str) -> str:
    """QuantizeLinear and DequantizeLinear over a symmetric range."""
    dtype = np.dtype(kinds[tensor])
    constants[f"{tensor}_scale"] = np.float32(2 * ranges[tensor] / np.iinfo(dtype).max)
    constants[f"{tensor}_zero"] = np.asarray(np.iinfo(dtype).max // 2 + 1, dtype)
    grid = [f"{tensor}_scale", f"{tensor}_zero"]
    nodes.append(helper.make_node("QuantizeLinear", [tensor, *grid], [f"{tensor}_q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", *grid], [output]))
    return output


operands = [pair("a", "a_float"), pair("b", "b_float")]
nodes.append(helper.make_node("MatMul", operands, ["product"], "matmul"))
pair("product", "y")
shapes["y"] = shapes["product"]
values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in ("a", "b", "y")}
stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
graph = helper.make_graph(nodes, "product", [values["a"], values["b"]], [values["y"]], stored)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
onnx.checker.check_model(model, full_check=True)

random = np.random.default_rng(0)
feed = {name: np.clip(random.normal(size=shapes[name]), -4, 4).astype(np.float32) for name in ("a", "b")}
plain = onnxruntime.SessionOptions()
plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
expected = onnxruntime.InferenceSession(model.SerializeToString(), plain, ["CPUExecutionProvider"]).run(None, feed)[0]

onnxruntime.register_execution_provider_library("qnn", onnxruntime_qnn.get_library_path())
devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == "qnn"]
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
folder = Path(f"graphs_{kinds['a']}_{kinds['b']}")
folder.mkdir()
settings = {"backend_path": onnxruntime_qnn.get_qnn_htp_path(), "soc_model": "57"}
settings |= {"dump_json_qnn_graph": "1", "json_qnn_graph_dir": str(folder)}
options.add_provider_for_devices(devices[:1], settings)
session = onnxruntime.InferenceSession(model.SerializeToString(), options)
noise = session.run(None, feed)[0] - expected
decibels = 10 * np.log10(np.square(expected).sum() / np.square(noise).sum())
graphs = [json.loads(path.read_text()).get("graph", {"nodes": {}}) for path in folder.iterdir()]
[types] = [
    " x ".join(TYPES[found["tensors"][name]["data_type"]] for name in node["input_names"])
    for found in graphs for node in found["nodes"].values() if node["type"] == "MatMul"
]
print(f"\n{decibels:.1f} {types}")
PYTHON
"$work/venv/bin/python" - <<'PYTHON'
import subprocess
import sys

EXPECTED = {("uint16", "uint16"): "uint16 x uint8", ("uint16", "uint8"): "uint16 x uint8", ("uint8", "uint8"): "uint8 x uint8"}
found = {}
print("first     second    dB      types in QNN's graph")
for kinds, types in EXPECTED.items():
    run = subprocess.run([sys.executable, "one.py", *kinds], check=True, capture_output=True, text=True)
    decibels, _, seen = run.stdout.splitlines()[-1].partition(" ")
    print(f"{kinds[0]:9} {kinds[1]:9} {decibels:7} {seen}")
    assert seen == types
    found[kinds] = float(decibels)
assert found["uint16", "uint16"] < 50 < 70 < found["uint16", "uint8"], "it has more bits than it had"
PYTHON
