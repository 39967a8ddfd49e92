#!/usr/bin/env bash
# onnxruntime's QuantizeLinear takes a hundred times as long with a scale for each channel if the channels lie along the last
# axis, as they do in channels-last images.
#
# Expected: one scale for each channel costs about as much as one scale for all: each value is multiplied once either way. With
# the channels along axis 1 of images it does.
# Seen with onnxruntime 1.32.0, one thread, AMD EPYC with AVX512-VNNI, 32 channels of 160 x 160 positions, least of 20 runs:
#   one scale, either layout              0.2 ms
#   32 scales along axis 1 of NCHW        0.1 ms
#   32 scales along axis 3 of NHWC       16.8 ms
# The kernel calls its vectorized loop for each run of values with one scale; along the last axis a run is one value long. A
# Transpose in front of a fast QuantizeLinear of axis 1 that the optimizer moves behind it makes the slow one of it.
# The integers are right. Wants an idle CPU: it compares times.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE, RUNS = 32, 160, 20
scales = np.linspace(0.01, 0.02, CHANNELS, dtype=np.float32)
first = np.random.default_rng(0).random((1, CHANNELS, SIDE, SIDE), np.float32)
last = np.ascontiguousarray(first.transpose(0, 2, 3, 1))


def opened(shape: tuple[int, ...], axis: int | None) -> onnxruntime.InferenceSession:
    scale = np.float32(0.01) if axis is None else scales
    zero = np.zeros(np.shape(scale), np.uint8)
    attributes = {} if axis is None else {"axis": axis}
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["y"], **attributes)], "quantize",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, shape)],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in (("scale", scale), ("zero", zero))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


cases = {
    "one scale": (opened(first.shape, None), first),
    "axis 1 of NCHW": (opened(first.shape, 1), first),
    "axis 3 of NHWC": (opened(last.shape, 3), last),
}
least = dict.fromkeys(cases, float("inf"))
made = {}
for _ in range(RUNS):
    for name, (session, x) in cases.items():
        start = time.perf_counter()
        [made[name]] = session.run(None, {"x": x})
        least[name] = min(least[name], time.perf_counter() - start)
for name, seconds in least.items():
    print(f"{name:16} {1e3 * seconds:8.2f} ms")
assert np.array_equal(made["axis 1 of NCHW"], made["axis 3 of NHWC"].transpose(0, 3, 1, 2)), "the integers differ"
assert least["axis 1 of NCHW"] < 3 * least["one scale"], "axis 1 is slow, too"
assert least["axis 3 of NHWC"] > 10 * least["axis 1 of NCHW"], "the last axis is no longer slow"
PYTHON
