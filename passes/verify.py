"""verify: checks that the finished model is valid and that its target reproduces the float model."""

import logging
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxq._text import plural
from onnxq.errors import ModelError
from onnxq.facts import Plan, Probe, Verification
from onnxq.ir import InferenceError, Model, Node, ProtoIndex, comparable, with_weight_inputs
from onnxq.numerics.arrays import NamedArrays
from onnxq.pipeline import Analysis, Facts
from onnxq.progress import Progress, silent
from onnxq.runtime import RUNTIMES, OnnxRuntime, Runtime
from onnxq.runtime.compare_run import Check, Fault, RunComparison
from onnxq.runtime.cpu import this_cpu
from onnxq.runtime.joined import Parts, joined_outputs
from onnxq.runtime.session import Feed, open_session, run_named
from onnxq.targets import Target
from onnxq.targets.base import ANY_CPU

log = logging.getLogger(__name__)

_MOST_SHOWN = 3
"""Violations that are listed; further ones are only counted."""

_LOW = 7.0
"""SQNR of outputs, and of scores beside boxes, against the float model below which a warning tells of it, dB: a fifth
of them is noise. Networks that lose a quarter of their AP have less, on any two pictures; one of 7.9 dB has 96 %."""


class Verify(Analysis[Verification]):
    """Checks the finished model.

    - onnx.checker with full type and shape checks
    - inputs, outputs and metadata are those of the original
    - the file obeys the rules of the target's own parser, if it has any
    - it loads and runs on a few samples without NaN, in the target's runtime if that is installed, else in onnxruntime;
      its outputs are compared with the float model's and with the exact computation of the file. Where the graph
      selects objects, the tensors that enter the selection are compared instead
    - if the run is wrong and not only rounded differently (`onnxq.runtime.compare_run` has the criterion), a warning
      names the CPU, the layers at fault, whether their sums of products saturate, and a remedy that was tried
    - a node that the target's runtime is known to compute otherwise than ONNX is warned of, and so are outputs of
      which a fifth or more is noise. An output that joins boxes and scores is also judged by its parts
    - if the target's runtime is installed: each layer meant for integers is an integer layer in the graph that it runs;
      if it loads neither this model nor the float one, a warning says so

    Args:
        original: the float model.
        target: the target of the result.
        progress: called once, before the checks.
        cpu: the kind of CPU that the weights were made for: `ANY_CPU`, or another if their sums may saturate.

    Raises:
        ModelError: the model is invalid or cannot be loaded; the target's parser would refuse or misread it; outputs of
            the float or of the quantized model are NaN.
    """

    name = "verify"
    gives = Verification
    needs = (Plan, Probe)

    def __init__(
        self, original: onnx.ModelProto, target: Target, progress: Progress = silent, *, cpu: str = ANY_CPU
    ) -> None:
        self._original = original
        self._target = target
        self._progress = progress
        self._cpu = cpu

    def run(self, model: Model, facts: Facts) -> Verification:
        """Return the results of the checks."""
        self._progress("checking", 0, 0)
        proto, feeds = model.to_linked_proto(), facts[Probe].feeds
        _check_model(proto, self._original)
        _check_interface(self._original, proto)
        _check_file(self._target, proto)
        expected = _expected(self._original, proto, feeds)  # first: each session takes the memory of its weights
        opened, refusal = self._opened(proto)
        runs = opened or RUNTIMES["ort"](proto)
        layers = facts[Plan].layers
        compared, fault = _compared(expected, proto, runs, layers, feeds)
        warnings = [*refusal, *_misread(self._target, model.graph.nodes)]
        fused, unfused = None, tuple[str, ...]()
        if opened is not None:
            found = opened.integer_layers(proto, layers)
            fused, unfused = len(found.wanted), tuple(name for name in layers if name not in found.wanted)
            warnings += _unlike_the_plan(type(opened), unfused, found.others)
        warnings += _noisy(compared)
        for name, shape in compared.misshapen.items():
            warnings.append(
                f"{runs.described()} gives output {name!r} the shape {shape}, not that of the file, "
                f"{compared.computed[0][name].shape}: it reads an operator otherwise than ONNX"
            )
        if fault is not None:
            warnings.append(_fault_text(fault, runs, None if opened is not None else self._target, self._cpu))
        return Verification(
            sqnr=compared.whole(compared.run),
            simulated=compared.whole(compared.exact),
            against_exact=compared.whole(compared.against_exact),
            checked_in=runs.described(),
            cpu=this_cpu().kind,
            runtime=opened.title if opened is not None else "",
            fused=fused,
            unfused=unfused,
            warnings=tuple(warnings),
        )

    def _opened(self, proto: onnx.ModelProto) -> tuple[Runtime | None, tuple[str, ...]]:
        """Return the model in the target's runtime, or None and a warning if it is not installed or cannot load it."""
        runtime = RUNTIMES[self._target.runtime] if self._target.runtime is not None else None
        if runtime is None or not runtime.is_installed():
            return None, ()
        try:
            return runtime.inspected(proto), ()
        except ModelError as error:
            if runtime is OnnxRuntime or _loads(runtime, self._original):
                raise
            return None, (f"{error}; it does not load the float model either. Compared in {OnnxRuntime.title}",)


