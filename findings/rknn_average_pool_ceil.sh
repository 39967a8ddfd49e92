#!/usr/bin/env bash
# RKNN-Toolkit2 averages the last windows of an AveragePool with `ceil_mode` and `count_include_pad` wrongly: it divides windows
# that reach beyond the padding by the whole kernel, in float16 as well. PyTorch's AvgPool2d counts the padding unless told
# otherwise, so `AvgPool2d(2, 2, ceil_mode=True)`, as in ResNet-vd, is exported like this.
#
# Expected: what lies beyond the padding does not count.
# Seen with rknn-toolkit2 2.5.0, the simulator for rk3588, levels 2 and 3, float and uint8 alike:
#   kernel, stride, padding  row of the image  onnx     RKNN-Toolkit2
#   2, 2, 0                  1 2 3 4 5         1.5 3.5 5  1.5 3.5 2.5
#   3, 2, 1                  1 2 3 4 5 6       1 3 5 3    1 3 5 2
# Without `count_include_pad` it is right. Nothing is logged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet rknn-toolkit2==2.5.0 onnx==1.18.0 onnxruntime==1.26.0 numpy==1.26.4
cd "$work"
cat > one.py <<'PYTHON'
"""Print a row of an AveragePool in RKNN-Toolkit2, and in onnx's reference evaluator."""
import json
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rknn.api import RKNN

quantized, (size, level, attributes) = sys.argv[1] == "uint8", json.loads(sys.argv[2])
nodes = []


def pair(tensor: str) -> str:
    """QuantizeLinear and DequantizeLinear, for 0 to 31.875."""
    if not quantized:
        return tensor
    nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [f"{tensor}_dq"]))
    return f"{tensor}_dq"


nodes.append(helper.make_node("AveragePool", [pair("x")], ["y"], **attributes))
output = pair("y")
constants = [numpy_helper.from_array(np.float32(1 / 8), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
graph = helper.make_graph(
    nodes, "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, size, size])],
    [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], constants if quantized else [],
)
model = onnx.shape_inference.infer_shapes(
    helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "model.onnx")
x = np.tile(np.arange(1, size + 1, dtype=np.float32), (1, 16, size, 1))
expected = ReferenceEvaluator(model).run(None, {"x": x})[0]

toolkit = RKNN(verbose=False)
toolkit.config(target_platform="rk3588", optimization_level=level)
assert toolkit.load_onnx("model.onnx") == 0
assert toolkit.build(do_quantization=False) == 0
assert toolkit.init_runtime() == 0
found = toolkit.inference(inputs=[x], data_format=["nchw"])[0]
print("\n" + json.dumps([expected[0, 0, 1].tolist(), found[0, 0, 1].tolist()]))
PYTHON
"$work/venv/bin/python" - <<'PYTHON'
import json
import subprocess
import sys
from importlib import metadata

import numpy as np

print("rknn-toolkit2", metadata.version("rknn-toolkit2"))
BY_TWO = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}
PADDED = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4, "ceil_mode": 1}
for size, attributes, wanted, seen in (
    (5, {**BY_TWO, "count_include_pad": 1}, [1.5, 3.5, 5], [1.5, 3.5, 2.5]),
    (5, BY_TWO, [1.5, 3.5, 5], [1.5, 3.5, 5]),
    (6, {**PADDED, "count_include_pad": 1}, [1, 3, 5, 3], [1, 3, 5, 2]),
    (6, PADDED, [1.5, 3, 5, 6], [1.5, 3, 5, 6]),
):
    for kind in ("float", "uint8"):
        for level in (2, 3):
            command = [sys.executable, "one.py", kind, json.dumps([size, level, attributes])]
            text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            expected, found = map(np.array, json.loads(text))
            print(f"{kind:<7}level {level} {attributes}\n    expected", *expected, " found", *found.round(2))
            assert np.allclose(expected, wanted), "onnx's reference does otherwise"
            assert np.allclose(found, seen, atol=0.02), "RKNN-Toolkit2 does otherwise than it did"
PYTHON
