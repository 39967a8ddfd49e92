#!/usr/bin/env bash
# onnx's version converter changes what a Resize or Upsample of before opset 11 and a Hardmax of before opset 13 compute.
# Opset 11 gave Resize the attributes coordinate_transformation_mode and nearest_mode; the converter does not set them, and
# their defaults are half_pixel and round_prefer_floor. Opset 13 took from Hardmax that all axes from `axis` to the last count
# as one; the converter keeps `axis` alone, although it does convert Softmax. Nothing is said, and the model is valid.
#
# Expected: a version converter keeps the numbers, or says that it cannot.
# Seen with onnx 1.23.2 and onnxruntime 1.32.0, opset 13 against the original, for noise of 1 x 2 x 12 x 10 from 0 to 1:
#   original                   largest difference    with the modes below
#   Upsample-7 linear x2       0.39                  0
#   Upsample-9 linear x2       0.39                  0
#   Resize-10 linear x2        0.39                  0
#   Resize-10 nearest x2       0                     0       floor
#   Resize-10 nearest x1.25    0.97                  0       floor
#   Resize-10 nearest x0.75    0.82                  0       ceil
#   Resize-10 nearest x0.3334  0.85                  0       ceil
#   Softmax-11 axis 1          0
#   Hardmax-11 axis 1          1
# The remedy for Resize and Upsample is coordinate_transformation_mode=asymmetric. ONNX does not say how coordinates were
# rounded before opset 11: onnxruntime rounds them up along axes with a scale below 1, and down along others. The remedy for
# Hardmax is a Flatten at `axis` before it, and a Reshape behind it.
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
from onnx import TensorProto, helper, numpy_helper, version_converter

NOISE = np.random.default_rng(0).random((1, 2, 12, 10), np.float32)


def model(operator: str, opset: int, *constants: onnx.TensorProto, **attributes: object) -> onnx.ModelProto:
    """A model of one node."""
    node = helper.make_node(operator, ["x", *(tensor.name for tensor in constants)], ["y"], **attributes)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, NOISE.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 4)], constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


def resize(operator: str, opset: int, mode: str, scale: float) -> onnx.ModelProto:
    scales = [1.0, 1.0, scale, scale]
    if opset < 9:
        return model(operator, opset, mode=mode, scales=scales)
    return model(operator, opset, numpy_helper.from_array(np.array(scales, np.float32), "scales"), mode=mode)


def run(made: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(made, full_check=True)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(made.SerializeToString(), plain, ["CPUExecutionProvider"])
    return session.run(None, {"x": NOISE})[0]


def difference(made: onnx.ModelProto, original: onnx.ModelProto) -> float:
    return float(np.abs(run(made) - run(original)).max())


def with_modes(converted: onnx.ModelProto, rounding: str) -> onnx.ModelProto:
    [node] = [node for node in converted.graph.node if node.op_type == "Resize"]
    node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
    node.attribute.append(helper.make_attribute("nearest_mode", rounding))
    return converted


print("original                   largest difference    with the modes below")
for operator, opset, mode, scale, rounding, is_kept in (
    ("Upsample", 7, "linear", 2, "floor", False),
    ("Upsample", 9, "linear", 2, "floor", False),
    ("Resize", 10, "linear", 2, "floor", False),
    ("Resize", 10, "nearest", 2, "floor", True),
    ("Resize", 10, "nearest", 1.25, "floor", False),
    ("Resize", 10, "nearest", 0.75, "ceil", False),
    ("Resize", 10, "nearest", 0.3334, "ceil", False),
):
    original = resize(operator, opset, mode, scale)
    converted = version_converter.convert_version(original, 13)
    found, mended = difference(converted, original), difference(with_modes(converted, rounding), original)
    name, modes = f"{operator}-{opset} {mode} x{scale}", f"{mended:<6.2g}  {rounding if mode == 'nearest' else ''}"
    print(f"{name:25}  {found:<20.2g}  {modes}".rstrip())
    assert (found == 0) == is_kept, "the converter does otherwise than it did"
    assert mended < 1e-6, "onnxruntime rounds otherwise than it did"

for operator, is_kept in (("Softmax", True), ("Hardmax", False)):
    original = model(operator, 11, axis=1)
    found = difference(version_converter.convert_version(original, 13), original)
    print(f"{operator + '-11 axis 1':25}  {found:.2g}")
    assert (found < 1e-6) == is_kept, "the converter does otherwise than it did"
PYTHON
