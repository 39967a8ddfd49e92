"""Which runtime runs a model to measure it: the one in which users run it, unless another one is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxq.errors import ConfigError, ModelError
from onnxq.ir import LAYERS, Model, ProtoIndex, comparable, copy_message
from onnxq.ir.files import is_special
from onnxq.passes.strip_qdq import StripQdq
from onnxq.pipeline import Facts
from onnxq.runtime import RUNTIMES, Runtime
from onnxq.runtime.compare_run import Check
from onnxq.runtime.cpu import this_cpu
from onnxq.runtime.joined import joined_outputs
from onnxq.runtime.session import Feed, open_session, run_named
from onnxq.targets import TARGETS

AUTO = "auto"
"""The runtime that the target of a file names."""

CHOICES = (AUTO, *RUNTIMES)
"""Values of `--runtime`."""

_EXACT = "exact"
"""The runtime that computes every file as it is meant."""

_TARGET_KEY = "onnxq.target"
"""Metadata key of quantized files (docs/stability.md)."""


@dataclass(frozen=True)
class RuntimeChoice:
    """A runtime for a model.

    Attributes:
        name: key in `RUNTIMES`.
        why: the reason, to follow a comma.
    """

    name: str
    why: str

    def describe(self) -> str:
        """Return the runtime, its version and the reason."""
        return f"run in {RUNTIMES[self.name].described()}, {self.why}"


def installed(name: str) -> type[Runtime]:
    """Return the runtime of a name given with `--runtime`.

    Raises:
        ConfigError: it is not installed.
    """
    runtime = RUNTIMES[name]
    if not runtime.is_installed():
        raise ConfigError(f"--runtime {name}: not installed; pip install 'onnxq[{name}]'")
    return runtime


def choose_runtimes(models: Sequence[Path | onnx.ModelProto], wanted: str) -> list[RuntimeChoice]:
    """Choose a runtime for each of several models that are measured side by side.

    A file that onnxq wrote names its target. Float models and files of other tools do not: they run like the first
    model that does, so that a difference between the two is due to quantization; in onnxruntime if none does.

    Args:
        models: files, or models in memory; a file that cannot be read counts as one without a target.
        wanted: a key of `RUNTIMES`, for all models, or "auto".

    Raises:
        ConfigError: the wanted runtime is not installed.
    """
    targets = [target_of(model) if wanted == AUTO else None for model in models]
    leader = next((number for number, target in enumerate(targets) if target is not None), None)
    if leader is None:
        return [choose_runtime(None, wanted)] * len(models)
    first = models[leader]
    name = first.name if isinstance(first, Path) else "the model that names a target"
    alike = RuntimeChoice(choose_runtime(targets[leader], AUTO).name, f"like {name}")
    return [alike if target is None else choose_runtime(target, AUTO) for target in targets]


def choose_runtime(target: str | None, wanted: str) -> RuntimeChoice:
    """Choose a runtime for a model by its target.

    A target without a runtime on this machine is another processor, whose integers are assumed not to saturate: its
    files are computed exactly.

    Args:
        target: name of the target; None if it is not known.
        wanted: a key of `RUNTIMES`, or "auto".

    Raises:
        ConfigError: the wanted runtime is not installed.
    """
    if wanted != AUTO:
        installed(wanted)
        return RuntimeChoice(wanted, "as --runtime says")
    if target is None:
        return RuntimeChoice("ort", "as no model names a target")
    name = TARGETS[target].runtime if target in TARGETS else None
    if name is None:
        return RuntimeChoice(_EXACT, f"as its target, {target}, has no runtime of its own here (or: --runtime ort)")
    if not RUNTIMES[name].is_installed():
        title = RUNTIMES[name].title
        return RuntimeChoice("ort", f"as {title}, its target, is not installed (pip install 'onnxq[{name}]')")
    return RuntimeChoice(name, "its target")


def target_of(model: Path | onnx.ModelProto) -> str | None:
    """Return the target that a model names, or None; errors of a file show when it is loaded."""
    if isinstance(model, Path):
        if is_special(model):
            return None
        try:
            model = onnx.load(model, format="protobuf", load_external_data=False)
        except Exception:  # missing, unreadable, or not ONNX
            return None
    return next((entry.value for entry in model.metadata_props if entry.key == _TARGET_KEY), None)


def may_misrun(target: str | None, runtime: str) -> bool:
    """Return whether a runtime may compute a file wrongly because the file is for another one.

    Args:
        target: name of the target; None if it is not known.
        runtime: a key of `RUNTIMES`.
    """
    own = TARGETS[target].runtime if target in TARGETS else None
    return target is not None and runtime not in (_EXACT, own)


def misrun(model: onnx.ModelProto, runtime: str, feeds: Sequence[Feed]) -> str:
    """Return how a runtime other than its own computes a file wrongly, as sentences; empty if it does not.

    `onnxq.runtime.compare_run` has the criterion. The file without its rounding stands for the float model.

    Args:
        model: that names its target; not changed.
        runtime: a key of `RUNTIMES`.
        feeds: a few inputs.
    """
    target, kind = target_of(model), RUNTIMES[runtime]
    if not may_misrun(target, runtime):
        return ""
    try:
        unrounded, ended = comparable(_unrounded(model), model)
        session = open_session(unrounded, exact=True, brief=True)
        check = Check(feeds, [run_named(session, feed) for feed in feeds], joined=joined_outputs(unrounded))
        compared = check.compare(ended, kind(ended))
        fault = check.find_fault(ended, kind, _layers(ended), compared, remedy=False)
    except ModelError:  # if it is the model's, it shows where the model is measured
        return ""
    if fault is None:
        return ""
    made_for = next((name for name, each in TARGETS.items() if each.runtime == runtime), None)
    other = f"; --target {made_for} makes a file for {kind.title}" if made_for is not None else ""
    return (
        f"{kind.described()} computes the file, which is for {target}, wrongly on this CPU ({this_cpu()}): "
        f"{fault.output!r} has {fault.sqnr:.1f} dB against the exact result. "
        f"Remedy: --runtime {_EXACT} computes it as {target} does{other}"
    )


def _unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a file without the QuantizeLinear and DequantizeLinear of activations, and with float weights."""
    made = Model(copy_message(model))
    StripQdq().run(made, Facts())
    return made.to_proto()


def _layers(model: onnx.ModelProto) -> list[str]:
    """Return the names of the layers with quantized weights."""
    index = ProtoIndex(model.graph)
    makers = {n.name: index.producers.get(n.input[1]) for n in index.nodes if n.op_type in LAYERS}
    return [name for name, maker in makers.items() if maker is not None and maker.op_type == "DequantizeLinear"]
