"""onnxruntime's QNN provider: compiles for Qualcomm's NPUs, and simulates them on an x86 CPU.

The types are read from the graph of QNN that the provider writes as JSON; onnxruntime tells what it left to the CPU.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from onnxq.compilers.base import Built, Compiler, Job, Ran
from onnxq.compilers.layers import NO_QUANTIZE, FileLayer, has_quantize_behind
from onnxq.compilers.process import WORKERS, has_module, outputs_of, run_worker
from onnxq.errors import ConfigError
from onnxq.ir import LAYERS, ProtoIndex

_LAYERS = frozenset({
    "Conv2d", "DepthWiseConv2d", "TransposeConv2d", "Conv3d", "TransposeConv3d", "FullyConnected", "MatMul",
})  # fmt: skip
"""QNN's operators for layers."""

_TYPES = {
    0x0408: "uint8", 0x0416: "uint16", 0x0308: "int8", 0x0316: "int16", 0x0304: "int4", 0x0404: "uint4",
    0x0232: "float32", 0x0216: "float16",
}  # fmt: skip
"""QNN's numbers of data types (QnnTypes.h): fixed point, unsigned and signed, and float."""

_INTEGERS = frozenset({"uint8", "uint16", "int8", "int16", "int4", "uint4"})

_SUFFIX = re.compile(r"_token_\d+")
"""What the provider appends to the name of a node that it fuses with the Q and DQ around it."""


class Qnn(Compiler):
    """Qualcomm's compiler and simulator of the Hexagon NPU (HTP)."""

    name = "qnn"
    title = "QNN"
    device = "57"
    device_help = "number of the SoC (soc_model), 57: Snapdragon 8 Gen 3"

    def require(self, python: str) -> None:
        """Look for its package."""
        if not has_module(python, "onnxruntime_qnn"):
            raise ConfigError("onnxruntime's QNN provider is not installed; pip install 'onnxq[qnn]'")

    def build(self, job: Job) -> Built:
        """Compile the file, and run it in the simulator."""
        device = job.device or self.device
        if not device.isdecimal():
            raise ConfigError(f"--device {device}: expected the {self.device_help}")
        told, _ = run_worker(WORKERS / "run_qnn.py", self.title, job, {"device": device})
        on_cpu = dict(told["on_cpu"])
        graphs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((job.folder / "graphs").iterdir())]
        layers = on_npu(graphs)
        layers.update({name: Ran("float32", False) for name, op in on_cpu.items() if op in LAYERS})
        index = ProtoIndex(job.model.graph)
        for layer in job.layers:
            if layer.name in layers and not layers[layer.name].on_integers:
                layers[layer.name] = replace(layers[layer.name], reason=why_float(index, layer, on_cpu))
        return Built(
            version=told["version"],
            layers=layers,
            outputs=outputs_of(job),
            on_cpu=[f"{name} ({op})" for name, op in on_cpu.items()],
            notes=(f"compiled for SoC {device}, and run in the simulator of its NPU" if graphs else _no_npu(device),),
        )


def _no_npu(device: str) -> str:
    return f"QNN compiled nothing for SoC {device}: the number may be that of no NPU; see --device"


def on_npu(graphs: Iterable[Mapping[str, Any]]) -> dict[str, Ran]:
    """Return how the layers in QNN's graphs run, by the names of their nodes in the file.

    Args:
        graphs: what the provider writes with `dump_json_qnn_graph`; files that hold no graph are ignored.
    """
    found = {}
    for graph in (each["graph"] for each in graphs if "graph" in each):
        for name, node in graph["nodes"].items():
            if node["type"] in _LAYERS:
                kinds = (graph["tensors"][tensor]["data_type"] for tensor in node["input_names"][:2])
                data, weight = (_TYPES.get(kind, hex(kind)) for kind in kinds)
                on_integers = {data, weight} <= _INTEGERS
                found[_SUFFIX.sub("", name)] = Ran(f"{data} x {weight}" if on_integers else "float16", on_integers)
    return found


def why_float(index: ProtoIndex, layer: FileLayer, on_cpu: Mapping[str, str]) -> str:
    """Return why QNN does not run a layer on integers, as far as the file tells; empty if it does not.

    Args:
        index: of the file.
        layer: one of its layers.
        on_cpu: node -> operator of the nodes that were left to the CPU.
    """
    if layer.name in on_cpu:
        return "left to the CPU"
    weight = index.producers.get(layer.node.input[1])
    is_left = weight is not None and weight.name in on_cpu
    weights = "; its weight is dequantized on the CPU" if is_left else ""
    if has_quantize_behind(index, layer):
        return weights.removeprefix("; ")
    return f"{NO_QUANTIZE}{weights}"
