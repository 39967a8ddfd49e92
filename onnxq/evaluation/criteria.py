"""Criteria of a mixed-precision search: loss of AP, loss of expected AP, or SQNR."""

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq._text import plural
from onnxq.api import open_data
from onnxq.calibration import dataset_yaml
from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.calibration.find_files import find_files
from onnxq.calibration.image_sources import ImageSource, image_sources
from onnxq.calibration.samples import spread
from onnxq.config import Config
from onnxq.errors import DataError, ModelError
from onnxq.evaluation.average_precision import Scores, measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.held_out import content_digest
from onnxq.evaluation.predictor import Predictor, Settings
from onnxq.evaluation.runtime_choice import AUTO
from onnxq.evaluation.scoring.expected import (
    LEAST_PROBABILITY,
    Judged,
    UncertainObjects,
    expected_precision,
    why_not,
)
from onnxq.ir import comparable
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import Progress, silent
from onnxq.remote.address import Address, Location, location
from onnxq.runtime import RUNTIMES, Feed
from onnxq.runtime.joined import Parts, joined_outputs, with_parts
from onnxq.yolo.detector import Detector, detect

_S = TypeVar("_S")

_T = TypeVar("_T")

_AGREEMENT_IMAGES = 256
"""Most images that expected AP is measured on unless the settings say otherwise, evenly spaced among all."""

_SQNR_SAMPLES = 64
"""Most images that the SQNR is measured on, evenly spaced among all."""


class Criterion(ABC):
    """Measures how much a quantized model has lost.

    Attributes:
        images: number of images that it measures on.
        files: files of these images.
    """

    images: int
    files: Sequence[Location]

    @abstractmethod
    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Return the loss of a model; less is better."""

    @abstractmethod
    def identity(self) -> str:
        """Return a text that differs if the same model could get another loss."""

    @abstractmethod
    def describe(self, loss: float) -> str:
        """Return a loss in words."""


def _runtime(wanted: str) -> str:
    return "exact" if wanted == AUTO else wanted


class PrecisionCriterion(Criterion):
    """Loss of COCO average precision against the float model, in points (percent).

    Args:
        original: the float model.
        truth: images and their objects.
        settings: settings of the evaluation. The runtime "auto" is "exact" here: the search decides what is written,
            and the file must not depend on the CPU.

    Raises:
        ModelError, DataError, ConfigError: as from `measure_precision`; DataError also if the float model has an AP of
            0, or if the images have no objects: every model would keep every limit.
    """

    def __init__(self, original: onnx.ModelProto, truth: GroundTruth, settings: Settings) -> None:
        self._original = original
        self._truth = truth
        self._settings = replace(settings, runtime=_runtime(settings.runtime))
        self.images, self.files = len(truth.images), truth.files

    @cached_property
    def _float(self) -> Scores:
        scores = measure_precision(self._original, self._truth, self._settings)
        ap = scores.ap
        if math.isnan(ap):
            raise DataError("the annotations have no objects on the images, so there is no AP to lose; give others")
        if ap == 0:
            raise DataError(
                "the float model has an AP of 0 on the images, so there is nothing to lose; check with "
                "python -m onnxq.evaluate whether annotations, --preprocess and classes fit the model"
            )
        return scores

    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Return the loss in points of AP; negative if the model is better than the float model."""
        scores = measure_precision(model, self._truth, self._settings, progress, self._float.detector)
        return self._float.ap - scores.ap

    def identity(self) -> str:
        """Return settings, objects and the content of the images as text."""
        labels = json.dumps(self._truth.coco.dataset, sort_keys=True)
        return f"AP {self._settings} {sorted(self._truth.images)} {labels} {content_digest(self.files)}"

    def describe(self, loss: float) -> str:
        """Return the change of AP in words."""
        return f"{-loss:+z.2f} AP"


@dataclass(frozen=True)
class AgreementLoss:
    """What a quantized model loses, measured without labels.

    Attributes:
        loss: of expected AP, points.
        images: number of images.
        runtime: name and version of the runtime that computed the quantized model.
    """

    loss: float
    images: int
    runtime: str

    def __str__(self) -> str:
        images = f"{self.images} image{plural(self.images)}"
        return f"agreement with the float model: {_expected(self.loss)} on {images}, in {self.runtime}"


