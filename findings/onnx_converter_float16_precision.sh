#!/usr/bin/env bash
# Raising the opset of a model from 21 to 23 changes what a QuantizeLinear with a float16 scale computes. Up to opset 21
# onnxruntime divides in float32; from opset 23 on the division has the type of the scale unless the attribute `precision`
# says otherwise, and neither onnx's nor onnxscript's version converter sets it.
#
# Expected: a version converter keeps the numbers, or says that it cannot.
# Seen with onnx 1.23.2, onnxscript 0.7.2 and onnxruntime 1.32.0, for 100,000 values in [0, 1) and the scale 1/255:
#   converter          opset    other integers than at opset 19
#   onnx               21                0
#   onnx               23             4139
#   onnxscript         21                0
#   onnxscript         23             4139
#   onnx, precision=1  23                0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import numpy as np
import onnx
import onnx_ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnxscript import version_converter as script_converter

COUNT = 100_000
VALUES = np.random.default_rng(0).random(COUNT).astype(np.float16)


def model() -> onnx.ModelProto:
    """A QuantizeLinear of opset 19."""
    constants = [numpy_helper.from_array(np.array(1 / 255, np.float16), "scale"),
                 numpy_helper.from_array(np.array(0, np.uint8), "zero_point")]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["y"])], "half",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [COUNT])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [COUNT])], constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def by_onnx(opset: int) -> onnx.ModelProto:
    return version_converter.convert_version(model(), opset)


def by_onnxscript(opset: int) -> onnx.ModelProto:
    working = onnx_ir.from_proto(model())
    script_converter.convert_version(working, opset)
    return onnx_ir.to_proto(working)


def with_precision(opset: int) -> onnx.ModelProto:
    converted = by_onnx(opset)
    converted.graph.node[0].attribute.append(helper.make_attribute("precision", TensorProto.FLOAT))
    return converted


def integers(model: onnx.ModelProto) -> np.ndarray:
    onnx.checker.check_model(model, full_check=True)
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), plain, ["CPUExecutionProvider"])
    return session.run(None, {"x": VALUES})[0]


expected = integers(model())
assert np.array_equal(expected, np.rint(VALUES.astype(np.float32) / np.float32(np.float16(1 / 255))).clip(0, 255))
print("converter          opset    other integers than at opset 19")
for name, convert, opset, is_kept in (
    ("onnx", by_onnx, 21, True), ("onnx", by_onnx, 23, False),
    ("onnxscript", by_onnxscript, 21, True), ("onnxscript", by_onnxscript, 23, False),
    ("onnx, precision=1", with_precision, 23, True),
):
    others = int((integers(convert(opset)) != expected).sum())
    print(f"{name:17}  {opset}            {others:>5}")
    assert (others == 0) == is_kept, "a converter does otherwise than it did"
PYTHON
