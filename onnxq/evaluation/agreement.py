"""How well two models agree on what is in a picture: the objects of the first found again by the second."""

import math
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.boxes import box_iou, rotated_iou
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector

LEAST_IOU = 0.5
"""Boxes of a class that overlap so much are one object."""

SEEN = 0.5
"""Least visibility of a keypoint that is compared."""

_SPREAD = 2 * 0.067
"""Of object keypoint similarity: twice the mean of COCO's 17 standard deviations, as shares of an object's size."""


@dataclass(frozen=True)
class Agreement:
    """Sums over pictures; those of several are added up by `+`.

    Attributes:
        pictures: how many.
        wanted: objects that the first model finds.
        found: of these, those that the second one finds too.
        new: objects that only the second one finds.
        iou: intersection over union, summed over the found.
        scores: absolute difference of scores, summed over the found.
        masks: intersection over union of masks, summed over the found.
        posed: found poses of which a keypoint is seen.
        distances: mean distance of the seen keypoints in units of the square root of the box's area, summed over posed.
        similarity: COCO's object keypoint similarity with one spread for all keypoints, summed over posed.
        first: pictures whose likeliest class is the same for both.
        among_five: pictures whose likeliest class for the first model is among the five likeliest of the second.
    """

    pictures: int = 0
    wanted: int = 0
    found: int = 0
    new: int = 0
    iou: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    posed: int = 0
    distances: float = 0.0
    similarity: float = 0.0
    first: int = 0
    among_five: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def numbers(self, task: str) -> dict[str, float]:
        """What is told of models of a task, shares and means; nan where there is nothing to average."""
        if task == "classify":
            return {"top1": _mean(self.first, self.pictures), "top5": _mean(self.among_five, self.pictures)}
        numbers = {
            "objects": self.wanted,
            "found_again": _mean(self.found, self.wanted),
            "iou": _mean(self.iou, self.found),
            "score_difference": _mean(self.scores, self.found),
            "new": self.new,
        }
        if task == "segment":
            numbers["mask_iou"] = _mean(self.masks, self.found)
        if task == "pose":
            numbers["keypoint_distance"] = _mean(self.distances, self.posed)
            numbers["keypoint_similarity"] = _mean(self.similarity, self.posed)
        return numbers


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


def agree(expected: Outputs, actual: Outputs, detector: Detector, confidence: float, iou: float) -> Agreement:
    """How well the second model agrees on one picture, the first of its batch.

    Args:
        expected: outputs of the first model.
        actual: of the second one.
        detector: how to read both; its family is known.
        confidence: what has a score above this is an object, for both.
        iou: of two boxes of a class and model that overlap more, the one of lower score goes.

    Raises:
        ModelError: the outputs cannot be read so.
    """
    if not detector.outputs.has_boxes:
        [name] = detector.outputs.outputs
        return _agree_on_class(np.asarray(expected[name])[0], np.asarray(actual[name])[0])
    wanted, found = (find_objects(outputs, detector, confidence, iou) for outputs in (expected, actual))
    rows, others, overlaps = match(wanted, found, detector.outputs.task == "obb")
    a, b = wanted.take(rows), found.take(others)
    agreed = Agreement(
        pictures=1,
        wanted=len(wanted),
        found=len(rows),
        new=len(found) - len(rows),
        iou=float(overlaps.sum()),
        scores=float(np.abs(a.scores - b.scores).sum(dtype=np.float64)),
    )
    if detector.outputs.task == "segment":
        mine, theirs = (
            masks(objects, np.asarray(outputs[detector.outputs.prototypes])[0], detector.size)
            for objects, outputs in ((a, expected), (b, actual))
        )
        agreed += Agreement(masks=float(_mask_iou(mine, theirs).sum()))
    if detector.outputs.task == "pose":
        agreed += _agree_on_poses(a, b, detector.outputs.keypoints)
    return agreed


def _agree_on_class(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Agreement:
    best = int(np.argmax(expected))
    order = np.argsort(-actual.astype(np.float32), kind="stable")[:5]
    return Agreement(pictures=1, first=int(order[0] == best), among_five=int(best in order))


def match(
    wanted: Detections, found: Detections, rotated: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Pair objects with the boxes of their class that cover them best, each with one at most, from the best score on.

    Args:
        wanted: best first.
        found: in any order.
        rotated: boxes are rotated by the first of their extras.

    Returns:
        Rows of the wanted, rows of the found, and their intersection over union, float64; all of one length.
    """
    overlaps = rotated_iou(wanted.rotated(), found.rotated()) if rotated else box_iou(wanted.boxes, found.boxes)
    overlaps = np.where(wanted.labels[:, None] == found.labels, overlaps, 0.0)
    pairs = []
    for row in range(len(wanted)):
        other = int(overlaps[row].argmax()) if len(found) else 0
        if len(found) and overlaps[row, other] >= LEAST_IOU:
            pairs.append((row, other, float(overlaps[row, other])))
            overlaps[:, other] = 0
    rows, others, shares = zip(*pairs, strict=True) if pairs else ((), (), ())
    return np.array(rows, np.intp), np.array(others, np.intp), np.array(shares, np.float64)


def masks(objects: Detections, prototypes: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks of objects at the size of the prototypes, cut off at the box.

    Args:
        objects: with coefficients in front of their extras.
        prototypes: float (coefficients, rows, columns).
        size: of the model's input, (height, width) in px.

    Returns:
        bool (objects, rows, columns).
    """
    rows, columns = prototypes.shape[1:]
    left, top, right, bottom = (objects.boxes * np.tile([columns / size[1], rows / size[0]], 2)).T[..., None]
    across, down = np.arange(columns), np.arange(rows)
    inside = ((down >= top) & (down < bottom))[:, :, None] & ((across >= left) & (across < right))[:, None]
    return np.asarray((objects.mask_logits(prototypes) > 0) & inside)


def _mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of masks (n, rows, columns) pair by pair; two empty ones are alike."""
    common, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)


def _agree_on_poses(a: Detections, b: Detections, keypoints: tuple[int, int]) -> Agreement:
    count, numbers = keypoints
    poses = (objects.extras[:, : count * numbers].reshape(-1, count, numbers) for objects in (a, b))
    mine, theirs = (pose.astype(np.float64) for pose in poses)
    seen = mine[:, :, 2] > SEEN if numbers == 3 else np.ones(mine.shape[:2], bool)
    sizes = np.sqrt(np.maximum((a.boxes[:, 2:] - a.boxes[:, :2]).prod(axis=1, dtype=np.float64), 1.0))
    distances = np.hypot(*np.moveaxis(mine[:, :, :2] - theirs[:, :, :2], 2, 0)) / sizes[:, None]
    similarity = np.exp(-np.square(distances / _SPREAD) / 2)
    posed = seen.any(axis=1)
    shares = seen[posed] / seen[posed].sum(axis=1, keepdims=True)
    return Agreement(
        posed=int(posed.sum()),
        distances=float((distances[posed] * shares).sum()),
        similarity=float((similarity[posed] * shares).sum()),
    )
