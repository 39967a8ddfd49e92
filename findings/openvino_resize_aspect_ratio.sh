#!/usr/bin/env bash
# OpenVINO ignores Resize's `keep_aspect_ratio_policy` and stretches, so its output has another shape than the model's.
#
# Expected: ONNX's definition, or an error.
# Seen with openvino 2026.4.1, CPU, x of 1 x 1 x 4 x 6, `sizes` of 8 x 8 with `axes` 2 and 3, opset 18:
#   policy        onnxruntime      OpenVINO
#   stretch       1 x 1 x 8 x 8    1 x 1 x 8 x 8
#   not_larger    1 x 1 x 5 x 8    1 x 1 x 8 x 8
#   not_smaller   1 x 1 x 8 x 12   1 x 1 x 8 x 8
# onnx's reference evaluator gives the shapes of onnxruntime. The model declares them too. Without `axes` the policy is ignored
# as well. Nothing is logged.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet openvino==2026.4.1 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnxruntime
import openvino
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FEED = {"x": np.arange(24, dtype=np.float32).reshape(1, 1, 4, 6)}

print("policy       onnxruntime     OpenVINO")
for policy, shape in (("stretch", (1, 1, 8, 8)), ("not_larger", (1, 1, 5, 8)), ("not_smaller", (1, 1, 8, 12))):
    node = helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], axes=[2, 3], keep_aspect_ratio_policy=policy, mode="nearest",
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )
    graph = helper.make_graph(
        [node], "resize", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [numpy_helper.from_array(np.array([8, 8]), "sizes")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    right, found = session.run(None, FEED)[0], compiled(FEED)[0]
    print(f"{policy:<12} {right.shape!s:<15} {found.shape}")
    assert right.shape == ReferenceEvaluator(made).run(None, FEED)[0].shape == shape, "onnxruntime or the reference do otherwise"
    assert found.shape == (1, 1, 8, 8), "OpenVINO does otherwise than it did"
PYTHON
