"""Decodes a model's outputs into objects: what all head families share, and non-maximum suppression."""

from collections.abc import Mapping

import numpy as np

from onnxq.errors import ModelError
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector
from onnxq.yolo.nms import MOST_DETECTIONS, suppress, suppress_rotated
from onnxq.yolo.output_layout import Reading, Shape


def class_count(detector: Detector, shapes: Mapping[str, Shape]) -> int | None:
    """Return the number of classes that a model's outputs have; None if they do not show it.

    Args:
        detector: how the outputs are read.
        shapes: shapes of the outputs by name.

    Raises:
        ModelError: outputs of these shapes cannot be read so.
    """
    layout = detector.outputs
    for name in layout.outputs:
        if not layout.record.fits(shapes[name], detector.size):
            raise layout.mismatch(name, shapes[name])
    columns = layout.columns(shapes, len(detector.names))
    return columns.classes if columns is not None else len(detector.names) or None


def find_objects(outputs: Outputs, detector: Detector, confidence: float, iou: float, index: int = 0) -> Detections:
    """Return the objects on one image of a batch, without duplicates.

    Args:
        outputs: the outputs that the layout reads.
        detector: how they are read; its layout has boxes.
        confidence: each (box, class) pair of a score above this counts.
        iou: of two boxes of a class that overlap more than this, the one of lower score is dropped.
        index: number of the image in the batch.

    Returns:
        At most `MOST_DETECTIONS`, best first.

    Raises:
        ModelError: the outputs do not fit the layout.
    """
    found = decode(outputs, detector, confidence, index)
    if detector.outputs.is_finished:
        return found.take(np.argsort(-found.scores, kind="stable")[:MOST_DETECTIONS])
    if detector.outputs.task == "obb":
        return found.take(suppress_rotated(found, iou))
    return found.take(suppress(found.boxes, found.scores, found.labels, iou))


def decode(outputs: Outputs, detector: Detector, confidence: float, index: int = 0) -> Detections:
    """Return the boxes in a model's outputs, duplicates included unless the model removes them itself.

    Args, Raises:
        as of `find_objects`.
    """
    read = detector.outputs.record.read
    if read is None:
        raise ModelError(f"outputs of family {detector.family} have no boxes")
    return read(Reading(detector.outputs, outputs, detector.size, len(detector.names), confidence, index))