class AgreementCriterion(Criterion):
    """Loss of expected average precision against the float model, in points, on images without labels.

    The detections of the float model are objects that may exist: `scoring.expected`.

    Args:
        original: the float model.
        images: a folder of images, a pattern, a list, a COCO file, a data set's YAML (its val split), or synthetic
            images; at most 256 evenly spaced ones are used, or as many as the settings say.
        settings: settings of the evaluation; the runtime "auto" is "exact", as for `PrecisionCriterion`.

    Raises:
        ModelError: the model has no upright boxes, or as from `Predictor`.
        DataError: there are no images.
        ConfigError: a setting does not fit the model.
    """

    def __init__(self, original: onnx.ModelProto, images: str | Location | SyntheticImages, settings: Settings) -> None:
        self._original = original
        self._settings = replace(settings, runtime=_runtime(settings.runtime))
        self._sources = spread(image_sources(images), settings.max_images or _AGREEMENT_IMAGES)
        self.images = len(self._sources)
        self.files = tuple(dict.fromkeys(each.file for each in self._sources if each.file is not None))
        self._detector = self._open(original).detector
        reason = why_not(self._detector.outputs)
        if reason:
            raise ModelError(f"--judge agreement cannot judge the model: {reason}; --min-sqnr DB compares any outputs")
        self._expected: tuple[list[UncertainObjects], float] | None = None

    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Return the loss in points of expected AP; 0 for a model that detects the same.

        Raises:
            DataError: the float model detects nothing, or an image is unreadable.
            ModelError: as from `Predictor`.
        """
        if self._expected is None:
            self._expected = self._measure_float(progress)
        objects, precision = self._expected
        predictor = self._open(model, self._detector)

        def judge(source: tuple[ImageSource, UncertainObjects]) -> Judged:
            feed, _ = predictor.prepare(source[0].load())
            return source[1].judge(predictor.run(feed))

        pairs = list(zip(self._sources, objects, strict=True))
        return precision - expected_precision(objects, self._each(judge, pairs, progress))

    def identity(self) -> str:
        """Return settings, names and the content of the images as text."""
        names = [each.name for each in self._sources]
        return f"agreement {self._settings} {names} {content_digest(self.files)}"

    def describe(self, loss: float) -> str:
        """Return the change of expected AP in words."""
        return _expected(loss)

    def measured(self, model: onnx.ModelProto, progress: Progress) -> AgreementLoss:
        """Return the loss with what it was measured on; raises as `loss` does."""
        runtime = RUNTIMES[self._settings.runtime].described()
        return AgreementLoss(self.loss(model, progress), self.images, runtime)

    def _open(self, model: onnx.ModelProto, like: Detector | None = None) -> Predictor:
        pictures = [each.load for each in self._sources]
        return Predictor.load(model, self._settings, pictures, like, only_quantized=True)

    def _measure_float(self, progress: Progress) -> tuple[list[UncertainObjects], float]:
        """Return the objects that may be on each image, and the expected AP of the float model."""
        predictor = self._open(self._original)

        def look(source: ImageSource) -> tuple[UncertainObjects, Judged]:
            image = source.load()
            feed, letterbox = predictor.prepare(image)
            outputs, size = predictor.run(feed), (image.shape[0], image.shape[1])
            objects = UncertainObjects.of(outputs, self._detector, self._settings.iou, letterbox, size)
            return objects, objects.judge(outputs)

        seen = self._each(look, self._sources, progress)
        objects = [each for each, _ in seen]
        precision = expected_precision(objects, [judged for _, judged in seen])
        if math.isnan(precision):
            raise DataError(
                f"the float model detects nothing with a score above {LEAST_PROBABILITY:g} on the images, so there is "
                "nothing to lose; give other images, or check with python -m onnxq.compare --draw whether --preprocess "
                "fits the model"
            )
        return objects, precision

    def _each(self, work: Callable[[_S], _T], sources: Sequence[_S], progress: Progress) -> list[_T]:
        """Return the result of `work` for each image."""
        made: list[_T] = []
        for done, one in enumerate(self._settings.in_parallel(work, sources), start=1):
            made.append(one)
            progress("comparing", done, len(sources))
        return made


def _expected(loss: float) -> str:
    return f"{-loss:+z.2f} expected AP"


class SqnrCriterion(Criterion):
    """Negative SQNR in dB of the output with the most noise, over images without labels.

    Where the graph selects objects, the tensors that enter the selection count instead. The parts of an output that
    joins several, such as boxes and scores, count like outputs.

    Args:
        original: the float model.
        images: a folder, or any other kind of calibration data; of a data set's YAML, its val split.
        config: decides how images become inputs.
        runtime: as in `Settings`; "auto" is "exact", as for `PrecisionCriterion`.

    Raises:
        DataError: there are no images.
    """

    def __init__(self, original: onnx.ModelProto, images: object, config: Config, runtime: str = AUTO) -> None:
        detector = detect(original, image_size=config.image_size, preprocess=config.preprocess, layout=config.layout)
        if isinstance(images, str | Path | Address) and location(images).suffix.lower() in dataset_yaml.SUFFIXES:
            images = find_files(images, split="val").files
        samples = open_data(images, original, detector, replace(config, count=_SQNR_SAMPLES))
        self._feeds: list[Feed] = [sample.feed for loader in samples.loaders if (sample := loader()) is not None]
        samples.require_any()
        self.images, self.files = samples.count or len(self._feeds), samples.files
        self._original = original
        self._runtime = _runtime(runtime)
        self._expected: dict[bool, tuple[Mapping[str, Parts], list[dict[str, NDArray[np.generic]]]]] = {}

    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Return the negative SQNR, dB."""
        meter = SqnrMeter()
        reference, ended = comparable(self._original, model)
        is_ended = ended is not model
        if is_ended not in self._expected:
            self._expected[is_ended] = joined_outputs(reference), self._run(reference, silent)
        joined, outputs = self._expected[is_ended]
        for expected, actual in zip(outputs, self._run(ended, progress), strict=True):
            meter.add(with_parts(expected, joined), with_parts(actual, joined))
        return -min(meter.decibels().values(), default=np.inf)

    def identity(self) -> str:
        """Return the runtime and the content of the feeds as text."""
        digest = hashlib.sha256()
        for feed in self._feeds:
            for name, array in feed.items():
                digest.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        return f"SQNR of parts {self._runtime} {digest.hexdigest()}"

    def describe(self, loss: float) -> str:
        """Return the SQNR in words."""
        return f"{-loss:.1f} dB"

    def _run(self, model: onnx.ModelProto, progress: Progress) -> list[dict[str, NDArray[np.generic]]]:
        loaded = RUNTIMES[self._runtime](model)
        outputs = []
        for number, feed in enumerate(self._feeds, start=1):
            outputs.append(loaded.run(feed))
            progress("comparing", number, len(self._feeds))
        return outputs
