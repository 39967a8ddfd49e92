"""onnxruntime's CPU provider as a runtime."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.ir import ProtoIndex
from onnxq.ir.quantized_layers import with_unshared_weights
from onnxq.ir.temporary import temporary_folder
from onnxq.runtime.base import IntegerLayers, ModelSource, OperatorTime, Runtime, summed_times
from onnxq.runtime.session import VERSION, Feed, open_session, run


class OnnxRuntime(Runtime):
    """onnxruntime's CPU provider with all optimizations."""

    title = "onnxruntime"
    _INTEGER_LAYERS: ClassVar[Mapping[str, int]] = {"QLinearConv": 3, "QGemm": 3, "MatMulIntegerToFloat": 1}
    """onnxruntime's operators for layers on integers -> index of the weight among their inputs."""
    _EXACT: ClassVar[bool] = False
    """As `exact` of `open_session`."""

    def __init__(
        self,
        model: ModelSource,
        *,
        threads: int = 0,
        at_once: int = 1,
        wide_sums: bool = False,
        brief: bool = False,
        optimized_path: Path | None = None,
    ) -> None:
        # Runs of one session at the same time share its threads; with one thread, each has that of its caller.
        self._session = open_session(
            model,
            threads=threads,
            exact=self._EXACT,
            resting=True,
            wide_sums=wide_sums,
            brief=brief,
            optimized_path=optimized_path,
        )
        self._names = [output.name for output in self._session.get_outputs()]
        self._weights: Counter[str] | None = None

    @classmethod
    def inspected(cls, model: onnx.ModelProto) -> Self:
        """Load a model, and note the weights of its layers on integers."""
        with temporary_folder() as folder:
            path = folder / "optimized.onnx"
            made = cls(model, brief=True, optimized_path=path)
            made._weights = cls._integer_weights(path)
        return made

    @classmethod
    def _integer_weights(cls, path: Path) -> Counter[str]:
        """Return how many layers on integers of an optimized graph read each weight."""
        nodes = onnx.load(path, load_external_data=False).graph.node
        return Counter(n.input[cls._INTEGER_LAYERS[n.op_type]] for n in nodes if n.op_type in cls._INTEGER_LAYERS)

    def run(self, feed: Feed) -> dict[str, NDArray[np.generic]]:
        """Run one feed; the threads sleep afterwards."""
        return dict(zip(self._names, run(self._session, feed), strict=True))

    @classmethod
    def is_installed(cls) -> bool:
        """Return True: onnxq requires onnxruntime."""
        return True

    @classmethod
    def version(cls) -> str:
        """Return onnxruntime's version."""
        return VERSION

    @classmethod
    def without_saturation(cls, model: onnx.ModelProto) -> tuple[onnx.ModelProto, Runtime]:
        """Return the same model; it runs with kernels that add the products in 32 bits.

        For them onnxruntime makes a copy of each int8 weight for each layer, and refuses the second of a weight.
        """
        return model, cls(with_unshared_weights(model), wide_sums=True, brief=True)

    @classmethod
    def operator_times(
        cls, model: ModelSource, feed: Feed, *, threads: int = 0, rounds: int = 10
    ) -> dict[str, OperatorTime]:
        """Return the times from onnxruntime's profile, in which fused nodes have names of their own."""
        with temporary_folder() as folder:
            session = open_session(model, threads=threads, exact=cls._EXACT, profile_prefix=folder / "profile")
            for _ in range(rounds):
                run(session, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
        runs = (e for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
        return summed_times((e["args"]["op_name"], e["name"], e["dur"] * 1e-6) for e in runs)

    def integer_layers(self, model: onnx.ModelProto, layers: Sequence[str]) -> IntegerLayers:
        """Return the layers in the optimized graph, recognized by their weights: it renames nodes but not weights."""
        found = Counter(self._weights if self._weights is not None else self.inspected(model)._weights)
        producers = ProtoIndex(model.graph).producers
        names, wanted = frozenset(layers), []
        for node in (n for n in model.graph.node if n.name in names):
            dequantize = producers.get(node.input[1])
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            weight = dequantize.input[0]
            if found[weight] > 0:
                found[weight] -= 1
                wanted.append(node.name)
        return IntegerLayers(tuple(wanted), found.total())
