"""rknn-toolkit2: compiles for Rockchip's NPUs, and simulates them; the layers are read from its build log."""

import re
from collections.abc import Iterator
from dataclasses import replace

import onnx

from onnxq.compilers.base import Built, Compiler, Job, Ran
from onnxq.compilers.layers import NO_QUANTIZE, FileLayer, has_quantize_behind
from onnxq.compilers.process import WORKERS, has_module, outputs_of, run_worker
from onnxq.errors import ConfigError
from onnxq.ir import Model, ProtoIndex
from onnxq.targets.edges import misread_by_rknn

LEVEL = 2
"""`optimization_level` of the toolkit; at 3, its default, Convs behind a Concat run in float16."""

DISABLED = ("fuse_exmatmul_add_mul_exsoftmax13_exmatmul_to_sdpa", "convert_reshape_to_transpose")
"""Rules that are turned off for models with attention: the toolkit fails in the first, its simulator by the second."""

_ROW = re.compile(r"\] \d+ +(?P<op>\w+) +(?P<type>[A-Z]+\d+) +(?P<place>[A-Z]+) +\(.* (?P<part>\w+):(?P<name>.+?)\s*$")
"""A row of the table of operators: number, operator, type, processor, shapes, cycles, full name."""

_PART = re.compile(r"#\d+$")
"""What the toolkit appends to the name of a node that it replaces by others."""

_TYPES = {"INT8": "int8 x int8", "INT16": "int16 x int16", "FLOAT16": "float16", "FLOAT": "float32"}


class Rknn(Compiler):
    """Rockchip's rknn-toolkit2; it needs an environment of its own."""

    name = "rknn"
    title = "rknn-toolkit2"
    device = "rk3588"
    device_help = "platform of Rockchip: rk3588, rk3576, rk3568"

    def require(self, python: str) -> None:
        """Look for its package."""
        if not has_module(python, "rknn"):
            raise ConfigError(
                "rknn-toolkit2 is not installed; it needs an environment of its own: python3 -m venv rknn && "
                "rknn/bin/pip install rknn-toolkit2, then --python rknn/bin/python"
            )

    def build(self, job: Job) -> Built:
        """Compile the file with its own quantization, and run it in the simulator."""
        device = job.device or self.device
        layers = {layer.name for layer in job.layers}
        has_attention = any(node.op_type == "MatMul" and node.name not in layers for node in job.model.graph.node)
        disabled = DISABLED if has_attention else ()
        options = {"device": device, "level": LEVEL, "disabled": disabled}
        told, printed = run_worker(WORKERS / "run_rknn.py", self.title, job, options)
        found, on_cpu = operators(printed)
        index = ProtoIndex(job.model.graph)
        for layer in job.layers:
            ran = found.get(layer.name)
            if ran is not None and not ran.on_integers:
                found[layer.name] = replace(ran, reason=why_float(index, layer))
        without = f", without {' and '.join(disabled)}" if disabled else ""
        note = f"compiled for {device} with optimization_level={LEVEL}{without}, and run in the simulator of its NPU"
        return Built(told["version"], found, outputs_of(job), on_cpu, (note, *misread(job.model)))


def why_float(index: ProtoIndex, layer: FileLayer) -> str:
    """Return why the toolkit does not run a layer on integers, as far as the file tells; empty if it does not."""
    if not has_quantize_behind(index, layer):
        return NO_QUANTIZE
    others = [node for node in index.consumers.get(layer.node.input[0], []) if node.name != layer.name]
    floats = [node.name for node in others if not has_quantize_behind(index, FileLayer(node, "", ""))]
    return f"a float node reads its DequantizeLinear, too: {', '.join(floats)}" if floats else ""


def misread(model: onnx.ModelProto) -> Iterator[str]:
    """Yield a sentence for each node that the toolkit computes otherwise than ONNX."""
    for node in Model(model).graph.nodes:
        how = misread_by_rknn(node)
        if how:
            yield f"rknn-toolkit2 computes {node.op} {node.name!r} otherwise than ONNX, in float as well: {how}"


def operators(log: str) -> tuple[dict[str, Ran], list[str]]:
    """Return the layers of a verbose build log by their nodes, and the operators on the CPU: `/Concat (Concat)`.

    A layer in several parts is on integers if all of them are.
    """
    found: dict[str, Ran] = {}
    on_cpu = []
    for row in filter(None, map(_ROW.search, log.splitlines())):
        kind, name = row["type"], row["name"]
        if row["op"].startswith("Conv") or row["op"].endswith("MatMul"):
            ran = Ran(_TYPES.get(kind, kind.lower()), kind.startswith("INT"))
            for known in {name, _PART.sub("", name)}:
                if known not in found or found[known].on_integers:
                    found[known] = ran
        if row["place"] == "CPU" and not row["op"].endswith("Operator"):
            on_cpu.append(f"{name} ({row['op']})")
    return found, on_cpu
