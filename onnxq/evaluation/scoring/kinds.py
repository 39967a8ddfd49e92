"""What of detections is scored: boxes, and by the task masks, keypoints or rotated boxes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as run_lengths

from onnxq.errors import DataError
from onnxq.evaluation.annotations.records import Size
from onnxq.evaluation.ground_truth import GroundTruth, build_index
from onnxq.evaluation.predictor import Found
from onnxq.evaluation.scoring.averages import BOXES, Matcher
from onnxq.evaluation.scoring.masks import mask_of, masks_of
from onnxq.evaluation.scoring.quads import RotatedEvaluation, quad_area, quad_of, turned
from onnxq.yolo.boxes import corners_of_rotated
from onnxq.yolo.detector import Detector

_COCO_SIGMAS = tuple(
    each / 100
    for each in (2.6, 2.5, 2.5, 3.5, 3.5, 7.9, 7.9, 7.2, 7.2, 6.2, 6.2, 10.7, 10.7, 8.7, 8.7, 8.9, 8.9)
)  # fmt: skip
"""Standard deviations of COCO's 17 keypoints of persons, in sizes of the object."""

_SHARE_OF_BOX = 0.53
"""Area of a person as a share of its box, where the area is not annotated."""

_POSES = 20
"""Poses per image that COCO counts."""


@dataclass(frozen=True)
class Kind:
    """Something of detections that is scored.

    Attributes:
        name: in words, plural.
        key: key of it in records.
        matcher: how it is compared.
        truth: pycocotools' index of the objects.
        remark: what to know of the objects; empty if nothing.
    """

    name: str
    key: str
    matcher: Matcher
    truth: Any
    remark: str = ""

    def index(self, truth: GroundTruth, records: Sequence[dict[str, Any]]) -> Any:
        """Return pycocotools' index of detections, with the areas of this kind; the records get ids."""
        own = [{**record, "area": record[f"{self.key}_area"]} for record in records] if self.key else list(records)
        return build_index(truth.images, truth.categories, own, _sizes(truth), own=True)


def kinds_of(detector: Detector, truth: GroundTruth) -> list[Kind]:
    """Return what can be scored of a detector, the main kind first.

    Raises:
        DataError: the detector's boxes are rotated and the annotations' are not.
    """
    task = detector.outputs.task
    if task == "obb":
        return [_rotated(truth)]
    kinds = [Kind("boxes", "", BOXES, truth.coco)]
    if task == "segment":
        kinds += _masks(truth)
    if task == "pose":
        kinds += _keypoints(truth, detector.outputs.keypoints[0])
    return kinds


def _objects(truth: GroundTruth) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = truth.coco.dataset["annotations"]
    return found


def _sizes(truth: GroundTruth) -> dict[int, Size]:
    listed = truth.coco.dataset["images"]
    return {entry["id"]: (entry["height"], entry["width"]) for entry in listed if "width" in entry}


def _rotated(truth: GroundTruth) -> Kind:
    objects = _objects(truth)
    quads = [quad_of(entry) for entry in objects]
    upright = sum(quad is None for quad in quads)
    if objects and upright == len(objects):
        raise DataError(
            "its boxes are rotated, and those of the annotations are not: give the four corners of each in "
            "`segmentation`, or data.yaml with labels of class and four corners"
        )
    made = [
        {**entry, "quad": quad if quad is not None else turned(entry["bbox"], 0.0)}
        for entry, quad in zip(objects, quads, strict=True)
    ]
    remark = f"{upright} of {len(objects)} objects have an upright box only" if upright else ""
    index = build_index(truth.images, truth.categories, made)
    return Kind("rotated boxes", "quad", Matcher(evaluation=RotatedEvaluation), index, remark)


def _masks(truth: GroundTruth) -> list[Kind]:
    sizes = _sizes(truth)
    objects = _objects(truth)
    with_outline = sum(bool(entry.get("segmentation")) for entry in objects)
    if not with_outline or any(entry["image_id"] not in sizes for entry in objects):
        return []
    made = [{**entry, "segmentation": mask_of(entry, sizes[entry["image_id"]])} for entry in objects]
    without = len(objects) - with_outline
    remark = f"{without} of {len(objects)} objects have no outline, and their mask is their box" if without else ""
    index = build_index(truth.images, truth.categories, made, sizes)
    return [Kind("masks", "segmentation", Matcher("segm"), index, remark)]


def _keypoints(truth: GroundTruth, count: int) -> list[Kind]:
    objects = _objects(truth)
    numbers = {len(entry["keypoints"]) // 3 for entry in objects if "keypoints" in entry}
    if numbers != {count}:
        return []
    made = []
    for entry in objects:
        points = entry.get("keypoints", [0.0] * 3 * count)
        of_box = entry["bbox"][2] * entry["bbox"][3]
        area = entry["area"] if entry["area"] != of_box else _SHARE_OF_BOX * of_box
        visible = sum(value > 0 for value in points[2::3])
        made.append({**entry, "keypoints": points, "num_keypoints": visible, "area": area})
    sigmas = _COCO_SIGMAS if count == len(_COCO_SIGMAS) else (1 / count,) * count
    index = build_index(truth.images, truth.categories, made)
    return [Kind("keypoints", "keypoints", Matcher("keypoints", _POSES, sigmas=sigmas), index)]


def records(
    image: int, found: Found, categories: Sequence[int | None], detector: Detector, kinds: Sequence[Kind]
) -> list[dict[str, Any]]:
    """Return the detections on an image as records of COCO, with what the kinds need.

    Args:
        image: id of the image.
        found: the detections; their classes are below the number of categories.
        categories: category id of each class; None: its detections are left out.
        detector: how the model's outputs are read.
        kinds: what is scored.
    """
    rows = np.array([row for row, label in enumerate(found.objects.labels) if categories[label] is not None], np.intp)
    chosen = Found(found.objects.take(rows), found.letterbox, found.size, found.prototypes)
    made = [
        {
            "image_id": image,
            "category_id": categories[int(label)],
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "score": score,
            "iscrowd": 0,
        }
        for left, top, right, bottom, score, label in chosen.table().astype(float).tolist()
    ]
    for kind in kinds:
        for record, more in zip(made, _more(kind.key, chosen, detector), strict=False):
            record.update(more)
    return made


def _more(key: str, found: Found, detector: Detector) -> list[Mapping[str, Any]]:
    """Return what a kind adds to the record of each detection."""
    objects = found.objects
    if key == "quad":
        corners = corners_of_rotated(objects.rotated()).astype(np.float32)
        quads = found.letterbox.undo(corners.reshape(-1, 4)).reshape(-1, 4, 2).astype(float)
        return [{"quad": quad, "quad_area": quad_area(quad)} for quad in quads]
    if key == "segmentation" and found.prototypes is not None:
        masks = masks_of(objects, found.prototypes, found.letterbox, detector.size, found.size)
        return [{"segmentation": mask, "segmentation_area": float(run_lengths.area(mask))} for mask in masks]
    if key == "keypoints":
        count, each = detector.outputs.keypoints
        points = objects.extras[:, : count * each].reshape(-1, count, each)[:, :, :2]
        placed = found.letterbox.undo(np.tile(points.reshape(-1, 2), 2))[:, :2]
        poses = np.concatenate([placed, np.ones((len(placed), 1), np.float32)], axis=1).reshape(-1, 3 * count)
        return [
            {"keypoints": pose, "keypoints_area": float(np.ptp(pose[0::3]) * np.ptp(pose[1::3]))}
            for pose in poses.astype(float)
        ]
    return []
