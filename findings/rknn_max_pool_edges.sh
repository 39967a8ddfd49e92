#!/usr/bin/env bash
# RKNN-Toolkit2 computes a padded MaxPool wrongly near the edges of the image
# - of more than 7 x 7, at `optimization_level` 0, 1 and 2: its rule tiling_maxpool makes a MaxPool, a Pad and a MaxPool of it, and
#   the Pad has the value 0, so values below 0 become 0. At 3, the default, another rule joins the Pad with the second MaxPool.
# - larger than the image, at each level: it becomes the maximum of the whole image, though padding surrounds the image.
# SPP pools by 9 x 9 and 13 x 13 (YOLOv3-SPP, YOLOv4, YOLOv7, YOLOX): images of 320 pixels have 10 x 10 values there.
#
# Expected: a window reaches as far to each side as ONNX says, and its padding is never the maximum.
# Seen with rknn-toolkit2 2.5.0, the simulator for rk3588, rows that rise to -1, float and uint8 alike:
#   kernel  image    level     row
#   7       10 x 10  2         -7 -6 -5 -4 -3 -2 -1 -1 -1 -1
#   9       10 x 10  3         -6 -5 -4 -3 -2 -1 -1 -1 -1 -1
#   9       10 x 10  0, 1, 2    0 -5 -4 -3 -2 -1 -1 -1 -1  0
#   9       8 x 8    3         -1 -1 -1 -1 -1 -1 -1 -1, where the right row is -4 -3 -2 -1 -1 -1 -1 -1
#   5       4 x 4    3         -1 -1 -1 -1, where it is -2 -1 -1 -1
# No message tells it. With disable_rules=["tiling_maxpool"] the first is right, and runs on the CPU. A 5 x 5 MaxPool twice is the
# same as a 9 x 9 one, and is right.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet rknn-toolkit2==2.5.0 onnx==1.18.0 onnxruntime==1.26.0 numpy==1.26.4
cd "$work"
cat > one.py <<'PYTHON'
"""Print a row of MaxPools in RKNN-Toolkit2, and in onnx's reference evaluator."""
import json
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from rknn.api import RKNN

quantized, (kernels, size, options) = sys.argv[1] == "uint8", json.loads(sys.argv[2])
nodes = []


def pair(tensor: str) -> str:
    """QuantizeLinear and DequantizeLinear, for -25 to 6.875."""
    if not quantized:
        return tensor
    nodes.append(helper.make_node("QuantizeLinear", [tensor, "scale", "zero"], [f"{tensor}_q"]))
    nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", "scale", "zero"], [f"{tensor}_dq"]))
    return f"{tensor}_dq"


tensor = pair("x")
for number, kernel in enumerate(kernels):
    attributes = {"kernel_shape": [kernel] * 2, "pads": [kernel // 2] * 4}
    nodes.append(helper.make_node("MaxPool", [tensor], [f"y{number}"], **attributes))
    tensor = pair(f"y{number}")
constants = [numpy_helper.from_array(np.float32(1 / 8), "scale"), numpy_helper.from_array(np.uint8(200), "zero")]
graph = helper.make_graph(
    nodes, "pool", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, size, size])],
    [helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, 16, size, size])], constants if quantized else [],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
onnx.checker.check_model(model, full_check=True)
onnx.save(model, "model.onnx")
x = np.tile(np.arange(-size, 0, dtype=np.float32), (1, 16, size, 1))
expected = ReferenceEvaluator(model).run(None, {"x": x})[0]

toolkit = RKNN(verbose=False)
toolkit.config(target_platform="rk3588", **options)
assert toolkit.load_onnx("model.onnx") == 0
assert toolkit.build(do_quantization=False) == 0
assert toolkit.init_runtime() == 0
found = toolkit.inference(inputs=[x], data_format=["nchw"])[0]
print("\n" + json.dumps([expected[0, 0, size // 2].tolist(), found[0, 0, size // 2].tolist()]))
PYTHON
"$work/venv/bin/python" - <<'PYTHON'
import json
import subprocess
import sys
from importlib import metadata

import numpy as np

print("rknn-toolkit2", metadata.version("rknn-toolkit2"))
NO_TILES = {"optimization_level": 2, "disable_rules": ["tiling_maxpool"]}


def level(number: int) -> dict:
    return {"optimization_level": number}


def row(reach: int, size: int) -> list[int]:
    """Return the maxima of a row that rises to -1."""
    return [min(place + reach, size - 1) - size for place in range(size)]


ZEROS = [0, *row(4, 10)[1:9], 0]
for kernels, size, options, wanted, seen in (
    ([7], 10, level(2), row(3, 10), row(3, 10)),
    ([9], 10, level(3), row(4, 10), row(4, 10)),
    ([9], 10, level(2), row(4, 10), ZEROS),
    ([9], 10, level(1), row(4, 10), ZEROS),
    ([9], 10, level(0), row(4, 10), ZEROS),
    ([9], 10, NO_TILES, row(4, 10), row(4, 10)),
    ([5, 5], 10, level(2), row(4, 10), row(4, 10)),
    ([9], 8, level(3), row(4, 8), [-1] * 8),
    ([5, 5], 8, level(3), row(4, 8), row(4, 8)),
    ([5], 4, level(3), row(2, 4), [-1] * 4),
):
    for kind in ("float", "uint8"):
        command = [sys.executable, "one.py", kind, json.dumps([kernels, size, options])]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        expected, found = map(np.array, json.loads(text))
        print(f"{kernels!s:<8}{size:<4}{kind:<7}{options}\n    expected", *expected.astype(int), " found", *found.round(1))
        assert np.allclose(expected, wanted), "onnx's reference does otherwise"
        assert np.allclose(found, seen, atol=0.02), "RKNN-Toolkit2 does otherwise than it did"
PYTHON
