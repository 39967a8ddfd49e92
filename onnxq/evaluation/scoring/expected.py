"""Expected average precision on images without labels: the detections of a float model are objects that may exist.

An object exists with the probability that is its score. Where it is, is uncertain too: its true box is drawn around the
mean of the boxes that non-maximum suppression merged. So a detection is right with a probability, and the average
precision of a model has an expected value. That of a quantized model is less noisy than its AP on labels, because
thousands of faint and of shifted objects count, each by a little, instead of a few that are just found or just missed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxq.evaluation.agreement import match
from onnxq.evaluation.predictor import Found
from onnxq.yolo.boxes import box_iou
from onnxq.yolo.decode import decode, find_objects
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector
from onnxq.yolo.output_layout import UNKNOWN, OutputLayout
from onnxq.yolo.preprocess import Letterbox

LEAST_PROBABILITY = 0.02
"""Detections of the float model with a score above this are objects."""

_LEAST_SCORE = 0.001
"""Detections with a score above this are judged, as for AP."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds of IoU."""

_RECALLS = np.linspace(0, 1, 101)
"""Where COCO interpolates precision."""

_ROUNDING = 1e-9
"""A recall that falls short of one of `_RECALLS` by less than this reaches it."""

_DRAWS = 512
"""Boxes that are drawn for each object, in pairs of opposite deviations."""

_DEVIATION = 0.06
"""Standard deviation of the sides of a true box, in sizes of the box, for the median object."""

_SPREAD = 0.8
"""Standard deviation of the logarithm of that deviation among objects.

With both, a box in the middle of its draws has an IoU above 0.5 with 96 % of them, and of these 97, 94, 88, 81, 73, 64,
50, 32 and 9 % are above 0.55, 0.6, ... 0.95. Of detections of YOLOv5n and YOLOX-Nano with their annotations in COCO,
98, 95, 90, 84, 76, 65, 50, 30 and 9 % are.
"""


