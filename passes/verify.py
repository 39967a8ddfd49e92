"""verify: the finished model does what the float one did, where it is to run."""

import logging
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.facts import Checked, Plan
from onnxq.graph import Model
from onnxq.pipeline import Analysis, Facts
from onnxq.session import Feed, open_session, run
from onnxq.sources import plural
from onnxq.targets import Target
from onnxq.tensorrt import violations

log = logging.getLogger(__name__)

_LARGEST_CHECKED = 2**31 - 1
"""Bytes up to which the checker takes a model that is not in a file."""

_MOST_SHOWN = 3
"""Faults of a file that are spelt out; the others are counted."""

_INTEGER_LAYERS = {"QLinearConv": 3, "MatMulIntegerToFloat": 1}
"""onnxruntime's operators for layers that run on integers, and which of their inputs is the weight."""


class Verify(Analysis[Checked]):
    """Checks the finished model.

    - onnx.checker with full type and shape checks
    - inputs, outputs and metadata are those of the original
    - onnxruntime loads it, runs it on a few samples without NaN, and its outputs are compared with the float model's
    - where the target is TensorRT: its parser reads the file
    - where the target is onnxruntime: each layer meant for integers is one in the graph that it really runs

    Args:
        original: the float model.
        target: where the result is to run.
        feeds: a few samples; may be empty.

    Raises:
        ModelError: the model is invalid or cannot be loaded; TensorRT's parser would not read it as it is meant;
            outputs of the float or of the quantized model are NaN.
    """

    name = "verify"
    gives = Checked
    needs = (Plan,)

    def __init__(self, original: onnx.ModelProto, target: Target, feeds: Sequence[Feed] = ()) -> None:
        self._original = original
        self._target = target
        self._feeds = feeds

    def run(self, model: Model, facts: Facts) -> Checked:
        """Find the fact; the graph is not touched."""
        proto = model.to_proto()
        _check_model(proto)
        _check_interface(self._original, proto)
        if self._target.checks_parser:
            _check_parser(proto)
        sqnr = _outputs_sqnr(self._original, proto, self._feeds)
        if not self._target.checks_fusion:
            return Checked(sqnr)
        layers = facts[Plan].layers
        fused, others = _integer_layers(proto, layers)
        unfused = tuple(name for name in layers if name not in fused)
        warnings = [f"onnxruntime runs these layers in float: {', '.join(unfused)}"] if unfused else []
        if others:
            warnings.append(
                f"onnxruntime quantizes {others} layer{plural(others)} by itself that should stay float, as "
                "integers are wanted directly behind; exclude what follows too"
            )
        return Checked(sqnr, len(fused), unfused, tuple(warnings))


def _check_model(proto: onnx.ModelProto) -> None:
    if proto.ByteSize() > _LARGEST_CHECKED:
        return
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the quantized model is not valid ONNX: {str(error).strip().splitlines()[0]}") from error


def _check_interface(original: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    initializers = {t.name for t in original.graph.initializer}
    before = {t.name: t.type for t in original.graph.input if t.name not in initializers}
    if before != {t.name: t.type for t in proto.graph.input}:
        raise ModelError("the inputs of the quantized model differ from the original's")
    if {t.name: t.type for t in original.graph.output} != {t.name: t.type for t in proto.graph.output}:
        raise ModelError("the outputs of the quantized model differ from the original's")
    kept = {p.key: p.value for p in proto.metadata_props}
    if any(kept.get(p.key) != p.value for p in original.metadata_props):
        raise ModelError("the metadata of the quantized model differs from the original's")


def _check_parser(proto: onnx.ModelProto) -> None:
    found = violations(proto)
    if found:
        lines = found[:_MOST_SHOWN]
        if len(found) > _MOST_SHOWN:
            lines.append(f"and {len(found) - _MOST_SHOWN} more")
        raise ModelError("\n".join(["TensorRT would not read the quantized model as it is meant:", *lines]))


def _outputs_sqnr(original: onnx.ModelProto, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """SQNR in dB of each float output over all feeds."""
    quantized = open_session(proto)
    if not feeds:
        return {}
    try:
        plain = open_session(original)
    except ModelError as error:
        log.warning("the float model cannot be compared with: %s", error)
        return {}
    names = [output.name for output in plain.get_outputs()]
    signal, noise = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for feed in feeds:
        for name, a, b in zip(names, run(plain, feed, names), run(quantized, feed, names), strict=True):
            _refuse_nan("float", name, a)
            _refuse_nan("quantized", name, b)
            if a.shape == b.shape and np.issubdtype(a.dtype, np.floating) and np.isfinite(a).all():
                signal[name] += float(np.sum(np.square(a, dtype=np.float64)))
                noise[name] += float(np.sum(np.square(np.subtract(a, b, dtype=np.float64))))
    return {name: _decibels(signal[name], noise[name]) for name in names if signal[name] > 0}


def _decibels(signal: float, noise: float) -> float:
    return 10 * math.log10(signal / noise) if noise > 0 else math.inf


def _refuse_nan(kind: str, name: str, values: NDArray[np.generic]) -> None:
    if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
        raise ModelError(f"the {kind} model gives NaN in output {name!r}; check the model and its preprocessing")


def _integer_layers(proto: onnx.ModelProto, layers: Sequence[str]) -> tuple[list[str], int]:
    """Which of the layers onnxruntime runs on integers, and how many others, by the graph that it really runs.

    It renames the nodes but not their weights, so a layer is known by its integer weight.
    """
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        path = Path(folder) / "optimised.onnx"
        open_session(proto, optimised_path=path)
        optimised = onnx.load(path, load_external_data=False)
    found = Counter(n.input[_INTEGER_LAYERS[n.op_type]] for n in optimised.graph.node if n.op_type in _INTEGER_LAYERS)
    stored = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "DequantizeLinear"}
    wanted = frozenset(layers)
    fused = []
    for node in proto.graph.node:
        weight = stored.get(node.input[1]) if node.name in wanted else None
        if weight is not None and found[weight] > 0:
            found[weight] -= 1
            fused.append(node.name)
    return fused, found.total()
