"""COCO's average precision, computed by pycocotools."""

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq import memory
from onnxq.evaluation.scoring.matching import Evaluation

METRICS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "APs", "ap_medium": "APm", "ap_large": "APl"}
"""COCO's averages in pycocotools' order: attribute of `Scores` -> COCO's name, an attribute of `ModelPrecision`."""

_CELLS: tuple[tuple[float | None, str], ...] = (
    (None, "all"),
    (0.5, "all"),
    (0.75, "all"),
    (None, "small"),
    (None, "medium"),
    (None, "large"),
)
"""Threshold of IoU and size of objects of each average; None: all thresholds."""


@dataclass(frozen=True)
class Rules:
    """What counts when detections are scored.

    Attributes:
        most: detections of a class per image that count, the best first.
        categories: ids of the categories that are measured; None: all.
        images: ids of the images that are measured; None: all.
        ignore_classes: a detection may be of any class.
    """

    most: int = 100
    categories: Sequence[int] | None = None
    images: Sequence[int] | None = None
    ignore_classes: bool = False


@dataclass(frozen=True)
class Matcher:
    """How detections are compared with objects; that of boxes.

    Attributes:
        kind: pycocotools' name: "bbox", "segm" or "keypoints".
        most: greatest number of detections of a class per image; None: as the rules say.
        evaluation: pycocotools' class, or one that computes IoU in another way.
        sigmas: deviations of keypoints; none for other kinds.
    """

    kind: str = "bbox"
    most: int | None = None
    evaluation: type[Any] = field(default=Evaluation)
    sigmas: tuple[float, ...] = ()


BOXES = Matcher()

_ARRAYS = 3
"""Arrays of a number for each threshold, recall, category and size: precisions, scores, and a selection of them."""


def averages(truth: Any, found: Any, rules: Rules, matcher: Matcher = BOXES) -> list[float]:
    """Score detections.

    Args:
        truth: pycocotools' index of the objects.
        found: pycocotools' index of the detections.
        rules: what counts.
        matcher: how detections are compared with objects.

    Returns:
        Percent, in the order of `METRICS`; nan if there is no object to find.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        scoring = matcher.evaluation(truth, found, matcher.kind)
        scoring.params.maxDets = [matcher.most or rules.most]
        scoring.params.useCats = int(not rules.ignore_classes)
        if rules.categories is not None:
            scoring.params.catIds = list(rules.categories)
        if not rules.ignore_classes:  # a category without objects has no precision, and takes as much memory
            owned = {entry["category_id"] for entry in truth.dataset["annotations"]}
            scoring.params.catIds = [number for number in scoring.params.catIds if number in owned]
        _require_memory(scoring.params)
        if rules.images is not None:
            scoring.params.imgIds = list(rules.images)
        if matcher.sigmas:
            scoring.params.kpt_oks_sigmas = np.array(matcher.sigmas)
        scoring.evaluate()
        scoring.accumulate()
    return [_average(scoring, threshold, size) for threshold, size in _CELLS]


def _require_memory(params: Any) -> None:
    """Refuse to score more categories than fit into memory.

    Raises:
        DataError: there are more.
    """
    categories = len(params.catIds) if params.useCats else 1
    cells = len(params.iouThrs) * len(params.recThrs) * categories * len(params.areaRng) * len(params.maxDets)
    what = f"AP of {categories} categories with objects"
    memory.require(_ARRAYS * np.dtype(np.float64).itemsize * cells, what, "leave out categories")


def _average(scoring: Any, threshold: float | None, size: str) -> float:
    """Return the mean of the precisions at one threshold, or at all, of objects of a size, as `COCOeval.summarize`."""
    if size not in scoring.params.areaRngLbl:
        return math.nan
    precision: NDArray[np.float64] = scoring.eval["precision"]
    if threshold is not None:
        precision = precision[np.where(threshold == scoring.params.iouThrs)[0]]
    cells = precision[:, :, :, [scoring.params.areaRngLbl.index(size)], [0]]
    known = cells[cells > -1]
    return 100.0 * float(np.mean(known)) if len(known) else math.nan
