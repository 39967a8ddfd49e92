"""verify: checks that the finished model is valid and that its target reproduces the float model."""

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnxq._text import plural
from onnxq.errors import ModelError
from onnxq.facts import Plan, Probe, Verification
from onnxq.ir import InferenceError, Model, ProtoIndex, loadable
from onnxq.numerics.arrays import NamedArrays
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.runtime import RUNTIMES, OnnxRuntime, Runtime
from onnxq.runtime.locate_error import first_wrong_layer
from onnxq.runtime.session import Feed, open_session, run_named
from onnxq.targets import Target

log = logging.getLogger(__name__)

_MOST_SHOWN = 3
"""Violations that are listed; further ones are only counted."""

_TOLERATED_LOSS = 3.0
"""Allowed SQNR gap between the runtime and the exact computation, dB; integer kernels round differently."""

_EXACT = 90.0
"""SQNR above which the difference is only the rounding of float32, dB."""


class Verify(Analysis[Verification]):
    """Checks the finished model.

    - onnx.checker with full type and shape checks
    - inputs, outputs and metadata are those of the original
    - the file obeys the rules of the target's own parser, if it has any
    - it loads and runs on a few samples without NaN, in the target's runtime if that is installed, else in onnxruntime;
      its outputs are compared with the float model's and with the exact computation of the file
    - if the target's runtime is installed: each layer meant for integers is an integer layer in the graph that it runs;
      if it loads neither this model nor the float one, a warning says so

    Args:
        original: the float model.
        target: the target of the result.
        progress: called once, before the checks.

    Raises:
        ModelError: the model is invalid or cannot be loaded; the target's parser would refuse or misread it; outputs of
            the float or of the quantized model are NaN.
    """

    name = "verify"
    gives = Verification
    needs = (Plan, Probe)

    def __init__(self, original: onnx.ModelProto, target: Target, progress: Progress = silent) -> None:
        self._original = original
        self._target = target
        self._progress = progress

    def run(self, model: Model, facts: Facts) -> Verification:
        """Return the results of the checks."""
        self._progress("checking", 0, 0)
        proto, feeds = model.to_proto(), facts[Probe].feeds
        _check_model(proto)
        _check_interface(self._original, proto)
        _check_file(self._target, proto)
        opened, refusal = self._opened(proto)
        sqnr, simulated = _outputs_sqnr(self._original, proto, opened or OnnxRuntime(proto), feeds)
        if opened is None:
            return Verification(sqnr, simulated, warnings=refusal)
        runtime = type(opened)
        layers = facts[Plan].layers
        found = opened.integer_layers(proto, layers)
        unfused = tuple(name for name in layers if name not in found.wanted)
        return Verification(
            sqnr=sqnr,
            simulated=simulated,
            runtime=runtime.title,
            fused=len(found.wanted),
            unfused=unfused,
            warnings=(
                *_unlike_the_plan(runtime, unfused, found.others),
                *_errors(proto, runtime, layers, sqnr, simulated, feeds),
            ),
        )

    def _opened(self, proto: onnx.ModelProto) -> tuple[Runtime | None, tuple[str, ...]]:
        """Return the model in the target's runtime, or None and a warning if it is not installed or cannot load it."""
        runtime = RUNTIMES[self._target.runtime] if self._target.runtime is not None else None
        if runtime is None or not runtime.is_installed():
            return None, ()
        try:
            return runtime(proto), ()
        except ModelError as error:
            if runtime is OnnxRuntime or _loads(runtime, self._original):
                raise
            return None, (f"{error}; it does not load the float model either. Compared in {OnnxRuntime.title}",)


def _errors(
    proto: onnx.ModelProto,
    runtime: type[Runtime],
    layers: Sequence[str],
    sqnr: Mapping[str, float],
    simulated: Mapping[str, float],
    feeds: Sequence[Feed],
) -> Iterator[str]:
    for name, exact in simulated.items():
        if name in sqnr and sqnr[name] < min(exact, _EXACT) - _TOLERATED_LOSS:
            layer = first_wrong_layer(proto, name, layers, runtime, feeds[0])
            cause = (
                "one of its kernels errs; try another version of it"
                if layer is None
                else f"it errs at {layer!r} first; --exclude that, or try another version of it"
            )
            yield (
                f"{runtime.title} gives {name!r} with {sqnr[name]:.1f} dB where the file, computed exactly, has "
                f"{exact:.1f} dB: {cause}"
            )


def _loads(runtime: type[Runtime], model: onnx.ModelProto) -> bool:
    try:
        runtime(model)
    except ModelError:
        return False
    return True


def _unlike_the_plan(runtime: type[Runtime], unfused: Sequence[str], others: int) -> Iterator[str]:
    if unfused:
        yield f"{runtime.title} runs these layers in float: {', '.join(unfused)}"
    if others:
        yield (
            f"{runtime.title} quantizes {others} layer{plural(others)} by itself that should stay float, because a Q "
            "follows directly; exclude the consumers too"
        )


def _check_model(proto: onnx.ModelProto) -> None:
    try:
        with loadable(proto) as source:
            onnx.checker.check_model(source, full_check=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        raise ModelError(f"the quantized model is not valid ONNX: {str(error).strip().splitlines()[0]}") from error


def _check_interface(original: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    before = {t.name: t.type for t in ProtoIndex(original.graph).inputs}
    if before != {t.name: t.type for t in proto.graph.input}:
        raise ModelError("the inputs of the quantized model differ from the original's")
    if {t.name: t.type for t in original.graph.output} != {t.name: t.type for t in proto.graph.output}:
        raise ModelError("the outputs of the quantized model differ from the original's")
    kept = {p.key: p.value for p in proto.metadata_props}
    if any(kept.get(p.key) != p.value for p in original.metadata_props):
        raise ModelError("the metadata of the quantized model differs from the original's")


def _check_file(target: Target, proto: onnx.ModelProto) -> None:
    found = target.file_rules(proto) if target.file_rules is not None else []
    if found:
        lines = found[:_MOST_SHOWN]
        if len(found) > _MOST_SHOWN:
            lines.append(f"and {len(found) - _MOST_SHOWN} more")
        raise ModelError("\n".join([f"{target.title} would not read the quantized model as it is meant:", *lines]))


def _outputs_sqnr(
    original: onnx.ModelProto, proto: onnx.ModelProto, opened: Runtime, feeds: Sequence[Feed]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the SQNR in dB of each float output over all feeds: in the runtime, and computed exactly."""
    if not feeds:
        return {}, {}
    try:
        plain = open_session(original, exact=True)
    except ModelError as error:
        log.warning("the float model cannot be compared with: %s", error)
        return {}, {}
    exact = open_session(proto, optimized=False)
    running, simulated = SqnrMeter(), SqnrMeter()
    for feed in feeds:
        expected = run_named(plain, feed)
        _refuse_nan("float", expected)
        found, computed = opened.run(feed), run_named(exact, feed)
        for meter, outputs in ((running, found), (simulated, computed)):
            _refuse_nan("quantized", outputs)
            meter.add(expected, outputs)
    return running.decibels(), simulated.decibels()


def _refuse_nan(kind: str, outputs: NamedArrays) -> None:
    for name, values in outputs.items():
        if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
            raise ModelError(f"the {kind} model gives NaN in output {name!r}; check the model and its preprocessing")
