"""A picture twice, side by side: the objects that the float model finds, and those that the quantized one finds."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from onnxq.agreement import SEEN, match
from onnxq.boxes import corners_of_rotated
from onnxq.decode import Detections
from onnxq.detector import Detector
from onnxq.images import Letterbox
from onnxq.sources import plural

FOUND, LOST, NEW = "#37b24d", "#f03e3e", "#f59f00"
"""Colours of objects that both models find, that only the float one finds, and that only the quantized one finds."""

_INK, _PAPER = "#ffffff", "#212529"
_LONGER_SIDE = (640, 1280)
"""Px of what is drawn: smaller pictures are scaled up, larger ones down."""

_LETTERS = 14
_MARGIN = 4
_STRIP = _LETTERS + 3 * _MARGIN
"""Px of the title above each picture."""


@dataclass(frozen=True)
class _Side:
    """One of the two pictures.

    Attributes:
        title: what stands above it.
        objects: what was found, best first.
        shared: bool (objects,), whether the other model finds it too.
        alone: colour of what the other one does not find.
    """

    title: str
    objects: Detections
    shared: NDArray[np.bool_]
    alone: str


def side_by_side(
    image: NDArray[np.uint8], placed: Letterbox, first: Detections, second: Detections, detector: Detector
) -> Image.Image:
    """Draw the objects that two models find, each with its class and score; rotated boxes and keypoints too.

    Args:
        image: uint8 (height, width, 3), RGB.
        placed: where it was on the models' input.
        first: of the float model, best first.
        second: of the quantized one.
        detector: how both were read.
    """
    rows, others, _ = match(first, second, detector.head.task == "obb")
    shared, too = np.zeros(len(first), bool), np.zeros(len(second), bool)
    shared[rows], too[others] = True, True
    lost, new = int((~shared).sum()), int((~too).sum())
    sides = (
        _Side(f"float: {len(first)} object{plural(len(first))}, {lost} of them lost", first, shared, LOST),
        _Side(f"quantized: {len(second)} object{plural(len(second))}, {new} of them new", second, too, NEW),
    )
    drawn = [_drawn(image, placed, side, detector) for side in sides]
    width, height = drawn[0].size
    canvas = Image.new("RGB", (2 * width + _MARGIN, height), _PAPER)
    canvas.paste(drawn[0], (0, 0))
    canvas.paste(drawn[1], (width + _MARGIN, 0))
    return canvas


def _drawn(image: NDArray[np.uint8], placed: Letterbox, side: _Side, detector: Detector) -> Image.Image:
    canvas, scale = _canvas(image, side.title)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LETTERS)
    outlines = _on_canvas(_outlines(side.objects, detector), placed, scale)
    points = _on_canvas(_keypoints(side.objects, detector), placed, scale)
    # What is drawn last is covered by nothing: what one model finds alone, and of both kinds the best.
    for row in sorted(range(len(side.objects)), key=lambda row: (not side.shared[row], -row)):
        colour = FOUND if side.shared[row] else side.alone
        pen.polygon([tuple(corner) for corner in outlines[row].tolist()], outline=colour, width=3)
        for x, y in points[row][np.isfinite(points[row]).all(axis=1)].tolist():
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill=colour)
        text = f"{_name(int(side.objects.labels[row]), detector)} {side.objects.scores[row]:.2f}"
        _write(pen, font, text, outlines[row].min(axis=0), colour, canvas.width)
    return canvas


def _canvas(image: NDArray[np.uint8], title: str) -> tuple[Image.Image, float]:
    """The picture under its title, and how many px of the canvas one of its px is."""
    height, width = image.shape[:2]
    least, most = _LONGER_SIDE
    scale = min(most, max(least, height, width)) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    canvas = Image.new("RGB", (size[0], size[1] + _STRIP), _PAPER)
    canvas.paste(Image.fromarray(image).resize(size), (0, _STRIP))
    ImageDraw.Draw(canvas).text((_MARGIN, _MARGIN), title, _INK, ImageFont.load_default(_LETTERS))
    return canvas, scale


def _on_canvas(points: NDArray[np.float32], placed: Letterbox, scale: float) -> NDArray[np.float32]:
    """Points, float32 (..., 2), from px of the model's input to px of the canvas."""
    flat = points.reshape(-1, 2)
    on_image = placed.undo(np.concatenate([flat, flat], axis=1))[:, :2]
    return (on_image * np.float32(scale) + np.array([0, _STRIP], np.float32)).reshape(points.shape)


def _outlines(objects: Detections, detector: Detector) -> NDArray[np.float32]:
    """Corners of the boxes, float32 (n, 4, 2), px of the model's input."""
    if detector.head.task == "obb":
        return corners_of_rotated(objects.rotated()).astype(np.float32)
    return objects.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2)


def _keypoints(objects: Detections, detector: Detector) -> NDArray[np.float32]:
    """Keypoints, float32 (n, points, 2), px of the model's input, nan where not seen; none of models without any."""
    count, numbers = detector.head.keypoints if detector.head.task == "pose" else (0, 2)
    poses = objects.extras[:, : count * numbers].reshape(len(objects), count, numbers)
    seen = poses[:, :, 2:] > SEEN if numbers == 3 else np.ones((*poses.shape[:2], 1), bool)
    return np.where(seen, poses[:, :, :2], np.float32(np.nan))


def _name(label: int, detector: Detector) -> str:
    return detector.names[label] if label < len(detector.names) else f"class {label}"


def _write(
    pen: ImageDraw.ImageDraw,
    font: "ImageFont.ImageFont | ImageFont.FreeTypeFont",
    text: str,
    corner: NDArray[np.float32],
    colour: str,
    right: int,
) -> None:
    """Write above the corner of a box, or inside where there is no room above; within the picture in any case."""
    width, height = pen.textlength(text, font) + 2 * _MARGIN, _LETTERS + _MARGIN
    x = max(0.0, min(float(corner[0]), right - width))
    y = max(float(_STRIP), float(corner[1]) - height)
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    pen.text((x + _MARGIN, y + 1), text, _PAPER, font)
