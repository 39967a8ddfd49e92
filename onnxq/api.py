"""The library: `quantize` takes a float model and returns the quantized model with all facts."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from onnxq import memory
from onnxq.calibration.checks import check_first_layer, check_inputs, check_number, check_prepared
from onnxq.calibration.confirm_layout import confirm_on_samples
from onnxq.calibration.samples import DataSource, Samples, open_samples
from onnxq.calibration.statistics_file import load_statistics, save_statistics
from onnxq.config import Config
from onnxq.errors import DataError
from onnxq.facts import FittedRanges, InputSummary, Migration, Plan, Probe, Statistics
from onnxq.hooks import time_passes
from onnxq.ir import Model, ProtoIndex, embedded, storage
from onnxq.ir.load import load
from onnxq.ir.unsupported_tail import UnsupportedTail, detach
from onnxq.passes import default, prepare_and_cut, prepare_and_plan
from onnxq.pipeline import Facts, Hook, Pass, Pipeline
from onnxq.progress import Progress, silent
from onnxq.runtime.pool import IN_PROCESS, Pool
from onnxq.version import VERSION
from onnxq.yolo.detector import Detector, detect

__all__ = [
    "Quantized",
    "cut_decode",
    "load",
    "load_statistics",
    "open_data",
    "plan",
    "quantize",
    "save_statistics",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantized:
    """The result of `quantize`.

    Attributes:
        model: the quantized model, with the inputs, outputs and metadata of the float model, and `onnxq.*` metadata.
        facts: the results of the analyses by type: `facts[Plan]`, `facts[FittedRanges]`, `facts[Verification]` ...
        detector: the recognized inputs and outputs, and how an image becomes an input.
        samples: the calibration data; None if statistics were given.
        timings: name of a pass -> seconds.
        warnings: faults of the calibration data, outputs that are not clear, and tensors of which a shared scale leaves
            next to nothing, a sentence each; also logged. Warnings about the finished model are in
            `facts[Verification].warnings`.
    """

    model: onnx.ModelProto
    facts: Facts
    detector: Detector
    samples: Samples | None
    timings: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the model, whole or not at all. The weights of a model over 2 GB go to `PATH.data`.

        Raises:
            ConfigError: the file cannot be written.
        """
        storage.save(self.model, Path(path))


def quantize(
    model: str | Path | onnx.ModelProto,
    data: object = None,
    config: Config | None = None,
    *,
    passes: Sequence[Pass] | None = None,
    facts: Iterable[object] = (),
    hooks: Sequence[Hook] = (),
    sensitivity: bool = False,
    speed: bool = False,
    progress: Progress = silent,
    pool: Pool = IN_PROCESS,
) -> Quantized:
    """Quantize an exported detector.

    Args:
        model: path of a float ONNX file, or the model itself, which is not changed.
        data: the calibration data: an image folder, a glob, a `.txt` list, a COCO json, a data set's `.yaml` (its train
            split), a video, `.npz` or `.npy` files, several of these, `onnxq.calibration.demo.CALIBRATION`, an iterable
            of `{input name: array}`, a reader with onnxruntime's `get_next()`, or the result of `open_data`. None:
            synthetic scenes, which suffice for 8 bits.
        config: the options.
        passes: run instead of the default ones, `onnxq.passes.default`.
        facts: given from outside; the analyses that would find them are skipped. With `load_statistics(path)` nothing
            is calibrated; the result is then compared with the float model only if a `Probe` is given too.
        hooks: called after each pass.
        sensitivity: also measure the effect of quantizing each piece of the network alone. The data is read again, and
            the result has the fact `Sensitivities`.
        speed: also run both models for some seconds, in the target's runtime if it is installed; the result has the
            fact `Speed`.
        progress: called with the stage and its progress.
        pool: where the data is observed; `onnxq.cluster.open_pool` opens others. The result is the same.

    Raises:
        ModelError: the model cannot be read or quantized.
        DataError: the data cannot be used.
        ConfigError: an option does not fit the model.
        PipelineError: `passes` are in an order that cannot work.
    """
    config = config or Config()
    progress("preparing", 0, 0)
    original, tail = _load_runnable(model)
    detector = detect(original, image_size=config.image_size, preprocess=config.preprocess, layout=config.layout)
    pinned = _with_what_statistics_imply(facts, config, detector)
    samples = None if Statistics in pinned else open_data(data, original, detector, config)
    if passes is None and samples is not None and samples.is_read_once:
        _require_one_reading(samples, config, sensitivity)
    questions: tuple[str, ...] = ()
    if not config.layout:
        detector, questions = confirm_on_samples(original, detector, samples)
    if passes is None:
        passes = default(
            config,
            original,
            samples,
            detector=detector,
            sensitivity=sensitivity,
            speed=speed,
            progress=progress,
            pool=pool,
        )
    timings: dict[str, float] = {}
    working = Model(original)
    found = Pipeline(passes, pinned=pinned.values(), hooks=[time_passes(timings), _give_back, *hooks]).run(working)
    for key, value in _metadata(config, found).items():
        working.add_metadata(key, value)
    quantized = working.to_linked_proto() if tail is not None else working.to_proto()
    if tail is not None:
        tail.reattach(quantized)
        quantized = embedded(quantized)
    is_synthetic = samples is None or samples.synthetic
    warnings = (
        *detector.warnings,
        *questions,
        *_input_warnings(found, original, detector, synthetic=is_synthetic),
        *(found.get(FittedRanges) or FittedRanges({})).unequal,
    )
    for warning in warnings:
        log.warning("%s", warning)
    return Quantized(quantized, found, detector, samples, timings, warnings)


