#!/usr/bin/env bash
# onnx's own reference evaluator cannot run DequantizeLinear of opsets 10 to 18, which most QDQ files have; it runs the
# QuantizeLinear of these opsets.
#
# Expected: ReferenceEvaluator runs every operator of ONNX in every opset that the checker accepts. DequantizeLinear exists
# since opset 10, and opset 13 gave it a scale per channel.
# Seen with onnx 1.23.2: the checker accepts the model in each opset; the evaluator refuses it before opset 19.
#   opset 10  refused: No implementation for operator 'DequantizeLinear' domain '' and version 10, found 19, 21, 23, 25, None.
#   opset 13  refused, the same with version 13
#   opset 18  refused, the same with version 18
#   opset 19  runs
#   opset 21  runs
# The remedy is onnx.version_converter: the model converted from opset 13 to 19 runs.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.reference import ReferenceEvaluator


def pair(opset: int) -> onnx.ModelProto:
    """A QuantizeLinear and its DequantizeLinear, uint8, one scale."""
    constants = [numpy_helper.from_array(np.array(0.5, np.float32), "scale"),
                 numpy_helper.from_array(np.array(128, np.uint8), "zero_point")]
    nodes = [helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"]),
             helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    graph = helper.make_graph(nodes, "pair", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def result(model: onnx.ModelProto) -> str:
    try:
        [y] = ReferenceEvaluator(model).run(None, {"x": np.array([-1.2, 0.2, 3.4], np.float32)})
    except RuntimeError as error:
        return f"refused: {str(error).splitlines()[0]}"
    assert y.tolist() == [-1.0, 0.0, 3.5]
    return "runs"


found = {opset: result(pair(opset)) for opset in (10, 13, 18, 19, 21)}
for opset, what in found.items():
    print(f"opset {opset}  {what}")
assert [opset for opset, what in found.items() if what == "runs"] == [19, 21], "another set of opsets runs"
assert all("No implementation for operator" in what for what in found.values() if what != "runs")
converted = result(version_converter.convert_version(pair(13), 19))
print(f"opset 13 converted to 19  {converted}")
assert converted == "runs"
PYTHON