class Judged(NamedTuple):
    """The detections of a model on an image, best first.

    Attributes:
        scores: float32 (n,).
        labels: intp (n,), class of each.
        right: float64 (n, 10), probability that each is right at each threshold of IoU.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.intp]
    right: NDArray[np.float64]


@dataclass(frozen=True)
class UncertainObjects:
    """The objects that may be on an image, by a float model.

    Attributes:
        objects: the objects, in px of the image; a score is the probability that the object exists.
        detector: how outputs are decoded.
        iou: NMS threshold.
        letterbox: placement of the image on the model's input.
        size: (height, width) of the image in px.
    """

    objects: Detections
    detector: Detector
    iou: float
    letterbox: Letterbox
    size: tuple[int, int]

    @classmethod
    def of(
        cls, outputs: Outputs, detector: Detector, iou: float, letterbox: Letterbox, size: tuple[int, int]
    ) -> "UncertainObjects":
        """Return the objects in the outputs of a float model for an image, the first of its batch.

        Args:
            outputs: the outputs that the layout reads.
            detector, iou, letterbox, size: as in the attributes; `why_not` has no reason against the detector.

        Raises:
            ModelError: the outputs do not fit the layout.
        """
        kept = find_objects(outputs, detector, _LEAST_SCORE, iou)
        kept = kept.take(np.flatnonzero(kept.scores > LEAST_PROBABILITY))
        if not detector.outputs.is_finished:
            kept = _merged(kept, decode(outputs, detector, _LEAST_SCORE), iou)
        return cls(Found(kept, letterbox, size).inside(), detector, iou, letterbox, size)

    def judge(self, outputs: Outputs) -> Judged:
        """Return the detections in the outputs of a model for the same image, each with the probability to be right.

        Raises:
            ModelError: the outputs do not fit the layout.
        """
        found = find_objects(outputs, self.detector, _LEAST_SCORE, self.iou)
        found = Found(found, self.letterbox, self.size).inside()
        return Judged(found.scores, found.labels, _right(found, self.objects))


def why_not(layout: OutputLayout) -> str:
    """Return why models with these outputs cannot be judged; empty if they can."""
    if layout.family == UNKNOWN:
        return "its outputs are not read, so it has no objects to agree on"
    if not layout.has_boxes:
        return f"its task is {layout.task}, so it has no boxes to agree on"
    if layout.task == "obb":
        return "its boxes are rotated, and how far those of annotations deviate from such boxes is not known"
    return ""


def expected_precision(images: Sequence[UncertainObjects], judged: Sequence[Judged]) -> float:
    """Return the expected average precision of a model.

    It is COCO's, over all thresholds, with expected numbers of right detections. Each class counts with the probability
    that it occurs at all. The order of the images does not matter.

    Args:
        images: the objects on each image.
        judged: the model's detections on each.

    Returns:
        Percent; nan if there is no object.
    """
    labels = np.concatenate([np.zeros(0, np.intp), *(each.objects.labels for each in images)])
    probabilities = np.concatenate([np.zeros(0), *(each.objects.scores for each in images)])
    found = Judged(*(np.concatenate(parts) for parts in zip(*judged, strict=True)))
    weighted, weights = [], []
    for label in np.unique(labels):
        count = float(probabilities[labels == label].sum())
        rows = found.labels == label
        weights.append(-math.expm1(-count))
        weighted.append(weights[-1] * _class_precision(found.scores[rows], found.right[rows], count))
    return 100 * sum(weighted) / sum(weights) if weights else math.nan


def _merged(kept: Detections, candidates: Detections, iou: float) -> Detections:
    """Return detections with the mean, weighted by score, of all boxes that NMS merged into each."""
    boxes = kept.boxes.copy()
    for label in np.unique(kept.labels):
        rows = np.flatnonzero(kept.labels == label)
        others = candidates.take(np.flatnonzero(candidates.labels == label))
        weights = np.where(box_iou(boxes[rows], others.boxes) > iou, others.scores, 0).astype(np.float64)
        totals = weights.sum(axis=1)
        sized = totals > 0  # a box without area overlaps nothing, not even itself
        boxes[rows[sized]] = (weights[sized] @ others.boxes) / totals[sized, None]
    return Detections(boxes, kept.scores, kept.labels, kept.extras)


def _right(found: Detections, objects: Detections) -> NDArray[np.float64]:
    """Return the probability that each detection is right, float64 (detections, thresholds)."""
    rows, matched, _ = match(found, objects)
    boxes = objects.boxes[matched].astype(np.float64)
    sizes = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    truths = boxes[:, None] + sizes[:, None] * _deviations()
    is_near = _overlaps(found.boxes[rows].astype(np.float64), truths)[:, None] >= _THRESHOLDS[:, None]
    right = np.zeros((len(found), len(_THRESHOLDS)))
    right[rows] = objects.scores[matched, None] * is_near.mean(axis=2)
    return right


@cache
def _deviations() -> NDArray[np.float64]:
    """Return how far the sides of true boxes are from those of an object, float64 (draws, 4), in sizes of its box."""
    rng = np.random.Generator(np.random.PCG64(0))
    half = rng.normal(size=(_DRAWS // 2, 4)) * _DEVIATION
    half *= np.exp(_SPREAD * rng.normal(size=(_DRAWS // 2, 1)))
    return np.concatenate([half, -half])


def _overlaps(boxes: NDArray[np.float64], truths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the IoU of boxes (n, 4) with n times the same number of others (n, others, 4), float64 (n, others)."""
    left, top, right, bottom = boxes.T[..., None]
    x1, y1, x2, y2 = np.moveaxis(truths, 2, 0)
    common = (np.minimum(right, x2) - np.maximum(left, x1)).clip(0)
    common *= (np.minimum(bottom, y2) - np.maximum(top, y1)).clip(0)
    areas = (right - left) * (bottom - top) + (x2 - x1).clip(0) * (y2 - y1).clip(0)
    return np.asarray(common / np.maximum(areas - common, np.finfo(np.float64).tiny))


def _class_precision(scores: NDArray[np.float32], right: NDArray[np.float64], count: float) -> float:
    """Return the expected average precision of a class, 0 to 1.

    Args:
        scores: float32 (n,).
        right: float64 (n, thresholds), probability that each detection is right.
        count: expected number of objects.
    """
    order = np.argsort(-scores, kind="stable")
    # No score limit parts detections of one score, so they count together. Scores are float32 and shares are 512ths, so
    # float64 adds them without rounding, in any order.
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    hits = np.cumsum(right[order], axis=0)[ends]
    precision = np.maximum.accumulate((hits / (ends + 1)[:, None])[::-1])[::-1]
    total = 0.0
    for column in range(len(_THRESHOLDS)):
        first = np.searchsorted(hits[:, column] / count + _ROUNDING, _RECALLS)
        total += float(precision[first[first < len(ends)], column].sum())
    return total / (len(_THRESHOLDS) * len(_RECALLS))
