"""Objects that the float model detects on calibration images.

Reconstruction samples positions there, because average precision depends on them; sensitivity measures whether a
quantized model finds them again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.yolo.boxes import box_iou
from onnxq.yolo.decode import class_count, find_objects
from onnxq.yolo.detections import Outputs
from onnxq.yolo.detector import Detector

_CONFIDENCE = 0.01
"""Least score of an object. Detections of low score contribute much of the average precision."""

_COUNTED = 0.1
"""Least score of an object that must be found again; the detection that finds it may have less."""

_IOU = 0.65
"""Boxes of a class with a greater intersection over union are one object."""


@dataclass(frozen=True)
class DetectedObjects:
    """Objects on one image, in coordinates that do not depend on the input's size.

    Attributes:
        boxes: float32 (n, 4), left, top, right, bottom as fractions of the model's input.
        scores: float32 (n,).
        labels: intp (n,), class of each.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.intp]

    def draw(self, rng: np.random.Generator, size: tuple[int, int], count: int) -> NDArray[np.int64]:
        """Draw cells of a grid over the image: more near the centres of objects, none outside their boxes.

        Objects are drawn with probabilities proportional to their scores, whatever their size.

        Args:
            rng: random numbers.
            size: (rows, columns) of the grid.
            count: number of cells; a cell may be drawn more than once.

        Returns:
            int64 (count,), row * columns + column; (0,) if there are no objects.
        """
        if not len(self.scores):
            return np.zeros(0, np.int64)
        chosen = rng.choice(len(self.scores), count, p=self.scores / self.scores.sum(dtype=np.float64))
        low, high = self.boxes[chosen, :2], self.boxes[chosen, 2:]
        spread = rng.random((count, 1)) * (rng.random((count, 2)) - 0.5)
        x, y = ((low + high) / 2 + spread * (high - low)).T
        rows, columns = size
        return np.asarray(
            np.clip((y * rows).astype(np.int64), 0, rows - 1) * columns
            + np.clip((x * columns).astype(np.int64), 0, columns - 1)
        )


def read_objects(outputs: Outputs, detector: Detector | None) -> list[DetectedObjects]:
    """Return the objects on each image of a batch; none if the outputs cannot be read.

    Args:
        outputs: outputs of one run, by name.
        detector: how the outputs are read; None: unknown.
    """
    if detector is None or not tensors_read(detector):
        return []
    shapes = {name: np.shape(array) for name, array in outputs.items()}
    try:
        class_count(detector, shapes)
    except ModelError:
        return []
    layout = detector.outputs
    first = shapes[layout.outputs[0]]
    images = first[0] if layout.stated is None else layout.stated.images(first)
    return [_objects(outputs, detector, index) for index in range(images)]


def tensors_read(detector: Detector | None) -> tuple[str, ...]:
    """Return the outputs that `read_objects` reads; none if they do not tell objects and the number of images."""
    is_readable = detector is not None and detector.outputs.has_boxes and detector.outputs.record.tells_batch
    return tuple(detector.outputs.tensors) if detector is not None and is_readable else ()


def matched_score(wanted: DetectedObjects, found: DetectedObjects, least: float = _COUNTED) -> tuple[float, float]:
    """Return how well objects are found again, each by the box of its class with the greatest overlap.

    Args:
        wanted: the objects, weighted by their scores; those below `least` are left out.
        found: the boxes that may find them.
        least: score.

    Returns:
        The sum over objects of score times intersection over union, and the sum of scores.
    """
    counted = wanted.scores >= least
    a, scores = wanted.boxes[counted], wanted.scores[counted].astype(np.float64)
    if not len(found.scores):
        return 0.0, float(scores.sum())
    iou = box_iou(a, found.boxes)
    iou[wanted.labels[counted][:, None] != found.labels[None]] = 0
    return float(scores @ iou.max(axis=1)), float(scores.sum())


def _objects(outputs: Outputs, detector: Detector, index: int) -> DetectedObjects:
    found = find_objects(outputs, detector, _CONFIDENCE, _IOU, index)
    height, width = detector.size
    boxes = np.divide(found.boxes, (width, height, width, height), dtype=np.float32)
    return DetectedObjects(boxes, found.scores, found.labels)
