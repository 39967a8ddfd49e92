"""Matching of detections with objects by COCO's rules, fast for images with thousands of objects."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

_MANY = 50
"""Objects of a class on an image from which on arrays are faster than pycocotools' loops."""

_LEAST_BELOW_1 = 1 - 1e-10
"""A threshold of 1 asks for no more than this, because IoU is rounded."""


class Evaluation(COCOeval):  # type: ignore[misc]
    """pycocotools' evaluation, whose time does not explode with the number of objects."""

    def evaluateImg(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:
        """Return of the matches on an image, thresholds x detections, what `accumulate` reads, in little memory."""
        found = self._matches(imgId, catId, aRng, maxDet)
        return None if found is None else {
            "dtScores": np.array(found["dtScores"], np.float64),
            "dtMatches": np.asarray(found["dtMatches"], bool),
            "dtIgnore": np.asarray(found["dtIgnore"], bool),
            "gtIgnore": np.asarray(found["gtIgnore"], bool),
        }  # fmt: skip

    def _matches(self, imgId: int, catId: int, aRng: list[float], maxDet: int) -> dict[str, Any] | None:
        """Return the matches on an image, as pycocotools gives them: thresholds x detections and x objects."""
        categories = [catId] if self.params.useCats else self.params.catIds
        objects = [entry for category in categories for entry in self._gts[imgId, category]]
        if len(objects) < _MANY:
            result: dict[str, Any] | None = super().evaluateImg(imgId, catId, aRng, maxDet)
            return result
        found = [entry for category in categories for entry in self._dts[imgId, category]]
        ignored = np.array([bool(o["ignore"]) or not aRng[0] <= o["area"] <= aRng[1] for o in objects])
        order = np.argsort(ignored, kind="mergesort")
        objects, ignored = [objects[row] for row in order], ignored[order]
        best = np.argsort([-entry["score"] for entry in found], kind="mergesort")[:maxDet]
        found = [found[row] for row in best]
        thresholds = np.minimum(self.params.iouThrs, _LEAST_BELOW_1)
        object_of = np.full((len(thresholds), len(found)), -1)
        detection_of = np.full((len(thresholds), len(objects)), -1)
        if found:
            overlaps = np.asarray(self.ious[imgId, catId])[: len(found), order]
            crowds = np.array([bool(entry["iscrowd"]) for entry in objects])
            object_of, detection_of = matched(overlaps, thresholds, ignored, crowds)
        object_ids, ids = (np.array([entry["id"] for entry in entries]) for entries in (objects, found))
        matches = np.where(object_of >= 0, object_ids[object_of], 0)
        outside = np.array([not aRng[0] <= entry["area"] <= aRng[1] for entry in found], bool)
        return {
            "image_id": imgId,
            "category_id": catId,
            "aRng": aRng,
            "maxDet": maxDet,
            "dtIds": ids.tolist(),
            "gtIds": object_ids.tolist(),
            "dtMatches": matches.astype(np.float64),
            "gtMatches": np.where(detection_of >= 0, ids[detection_of] if found else 0, 0).astype(np.float64),
            "dtScores": [entry["score"] for entry in found],
            "gtIgnore": ignored.astype(np.int64),
            "dtIgnore": np.where(object_of >= 0, ignored[object_of], outside),
        }


def matched(
    overlaps: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    ignored: NDArray[np.bool_],
    crowds: NDArray[np.bool_],
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Match each detection with the free object that it overlaps most; one that counts comes before an ignored one.

    Args:
        overlaps: IoU of each detection, by falling score, with each object, (detections, objects).
        thresholds: least IoU, (thresholds,).
        ignored: objects that do not count, (objects,), the last ones.
        crowds: objects that any number of detections match, (objects,).

    Returns:
        The object of each detection, (thresholds, detections), and the last detection of each object, (thresholds,
        objects); -1 for none.
    """
    object_of = np.full((len(thresholds), len(overlaps)), -1)
    detection_of = np.full((len(thresholds), len(ignored)), -1)
    counted = int(np.count_nonzero(~ignored))
    near = overlaps >= thresholds.min()
    for detection in np.flatnonzero(near.any(axis=1)):
        objects = np.flatnonzero(near[detection])
        values = overlaps[detection, objects]
        free = (detection_of[:, objects] < 0) | crowds[objects]
        usable = np.where(free & (values >= thresholds[:, None]), values, -1.0)
        split = int(np.searchsorted(objects, counted))
        for part in (slice(split, None), slice(0, split)):
            if usable[:, part].shape[1]:
                last = usable[:, part].shape[1] - 1 - usable[:, part][:, ::-1].argmax(axis=1)
                rows = np.flatnonzero(usable[:, part].max(axis=1) >= 0)
                object_of[rows, detection] = objects[part][last[rows]]
        rows = np.flatnonzero(object_of[:, detection] >= 0)
        detection_of[rows, object_of[rows, detection]] = detection
    return object_of, detection_of
