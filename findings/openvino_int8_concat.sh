#!/usr/bin/env bash
# OpenVINO's CPU plugin computes int8 activations wrongly where they reach a Conv through a Concat, unless the CPU has AMX.
#
# Expected: the QDQ graph Conv, Conv -> Concat -> Q/DQ (int8) -> Conv gives the same numbers on every x86-64 CPU, as it does
# with uint8, without the Concat, and in onnx's reference evaluator.
# Seen with openvino 2026.4.1, oneDNN limited to AVX2 (ONEDNN_MAX_CPU_ISA), which recent x86-64 CPUs can run:
#   int8, Concat      SQNR   1.1 dB, the Concat runs on u8
#   int8, no Concat   SQNR 136.3 dB
#   uint8, Concat     SQNR  57.4 dB, the Concat runs on u8
# The limits AVX2_VNNI, AVX512_CORE and AVX512_CORE_VNNI give the first row as well. Without a limit on a CPU with AMX it is
# 133.6 dB, and the Concat runs on i8. Nothing is logged.
# Weights have 7 bits: no sum of products saturates in 16 bits, which is another effect of CPUs without VNNI.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cd "$work"
ONEDNN_MAX_CPU_ISA=AVX2 "$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator


def network(dtype: type, concat: bool) -> onnx.ModelProto:
    """A Conv, or two that are joined, in front of a Conv; all inputs are quantized."""
    random = np.random.default_rng(0)
    constants, nodes = [], []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    def qdq(x: str, scale: float) -> str:
        s = constant(f"{x}_scale", np.array(scale, np.float32))
        z = constant(f"{x}_zero", np.array(0 if dtype is np.int8 else 128, dtype))
        nodes.append(helper.make_node("QuantizeLinear", [x, s, z], [f"{x}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{x}_q", s, z], [f"{x}_float"]))
        return f"{x}_float"

    def conv(x: str, channels: int, name: str) -> str:
        w = constant(f"{name}_w", random.integers(-63, 64, (8, channels, 3, 3)).astype(np.int8))
        s = constant(f"{name}_s", np.full(8, 0.01 / np.sqrt(9 * channels), np.float32))
        z = constant(f"{name}_z", np.zeros(8, np.int8))
        nodes.append(helper.make_node("DequantizeLinear", [w, s, z], [f"{name}_dq"], axis=0))
        nodes.append(helper.make_node("Conv", [x, f"{name}_dq"], [name], pads=[1] * 4))
        return name

    x = qdq("x", 1 / 127)
    joined, channels = conv(x, 8, "a"), 8
    if concat:
        nodes.append(helper.make_node("Concat", [joined, conv(x, 8, "b")], ["joined"], axis=1))
        joined, channels = "joined", 16
    conv(qdq(joined, 3 / 127), channels, "y")
    shape = [1, 8, 16, 16]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def sqnr(expected: np.ndarray, found: np.ndarray) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - found) ** 2).sum()))


image = np.random.default_rng(1).normal(size=(1, 8, 16, 16)).clip(-1, 1).astype(np.float32)
rows = {}
for dtype, concat in ((np.int8, True), (np.int8, False), (np.uint8, True)):
    model = network(dtype, concat)
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", options)
    found = next(iter(compiled([image]).values()))
    expected = ReferenceEvaluator(model).run(None, {"x": image})[0]
    executed = (node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops())
    types = [info["runtimePrecision"].astype(str) for info in executed if info["layerType"].astype(str) == "Concatenation"]
    rows[dtype.__name__, concat] = sqnr(expected, found)
    what = f"{dtype.__name__}, {'Concat' if concat else 'no Concat'}"
    where = f", the Concat runs on {types[0]}" if types else ""
    print(f"{what:<17} SQNR {rows[dtype.__name__, concat]:5.1f} dB{where}")
assert rows["int8", True] < 10, "int8 through a Concat is computed rightly"
assert rows["int8", False] > 100 and rows["uint8", True] > 40, "another graph is computed wrongly as well"
PYTHON
