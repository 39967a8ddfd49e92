"""OpenVINO's CPU plugin as a runtime."""

import importlib.util
import queue
import sys
from collections.abc import Collection, Sequence
from importlib import metadata
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ConfigError, ModelError
from onnxq.ir.quantized_layers import with_narrow_weights
from onnxq.ir.storage import loadable
from onnxq.runtime.base import IntegerLayers, ModelSource, OperatorTime, Runtime, summed_times
from onnxq.runtime.session import Feed, first_line, fitted

_PLACES = ("Exception from", "Check", "While", "Summary", "--", "To facilitate")
"""Beginnings of the lines of OpenVINO's errors that name the place of a failure, not its cause."""

_UNKNOWN_OPERATORS = "-- No conversion rule found for operations"


_TELEMETRY = "openvino_telemetry"
"""A package that OpenVINO imports, and does without if it is missing."""


class OpenVino(Runtime):
    """OpenVINO's CPU plugin; operators that are not quantized run in float32."""

    title = "OpenVINO"
    _LAYERS: ClassVar[frozenset[str]] = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
    _INTEGERS: ClassVar[frozenset[str]] = frozenset({"i8", "u8"})

    def __init__(self, model: ModelSource, *, threads: int = 0, at_once: int = 1) -> None:
        # Runs at the same time need a stream each, which share the threads, and a request each.
        streams = {"NUM_STREAMS": at_once} if at_once > 1 else {}
        self._compiled = _compiled(model, threads * at_once, **streams)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(at_once):
            self._free.put(self._compiled.create_infer_request())

    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """Run one feed."""
        request = self._free.get()
        try:
            found = request.infer(_as_taken(self._compiled, feed), share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run the model: {first_line(error)}") from error
        finally:
            self._free.put(request)
        return {name: np.asarray(values) for port, values in found.items() for name in port.names}

    @classmethod
    def is_installed(cls) -> bool:
        """Return whether the extra `openvino` is installed."""
        return importlib.util.find_spec("openvino") is not None

    @classmethod
    def version(cls) -> str:
        """Return OpenVINO's version, without the build."""
        return metadata.version("openvino")

    @classmethod
    def without_saturation(cls, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Runtime]:
        """Return the model with 7-bit weights: OpenVINO has no option, and uint8 weights would run in float."""
        narrow = with_narrow_weights(model)
        return narrow, cls(narrow)

    @classmethod
    def operator_times(
        cls, model: ModelSource, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """Return the times from OpenVINO's performance counters; an operator is a type and a precision."""
        compiled = _compiled(model, threads, PERF_COUNT=True)
        request, taken = compiled.create_infer_request(), _as_taken(compiled, feed)
        spans = []
        for _ in range(rounds):
            request.infer(taken, share_inputs=True)
            executed = (node for node in request.profiling_info if node.real_time)
            spans += [(_operator(node), node.node_name, node.real_time.total_seconds()) for node in executed]
        return summed_times(spans)

    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """Return the layers in the runtime model, whose nodes list the names of the original nodes."""
        ends = {output.name for output in model.graph.output}
        own = {node.name: _own_names(node, ends) for node in model.graph.node}
        known = frozenset[str]().union(*own.values())
        executed = [
            _listed(_text(node, "originalLayersNames"), known)
            for node in self._compiled.get_runtime_model().get_ordered_ops()
            if _text(node, "layerType") in self._LAYERS and _text(node, "runtimePrecision") in self._INTEGERS
        ]
        wanted = tuple(name for name in layers if any(own.get(name, frozenset()) & names for names in executed))
        return IntegerLayers(wanted, max(0, len(executed) - len(wanted)))


def _own_names(node: onnx.NodeProto, outputs: Collection[str]) -> frozenset[str]:
    """Return the names that OpenVINO may give to a node.

    A layer with a bias becomes two nodes, and the Convolution gets a suffix. A layer that produces an output of the
    model is named after the output.
    """
    return frozenset({node.name, f"{node.name}/WithoutBiases", *(name for name in node.output if name in outputs)})


def _listed(text: str, known: Collection[str]) -> frozenset[str]:
    """Return the names in a list with commas between them; known names may have commas of their own.

    Where several known names fit, the longest counts.
    """
    parts, found, at = text.split(","), set[str](), 0
    longest = 1 + max((name.count(",") for name in known), default=0)
    while at < len(parts):
        tried = (",".join(parts[at : at + count]) for count in range(longest, 0, -1))
        name = next((each for each in tried if each in known), parts[at])
        found.add(name)
        at += 1 + name.count(",")
    return frozenset(found)


def _compiled(model: ModelSource, threads: int, **options: object) -> Any:
    openvino = _imported()
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", **options}
    core = openvino.Core()
    try:
        with loadable(model) as source:
            return core.compile_model(core.read_model(source), "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot load the model: {_cause(error)}") from error


def _imported() -> Any:
    """Import OpenVINO without its telemetry, which tells its maker of imports and keeps files in the home folder."""
    is_hidden = not {"openvino", _TELEMETRY} & sys.modules.keys()
    if is_hidden:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # as if it were not installed
    try:
        return importlib.import_module("openvino")
    except ImportError:
        raise ConfigError("OpenVINO is not installed; pip install 'onnxq[openvino]'") from None
    finally:
        if is_hidden:
            del sys.modules[_TELEMETRY]


def _cause(error: RuntimeError) -> str:
    """Return the line of an error that names the cause: operators that OpenVINO lacks, else the last of its reasons."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    unknown = [line.removeprefix("-- ") for line in lines if line.startswith(_UNKNOWN_OPERATORS)]
    reasons = unknown or [line for line in lines if not line.startswith(_PLACES)]
    return (reasons or lines)[-1]


def _as_taken(compiled: Any, feed: Feed) -> dict[str, NDArray[np.generic]]:
    """Return a feed in the float types of the model, without the inputs that no node reads: OpenVINO removes these."""
    kinds = {name: port.get_element_type().to_dtype() for port in compiled.inputs for name in port.names}
    floats = {name: kind for name, kind in kinds.items() if kind.kind == "f"}
    return fitted({name: array for name, array in feed.items() if name in kinds}, floats)


def _operator(node: Any) -> str:
    """Return type and precision: `Convolution I8` for a node that runs as `brgconv_avx512_1x1_I8`."""
    return f"{node.node_type} {node.exec_type.rsplit('_', 1)[-1]}"


def _text(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""