def _fault_text(fault: Fault, runs: Runtime, stands_in_for: Target | None, cpu: str) -> str:
    """Return the fault as sentences: where, what, the layers, the remedy."""
    instead = f", in place of the runtime of target {stands_in_for.name}," if stands_in_for is not None else ""
    names = ", ".join(fault.layers)
    if fault.saturates:
        cause = f"Its 16-bit sums of products saturate{f' in {names}' if names else ''}"
    else:
        cause = f"Wrong, and not by saturation: {names}" if names else "No layer is wrong by itself"
    exclude = shlex.join(["--exclude", *fault.remedy])
    gives = "the exact result" if fault.restored == math.inf else f"{fault.restored:.1f} dB"
    remedy = (
        f"Remedy, tried: {exclude} gives {gives}"
        if fault.remedy
        else "No remedy was found: it stays wrong with the worst layers in float"
    )
    other = f"; --cpu {ANY_CPU} makes weights that cannot saturate" if fault.saturates and cpu != ANY_CPU else ""
    return (
        f"{runs.described()}{instead} computes the file wrongly on this CPU ({this_cpu()}): "
        f"{fault.output!r} has {fault.sqnr:.1f} dB against the exact result. {cause}. {remedy}{other}"
    )


def _loads(runtime: type[Runtime], model: onnx.ModelProto) -> bool:
    try:
        runtime(model)
    except ModelError:
        return False
    return True


def _misread(target: Target, nodes: Sequence[Node]) -> Iterator[str]:
    if target.misread is None:
        return
    found = [(node, how) for node in nodes if (how := target.misread(node))]
    for node, how in found[:_MOST_SHOWN]:
        yield f"{target.title} computes {node.op} {node.name!r} otherwise than ONNX, in float as well: {how}"
    if len(found) > _MOST_SHOWN:
        yield f"{target.title} does so with {len(found) - _MOST_SHOWN} more nodes"


def _noisy(compared: RunComparison) -> Iterator[str]:
    low = {name: found for name, found in compared.exact.items() if found < _LOW}
    if low:
        worst = min(low, key=lambda name: low[name])
        others = f", and {len(low) - 1} more below {_LOW:.0f} dB" if len(low) > 1 else ""
        yield (
            f"output {worst!r} has only {low[worst]:.1f} dB against the float model{others}: much may be lost. "
            "--evaluate measures it; --sensitivity names the layers that cost most, and --max-drop keeps them float"
        )


def _unlike_the_plan(runtime: type[Runtime], unfused: Sequence[str], others: int) -> Iterator[str]:
    if unfused:
        yield f"{runtime.title} runs these layers in float: {', '.join(unfused)}"
    if others:
        yield (
            f"{runtime.title} quantizes {others} layer{plural(others)} by itself that should stay float, because a Q "
            "follows directly; exclude the consumers too"
        )


def _check_model(proto: onnx.ModelProto, original: onnx.ModelProto) -> None:
    wrong = _fault_of(proto)
    if wrong and (before := _fault_of(original)):
        raise ModelError(f"the model is not valid ONNX: {before}; mend it, or export it again")
    if wrong:
        raise ModelError(f"the quantized model is not valid ONNX: {wrong}")


def _fault_of(proto: onnx.ModelProto) -> str:
    """Return what makes a model invalid; empty if nothing does."""
    try:
        # The values of large constants are none of its business, and its copies of them would take memory.
        onnx.checker.check_model(with_weight_inputs(proto), full_check=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        return str(error).strip().splitlines()[0].rstrip(".")
    return ""


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
        raise ModelError(f"{target.title} would not read the quantized model as it is meant:", *lines)


@dataclass(frozen=True)
class _Expected:
    """What the float model gives.

    Attributes:
        outputs: of each feed; those that objects are selected from, if it selects objects.
        ended: the quantized model that ends at these outputs; None if they are its own.
        joined: outputs that join values of several kinds, and how they are cut.
    """

    outputs: Sequence[NamedArrays]
    ended: onnx.ModelProto | None
    joined: Mapping[str, Parts]


def _expected(original: onnx.ModelProto, proto: onnx.ModelProto, feeds: Sequence[Feed]) -> _Expected | None:
    """Return the float outputs to compare with; None without feeds, or if the float model does not run here."""
    if not feeds:
        return None
    compared_with, ended = comparable(original, proto)
    try:
        outputs = _float_outputs(original, feeds)
    except _NotLoadedError as error:
        log.warning("the float model cannot be compared with: %s", error)
        return None
    if ended is proto:
        return _Expected(outputs, None, joined_outputs(original))
    return _Expected(_float_outputs(compared_with, feeds), ended, joined_outputs(compared_with))


class _NotLoadedError(ModelError):
    """The float model cannot be loaded."""


def _float_outputs(model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[NamedArrays]:
    try:
        session = open_session(model, exact=True, brief=True)
    except ModelError as error:
        raise _NotLoadedError(str(error)) from error
    expected: list[NamedArrays] = [run_named(session, feed) for feed in feeds]
    for outputs in expected:
        _refuse_nan("float", outputs)
    return expected


def _compared(
    expected: _Expected | None, proto: onnx.ModelProto, runs: Runtime, layers: Sequence[str], feeds: Sequence[Feed]
) -> tuple[RunComparison, Fault | None]:
    """Return the SQNR of each float output, or of what it is selected from, over all feeds, and the run's fault."""
    if expected is None:
        return RunComparison({}, {}, {}), None
    if expected.ended is not None:
        for feed in feeds:
            _refuse_nan("quantized", runs.run(feed))
        proto, runs = expected.ended, type(runs)(expected.ended)
    check = Check(feeds, expected.outputs, lambda outputs: _refuse_nan("quantized", outputs), expected.joined)
    compared = check.compare(proto, runs)
    return compared, check.find_fault(proto, type(runs), layers, compared)


def _refuse_nan(kind: str, outputs: NamedArrays) -> None:
    for name, values in outputs.items():
        if np.issubdtype(values.dtype, np.floating) and np.isnan(values).any():
            raise ModelError(f"the {kind} model gives NaN in output {name!r}; check the model and its preprocessing")
