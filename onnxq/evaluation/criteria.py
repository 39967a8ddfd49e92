"""Criteria of a mixed-precision search: loss of AP, or SQNR."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.api import open_data
from onnxq.calibration import dataset_yaml
from onnxq.calibration.find_files import find_files
from onnxq.config import Config
from onnxq.errors import DataError
from onnxq.evaluation.average_precision import Scores, measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings
from onnxq.evaluation.runtime_choice import AUTO
from onnxq.ir import comparable
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import Progress, silent
from onnxq.runtime import RUNTIMES, Feed
from onnxq.yolo.detector import detect

_SQNR_SAMPLES = 64
"""Most images that the SQNR is measured on, evenly spaced among all."""


class Criterion(ABC):
    """Measures how much a quantized model has lost.

    Attributes:
        images: number of images that it measures on.
        files: files of these images.
    """

    images: int
    files: Sequence[Path]

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
        """Return settings, images and objects as text."""
        labels = json.dumps(self._truth.coco.dataset, sort_keys=True)
        return f"AP {self._settings} {sorted(self._truth.images)} {labels}"

    def describe(self, loss: float) -> str:
        """Return the change of AP in words."""
        return f"{0.0 - loss:+.2f} AP"  # 0.0 - loss, as -loss would give "-0.00"


class SqnrCriterion(Criterion):
    """Negative SQNR in dB of the output with the most noise, over images without labels.

    Where the graph selects objects, the tensors that enter the selection count instead.

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
        if isinstance(images, str | Path) and Path(images).suffix.lower() in dataset_yaml.SUFFIXES:
            images = find_files(str(images), split="val").files
        samples = open_data(images, original, detector, replace(config, count=_SQNR_SAMPLES))
        self._feeds: list[Feed] = [sample.feed for loader in samples.loaders if (sample := loader()) is not None]
        samples.require_any()
        self.images, self.files = samples.count or len(self._feeds), samples.files
        self._original = original
        self._runtime = _runtime(runtime)
        self._expected: dict[bool, list[dict[str, NDArray[np.generic]]]] = {}

    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Return the negative SQNR, dB."""
        meter = SqnrMeter()
        reference, ended = comparable(self._original, model)
        is_ended = ended is not model
        if is_ended not in self._expected:
            self._expected[is_ended] = self._run(reference, silent)
        for expected, actual in zip(self._expected[is_ended], self._run(ended, progress), strict=True):
            meter.add(expected, actual)
        return -min(meter.decibels().values(), default=np.inf)

    def identity(self) -> str:
        """Return the images as text."""
        return f"SQNR {self._runtime} {len(self._feeds)} {[str(file) for file in self.files]}"

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
