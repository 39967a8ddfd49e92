"""Detections: the objects on one image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[np.generic]]
"""Outputs of one run of a model, by name."""


@dataclass(frozen=True)
class Detections:
    """Objects on one image.

    Attributes:
        boxes: float32 (n, 4), left, top, right, bottom in px of the model's input; of rotated boxes before rotation.
        scores: float32 (n,).
        labels: intp (n,), class of each.
        extras: float32 (n, columns), by the task: coefficients of the mask, keypoints, or the angle in radians; may
            have no columns.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]
    extras: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: NDArray[np.intp]) -> "Detections":
        """Return the detections of these rows, in this order."""
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], self.extras[rows])

    def rotated(self) -> NDArray[np.float32]:
        """Return the boxes with their angles, float32 (n, 5)."""
        return np.concatenate([self.boxes, self.extras[:, :1]], axis=1)

    def mask_logits(self, prototypes: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return prototypes times coefficients (YOLACT, Bolya et al. 2019).

        The mask of an object is where this is above 0, within its box.

        Args:
            prototypes: float (coefficients, rows, columns), covering the whole input.

        Returns:
            float32 (n, rows, columns).
        """
        count, rows, columns = prototypes.shape
        sums = self.extras[:, :count] @ prototypes.astype(np.float32, copy=False).reshape(count, -1)
        return sums.reshape(-1, rows, columns)


def to_corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return boxes of centre x, y, width, height as left, top, right, bottom; float32 (n, 4) both."""
    centres, halves = boxes[:, 0:2], boxes[:, 2:4] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def with_corners(found: Detections) -> Detections:
    """Return the detections with boxes of centre x, y, width, height turned into corners."""
    return Detections(to_corners(found.boxes), found.scores, found.labels, found.extras)


def without_extras(boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.intp]) -> Detections:
    """Return detections with boxes, scores and classes only."""
    return Detections(boxes, scores, labels, np.zeros((len(scores), 0), np.float32))
