"""COCO average precision of a detector."""

import contextlib
import io
import math
from collections.abc import Callable
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
from onnxq.yolo.detector import Detector


@dataclass(frozen=True)
class Scores:
    """COCO's averages over IoU 0.50 to 0.95, at 0.50, at 0.75, and by the size of objects, in percent.

    A number is nan when there is no object to find. `detector` is what the model was taken for.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    images: int
    detector: Detector


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
        annotations: COCO's JSON.
        images: the folder with its pictures.
        settings: defaults to `Settings()`.
        progress: told after each picture.

    Raises:
        ModelError: the model cannot be read or run, is not recognized, has no upright boxes or none that its file tells
            exactly, or gives numbers that are not finite.
        DataError: annotations or pictures are missing or unreadable.
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
    *,
    exact: bool = False,
) -> Scores:
    """As `evaluate`, with the ground truth loaded already, and `exact` as `session.open_session` has it."""
    progress("loading", 0, 0)
    network, categories = _opened(model, truth, settings, exact)

    def find(look: Callable[[], NDArray[np.uint8]]) -> NDArray[np.float32]:
        return network.find(look(), settings)

    detections: list[dict[str, Any]] = []
    for done, (image, found) in enumerate(
        zip(truth.pictures, settings.in_parallel(find, truth.pictures.values())), start=1
    ):
        detections += _records(image, found, categories, network)
        progress("evaluating", done, len(truth.pictures))
    progress("scoring", 0, 0)
    ap, ap50, ap75, ap_small, ap_medium, ap_large = average_precisions(truth, detections)
    return Scores(ap, ap50, ap75, ap_small, ap_medium, ap_large, len(truth.pictures), network.detector)


def check_measurable(model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings) -> None:
    """Find out before long work whether a model can be measured; it is run once, on black.

    Raises:
        ModelError, ConfigError: as `evaluate` does, but for what shows on pictures only.
    """
    _opened(model, truth, settings)


def _opened(
    model: str | Path | onnx.ModelProto, truth: GroundTruth, settings: Settings, exact: bool = False
) -> tuple[Predictor, tuple[int, ...]]:
    """The model, ready to run, and the category id of each of its classes."""
    network = Predictor.load(Path(model) if isinstance(model, str) else model, settings, exact=exact)
    reason = network.detector.outputs.why_no_precision
    if reason:
        raise ModelError(f"{network.name}: {reason}; python -m onnxq.compare needs no AP")
    return network, _category_ids(network, truth.categories)


def _records(
    image: int, found: NDArray[np.float32], categories: tuple[int, ...], network: Predictor
) -> list[dict[str, Any]]:
    unknown = set(found[:, 5].astype(int)) - set(range(len(categories)))
    if unknown:
        raise ModelError(f"{network.name}: finds class {min(unknown)}, but classes are 0 to {len(categories) - 1}")
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


def _category_ids(network: Predictor, categories: dict[int, str]) -> tuple[int, ...]:
    """The category id of each of the model's classes: by name where all names are categories, else by order."""
    ids = {name: number for number, name in categories.items()}
    names = network.detector.names
    if names and len(set(names)) == len(names) and set(names) <= set(ids):
        return tuple(ids[name] for name in names)
    if network.classes not in (None, len(categories)):
        raise ConfigError(
            f"{network.name}: has {network.classes} classes, but the annotations have {len(categories)} categories, "
            "and its names metadata does not name them"
        )
    return tuple(categories)


METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
"""COCO's averages: our name of each -> its heading, in the order in which pycocotools gives them."""


def average_precisions(truth: GroundTruth, detections: list[dict[str, Any]]) -> list[float]:
    """Score detections, given as COCO result records; percent, in the order of `METRICS`, nan where undefined."""
    found = build_index(truth.pictures, truth.categories, detections)
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth.coco, found, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [100.0 * float(value) if value >= 0 else math.nan for value in judge.stats[: len(METRICS)]]
