"""Decodes a model's outputs into objects: what all head families share, and non-maximum suppression."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from onnxq._text import shape_text, size_text
from onnxq.errors import ModelError
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector
from onnxq.yolo.nms import MOST_DETECTIONS, suppress, suppress_rotated
from onnxq.yolo.output_layout import Reading, Shape

_SLACK = 1e-3
"""Scores may be outside of 0 to 1 by this much, as float16 rounds them."""


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


def with_unnamed(detector: Detector, outputs: Outputs) -> Detector:
    """Return the detector with an empty name for each class score that the metadata does not name.

    Columns behind those of the named classes are scores if the task has no columns of its own and all their values are
    between 0 and 1.

    Args:
        detector: how the outputs are read.
        outputs: the outputs of a run.
    """
    layout, named = detector.outputs, len(detector.names)
    if not named or layout.task != "detect" or layout.record.scores is None or not layout.outputs:
        return detector
    first, width = layout.record.scores([np.shape(outputs[name]) for name in layout.outputs])
    table = np.asarray(outputs[layout.outputs[-1]])
    axes = [axis for axis in range(1, table.ndim) if table.shape[axis] == width]
    if width - first <= named or len(axes) != 1:
        return detector
    others = np.take(table, range(first + named, width), axis=axes[0]).astype(np.float32)
    if others.size and not (others.min() >= -_SLACK and others.max() <= 1 + _SLACK):
        return detector
    return replace(detector, names=(*detector.names, *[""] * (width - first - named)))


def find_objects(
    outputs: Outputs,
    detector: Detector,
    confidence: float,
    iou: float,
    index: int = 0,
    most: int = MOST_DETECTIONS,
) -> Detections:
    """Return the objects on one image of a batch, without duplicates.

    Args:
        outputs: the outputs that the layout reads.
        detector: how they are read; its layout has boxes.
        confidence: each (box, class) pair of a score above this counts.
        iou: of two boxes of a class that overlap more than this, the one of lower score is dropped.
        index: number of the image in the batch.
        most: greatest number of objects.

    Returns:
        At most `most`, best first.

    Raises:
        ModelError: the outputs do not fit the layout.
    """
    found = decode(outputs, detector, confidence, index)
    if detector.outputs.is_finished:
        return found.take(np.argsort(-found.scores, kind="stable")[:most])
    if detector.outputs.task == "obb":
        return found.take(suppress_rotated(found, iou, most))
    return found.take(suppress(found.boxes, found.scores, found.labels, iou, most))


def decode(outputs: Outputs, detector: Detector, confidence: float, index: int = 0) -> Detections:
    """Return the boxes in a model's outputs, duplicates included unless the model removes them itself.

    Args, Raises:
        as of `find_objects`, without its limits.
    """
    read = detector.outputs.record.read
    if read is None:
        raise ModelError(f"outputs of family {detector.family} have no boxes")
    try:
        return read(Reading(detector.outputs, outputs, detector.size, len(detector.names), confidence, index))
    except (ValueError, IndexError) as error:  # a model may state other shapes than it gives
        shapes = ", ".join(f"{name!r} {shape_text(outputs[name].shape)}" for name in detector.outputs.outputs)
        raise ModelError(
            f"outputs of these shapes cannot be read as {detector.family} at {size_text(detector.size)}: {shapes}; "
            "export the model with the shapes that it gives, or give another --family"
        ) from error
