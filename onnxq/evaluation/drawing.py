"""A picture twice, side by side: what the float model finds on it, and what the quantized one does."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onnxq._text import plural
from onnxq.evaluation.agreement import SEEN, match
from onnxq.evaluation.captions import PAPER, Bars, Labels, Sizes, title
from onnxq.yolo.boxes import corners_of_rotated
from onnxq.yolo.decode import find_objects
from onnxq.yolo.detections import Detections, Outputs
from onnxq.yolo.detector import Detector
from onnxq.yolo.preprocess import Letterbox

FOUND, LOST, NEW = "#37b24d", "#fa5252", "#f59f00"
"""Colours of what both models find, what only the float one finds, and what only the quantized one finds."""

_MODELS, _FATES = ("float", "quantized"), ("lost", "new")
"""The two, and what becomes of what only one of them finds."""

_LONGER_SIDE = (640, 1280)
"""Px of what is drawn: smaller pictures are scaled up, larger ones down."""

_FILL, _RIM = 90, 200
"""How opaque a mask is, of 255: inside, and along its edge."""

_ALONE = 1.7
"""How many times as wide as others the outline is of what only one model finds."""

_LIKELIEST = 5
"""Classes of a picture that are told."""


@dataclass(frozen=True)
class Seen:
    """What a model finds on a picture.

    Attributes:
        objects: best first.
        prototypes: of their masks, float32 (coefficients, rows, columns); None where they have none.
    """

    objects: Detections
    prototypes: NDArray[np.float32] | None = None


def drawing(
    image: NDArray[np.uint8],
    placed: Letterbox,
    expected: Outputs,
    actual: Outputs,
    detector: Detector,
    confidence: float,
    iou: float,
) -> Image.Image:
    """Draw what two models find on a picture, the first of their batch: objects or likeliest classes.

    Args:
        image: uint8 (height, width, 3), RGB.
        placed: where it was on the models' input.
        expected: outputs of the float model.
        actual: of the quantized one.
        detector: how to read both; its family is known.
        confidence: what has a score above this is an object, for both.
        iou: of two boxes of a class and model that overlap more, the one of lower score goes.

    Raises:
        ModelError: the outputs cannot be read so.
    """
    head = detector.outputs
    if not head.has_boxes:
        [name] = head.outputs
        return classes_beside(image, np.asarray(expected[name])[0], np.asarray(actual[name])[0], detector)
    first, second = (
        Seen(
            find_objects(outputs, detector, confidence, iou),
            np.asarray(outputs[head.prototypes])[0].astype(np.float32) if head.prototypes else None,
        )
        for outputs in (expected, actual)
    )
    return side_by_side(image, placed, first, second, detector)


def side_by_side(
    image: NDArray[np.uint8], placed: Letterbox, first: Seen, second: Seen, detector: Detector
) -> Image.Image:
    """Draw the objects that two models find, each with its class and score; masks, rotated boxes and keypoints too.

    Args:
        image: uint8 (height, width, 3), RGB.
        placed: where it was on the models' input.
        first: by the float model.
        second: by the quantized one.
        detector: how both were read.
    """
    rows, others, _ = match(first.objects, second.objects, detector.outputs.task == "obb")
    picture, scale = _scaled(image)
    sizes = Sizes.on(picture.size)
    heads, colours = [], []
    for name, seen, shared, alone, fate in zip(_MODELS, (first, second), (rows, others), (LOST, NEW), _FATES):
        count = len(seen.objects)
        key = ((FOUND, f"{len(shared)} found by both"), (alone, f"{count - len(shared)} {fate}"))
        heads.append(title(f"{name}: {count} object{plural(count)}", key, sizes))
        found = set(shared.tolist())
        colours.append([FOUND if row in found else alone for row in range(count)])
    width = max(picture.width, *(head.width for head in heads))
    panels = [
        _stacked(head, _Panel(picture, width, placed, scale, detector).draw(seen, each))
        for head, seen, each in zip(heads, (first, second), colours)
    ]
    return _beside(panels, sizes.margin)


def classes_beside(
    image: NDArray[np.uint8], expected: NDArray[np.generic], actual: NDArray[np.generic], detector: Detector
) -> Image.Image:
    """Draw a picture with the five likeliest classes of two models beside it, and how likely each is.

    Args:
        image: uint8 (height, width, 3), RGB.
        expected: scores of the float model, float (classes,): probabilities, or what Softmax makes some of.
        actual: of the quantized one.
        detector: how both were read.
    """
    picture, _ = _scaled(image)
    sizes = Sizes.on(picture.size)
    wide = [scores.astype(np.float64) for scores in (expected, actual)]
    shares = wide if wide[0].min() >= 0 and wide[0].max() <= 1 else [_softmax(scores) for scores in wide]
    likeliest = [np.argsort(-scores, kind="stable")[:_LIKELIEST].tolist() for scores in shares]
    alike = likeliest[0][0] == likeliest[1][0]
    heads, lists = [], []
    for name, scores, labels, alone, fate in zip(_MODELS, shares, likeliest, (LOST, NEW), _FATES):
        colour, meaning = (FOUND, "likeliest for both") if alike else (alone, f"likeliest, {fate}")
        heads.append(title(name, [(colour, meaning)], sizes))
        lists.append(Bars([(_name(label, detector), float(scores[label])) for label in labels], colour, sizes))
    width = max(*(head.width for head in heads), *(bars.width for bars in lists))
    columns = [_stacked(head, bars.draw(width)) for head, bars in zip(heads, lists)]
    return _beside([picture, *columns], sizes.margin)


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max())
    return np.asarray(powers / powers.sum())


def _scaled(image: NDArray[np.uint8]) -> tuple[Image.Image, float]:
    """The picture as large as it is drawn, and how many px of that one of its px is."""
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
    return detector.names[label] if label < len(detector.names) else f"class {label}"


# Objects


class _Panel:
    """One of the two pictures while it is drawn on, from below: masks, outlines and keypoints, labels."""

    def __init__(self, picture: Image.Image, width: int, placed: Letterbox, scale: float, detector: Detector) -> None:
        """A copy of the picture, scaled by so much, on a canvas that may be wider, for titles and labels."""
        self._canvas = Image.new("RGB", (width, picture.height), PAPER)
        self._canvas.paste(picture, (0, 0))
        self._size = picture.size
        self._placed, self._scale, self._detector = placed, scale, detector
        self._sizes = Sizes.on(picture.size)

    def draw(self, seen: Seen, colours: list[str]) -> Image.Image:
        objects = seen.objects
        # What is drawn last is covered by nothing: what one model finds alone, and of both kinds the best.
        order = sorted(range(len(objects)), key=lambda row: (colours[row] != FOUND, -row))
        outlines = self._outlines(objects)
        if seen.prototypes is not None:
            self._draw_masks(objects, seen.prototypes, colours, order)
        self._draw_lines(objects, outlines, colours, order)
        labels, visible = Labels(self._canvas, self._sizes), outlines.clip(0, self._size)
        for row in reversed(order):
            text = f"{_name(int(objects.labels[row]), self._detector)}  {objects.scores[row]:.2f}"
            # Of a rotated box the uppermost corner is where one looks for its label.
            ends = visible[row][[visible[row][:, 1].argmin(), visible[row][:, 1].argmax()]]
            labels.write(text, tuple(ends.ravel().tolist()), colours[row])
        return self._canvas

    def _draw_masks(
        self, objects: Detections, prototypes: NDArray[np.float32], colours: list[str], order: list[int]
    ) -> None:
        """Tint what the masks cover; where they overlap, the last one counts."""
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
        """The part for a rectangle of the canvas of what is as large as the model's input, float32 (height, width)."""
        down, across = np.divide(logits.size[::-1], self._detector.size).tolist()
        step = self._placed.ratio / self._scale
        affine = (
            across * step, 0.0, across * (step * left + self._placed.left),
            0.0, down * step, down * (step * top + self._placed.top),
        )  # fmt: skip
        return np.asarray(logits.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))

    def _draw_lines(
        self, objects: Detections, outlines: NDArray[np.float32], colours: list[str], order: list[int]
    ) -> None:
        """Draw outlines and keypoints with a dark edge, which stands out where the picture has their colour."""
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
        """Corners of the boxes, float32 (n, 4, 2), px of the canvas; upright ones end at the edge of the picture."""
        if self._detector.outputs.task == "obb":
            return self._on_canvas(corners_of_rotated(objects.rotated()).astype(np.float32))
        corners = self._on_canvas(objects.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 4, 2))
        inset = self._sizes.line
        return corners.clip(inset, np.maximum(np.array(self._size, np.float32) - 1 - inset, inset))

    def _on_canvas(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Points, float32 (..., 2), from px of the model's input to px of the canvas."""
        flat = points.reshape(-1, 2)
        on_image = self._placed.undo(np.concatenate([flat, flat], axis=1))[:, :2]
        return (on_image * np.float32(self._scale)).reshape(points.shape)


def _shrunk(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """What of a mask is more than so many px away from what is not, up, down, left and right."""
    padded = np.pad(mask, by)
    inside = mask.copy()
    for shift in (-by, by):
        for axis in (0, 1):
            inside &= np.roll(padded, shift, axis)[by:-by, by:-by]
    return inside


def _keypoints(objects: Detections, detector: Detector) -> NDArray[np.float32]:
    """Keypoints, float32 (n, points, 2), px of the model's input, nan where not seen; none of models without any."""
    count, numbers = detector.outputs.keypoints if detector.outputs.task == "pose" else (0, 2)
    poses = objects.extras[:, : count * numbers].reshape(len(objects), count, numbers)
    seen = poses[:, :, 2:] > SEEN if numbers == 3 else np.ones((*poses.shape[:2], 1), bool)
    return np.where(seen, poses[:, :, :2], np.float32(np.nan))
