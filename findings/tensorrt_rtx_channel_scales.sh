#!/usr/bin/env bash
# In a float16 network TensorRT-RTX lets an int8 Conv write float32 if its weight has a scale for each output channel,
# and float16 if it has one; an int8 MatMul writes float16 with either.
#
# Expected: the output has the type of the network, as the scales and the activation behind have; scales per output
# channel are what NVIDIA's documentation asks for.
# Seen with tensorrt-rtx 1.7.1. A layer of 64 channels whose data and weight have a QuantizeLinear and a
# DequantizeLinear of float16, with a SiLU and the QuantizeLinear of the next layer behind; the kernel that computes it,
# for SM89 and SM120:
#   layer    scales of the weight    writes
#   Conv     64                      Float
#   Conv     1                       Half
#   MatMul   64                      Half
#   MatMul   1                       Half
# A second kernel reads this output. So a Conv with one scale, and a BatchNormalization with the factor of each channel
# behind, moves half of the bytes; the BatchNormalization goes into the second kernel.
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

CHANNELS = 64


def model(op: str, scales: int) -> onnx.ModelProto:
    is_conv = op == "Conv"
    shape, axis = ((CHANNELS, CHANNELS, 3, 3), 0) if is_conv else ((CHANNELS, CHANNELS), 1)
    several = (scales,) if scales > 1 else ()
    constants = {
        "scale": np.float16(0.05), "zero": np.int8(0),
        "w": np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8),
        "w_scale": np.full(several, 0.002, np.float16), "w_zero": np.zeros(several, np.int8),
    }
    attributes = {"pads": [1, 1, 1, 1]} if is_conv else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_float"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], "weight", axis=axis),
        helper.make_node(op, ["x_float", "w_float"], ["z"], "layer", **attributes),
        helper.make_node("Sigmoid", ["z"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["z", "s"], ["silu"], "mul"),
        helper.make_node("QuantizeLinear", ["silu", "scale", "zero"], ["silu_q"], "quantize_next"),
        helper.make_node("DequantizeLinear", ["silu_q", "scale", "zero"], ["y"], "dequantize_next"),
    ]
    size = [1, CHANNELS, 80, 80] if is_conv else [1, 6400, CHANNELS]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, size) for name in ("x", "y")]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "layer", values[:1], values[1:], stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made, full_check=True)
    return made


class Log(trt.ILogger):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[str, str]] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.said.append((severity.name, message))


def written(made: onnx.ModelProto, device: str) -> str:
    """Return the type of the output of the kernel that computes the layer."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse(made.SerializeToString())
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[device], 0)
    assert builder.build_serialized_network(network, config) is not None
    [kernel] = [
        line for _, text in log.said for line in text.splitlines()
        if re.search(r"LayerType: (correlation|gemm)", line) and "[ONNX Layer: layer]" in line
    ]
    assert re.search(r"Inputs: \[ \{[^}]*Datatype: Int8", kernel)
    return re.search(r"Outputs: \[ \{[^}]*Datatype: (\w+)", kernel)[1]


EXPECTED = {("Conv", CHANNELS): "Float", ("Conv", 1): "Half", ("MatMul", CHANNELS): "Half", ("MatMul", 1): "Half"}

print("layer    scales of the weight    writes")
for (op, scales), expected in EXPECTED.items():
    found = {written(model(op, scales), device) for device in ("SM89", "SM120")}
    print(f"{op:8} {scales:<23} {' '.join(found)}")
    assert found == {expected}
PYTHON
