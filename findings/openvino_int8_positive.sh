#!/usr/bin/env bash
# On CPUs without VNNI and AMX, OpenVINO loses most of every positive int8 value where neighbouring weights are large: int8
# activations do not avoid the saturation of uint8 ones, they bring it forward from the largest values to nearly all.
#
# Expected: sums of two products of 8-bit values saturate in 16 bits only if both products are large: two of 255 * 127 with
# uint8. Two products of int8, at most 127 * 127 each, have room.
# Seen with openvino 2026.4.1, oneDNN limited to AVX2 (ONEDNN_MAX_CPU_ISA), which recent x86-64 CPUs can run. A 1x1 Conv of 32
# equal channels and weights of 127; the sums of the integers, divided by 127 * 32:
#   value   uint8   int8
#     -64            -64
#      -1             -1
#       1       1      1
#       2       2      1
#      32      32      1
#     127     127      1
#     192     129
#     255     129
# Values are moved up by 128 to become uint8, and the products with 128 are subtracted behind the sum, which has saturated by
# then. AVX512_CORE and SSE41 give the same. With ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI or AVX2_VNNI all sums are right.
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

CHANNELS, SIDE, WEIGHT = 32, 16, 127


def conv(dtype: type) -> onnx.ModelProto:
    """A 1x1 Conv of integers, whose steps are 1; its output is the sum of weights and values, / (127 * 32)."""
    constants = {
        "scale": np.float32(1), "zero": dtype(0), "w": np.full((16, CHANNELS, 1, 1), WEIGHT, np.int8),
        "w_scale": np.full(16, 1 / (WEIGHT * CHANNELS), np.float32), "w_zero": np.zeros(16, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], axis=0),
        helper.make_node("Conv", ["x_float", "w_float"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, SIDE, SIDE])],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def found(dtype: type, values: list[int]) -> dict[int, float]:
    core = openvino.Core()
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(conv(dtype).SerializeToString()), "CPU", options)
    images = {value: np.full((1, CHANNELS, SIDE, SIDE), value, np.float32) for value in values}
    return {value: float(next(iter(compiled([image]).values())).mean()) for value, image in images.items()}


uint8 = found(np.uint8, [1, 2, 32, 127, 192, 255])
int8 = found(np.int8, [-64, -1, 1, 2, 32, 127])
print("value   uint8   int8")
for value in sorted(uint8 | int8):
    cells = (f"{sums[value]:.0f}" if value in sums else "" for sums in (uint8, int8))
    print("{:>5}   {:>5}   {:>4}".format(value, *cells))
assert all(abs(uint8[value] - value) < 0.1 for value in (1, 2, 32, 127)), "uint8 is wrong below 128"
assert abs(uint8[255] - 129) < 0.1, "uint8 does not saturate as it did"
assert all(abs(int8[value] - value) < 0.1 for value in (-64, -1, 1)), "int8 is wrong below 2"
assert all(abs(int8[value] - 1) < 0.1 for value in (2, 32, 127)), "int8 does not saturate as it did"
PYTHON
