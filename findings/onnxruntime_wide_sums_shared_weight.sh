#!/usr/bin/env bash
# With `session.x64quantprecision` onnxruntime does not load a QDQ model in which two Convs share an int8 weight, or only
# its zero point. The option is for x86 CPUs without VNNI, where 16-bit sums of products saturate: it turns int8 weights
# that have values beyond -64 to 63 into uint8, with new constants for each Conv, and the names of the second ones are
# taken.
#
# Expected: the model loads, with or without the option.
# Seen with onnxruntime 1.32.0, on a CPU with AVX512-VNNI:
#   weights  zero points  option  loads
#   2        2            0       yes
#   2        2            1       yes
#   2        1            0       yes
#   2        1            1       no: Attempt to replace the existing tensor
#   1        1            0       yes
#   1        1            1       no: Attempt to replace the existing tensor
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


def constant(name: str, values: object, dtype: type) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def model(weights: int, zero_points: int) -> onnx.ModelProto:
    """Two Convs between QuantizeLinear and DequantizeLinear, one behind the other."""
    stored = [constant(f"w{k}", np.full((4, 4, 1, 1), 100), np.int8) for k in range(weights)]
    stored += [constant(f"wz{k}", 0, np.int8) for k in range(zero_points)]
    stored += [constant("s", 0.1, np.float32), constant("z", 0, np.uint8)]
    nodes = [
        helper.make_node("DequantizeLinear", [f"w{k}", "s", f"wz{min(k, zero_points - 1)}"], [f"wd{k}"], name=f"wd{k}")
        for k in range(weights)
    ]
    for x, weight, y in (("x", "wd0", "h"), ("h", f"wd{weights - 1}", "y")):
        nodes += [
            helper.make_node("QuantizeLinear", [x, "s", "z"], [f"{x}q"], name=f"{x}q"),
            helper.make_node("DequantizeLinear", [f"{x}q", "s", "z"], [f"{x}d"], name=f"{x}d"),
            helper.make_node("Conv", [f"{x}d", weight], [y], name=y),
        ]
    nodes += [
        helper.make_node("QuantizeLinear", ["y", "s", "z"], ["yq"], name="yq"),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["yd"], name="yd"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 8, 8]) for name in ("x", "yd")]
    graph = helper.make_graph(nodes, "convs", values[:1], values[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def refusal(made: onnx.ModelProto, option: str) -> str:
    onnx.checker.check_model(made, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", option)
    try:
        onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:
        return str(error)
    return ""


TAKEN = "Attempt to replace the existing tensor"
print("weights  zero points  option  loads")
for weights, zero_points, option, is_refused in (
    (2, 2, "0", False), (2, 2, "1", False), (2, 1, "0", False), (2, 1, "1", True), (1, 1, "0", False), (1, 1, "1", True),
):
    found = refusal(model(weights, zero_points), option)
    print(f"{weights}        {zero_points}            {option}       {f'no: {TAKEN}' if TAKEN in found else found or 'yes'}")
    assert (TAKEN in found) == is_refused and bool(found) == is_refused, "onnxruntime does otherwise than it did"
PYTHON
