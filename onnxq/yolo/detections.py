"""Detections on one image."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Outputs = Mapping[str, NDArray[np.generic]]
"""A model's outputs by name, of one run."""


@dataclass(frozen=True)
class Detections:
    """Objects on one picture.

    Attributes:
        boxes: float32 (n, 4), left, top, right, bottom, px of the model's input; of a rotated box before its rotation.
        scores: float32 (n,).
        labels: intp (n,), the class of each.
        extras: float32 (n, columns): by the task the coefficients of its mask, its keypoints or its angle; may have
            no columns.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]
    extras: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: NDArray[np.intp]) -> "Detections":
        """Some of them, in this order."""
        return Detections(self.boxes[rows], self.scores[rows], self.labels[rows], self.extras[rows])

    def rotated(self) -> NDArray[np.float32]:
        """The boxes with their angles, float32 (n, 5)."""
        return np.concatenate([self.boxes, self.extras[:, :1]], axis=1)

    def mask_logits(self, prototypes: NDArray[np.generic]) -> NDArray[np.float32]:
        """Prototypes times coefficients (YOLACT, Bolya et al. 2019): an object is where this is above 0, in its box.

        Args:
            prototypes: float (coefficients, rows, columns), together as large as the model's input.

        Returns:
            float32 (n, rows, columns).
        """
        count, rows, columns = prototypes.shape
        sums = self.extras[:, :count] @ prototypes.astype(np.float32, copy=False).reshape(count, -1)
        return sums.reshape(-1, rows, columns)


def to_corners(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centre x, y, width, height to left, top, right, bottom; float32 (n, 4) both."""
    centres, halves = boxes[:, 0:2], boxes[:, 2:4] / 2
    return np.concatenate([centres - halves, centres + halves], axis=1)


def with_corners(found: Detections) -> Detections:
    """Return detections whose boxes were centre x, y, width, height, with corners."""
    return Detections(to_corners(found.boxes), found.scores, found.labels, found.extras)


def without_extras(boxes: NDArray[np.float32], scores: NDArray[np.float32], labels: NDArray[np.intp]) -> Detections:
    """Return detections of a task that has boxes, scores and classes only."""
    return Detections(boxes, scores, labels, np.zeros((len(scores), 0), np.float32))
