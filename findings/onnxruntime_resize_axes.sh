#!/usr/bin/env bash
# onnxruntime's extended optimizations break a Resize with `axes` between two Transposes. They take the Transposes away and
# reorder `scales`, as if it had a value per dimension in their order, but leave `axes` as it is.
#
# Expected: the same shape and values as without optimizations.
# Seen with onnxruntime 1.32.0, CPU, float, x of 1 x 4 x 6 x 3 (NHWC) -> NCHW -> Resize -> NHWC, opset 18:
#   axes      scales    basic             extended
#   none      1 1 2 3   1 x 8 x 18 x 3    1 x 8 x 18 x 3
#   0 1 2 3   1 1 2 3   1 x 8 x 18 x 3    1 x 8 x 18 x 3
#   2 3       2 3       1 x 8 x 18 x 3    Gather: indices element out of data bounds
#   2 3 0 1   2 3 1 1   1 x 8 x 18 x 3    1 x 12 x 12 x 3
#   0 1 3 2   1 1 3 2   1 x 8 x 18 x 3    1 x 12 x 6 x 6
# The third row fails when it runs. With `sizes` instead of `scales`, it fails when it loads. The last two rows run; what is
# logged is a warning, "Error merging shape info for output". onnx's reference evaluator gives the column "basic". A Resize
# behind a Transpose alone is right.
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
from onnx.reference import ReferenceEvaluator

FEED = {"x": np.arange(72, dtype=np.float32).reshape(1, 4, 6, 3)}


def model(axes: list[int] | None, values: np.ndarray) -> onnx.ModelProto:
    """Transpose -> Resize -> Transpose; whole numbers are sizes, others are scales."""
    inputs = ["t", "", "", "values"] if values.dtype == np.int64 else ["t", "", "values"]
    attributes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} | ({"axes": axes} if axes else {})
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Resize", inputs, ["r"], mode="nearest", **attributes),
        helper.make_node("Transpose", ["r"], ["y"], perm=[0, 2, 3, 1]),
    ]
    graph = helper.make_graph(
        nodes, "resize", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, None, None])],
        [numpy_helper.from_array(values, "values")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def run(made: onnx.ModelProto, level: str) -> np.ndarray | str:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    step = "load"
    try:
        session = onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])
        step = "run"
        return session.run(None, FEED)[0]
    except Exception as error:
        text = str(error)
        causes = {"out of data bounds": "out of data bounds", "(0) does not match": "number of sizes"}
        return f"{step}: {next((cause for part, cause in causes.items() if part in text), text)}"


for axes, values, expected in (
    (None, [1.0, 1, 2, 3], (1, 8, 18, 3)),
    ([0, 1, 2, 3], [1.0, 1, 2, 3], (1, 8, 18, 3)),
    ([2, 3], [2.0, 3], "run: out of data bounds"),
    ([2, 3, 0, 1], [2.0, 3, 1, 1], (1, 12, 12, 3)),
    ([0, 1, 3, 2], [1.0, 1, 3, 2], (1, 12, 6, 6)),
    ([2, 3], [8, 18], "load: number of sizes"),
):
    made = model(axes, np.array(values, np.int64 if isinstance(values[0], int) else np.float32))
    reference = ReferenceEvaluator(made).run(None, FEED)[0]
    basic, extended = run(made, "BASIC"), run(made, "EXTENDED")
    found = extended if isinstance(extended, str) else extended.shape
    print(f"axes {axes!s:<13} values {values!s:<17} basic {basic.shape}  extended {found}")
    assert basic.shape == (1, 8, 18, 3) and (basic == reference).all(), "onnxruntime is wrong without these optimizations"
    assert found == expected, "onnxruntime does otherwise than it did"
    assert expected != basic.shape or (extended == basic).all(), "other values"
PYTHON
