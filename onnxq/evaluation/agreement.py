"""Agreement of two models on an image: which objects of the first model the second one finds again."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.yolo.boxes import box_iou, rotated_iou
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector

LEAST_IOU = 0.5
"""Boxes of one class with at least this IoU are one object."""

VISIBLE = 0.5
"""Keypoints of the first model with a greater visibility are compared."""

_SPREAD = 2 * 0.067
"""Spread of object keypoint similarity: twice the mean of COCO's 17 standard deviations, in sizes of the object."""


@dataclass(frozen=True)
class Agreement:
    """Sums over images; `+` adds those of several images.

    Attributes:
        images: number of images.
        expected: objects of the first model.
        matched: objects of the first model that the second one finds too.
        new: objects that only the second model finds.
        iou: IoU of boxes, summed over the matched objects.
        scores: absolute difference of scores, summed over the matched objects.
        masks: IoU of masks, summed over the matched objects.
        posed: matched objects with a visible keypoint.
        distances: mean distance of the visible keypoints in units of the square root of the box's area, summed over the
            posed objects.
        similarity: COCO's object keypoint similarity with one spread for all keypoints, summed over the posed objects.
        top1: images with the same top-1 class.
        top5: images whose top-1 class of the first model is in the top 5 of the second.
    """

    images: int = 0
    expected: int = 0
    matched: int = 0
    new: int = 0
    iou: float = 0.0
    scores: float = 0.0
    masks: float = 0.0
    posed: int = 0
    distances: float = 0.0
    similarity: float = 0.0
    top1: int = 0
    top5: int = 0

    def __add__(self, other: "Agreement") -> "Agreement":
        return Agreement(
            images=self.images + other.images,
            expected=self.expected + other.expected,
            matched=self.matched + other.matched,
            new=self.new + other.new,
            iou=self.iou + other.iou,
            scores=self.scores + other.scores,
            masks=self.masks + other.masks,
            posed=self.posed + other.posed,
            distances=self.distances + other.distances,
            similarity=self.similarity + other.similarity,
            top1=self.top1 + other.top1,
            top5=self.top5 + other.top5,
        )

    def numbers(self, task: str) -> dict[str, float]:
        """Return the counts, shares and means for models of a task; nan if there is nothing to average."""
        if task == "classify":
            return {"top1": _mean(self.top1, self.images), "top5": _mean(self.top5, self.images)}
        numbers = {
            "objects": self.expected,
            "found_again": _mean(self.matched, self.expected),
            "iou": _mean(self.iou, self.matched),
            "score_difference": _mean(self.scores, self.matched),
            "new": self.new,
        }
        if task == "segment":
            numbers["mask_iou"] = _mean(self.masks, self.matched)
        if task == "pose":
            numbers["keypoint_distance"] = _mean(self.distances, self.posed)
            numbers["keypoint_similarity"] = _mean(self.similarity, self.posed)
        return numbers


def _mean(total: float, count: int) -> float:
    return total / count if count else math.nan


def agree(expected: Outputs, actual: Outputs, detector: Detector, confidence: float, iou: float) -> Agreement:
    """Compare two models on one image, the first of its batch.

    Args:
        expected: outputs of the first model.
        actual: outputs of the second model.
        detector: how to decode both; its family is known.
        confidence: objects have a score above this.
        iou: NMS threshold for both models.

    Raises:
        ModelError: the outputs cannot be decoded this way.
    """
    if not detector.outputs.has_boxes:
        [name] = detector.outputs.outputs
        return _agree_on_class(np.asarray(expected[name])[0], np.asarray(actual[name])[0])
    first, second = (find_objects(outputs, detector, confidence, iou) for outputs in (expected, actual))
    rows, others, overlaps = match(first, second, detector.outputs.task == "obb")
    a, b = first.take(rows), second.take(others)
    agreement = Agreement(
        images=1,
        expected=len(first),
        matched=len(rows),
        new=len(second) - len(rows),
        iou=float(overlaps.sum()),
        scores=float(np.abs(a.scores - b.scores).sum(dtype=np.float64)),
    )
    if detector.outputs.task == "segment":
        first_masks, second_masks = (
            masks(objects, np.asarray(outputs[detector.outputs.prototypes])[0], detector.size)
            for objects, outputs in ((a, expected), (b, actual))
        )
        agreement += Agreement(masks=float(_mask_iou(first_masks, second_masks).sum()))
    if detector.outputs.task == "pose":
        agreement += _agree_on_poses(a, b, detector.outputs.keypoints)
    return agreement


