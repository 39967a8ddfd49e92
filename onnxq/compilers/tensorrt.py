"""TensorRT-RTX: builds an engine for a GPU without one; the kernels are read from its build log."""

import math
import re
from dataclasses import dataclass, replace

from onnxq.compilers.base import Built, Compiler, Job, Ran
from onnxq.compilers.process import WORKERS, has_module, run_worker
from onnxq.errors import ConfigError, ModelError
from onnxq.ir import ProtoIndex
from onnxq.targets.tensorrt_parser import violations, violations_by_node

_KERNEL = re.compile(
    r"Name: .*?, LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName: .*?, Metadata: (?P<metadata>.*)"
)
"""A line of the list of kernels."""

_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[\d,]*)\].*?Datatype: (?P<type>\w+)")

_BYTES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "UInt8": 1, "FP8": 1, "Bool": 1, "Int32": 4, "Int64": 8}
"""Size of a value of a type."""

_ELEMENTWISE = frozenset({"kgen", "signal", "wait"})
"""Kinds of kernels that compute no layer: of a layer they have the bias, or its data before it."""

_NO_WORK = frozenset({"signal", "wait"})
"""Kinds of kernels that only order the others."""

_CHOSEN_LATER = "runtime_fusion"
"""Kind of kernels that are chosen on the GPU; they read integers even if they compute in float."""

_WITHOUT_INTEGERS = frozenset({"SM75"})
"""Compute capabilities for which TensorRT-RTX 1.7.1 dequantizes every Conv, without a word."""

_INTEGERS = frozenset({"Int8", "UInt8"})

_NAMES = {"Float": "float32", "Half": "float16"}


@dataclass(frozen=True)
class Kernel:
    """A kernel of an engine.

    Attributes:
        kind: `correlation` for a Conv, `gemm`, `kgen` for what TensorRT generates itself.
        inputs, constants, outputs: types of its tensors, in TensorRT's words.
        moved: size of its inputs and outputs, bytes.
        metadata: the nodes that it computes, or a part of, as TensorRT lists them.
    """

    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    outputs: tuple[str, ...]
    moved: int
    metadata: str

    def computes(self, layer: str) -> bool:
        """Return whether it does the multiplications of a layer."""
        return self.kind not in _ELEMENTWISE and f"[ONNX Layer: {layer}]" in self.metadata

    def ran(self) -> Ran:
        """Return how it computes a layer: its data are its first input, its weight is the next input or constant."""
        data, weight = (*self.inputs, *self.constants)[:2]
        types = " x ".join(name.lower() for name in (data, weight))
        on_integers = {data, weight} <= _INTEGERS
        if on_integers and self.kind != _CHOSEN_LATER:
            return Ran(types, True)
        if on_integers:
            return Ran(f"{types}, unknown inside", False, "its kernel is chosen on the GPU")
        return Ran(_NAMES.get(data, data.lower()), False)


def kernels(log: str) -> list[Kernel]:
    """Return the kernels that a verbose build log lists."""
    return [
        Kernel(
            found["kind"],
            _types(found["inputs"]),
            _types(found["constants"]),
            _types(found["outputs"]),
            _bytes(found["inputs"]) + _bytes(found["outputs"]),
            found["metadata"],
        )
        for found in map(_KERNEL.search, log.splitlines())
        if found is not None
    ]


def _types(tensors: str) -> tuple[str, ...]:
    return tuple(tensor["type"] for tensor in _TENSOR.finditer(tensors))


def _bytes(tensors: str) -> int:
    return sum(
        math.prod(int(size) for size in tensor["shape"].split(",") if size) * _BYTES.get(tensor["type"], 0)
        for tensor in _TENSOR.finditer(tensors)
    )


class TensorRtRtx(Compiler):
    """TensorRT-RTX."""

    name = "tensorrt-rtx"
    title = "TensorRT-RTX"
    device = "SM89"
    device_help = "compute capability of the GPU, SM75 to SM121"

    def require(self, python: str) -> None:
        """Look for its package."""
        if not has_module(python, "tensorrt_rtx"):
            raise ConfigError("TensorRT-RTX is not installed; pip install 'onnxq[tensorrt]'")

    def build(self, job: Job) -> Built:
        """Build an engine; it cannot run here."""
        device = job.device or self.device
        try:
            told, printed = run_worker(WORKERS / "build_tensorrt.py", self.title, job, {"device": device})
        except ModelError as error:
            broken = violations(job.model)[:1]
            raise ModelError(
                *error.args, *(f"the first rule of TensorRT that it breaks: {rule}" for rule in broken)
            ) from None
        found = kernels(printed)
        layers: dict[str, Ran] = {}
        for layer in job.layers:
            parts = [kernel.ran() for kernel in found if kernel.computes(layer.name)]
            if parts:
                layers[layer.name] = next((part for part in parts if not part.on_integers), parts[0])
        reasons = _reasons(job)
        for name, ran in layers.items():
            why = f"dequantized: no kernels for {device}" if device in _WITHOUT_INTEGERS else reasons.get(name, "")
            if not ran.on_integers and not ran.reason:
                layers[name] = replace(ran, reason=why)
        working = [kernel for kernel in found if kernel.kind not in _NO_WORK]
        moved = sum(kernel.moved for kernel in working) / 1e6
        notes = (
            f"an engine for {device} was built; engines run on a GPU only, so no outputs are compared",
            f"it has {len(working)} kernels, which read and write {moved:.3g} MB of tensors",
        )
        return Built(version=told["version"], layers=layers, notes=notes)


def _reasons(job: Job) -> dict[str, str]:
    """Return what the rules of TensorRT have against each layer, or against the Q and DQ around its inputs."""
    told = violations_by_node(job.model)
    producers = ProtoIndex(job.model.graph).producers
    reasons = {}
    for layer in job.layers:
        tensors = [layer.node.output[0], *layer.node.input]
        tensors += [producers[name].input[0] for name in layer.node.input if name in producers]
        messages = [message for name in tensors for message in told.get(name, ())]
        if messages:
            reasons[layer.name] = messages[0]
    return reasons