def plan(model: str | Path | onnx.ModelProto, config: Config | None = None) -> tuple[Plan, Detector]:
    """Return the plan of `quantize`, with the reason of each float node, and the detector; no data is needed.

    Raises:
        ModelError: the model cannot be read or quantized.
        ConfigError: an option does not fit the model.
    """
    config = config or Config()
    original, _ = _load_runnable(model)
    detector = detect(original, image_size=config.image_size, preprocess=config.preprocess, layout=config.layout)
    return Pipeline(prepare_and_plan(config, detector)).run(Model(original))[Plan], detector


def cut_decode(model: str | Path | onnx.ModelProto, config: Config | None = None) -> onnx.ModelProto:
    """Return the float model without its decode, ending at its last layers, prepared as `quantize` does it.

    Toolchains of NPUs that quantize by themselves take such a model. Its tensors have the names and, with the same
    options, the ranges of the facts of `quantize`.

    Raises:
        ModelError: the model cannot be read, or has no layers.
    """
    original, _ = _load_runnable(model)
    working = Model(original)
    Pipeline(prepare_and_cut(config or Config())).run(working)
    return working.to_proto()


def _load_runnable(model: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, UnsupportedTail | None]:
    """Return the part of the model that onnxruntime can run, and the operators at its end that it does not know."""
    front, tail = detach(load(model))
    if tail is not None:
        log.warning(
            "onnxruntime does not know %s: it stays as it is; only the part before it is quantized and compared",
            ", ".join(tail.unsupported),
        )
    return front, tail


def open_data(data: object, original: onnx.ModelProto, detector: Detector, config: Config) -> Samples:
    """Open calibration data for a model, in any form that `quantize` takes.

    Raises:
        DataError: the data cannot be used.
    """
    if isinstance(data, Samples):
        return data
    inputs = {t.name: _shape_and_dtype(t.type.tensor_type) for t in ProtoIndex(original.graph).inputs}
    return open_samples(
        cast("DataSource", data),
        inputs=inputs,
        image_input=detector.input_name,
        size=detector.size,
        preprocess=detector.preprocess,
        count=config.images,
        companions=detector.companions,
    )


def _require_one_reading(samples: Samples, config: Config, sensitivity: bool) -> None:
    """Refuse before the work what reads the data again after calibration.

    Raises:
        DataError: an option does.
    """
    again = "reconstruction" if config.reconstructs else "measuring the sensitivity" if sensitivity else ""
    if again:
        leave_out = "reconstruct=False" if config.reconstructs else "sensitivity=False"
        raise DataError(
            f"{samples.description}: {again} reads the data again, and a generator or reader gives each sample once; "
            f"give a list, a folder or files, or {leave_out}"
        )


def _shape_and_dtype(tensor: onnx.TypeProto.Tensor) -> tuple[list[int | None], "np.dtype[np.generic]"]:
    return [dim.dim_value or None for dim in tensor.shape.dim], onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)


def _give_back(step: Pass, model: Model, result: object, seconds: float) -> None:
    """Return to the system what a pass has freed."""
    memory.give_back()


def _with_what_statistics_imply(facts: Iterable[object], config: Config, detector: Detector) -> dict[type, object]:
    """Return facts by type. Statistics come without samples, but with the scales that were divided by before.

    The `Probe` is empty unless it is given too.

    Raises:
        DataError: the statistics are of images that were prepared in another way than the detector takes.
    """
    pinned = {type(fact): fact for fact in facts}
    statistics = pinned.get(Statistics)
    if isinstance(statistics, Statistics):
        if statistics.images is not None:
            check_prepared(statistics.images, detector)
        pinned.setdefault(Probe, Probe())
        if config.migrates:
            why_none = "" if statistics.migration else "the calibration has no scales"
            pinned.setdefault(Migration, Migration(statistics.migration, why_none))
            if config.migrate and not statistics.migration:
                log.warning(
                    "no scales migrate: the calibration was made with too few images or with --no-migrate, or its "
                    "channels are alike; calibrate again with --migrate, or leave it out"
                )
    return pinned


def _input_warnings(facts: Facts, original: onnx.ModelProto, detector: Detector, synthetic: bool) -> Iterator[str]:
    inputs = facts.get(InputSummary) or InputSummary()
    if not synthetic:
        yield from check_number(inputs)
    yield from check_inputs(inputs, detector)
    yield from check_first_layer(original, detector, (facts.get(Probe) or Probe()).feeds)


def _metadata(config: Config, facts: Facts) -> dict[str, str]:
    """Return the metadata of the quantized model; equal runs give equal metadata."""
    return {
        "onnxq.version": VERSION,
        "onnxq.target": config.target,
        "onnxq.cpu": config.cpu,
        "onnxq.method": config.method_used,
        "onnxq.bits": config.all_widths,
        "onnxq.samples": str(facts[Statistics].samples),
    }
