"""Which runtime runs a model to measure it: the one in which users run it, unless another one is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnxq.errors import ConfigError
from onnxq.ir.files import is_special
from onnxq.runtime import RUNTIMES, Runtime
from onnxq.targets import TARGETS

AUTO = "auto"
"""The runtime that the target of a file names."""

CHOICES = (AUTO, *RUNTIMES)
"""Values of `--runtime`."""

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
        return RuntimeChoice("exact", f"as its target, {target}, has no runtime of its own here (or: --runtime ort)")
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
