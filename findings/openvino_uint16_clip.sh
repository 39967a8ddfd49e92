#!/usr/bin/env bash
# OpenVINO takes Q/DQ pairs of 16 bits out of a model, and with them what they clip. A ReLU that a quantizer has left to the
# zero point of the next QuantizeLinear is gone then: onnxruntime's quantize_static leaves it to that.
#
# Expected: values of 16 bits, or of float32 within the range of the integers. With 8 bits it is so.
# Seen with openvino 2026.4.1, CPU, float32 inference precision, opset 21. A 1x1 Conv of weight 1 between pairs whose second
# covers 0 to 2 with a zero point of 0, or -2 to 2 (int16):
#   value                            -3.0    0.5    1.0    3.0
#   uint8                             0.0    0.5    1.0    2.0
#   uint16                           -3.0    0.5    1.0    3.0
#   int16                            -3.0    0.5    1.0    3.0
#   Conv, Relu by quantize_static    -3.0    0.5    1.0    3.0
# onnxruntime and onnx's reference evaluator give 0 or -2 for the first, and 2 for the last value; in the last row 0 and 3.
# Nothing is logged.
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
from onnxruntime import quantization

VALUES = [-3.0, 0.5, 1.0, 3.0]
IMAGE = np.tile(np.float32(VALUES), (1, 1, 4, 1))


def made_of(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4, 4])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(made, full_check=True)
    return made


def pairs(dtype: type) -> onnx.ModelProto:
    """A Conv of weight 1 between two Q/DQ pairs; the first covers -4 to 4."""
    limits = np.iinfo(dtype)
    steps = limits.max - limits.min
    constants = {
        "w": np.ones((1, 1, 1, 1), np.int8), "w_scale": np.float32(1), "x_scale": np.float32(8 / steps),
        "x_zero": dtype(limits.min + steps // 2 + 1), "z_scale": np.float32((4 if limits.min else 2) / steps), "z_zero": dtype(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["x_q"]),
        helper.make_node("DequantizeLinear", ["x_q", "x_scale", "x_zero"], ["x_dq"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale"], ["w_dq"]),
        helper.make_node("Conv", ["x_dq", "w_dq"], ["z"]),
        helper.make_node("QuantizeLinear", ["z", "z_scale", "z_zero"], ["z_q"]),
        helper.make_node("DequantizeLinear", ["z_q", "z_scale", "z_zero"], ["y"]),
    ]
    return made_of(nodes, constants)


class Reader(quantization.CalibrationDataReader):
    def __init__(self) -> None:
        self.feeds = iter([{"x": IMAGE}])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def by_quantize_static() -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"], name="conv"), helper.make_node("Relu", ["z"], ["y"], name="relu")]
    onnx.save(made_of(nodes, {"w": np.ones((1, 1, 1, 1), np.float32)}), "float.onnx")
    quantization.quantize_static(
        "float.onnx", "quantized.onnx", Reader(), activation_type=quantization.QuantType.QUInt16,
        weight_type=quantization.QuantType.QInt8,
    )
    made = onnx.load("quantized.onnx")
    assert "Relu" not in [node.op_type for node in made.graph.node], "quantize_static keeps the Relu"
    return made


def close(found: np.ndarray, expected: list[float], steps: float) -> bool:
    return bool(np.allclose(found[0, 0], expected, atol=steps))


core = openvino.Core()
print(f"{'value':<30}", *(f"{value:6.1f}" for value in VALUES))
for title, made, right, seen in (
    ("uint8", pairs(np.uint8), [0, 0.5, 1, 2], [0, 0.5, 1, 2]),
    ("uint16", pairs(np.uint16), [0, 0.5, 1, 2], VALUES),
    ("int16", pairs(np.int16), [-2, 0.5, 1, 2], VALUES),
    ("Conv, Relu by quantize_static", by_quantize_static(), [0, 0.5, 1, 3], VALUES),
):
    compiled = core.compile_model(core.read_model(made.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([IMAGE])[0]
    print(f"{title:<30}", *(f"{value:6.1f}" for value in found[0, 0, 0]))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    assert close(session.run(None, {"x": IMAGE})[0], right, 0.04), "onnxruntime does otherwise"
    assert close(ReferenceEvaluator(made).run(None, {"x": IMAGE})[0], right, 0.04), "onnx's reference does otherwise"
    assert close(found, seen, 0.04), "OpenVINO does otherwise than it did"
PYTHON
