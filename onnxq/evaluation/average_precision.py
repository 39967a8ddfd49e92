"""COCO average precision of a detector."""

import contextlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.ground_truth import GroundTruth, build_index
from onnxq.evaluation.predictor import Predictor, Settings
from onnxq.progress import Progress, silent
from onnxq.runtime import RUNTIMES
from onnxq.yolo.detector import Detector

METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
"""COCO's averages in pycocotools' order: attribute of `Scores` -> COCO's name, an attribute of `ModelPrecision`."""


@dataclass(frozen=True)
class Scores:
    """COCO average precision in percent; nan if there is no object to find.

    Attributes:
        ap, ap50, ap75: averages over IoU 0.50 to 0.95, at 0.50, and at 0.75.
        ap_small, ap_medium, ap_large: averages over objects of a size.
        images: number of images.
        detector: how inputs were prepared and outputs were decoded.
        runtime: key in `onnxq.runtime.RUNTIMES` of what ran the model.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    images: int
    detector: Detector
    runtime: str


@dataclass(frozen=True)
class ModelPrecision:
    """Average precision of one of several models, in percent; None if there is no object to find.

    Attributes:
        model: path of its file.
        family: head family.
        task: task of the detector.
        preprocess: name of the preprocessing.
        image_size: height and width of the input, px.
        runtime: key in `onnxq.runtime.RUNTIMES` of what ran the model.
        runtime_version: its version.
        AP, AP50, AP75: averages over IoU 0.50 to 0.95, at 0.50 and at 0.75, as COCO names them.
        APs, APm, APl: averages over small, medium and large objects.
        change: difference of AP to the first model.
    """

    model: str
    family: str
    task: str
    preprocess: str
    image_size: tuple[int, int]
    runtime: str
    runtime_version: str
    AP: float | None
    AP50: float | None
    AP75: float | None
    APs: float | None
    APm: float | None
    APl: float | None
    change: float | None

    @property
    def metrics(self) -> tuple[float | None, ...]:
        """The averages in the order of `METRICS`."""
        return self.AP, self.AP50, self.AP75, self.APs, self.APm, self.APl


@dataclass(frozen=True)
class PrecisionSummary:
    """Average precision of several models on the same images.

    Attributes:
        annotations: COCO file, or `demo`.
        images: number of images.
        settings: how the models were run.
        models: the models; the first is the one that others are compared with.
    """

    annotations: str
    images: int
    settings: Settings
    models: tuple[ModelPrecision, ...]

    @property
    def runtimes(self) -> str:
        """Title and version of the runtimes, in the order of the models."""
        return ", ".join(RUNTIMES[name].described() for name in dict.fromkeys(each.runtime for each in self.models))


def summarize(results: Sequence[tuple[Path, Scores]], annotations: Path | str, settings: Settings) -> PrecisionSummary:
    """Summarize the scores of several models, at least one, beside those of the first.

    Args:
        results: path and scores of each model.
        annotations: the COCO file, or a name of the data.
        settings: how the models were run.
    """
    first = results[0][1]
    return PrecisionSummary(
        annotations=str(annotations),
        images=first.images,
        settings=settings,
        models=tuple(
            ModelPrecision(
                model=str(path),
                family=scores.detector.family,
                task=scores.detector.outputs.task,
                preprocess=scores.detector.preprocess.name,
                image_size=scores.detector.size,
                runtime=scores.runtime,
                runtime_version=RUNTIMES[scores.runtime].version(),
                AP=_number(scores.ap),
                AP50=_number(scores.ap50),
                AP75=_number(scores.ap75),
                APs=_number(scores.ap_small),
                APm=_number(scores.ap_medium),
                APl=_number(scores.ap_large),
                change=_number(scores.ap - first.ap),
            )
            for path, scores in results
        ),
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def evaluate(
    model: str | Path | onnx.ModelProto,
    annotations: str | Path,
    images: str | Path,
    *,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Scores:
    """Measure a detector's average precision on COCO data.

    Args:
        model: a file, or a model in memory.
        annotations: COCO detection annotations, JSON.
        images: folder with the images.
        settings: defaults to `Settings()`.
        progress: called after each image.

    Raises:
        ModelError: the model cannot be read or run, is not recognized, has no upright boxes or none that can be decoded
            exactly, or gives values that are not finite.
        DataError: annotations or images are missing or unreadable.
        ConfigError: a setting does not fit the model, or its classes do not fit the categories.
    """
    settings = settings or Settings()
    truth = GroundTruth.load(Path(annotations), Path(images), settings.max_images)
    return measure_precision(model, truth, settings, progress)


def measure_precision(
    model: str | Path | onnx.ModelProto,
    truth: GroundTruth,
    settings: Settings,
    progress: Progress = silent,
    like: Detector | None = None,
) -> Scores:
    """Measure a detector's average precision as `evaluate` does, with ground truth that is loaded already.

    Args:
        model: a file, or a model in memory.
        truth: images and their objects.
        settings: how to run and decode the model.
        progress: called after each image.
        like: of a quantized model, the float model.
    """
    progress("loading", 0, 0)
    predictor, categories = _open(model, truth, settings, like)

    def detect(load: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float32]:
        return predictor.detect(load(), settings)

    records: list[dict[str, Any]] = []
    detections = settings.in_parallel(detect, truth.images.values())
    for done, (image, found) in enumerate(zip(truth.images, detections), start=1):
        records += _records(image, found, categories, predictor)
        progress("evaluating", done, len(truth.images))
    progress("scoring", 0, 0)
    ap, ap50, ap75, ap_small, ap_medium, ap_large = average_precisions(truth, records)
    seen, detector, runtime = len(truth.images), predictor.detector, predictor.runtime_name
    return Scores(ap, ap50, ap75, ap_small, ap_medium, ap_large, seen, detector, runtime)


def check_measurable(model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings) -> None:
    """Check before long work that a model can be measured; it runs on a black image and a few of the images.

    Raises:
        ModelError, ConfigError: as from `evaluate`, except errors that only show on images.
    """
    _open(model, truth, settings)


def _open(
    model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings, like: Detector | None = None
) -> tuple[Predictor, tuple[int, ...]]:
    """Return the model, ready to run, and the category id of each of its classes."""
    opened = Path(model) if isinstance(model, str) else model
    predictor = Predictor.load(opened, settings, tuple(truth.images.values()), like, only_quantized=True)
    reason = predictor.detector.outputs.why_no_precision
    if reason:
        raise ModelError(f"{predictor.name}: {reason}; python -m onnxq.compare needs no AP")
    return predictor, _category_ids(predictor, truth.categories)


def _records(
    image: int, found: NDArray[np.float32], categories: tuple[int, ...], predictor: Predictor
) -> list[dict[str, Any]]:
    unknown = set(found[:, 5].astype(int)) - set(range(len(categories)))
    if unknown:
        raise ModelError(f"{predictor.name}: finds class {min(unknown)}, but classes are 0 to {len(categories) - 1}")
    return [
        {
            "image_id": image,
            "category_id": categories[int(label)],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "score": score,
            "iscrowd": 0,
        }
        for left, top, right, bottom, score, label in found.astype(float).tolist()
    ]


def _category_ids(predictor: Predictor, categories: dict[int, str]) -> tuple[int, ...]:
    """Return the category id of each class: by name if all class names are categories, else by order."""
    ids = {name: number for number, name in categories.items()}
    names = predictor.detector.names
    if names and len(set(names)) == len(names) and set(names) <= set(ids):
        return tuple(ids[name] for name in names)
    if predictor.classes not in (None, len(categories)):
        raise ConfigError(
            f"{predictor.name}: has {predictor.classes} classes, but the annotations have {len(categories)} "
            "categories, and its names metadata does not name them"
        )
    return tuple(categories)


def average_precisions(truth: GroundTruth, detections: list[dict[str, Any]]) -> list[float]:
    """Score detections.

    Args:
        truth: images and their objects.
        detections: COCO result records.

    Returns:
        Percent, in the order of `METRICS`; nan if there is no object to find.
    """
    found = build_index(truth.images, truth.categories, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = COCOeval(truth.coco, found, "bbox")
        scoring.evaluate()
        scoring.accumulate()
        scoring.summarize()
    return [100.0 * float(value) if value >= 0 else math.nan for value in scoring.stats[: len(METRICS)]]
