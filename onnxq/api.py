"""quantize(): a float model in, the quantized model and everything found on the way out."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from onnxq.calibration.checks import check_first_layer, check_inputs
from onnxq.calibration.samples import Samples, Source, open_samples
from onnxq.config import Config
from onnxq.facts import InputSummary, Plan, Probe, Statistics
from onnxq.hooks import time_passes
from onnxq.ir import Model, storage
from onnxq.ir.load import load
from onnxq.ir.unsupported_tail import UnsupportedTail, detach
from onnxq.passes import cutting, default, planning
from onnxq.pipeline import Facts, Hook, Pass, Pipeline
from onnxq.progress import Progress, silent
from onnxq.version import VERSION
from onnxq.yolo.detector import Detector, detect

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Quantized:
    """What `quantize` gives back.

    Attributes:
        model: the quantized model; the same inputs, outputs and metadata as the float one, plus `onnxq.*` keys.
        facts: everything that the analyses found, by type: `facts[Plan]`, `facts[Ranges]`, `facts[Checked]`, ...
        detector: what the model was taken for, and how pictures become its input.
        samples: the calibration data; None where statistics were given.
        timings: pass -> seconds.
        warnings: what looks wrong with the calibration data, a sentence each.
    """

    model: onnx.ModelProto
    facts: Facts
    detector: Detector
    samples: Samples | None
    timings: Mapping[str, float]
    warnings: tuple[str, ...] = ()

    def save(self, path: str | Path) -> None:
        """Write the model, whole or not at all; of one of over 2 GB the weights go beside it, to `PATH.data`.

        Raises:
            ConfigError: the place cannot be written to.
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
    progress: Progress = silent,
) -> Quantized:
    """Quantize an exported detector.

    Args:
        model: path of a float ONNX file, or the model itself, which is not changed.
        data: what to calibrate with: an image folder, a glob, a `.txt` list, `.npz` or `.npy` files, a COCO json,
            several of these, painted pictures (`onnxq.demo.CALIBRATION`), an iterable of `{input name: array}`, or a
            reader with onnxruntime's `get_next()`; or what `open_data` made of any. None: synthetic scenes, good enough
            for 8 bits.
        config: the options.
        passes: instead of the default ones, which `onnxq.passes.default` makes.
        facts: given from outside, in the place of the analyses that would find them: `load_statistics(path)` skips the
            calibration.
        hooks: called after each pass.
        sensitivity: also measure what each piece of the network costs when it alone is quantized; the data is read
            again. The result's facts then hold `Sensitivities`.
        progress: told how far the work is.

    Raises:
        ModelError: the model cannot be read or quantized.
        DataError: the data cannot be used.
        ConfigError: an option does not fit the model.
        PipelineError: `passes` are in an order that cannot work.
    """
    config = config or Config()
    progress("preparing", 0, 0)
    original, tail = _runnable(model)
    detector = detect(original, image_size=config.image_size, preprocess=config.preprocess)
    pinned = {type(fact): fact for fact in facts}
    samples: Samples | None = None
    if Statistics in pinned:
        # They come without samples, so that the result is compared only on samples that are given too.
        pinned.setdefault(Probe, Probe())
    else:
        samples = open_data(data, original, detector, config)
    if passes is None:
        passes = default(
            config,
            original,
            samples,
            detector=detector,
            sensitivity=sensitivity,
            progress=progress,
        )
    timings: dict[str, float] = {}
    working = Model(original)
    found = Pipeline(passes, pinned=pinned.values(), hooks=[time_passes(timings), *hooks]).run(working)
    for key, value in _metadata(config, found).items():
        working.add_metadata(key, value)
    made = working.to_proto()
    if tail is not None:
        tail.reattach(made)
    warnings = tuple(_input_warnings(found, original, detector))
    for doubt in warnings:
        log.warning("%s", doubt)
    return Quantized(made, found, detector, samples, timings, warnings)


def plan(model: str | Path | onnx.ModelProto, config: Config | None = None) -> tuple[Plan, Detector]:
    """Say what would be quantized, and why the rest would not; no data is needed.

    Raises:
        ModelError: the model cannot be read or quantized.
        ConfigError: an option does not fit the model.
    """
    config = config or Config()
    original, _ = _runnable(model)
    detector = detect(original, image_size=config.image_size, preprocess=config.preprocess)
    return Pipeline(planning(config)).run(Model(original))[Plan], detector


def cut_decode(model: str | Path | onnx.ModelProto, config: Config | None = None) -> onnx.ModelProto:
    """The float model, prepared as `quantize` does it, that ends at its last layers, without the decode.

    That is what toolchains of NPUs take which quantize by themselves. Tensors have the names and, with the same
    options, the ranges that they have in the facts of `quantize`.

    Raises:
        ModelError: the model cannot be read, or has no layers.
    """
    original, _ = _runnable(model)
    working = Model(original)
    Pipeline(cutting(config or Config())).run(working)
    return working.to_proto()


def _runnable(model: str | Path | onnx.ModelProto) -> tuple[onnx.ModelProto, UnsupportedTail | None]:
    """The model, and what of its end can only be put back when all is done."""
    front, tail = detach(load(model))
    if tail is not None:
        log.warning(
            "onnxruntime does not know %s: left as it is, and what stands before it is quantized and compared",
            ", ".join(tail.opaque),
        )
    return front, tail


def open_data(data: object, original: onnx.ModelProto, detector: Detector, config: Config) -> Samples:
    """The calibration data of a model; for what it may be see `quantize`.

    Raises:
        DataError: the data cannot be used.
    """
    if isinstance(data, Samples):
        return data
    initializers = {t.name for t in original.graph.initializer}
    inputs = {t.name: _shape_and_dtype(t.type.tensor_type) for t in original.graph.input if t.name not in initializers}
    return open_samples(
        cast("Source", data),
        inputs=inputs,
        image_input=detector.input_name,
        size=detector.size,
        preprocess=detector.preprocess,
        count=config.images,
        companions=detector.companions,
    )


def _shape_and_dtype(tensor: onnx.TypeProto.Tensor) -> tuple[list[int | None], "np.dtype[np.generic]"]:
    return [dim.dim_value or None for dim in tensor.shape.dim], onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)


def _input_warnings(facts: Facts, original: onnx.ModelProto, detector: Detector) -> Iterator[str]:
    yield from check_inputs(facts.get(InputSummary) or InputSummary(), detector)
    yield from check_first_layer(original, detector, (facts.get(Probe) or Probe()).feeds)


def _metadata(config: Config, facts: Facts) -> dict[str, str]:
    """What the file says of itself, in its metadata; nothing that differs between equal runs."""
    return {
        "onnxq.version": VERSION,
        "onnxq.target": config.target,
        "onnxq.method": config.chosen_method,
        "onnxq.bits": config.all_widths,
        "onnxq.samples": str(facts[Statistics].samples),
    }
