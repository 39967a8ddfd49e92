"""Draws an image twice, side by side: with the detections of the float model and of the quantized model."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onnxq._text import plural
from onnxq.evaluation.agreement import VISIBLE, match
from onnxq.evaluation.captions import PAPER, Bars, LabelPlacer, Sizes, title
from onnxq.yolo.boxes import corners_of_rotated
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector
from onnxq.yolo.preprocess import Letterbox

FOUND, LOST, NEW = "#37b24d", "#fa5252", "#f59f00"
"""Colours of objects that both models find, only the float model finds, and only the quantized model finds."""

_MODELS, _FATES = ("float", "quantized"), ("lost", "new")
"""Names of the models, and words for objects that only one of them finds."""

_LONGER_SIDE = (640, 1280)
"""Least and greatest longer side of an image in px; smaller images are enlarged, larger ones reduced."""

_FILL, _RIM = 90, 200
"""Opacity of a mask, 0 to 255: inside, and along its edge."""

_ALONE = 1.7
"""Factor on the line width of objects that only one model finds."""

_TOP = 5
"""Number of classes in the list of a classifier."""


@dataclass(frozen=True)
class DetectedMasks:
    """Detections of a model on an image, with the prototypes of their masks.

    Attributes:
        objects: detections by falling score.
        prototypes: mask prototypes, float32 (coefficients, rows, columns); None without masks.
    """

    objects: Detections
    prototypes: NDArray[np.float32] | None = None


def draw_outputs(
    image: NDArray[np.uint8],
    letterbox: Letterbox,
    expected: Outputs,
    actual: Outputs,
    detector: Detector,
    confidence: float,
    iou: float,
) -> Image.Image:
    """Draw the objects or top classes of two models on an image, the first of their batch.

    Args:
        image: uint8 (height, width, 3), RGB.
        letterbox: position of the image in the models' input.
        expected: outputs of the float model.
        actual: outputs of the quantized model.
        detector: how to decode both; its family is known.
        confidence: objects have a score above this.
        iou: NMS threshold for both models.

    Raises:
        ModelError: the outputs cannot be decoded this way.
    """
    layout = detector.outputs
    if not layout.has_boxes:
        [name] = layout.outputs
        return classes_beside(image, np.asarray(expected[name])[0], np.asarray(actual[name])[0], detector)
    first, second = (
        DetectedMasks(
            find_objects(outputs, detector, confidence, iou),
            np.asarray(outputs[layout.prototypes])[0].astype(np.float32) if layout.prototypes else None,
        )
        for outputs in (expected, actual)
    )
    return side_by_side(image, letterbox, first, second, detector)


def side_by_side(
    image: NDArray[np.uint8], letterbox: Letterbox, first: DetectedMasks, second: DetectedMasks, detector: Detector
) -> Image.Image:
    """Draw the objects of two models with classes, scores, masks, rotated boxes and keypoints.

    Args:
        image: uint8 (height, width, 3), RGB.
        letterbox: position of the image in the models' input.
        first: detections of the float model.
        second: detections of the quantized model.
        detector: how both were decoded.
    """
    rows, others, _ = match(first.objects, second.objects, detector.outputs.task == "obb")
    scaled, scale = _scaled(image)
    sizes = Sizes.on(scaled.size)
    titles, colours = [], []
    for name, detected, shared, alone, fate in zip(_MODELS, (first, second), (rows, others), (LOST, NEW), _FATES):
        count = len(detected.objects)
        key = ((FOUND, f"{len(shared)} found by both"), (alone, f"{count - len(shared)} {fate}"))
        titles.append(title(f"{name}: {count} object{plural(count)}", key, sizes))
        found = set(shared.tolist())
        colours.append([FOUND if row in found else alone for row in range(count)])
    width = max(scaled.width, *(strip.width for strip in titles))
    panels = [
        _stacked(strip, _Panel(scaled, width, letterbox, scale, detector).draw(detected, each))
        for strip, detected, each in zip(titles, (first, second), colours)
    ]
    return _beside(panels, sizes.margin)


def classes_beside(
    image: NDArray[np.uint8], expected: NDArray[np.generic], actual: NDArray[np.generic], detector: Detector
) -> Image.Image:
    """Draw an image beside the top five classes and probabilities of two models.

    Args:
        image: uint8 (height, width, 3), RGB.
        expected: scores of the float model, float (classes,): probabilities or logits.
        actual: scores of the quantized model.
        detector: how both were decoded.
    """
    scaled, _ = _scaled(image)
    sizes = Sizes.on(scaled.size)
    wide = [scores.astype(np.float64) for scores in (expected, actual)]
    shares = wide if wide[0].min() >= 0 and wide[0].max() <= 1 else [_softmax(scores) for scores in wide]
    top = [np.argsort(-scores, kind="stable")[:_TOP].tolist() for scores in shares]
    agree = top[0][0] == top[1][0]
    titles, lists = [], []
    for name, scores, labels, alone, fate in zip(_MODELS, shares, top, (LOST, NEW), _FATES):
        colour, meaning = (FOUND, "top 1 of both") if agree else (alone, f"top 1, {fate}")
        titles.append(title(name, [(colour, meaning)], sizes))
        lists.append(Bars([(_name(label, detector), float(scores[label])) for label in labels], colour, sizes))
    width = max(*(strip.width for strip in titles), *(bars.width for bars in lists))
    columns = [_stacked(strip, bars.draw(width)) for strip, bars in zip(titles, lists)]
    return _beside([scaled, *columns], sizes.margin)


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())


def _scaled(image: NDArray[np.uint8]) -> tuple[Image.Image, float]:
    """Return the image in the size that it is drawn in, and the scale from px of the image to px of the drawing."""
    height, width = image.shape[:2]
    least, most = _LONGER_SIDE
    scale = min(most, max(least, height, width)) / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(image).resize(size), scale


def _stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (max(upper.width, lower.width), upper.height + lower.height), PAPER)
    canvas.paste(upper, (0, 0))
    canvas.paste(lower, (0, upper.height))
    return canvas


def _beside(parts: list[Image.Image], gap: int) -> Image.Image:
    width = sum(part.width for part in parts) + gap * (len(parts) - 1)
    canvas, left = Image.new("RGB", (width, max(part.height for part in parts)), PAPER), 0
    for part in parts:
        canvas.paste(part, (left, 0))
        left += part.width + gap
    return canvas


def _name(label: int, detector: Detector) -> str:
    return (detector.names[label] if label < len(detector.names) else "") or f"class {label}"


class _Panel:
    """One of the two images while it is drawn on; from below: masks, outlines and keypoints, labels."""

    def __init__(self, scaled: Image.Image, width: int, letterbox: Letterbox, scale: float, detector: Detector) -> None:
        self._canvas = Image.new("RGB", (width, scaled.height), PAPER)
        self._canvas.paste(scaled, (0, 0))
        self._size = scaled.size
        self._letterbox, self._scale, self._detector = letterbox, scale, detector
        self._sizes = Sizes.on(scaled.size)

    def draw(self, detected: DetectedMasks, colours: list[str]) -> Image.Image:
        objects = detected.objects
        # Objects drawn last are not covered: those of one model only, and among equals those with the best scores.
        order = sorted(range(len(objects)), key=lambda row: (colours[row] != FOUND, -row))
        outlines = self._outlines(objects)
        if detected.prototypes is not None:
            self._draw_masks(objects, detected.prototypes, colours, order)
        self._draw_lines(objects, outlines, colours, order)
        labels, visible = LabelPlacer(self._canvas, self._sizes), outlines.clip(0, self._size)
        for row in reversed(order):
            text = f"{_name(int(objects.labels[row]), self._detector)}  {objects.scores[row]:.2f}"
            # The label of a rotated box is beside its uppermost corner.
            ends = visible[row][[visible[row][:, 1].argmin(), visible[row][:, 1].argmax()]]
            labels.write(text, tuple(ends.ravel().tolist()), colours[row])
        return self._canvas

    def _draw_masks(
        self, objects: Detections, prototypes: NDArray[np.float32], colours: list[str], order: list[int]
    ) -> None:
        """Tint the masks; where they overlap, the last one is visible."""
        tint, opacity = Image.new("RGB", self._size), Image.new("L", self._size)
        for row in order:
            only = objects.take(np.array([row], np.intp))
            ends = self._on_canvas(only.boxes.reshape(2, 2)).clip(0, self._size)
            (left, top), (right, bottom) = np.rint(ends).astype(int).tolist()
            if left < right and top < bottom:
                logits = Image.fromarray(only.mask_logits(prototypes)[0])
                mask = self._enlarged(logits, left, top, right - left, bottom - top) > 0
                tint.paste(colours[row], (left, top), Image.fromarray(mask))
                opacity.paste(_FILL, (left, top), Image.fromarray(mask))
                opacity.paste(_RIM, (left, top), Image.fromarray(mask & ~_shrunk(mask, self._sizes.line)))
        self._canvas.paste(tint, (0, 0), opacity)

    def _enlarged(self, logits: Image.Image, left: int, top: int, width: int, height: int) -> NDArray[np.float32]:
        """Resample mask logits, which cover the model's input, to a part of the canvas, float32 (height, width)."""
        down, across = np.divide(logits.size[::-1], self._detector.size).tolist()
        placed = self._letterbox
        step_across, step_down = placed.ratio_across / self._scale, placed.ratio / self._scale
        affine = (
            across * step_across, 0.0, across * (step_across * left + placed.left),
            0.0, down * step_down, down * (step_down * top + placed.top),
        )  # fmt: skip
        return np.asarray(logits.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))

    def _draw_lines(
        self, objects: Detections, outlines: NDArray[np.float32], colours: list[str], order: list[int]
    ) -> None:
        """Draw outlines and keypoints with a dark edge, which stands out on an image of the same colour."""
        pen, line = ImageDraw.Draw(self._canvas), self._sizes.line
        points = self._on_canvas(_keypoints(objects, self._detector))
        for row in order:
            width = line if colours[row] == FOUND else round(line * _ALONE)
            corners = [tuple(corner) for corner in outlines[row].tolist()]
            for colour, wide in ((PAPER, width + 2), (colours[row], width)):
                pen.line([*corners, *corners[:2]], colour, wide, joint="curve")
            for x, y in points[row][np.isfinite(points[row]).all(axis=1)].tolist():
                reach = line + 1
                pen.ellipse((x - reach, y - reach, x + reach, y + reach), colours[row], PAPER)

    def _outlines(self, objects: Detections) -> NDArray[np.float32]:
        """Return the corners of the boxes, float32 (n, 4, 2), px of the canvas; upright boxes are clipped to it."""
        if self._detector.outputs.task == "obb":
            return self._on_canvas(corners_of_rotated(objects.rotated()).astype(np.float32))
        corners = self._on_canvas(objects.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
        inset = self._sizes.line
        return corners.clip(inset, np.maximum(np.array(self._size, np.float32) - 1 - inset, inset))

    def _on_canvas(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map points, float32 (..., 2), from px of the model's input to px of the canvas."""
        flat = points.reshape(-1, 2)
        on_image = self._letterbox.undo(np.concatenate([flat, flat], axis=1))[:, :2]
        return (on_image * np.float32(self._scale)).reshape(points.shape)


def _shrunk(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Erode a mask by so many px up, down, left and right."""
    padded = np.pad(mask, by)
    inside = mask.copy()
    for shift in (-by, by):
        for axis in (0, 1):
            inside &= np.roll(padded, shift, axis)[by:-by, by:-by]
    return inside


def _keypoints(objects: Detections, detector: Detector) -> NDArray[np.float32]:
    """Return the keypoints, float32 (n, points, 2), px of the model's input, nan if invisible; none without poses."""
    count, numbers = detector.outputs.keypoints if detector.outputs.task == "pose" else (0, 2)
    poses = objects.extras[:, : count * numbers].reshape(len(objects), count, numbers)
    visible = poses[:, :, 2:] > VISIBLE if numbers == 3 else np.ones((*poses.shape[:2], 1), bool)
    return np.where(visible, poses[:, :, :2], np.float32(np.nan))
