"""What runs the models on this machine: to compare, to time, and to see which operators run on integers."""

import importlib.util
import json
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ConfigError, ModelError
from onnxq.session import Feed, first_line, fitted, open_session, run
from onnxq.storage import loadable

Source = Path | onnx.ModelProto

_PLACES = ("Exception from", "Check", "While", "Summary", "--")
"""How lines of OpenVINO's errors begin that tell where, not what."""


@dataclass(frozen=True)
class OperatorTime:
    """What one type of operator takes within a run.

    Attributes:
        count: how many of them run.
        seconds: all of them together, each by its least time.
    """

    count: int
    seconds: float


@dataclass(frozen=True)
class IntegerLayers:
    """Which layers a runtime runs on integers.

    Attributes:
        wanted: names of those that were asked for and do.
        others: how many more do.
    """

    wanted: tuple[str, ...]
    others: int


class Runtime(ABC):
    """A model that is loaded and ready to run on the CPU.

    Args:
        model: a model, or the path of one.
        threads: within a run; 0 lets the runtime choose.

    Raises:
        ConfigError: the runtime is not installed.
        ModelError: it cannot load the model; with its reason.
    """

    title: ClassVar[str]

    @abstractmethod
    def __init__(self, model: Source, *, threads: int = 0) -> None: ...

    @abstractmethod
    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """The outputs by name.

        Raises:
            ModelError: the runtime refuses the feed or fails; with its reason.
        """

    @classmethod
    @abstractmethod
    def is_installed(cls) -> bool:
        """Whether it can be used here."""

    @classmethod
    @abstractmethod
    def operator_times(
        cls, model: Source, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """Operator, as the runtime calls it -> what it takes, the slowest first.

        Args:
            rounds: runs, of which each node counts by the fastest.

        Raises:
            ModelError: as from the constructor and `run`.
        """

    @abstractmethod
    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """Which of the layers run on integers in the graph that the runtime makes of the model.

        Args:
            model: the one that is loaded.
            layers: names of Convs and MatMuls with weights behind a DequantizeLinear.

        Raises:
            ModelError: as from the constructor.
        """


class OnnxRuntime(Runtime):
    """onnxruntime's CPU provider with all optimisations."""

    title = "onnxruntime"
    _INTEGER_LAYERS: ClassVar[Mapping[str, int]] = {"QLinearConv": 3, "QGemm": 3, "MatMulIntegerToFloat": 1}
    """Its operators for layers on integers, and which of their inputs is the weight."""

    def __init__(self, model: Source, *, threads: int = 0) -> None:
        self._session = open_session(model, threads=threads, resting=True)
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """Run one feed, with threads that rest afterwards."""
        return dict(zip(self._names, run(self._session, feed), strict=True))

    @classmethod
    def is_installed(cls) -> bool:
        """Whether it can be used here: always, as onnxq needs it."""
        return True

    @classmethod
    def operator_times(
        cls, model: Source, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """By onnxruntime's profile, where fused nodes have names of their own."""
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            session = open_session(model, threads=threads, profile_prefix=Path(folder) / "profile")
            for _ in range(rounds):
                run(session, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        runs = (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
        return _summed((e["args"]["op_name"], e["name"], e["dur"] * 1e-6) for e in runs)

    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """By the optimised graph, where nodes are renamed but weights are not: a layer is known by its integers."""
        with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
            path = Path(folder) / "optimised.onnx"
            open_session(model, optimised_path=path)
            nodes = onnx.load(path, load_external_data=False).graph.node
        found = Counter(n.input[self._INTEGER_LAYERS[n.op_type]] for n in nodes if n.op_type in self._INTEGER_LAYERS)
        stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        asked, wanted = frozenset(layers), []
        for node in (n for n in model.graph.node if n.name in asked):
            weight = stored.get(node.input[1])
            if weight is not None and found[weight] > 0:
                found[weight] -= 1
                wanted.append(node.name)
        return IntegerLayers(tuple(wanted), found.total())


class OpenVino(Runtime):
    """OpenVINO's CPU plugin, in float32 where the model is not quantized."""

    title = "OpenVINO"
    _LAYERS: ClassVar[frozenset[str]] = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
    _INTEGERS: ClassVar[frozenset[str]] = frozenset({"i8", "u8"})

    def __init__(self, model: Source, *, threads: int = 0) -> None:
        self._compiled = _compiled(model, threads)
        self._request = self._compiled.create_infer_request()

    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """Run one feed."""
        try:
            found = self._request.infer(fitted(feed, _float_types(self._compiled)), share_inputs=True)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot run the model: {first_line(error)}") from error
        return {name: np.asarray(values) for port, values in found.items() for name in port.names}

    @classmethod
    def is_installed(cls) -> bool:
        """Whether the extra `openvino` is there."""
        return importlib.util.find_spec("openvino") is not None

    @classmethod
    def operator_times(
        cls, model: Source, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """By OpenVINO's performance counters; an operator is a type and a precision."""
        compiled = _compiled(model, threads, PERF_COUNT=True)
        request, floats = compiled.create_infer_request(), _float_types(compiled)
        spans = []
        for _ in range(rounds):
            request.infer(fitted(feed, floats), share_inputs=True)
            executed = (node for node in request.profiling_info if node.real_time)
            spans += [(_operator(node), node.node_name, node.real_time.total_seconds()) for node in executed]
        return _summed(spans)

    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """By the runtime model, whose nodes list the names of what they were made of."""
        executed = [
            frozenset(_text(node, "originalLayersNames").split(","))
            for node in self._compiled.get_runtime_model().get_ordered_ops()
            if _text(node, "layerType") in self._LAYERS and _text(node, "runtimePrecision") in self._INTEGERS
        ]
        # A layer with a bias is two of OpenVINO's nodes, of which the Convolution itself has a suffix.
        wanted = tuple(n for n in layers if any({n, f"{n}/WithoutBiases"} & names for names in executed))
        return IntegerLayers(wanted, max(0, len(executed) - len(wanted)))


def _compiled(model: Source, threads: int, **options: object) -> Any:
    try:
        import openvino
    except ImportError:
        raise ConfigError("OpenVINO is not installed; pip install 'onnxq[openvino]'") from None
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", **options}
    core = openvino.Core()
    try:
        with loadable(model) as source:
            return core.compile_model(core.read_model(source), "CPU", settings)
    except RuntimeError as error:
        raise ModelError(f"OpenVINO cannot load the model: {_cause(error)}") from error


def _cause(error: RuntimeError) -> str:
    """What OpenVINO says last, among the places in its source that the error came through."""
    lines = [line for line in str(error).splitlines() if line]
    said = [line for line in lines if not line.startswith(_PLACES)]
    return (said or lines)[-1]


def _float_types(compiled: Any) -> dict[str, "np.dtype[Any]"]:
    kinds = {port.get_any_name(): port.get_element_type().to_dtype() for port in compiled.inputs}
    return {name: kind for name, kind in kinds.items() if kind.kind == "f"}


def _operator(node: Any) -> str:
    """Type and precision, as `Convolution I8` of one that runs as `brgconv_avx512_1x1_I8`."""
    return f"{node.node_type} {node.exec_type.rsplit('_', 1)[-1]}"


def _text(node: Any, key: str) -> str:
    info = node.get_rt_info()
    return str(info[key].astype(str)) if key in info else ""


def _summed(spans: Iterable[tuple[str, str, float]]) -> dict[str, OperatorTime]:
    """Operator -> sum over its nodes of the least seconds of each, from (operator, node, seconds) of many runs."""
    least: dict[tuple[str, str], float] = {}
    for operator, node, seconds in spans:
        least[operator, node] = min(seconds, least.get((operator, node), seconds))
    count = Counter(operator for operator, _ in least)
    total = dict.fromkeys(count, 0.0)
    for (operator, _), seconds in least.items():
        total[operator] += seconds
    slowest_first = sorted(total, key=lambda name: (-total[name], name))
    return {name: OperatorTime(count[name], total[name]) for name in slowest_first}


RUNTIMES: dict[str, type[Runtime]] = {"ort": OnnxRuntime, "openvino": OpenVino}
