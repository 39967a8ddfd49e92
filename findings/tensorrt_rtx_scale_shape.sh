#!/usr/bin/env bash
# TensorRT-RTX runs an int8 Conv in float32, without a warning, if the scale of its data has the shape (1,) and not ().
#
# Expected: a tensor of one scale is quantized per tensor, whichever way the scale is stored; or a warning.
# Seen with tensorrt-rtx 1.7.1. A Conv of 16 channels whose data and weight have a QuantizeLinear and a DequantizeLinear;
# types of the kernel that computes it, for SM89:
#   scale of the data    data     weight
#   ()                   Int8     Int8
#   (1,)                 Float    Float
# ONNX takes both shapes at opset 13 and later. Weights may have a scale of shape (1,): the Conv then runs on int8.
# Needs no GPU: an engine is built, and not run.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet tensorrt-rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import re

import numpy as np
import onnx
import tensorrt_rtx as trt
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16


def model(shape: tuple[int, ...]) -> onnx.ModelProto:
    constants = {
        "scale": np.full(shape, 0.05, np.float32), "zero": np.zeros(shape, np.int8),
        "w": np.random.default_rng(0).integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8),
        "w_scale": np.full(CHANNELS, 0.01, np.float32), "w_zero": np.zeros(CHANNELS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_float"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], "weight", axis=0),
        helper.make_node("Conv", ["x_float", "w_float"], ["y"], "conv", pads=[1, 1, 1, 1]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, CHANNELS, 16, 16]) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "conv", values[:1], values[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return made


class Log(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.said.append((severity.name, message))


def types(made: onnx.ModelProto) -> tuple[str, str]:
    """Return the types of the data and the weight of the kernel that computes the Conv."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(made.SerializeToString())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    assert builder.build_serialized_network(network, config) is not None
    assert not [text for severity, text in log.said if severity in ("WARNING", "ERROR") and "CUDA" not in text]
    [kernel] = [
        line for _, text in log.said for line in text.splitlines()
        if "LayerType: correlation" in line and "[ONNX Layer: conv]" in line
    ]
    data, weight, *_ = re.findall(r"Datatype: (\w+)", kernel)
    return data, weight


print("scale of the data    data     weight")
for shape, expected in (((), ("Int8", "Int8")), ((1,), ("Float", "Float"))):
    found = types(model(shape))
    print(f"{shape!s:20} {found[0]:8} {found[1]}")
    assert found == expected
PYTHON
