"""One file in one compiler: which layers run on integers, and what its outputs are worth."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from onnxq.calibration.dead_leaves import SyntheticImages, dead_leaves_image
from onnxq.calibration.image_sources import image_sources
from onnxq.calibration.samples import spread
from onnxq.compilers.base import Built, Compiler, Job
from onnxq.compilers.layers import FileLayer, file_layers, prepared
from onnxq.errors import ModelError
from onnxq.evaluation.agreement import Agreement, agree
from onnxq.evaluation.predictor import Predictor, Settings
from onnxq.ir.storage import load_proto
from onnxq.ir.temporary import temporary_folder
from onnxq.numerics.arrays import NamedArrays
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import Progress, silent
from onnxq.remote.address import Location
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN

DEFAULTS = Settings(confidence=0.25, max_images=4)
"""Settings of a proof unless others are given; simulators take seconds to minutes for an image."""

TIMEOUT = 1800.0
"""Time for a compiler unless another one is given, s."""

_UNKNOWN_SIZES = frozenset({"NonMaxSuppression", "NonZero"})
"""Operators of NMS that compilers for accelerators do not take."""

_ABSENT = "not in the compiler's graph under its name: fused, folded or split"


@dataclass(frozen=True)
class LayerProof:
    """A layer in a compiler.

    Attributes:
        name: of its node; nodes without a name are named after their output.
        op: its operator in the file.
        wanted: the file means it to run on integers.
        types: data and weights, or the float type, in which it runs; empty if it is not known.
        on_integers: it runs on integers.
        reason: why it does not, as far as it is known.
    """

    name: str
    op: str
    wanted: bool
    types: str
    on_integers: bool
    reason: str


@dataclass(frozen=True)
class Proof:
    """What a compiler made of a file.

    Attributes:
        title, version: of the compiler.
        layers: the layers of the file, in the graph's order.
        on_cpu: nodes that the compiler left to the CPU, with their operators.
        notes: sentences on what was built and run.
        images: number of images that were run; 0 if the result runs on the device only.
        outputs: output -> SQNR against the exact computation of the file, dB; nan if it cannot be compared.
        agreement: agreement on objects with the exact computation; None without images, or if outputs cannot be read.
        detector: how images were prepared and outputs were decoded.
    """

    title: str
    version: str
    layers: tuple[LayerProof, ...]
    on_cpu: tuple[str, ...]
    notes: tuple[str, ...]
    images: int
    outputs: Mapping[str, float]
    agreement: Agreement | None
    detector: Detector

    @property
    def wanted(self) -> list[LayerProof]:
        """The layers that are meant for integers."""
        return [layer for layer in self.layers if layer.wanted]

    @property
    def fallen(self) -> list[LayerProof]:
        """The layers that are meant for integers, and run otherwise."""
        return [layer for layer in self.wanted if not layer.on_integers]


def prove(
    path: Path,
    compiler: Compiler,
    images: str | Location | SyntheticImages | None = None,
    *,
    settings: Settings = DEFAULTS,
    device: str = "",
    python: str = "",
    timeout: float = TIMEOUT,
    progress: Progress = silent,
) -> Proof:
    """Build a file in a compiler and run it where that is possible.

    Args:
        path: the quantized model.
        compiler: one of `onnxq.compilers.COMPILERS`.
        images: as `image_sources` takes it; None: painted scenes, which tell the noise but not the agreement.
        settings: how to prepare images and read outputs; `max_images` are evenly spaced among all.
        device: what to build for; empty: the compiler's default.
        python: the interpreter whose environment has the compiler; empty: this one.
        timeout: time for the compiler, s.
        progress: called after each step.

    Raises:
        ModelError: the file cannot be read, no layer of it is meant for integers, or the compiler refuses it, crashes
            or takes too long.
        DataError: there are no images, or one is unreadable.
        ConfigError: the compiler is not installed, or a setting does not fit the model.
    """
    # The compiler runs in another folder, so the path must be absolute; links stay, as they make an environment.
    python = os.path.abspath(shutil.which(python) or python) if python else sys.executable
    compiler.require(python)
    progress("loading", 0, 0)
    source = images if images is not None else _painted(settings)
    sources = spread(image_sources(source), settings.max_images)
    pictures = [each.load for each in sources] if images is not None else []
    exact = Predictor.load(path, replace(settings, runtime="exact"), pictures, may_be_unread=True)
    feeds = [exact.prepare(each.load())[0] for each in sources]
    model = prepared(load_proto(path), feeds[0])
    layers = file_layers(model)
    if not any(layer.is_wanted for layer in layers):
        raise ModelError(f"{path}: no layer has quantized data and weights, so there is nothing to prove; quantize it")
    progress(f"building with {compiler.title}", 0, 0)
    with temporary_folder() as folder:
        try:
            built = compiler.build(Job(model, layers, feeds, folder, device, python, timeout))
        except ModelError as error:
            raise ModelError(*error.args, *_hints(model)) from None
    progress("comparing", 0, 0)
    expected = [exact.run(feed) for feed in feeds] if built.outputs else []
    known = images is not None and exact.detector.family != UNKNOWN
    return Proof(
        title=compiler.title,
        version=built.version,
        layers=tuple(_proof(layer, built) for layer in layers),
        on_cpu=tuple(built.on_cpu),
        notes=tuple(built.notes),
        images=len(built.outputs),
        outputs=_decibels(expected, built.outputs, list(exact.outputs)) if built.outputs else {},
        agreement=_agreement(expected, built.outputs, exact.detector, settings) if known and built.outputs else None,
        detector=exact.detector,
    )


def _hints(model: onnx.ModelProto) -> list[str]:
    """Return what may be the cause if a compiler fails."""
    found = sorted(_UNKNOWN_SIZES.intersection(node.op_type for node in model.graph.node))
    if not found:
        return []
    return [f"the size of an output of {' and '.join(found)} is unknown before the run; export the model without NMS"]


def _painted(settings: Settings) -> SyntheticImages:
    size = settings.image_size or (640, 640)
    return SyntheticImages("painted scene", settings.max_images or 1, partial(dead_leaves_image, size=size))


def _proof(layer: FileLayer, built: Built) -> LayerProof:
    ran = built.layers.get(layer.name)
    types, on_integers, reason = (ran.types, ran.on_integers, ran.reason) if ran is not None else ("", False, _ABSENT)
    why = "" if on_integers else layer.why_float() or reason
    return LayerProof(layer.name, layer.node.op_type, layer.is_wanted, types, on_integers, why)


def _decibels(expected: Sequence[NamedArrays], found: Sequence[NamedArrays], names: Sequence[str]) -> dict[str, float]:
    meter = SqnrMeter()
    for one, other in zip(expected, found, strict=True):
        meter.add(one, {name: np.asarray(array) for name, array in other.items()})
    measured = meter.decibels()
    return {name: measured.get(name, float("nan")) for name in names}


def _agreement(
    expected: Sequence[NamedArrays], found: Sequence[NamedArrays], detector: Detector, settings: Settings
) -> Agreement:
    total = Agreement()
    for one, other in zip(expected, found, strict=True):
        total += agree(one, other, detector, settings.confidence, settings.iou)
    return total
