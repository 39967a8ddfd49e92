"""Criteria that a mixed-precision search keeps to: loss of AP, or SQNR."""

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
from onnxq.config import Config
from onnxq.errors import DataError
from onnxq.evaluation.average_precision import measure_precision
from onnxq.evaluation.ground_truth import GroundTruth
from onnxq.evaluation.predictor import Settings
from onnxq.numerics.sqnr import SqnrMeter
from onnxq.progress import Progress, silent
from onnxq.runtime.session import Feed, open_session, run_named
from onnxq.yolo.detector import detect

_SQNR_SAMPLES = 64
"""Pictures that signal and noise are summed over, evenly spaced ones of all."""


class Criterion(ABC):
    """Says what a quantized model has lost.

    Attributes:
        pictures: how many it looks at.
        files: that they are read from.
    """

    pictures: int
    files: Sequence[Path]

    @abstractmethod
    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """What a model has lost, the less the better."""

    @abstractmethod
    def identity(self) -> str:
        """Differs where the same model would be judged otherwise."""

    @abstractmethod
    def say(self, loss: float) -> str:
        """A loss in words."""


class PrecisionCriterion(Criterion):
    """COCO average precision, percent: what the float model has and the quantized one has not.

    Args:
        original: the float model.
        truth: pictures and their boxes.
        settings: of the evaluation.

    Raises:
        ModelError, DataError, ConfigError: as `evaluate.measure` does; DataError also where the float model has an AP
            of 0, or none for want of objects: there is nothing to lose then, and any model would keep to any limit.
    """

    def __init__(self, original: onnx.ModelProto, truth: GroundTruth, settings: Settings) -> None:
        self._original = original
        self._truth = truth
        self._settings = settings
        self.pictures, self.files = len(truth.pictures), truth.files

    @cached_property
    def _whole(self) -> float:
        whole = measure_precision(self._original, self._truth, self._settings, exact=True).ap
        if math.isnan(whole):
            raise DataError("the annotations have no objects on the pictures, so there is no AP to lose; give others")
        if whole == 0:
            raise DataError(
                "the float model has an AP of 0 on the pictures, so there is nothing to lose; see with "
                "python -m onnxq.evaluate whether annotations, --preprocess and classes are those of the model"
            )
        return whole

    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Points of AP, which may be negative."""
        return self._whole - measure_precision(model, self._truth, self._settings, progress, exact=True).ap

    def identity(self) -> str:
        """The pictures, the objects on them and how they are looked at."""
        labels = json.dumps(self._truth.coco.dataset, sort_keys=True)
        return f"AP {self._settings} {sorted(self._truth.pictures)} {labels}"

    def say(self, loss: float) -> str:
        """The change of AP."""
        return f"{0.0 - loss:+.2f} AP"  # none is +0.00


class SqnrCriterion(Criterion):
    """Signal-to-quantization-noise ratio of the output that has the least, dB, over pictures without labels.

    Args:
        original: the float model.
        images: a folder, or whatever else calibration data may be.
        config: tells how pictures become inputs.

    Raises:
        DataError: there are no pictures.
    """

    def __init__(self, original: onnx.ModelProto, images: object, config: Config) -> None:
        detector = detect(original, image_size=config.image_size, preprocess=config.preprocess)
        samples = open_data(images, original, detector, replace(config, count=_SQNR_SAMPLES))
        self._feeds: list[Feed] = [sample.feed for loader in samples.loaders if (sample := loader()) is not None]
        samples.require_any()
        self.pictures, self.files = samples.count or len(self._feeds), samples.files
        self._original = original

    @cached_property
    def _expected(self) -> list[dict[str, NDArray[np.generic]]]:
        return self._run(self._original, silent)

    def loss(self, model: onnx.ModelProto, progress: Progress) -> float:
        """Minus the decibels."""
        noise = SqnrMeter()
        for expected, found in zip(self._expected, self._run(model, progress), strict=True):
            noise.add(expected, found)
        return -min(noise.decibels().values(), default=np.inf)

    def identity(self) -> str:
        """The pictures."""
        return f"SQNR {len(self._feeds)} {[str(file) for file in self.files]}"

    def say(self, loss: float) -> str:
        """The decibels."""
        return f"{-loss:.1f} dB"

    def _run(self, model: onnx.ModelProto, progress: Progress) -> list[dict[str, NDArray[np.generic]]]:
        session = open_session(model, exact=True)
        outputs = []
        for number, feed in enumerate(self._feeds, start=1):
            outputs.append(run_named(session, feed))
            progress("comparing", number, len(self._feeds))
        return outputs