def _agree_on_class(expected: NDArray[np.generic], actual: NDArray[np.generic]) -> Agreement:
    best = int(np.argmax(expected))
    order = np.argsort(-actual.astype(np.float32), kind="stable")[:5]
    return Agreement(images=1, top1=int(order[0] == best), top5=int(best in order))


def match(
    expected: Detections, actual: Detections, rotated: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Match each expected object, by falling score, with the free actual object of its class that has the greatest IoU.

    Args:
        expected: objects by falling score.
        actual: objects in any order.
        rotated: whether boxes are rotated; the angle is the first of the extras.

    Returns:
        Rows of `expected`, the matching rows of `actual`, and their IoU, float64; all of one length.
    """
    overlaps = rotated_iou(expected.rotated(), actual.rotated()) if rotated else box_iou(expected.boxes, actual.boxes)
    overlaps = np.where(expected.labels[:, None] == actual.labels, overlaps, 0.0)
    rows: list[int] = []
    others: list[int] = []
    matched: list[float] = []
    for row in range(len(expected) if len(actual) else 0):
        other = int(overlaps[row].argmax())
        if overlaps[row, other] >= LEAST_IOU:
            rows.append(row)
            others.append(other)
            matched.append(float(overlaps[row, other]))
            overlaps[:, other] = 0
    return np.array(rows, np.intp), np.array(others, np.intp), np.array(matched, np.float64)


def masks(objects: Detections, prototypes: NDArray[np.generic], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the masks of objects at the size of the prototypes, cropped to the boxes.

    Args:
        objects: objects whose extras begin with the mask coefficients.
        prototypes: float (coefficients, rows, columns).
        size: size of the model's input, (height, width) in px.

    Returns:
        bool (objects, rows, columns).
    """
    rows, columns = prototypes.shape[1:]
    left, top, right, bottom = (objects.boxes * np.tile([columns / size[1], rows / size[0]], 2)).T[..., None]
    across, down = np.arange(columns), np.arange(rows)
    inside = ((down >= top) & (down < bottom))[:, :, None] & ((across >= left) & (across < right))[:, None]
    return np.asarray((objects.mask_logits(prototypes) > 0) & inside)


def _mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the IoU of masks (n, rows, columns), pair by pair; that of two empty masks is 1."""
    common, either = (a & b).sum(axis=(1, 2)), (a | b).sum(axis=(1, 2))
    return np.where(either > 0, common / np.maximum(either, 1), 1.0)


def _agree_on_poses(a: Detections, b: Detections, keypoints: tuple[int, int]) -> Agreement:
    count, numbers = keypoints
    poses = (objects.extras[:, : count * numbers].reshape(-1, count, numbers) for objects in (a, b))
    first, second = (pose.astype(np.float64) for pose in poses)
    visible = first[:, :, 2] > VISIBLE if numbers == 3 else np.ones(first.shape[:2], bool)
    sizes = np.sqrt(np.maximum((a.boxes[:, 2:] - a.boxes[:, :2]).prod(axis=1, dtype=np.float64), 1.0))
    distances = np.hypot(*np.moveaxis(first[:, :, :2] - second[:, :, :2], 2, 0)) / sizes[:, None]
    similarity = np.exp(-np.square(distances / _SPREAD) / 2)
    posed = visible.any(axis=1)
    shares = visible[posed] / visible[posed].sum(axis=1, keepdims=True)
    return Agreement(
        posed=int(posed.sum()),
        distances=float((distances[posed] * shares).sum()),
        similarity=float((similarity[posed] * shares).sum()),
    )
