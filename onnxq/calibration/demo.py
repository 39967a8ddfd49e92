"""Synthetic scenes with known objects, for the small detector in `models/demo.onnx`.

Symbols of six kinds lie among dead leaves, some of them under others, under lines or over the edge. Split and index
determine a scene, so that training, calibration and validation share none.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from onnxq.calibration.dead_leaves import LabelMap, RgbImage, SyntheticImages, develop, generator, leaves


def model_path() -> Path:
    """Return the path of the demo model: inside the installed package, or in `models/` of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "demo.onnx"
    return installed if installed.is_file() else package.parent / "models" / "demo.onnx"


SIDE = 160
"""Height and width of an image, px."""

SPLITS = ("train", "calibration", "validation")

_SEED = 0x5EED

_FINE = 2  # painted px along a side of one px of the image

_MOST = 8  # symbols in an image

_LEAVES = (20.0, 80.0)  # bounds of the radius of the smallest, px at 640 x 640: calm enough for symbols to stand out

_DIAMETER = (14.0, 96.0)  # px, before a symbol is squeezed: up to 60 % of the image

_VISIBLE = 0.7  # share of its area that every symbol keeps

_TRIALS = 3  # places to try for a symbol that hides too much or lies too far outside

_LINES = 3.0  # mean number of lines under the symbols, and again over them

_MARKS = (4, 14)  # strokes in a line of scribble

Polygon = NDArray[np.float64]
"""Corners x, y, float64 (corners, 2)."""


class Scene(NamedTuple):
    """An image and the objects on it.

    Attributes:
        picture: uint8 (SIDE, SIDE, 3), RGB.
        boxes: float32 (n, 4), x1, y1, x2, y2 in px, around the visible part of each symbol.
        labels: int64 (n,), index into `CLASSES`.
    """

    picture: RgbImage
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]


def scene(split: str, index: int) -> Scene:
    """Paint a scene; the same split and index always give the same one.

    Args:
        split: one of `SPLITS`.
        index: number of the scene, 0 or more.
    """
    rng = generator(_SEED, SPLITS.index(split), index)
    canvas = _Canvas(rng)
    canvas.draw_lines()
    first = canvas.next
    kinds = rng.integers(len(CLASSES), size=rng.integers(1, _MOST + 1))
    placed = [(label, kind) for kind in kinds.tolist() if (label := canvas.place(_OUTLINES[kind])) is not None]
    canvas.draw_lines()
    seen = [(canvas.box(label), kind) for label, kind in placed]
    return Scene(
        develop(rng, canvas.labels(), _FINE, first),
        np.array([box for box, _ in seen], np.float32).reshape(-1, 4),
        np.array([kind for _, kind in seen], np.int64),
    )


class _Canvas:
    """The label map of a scene, at `_FINE` times the image's size; the last shape drawn is on top.

    Attributes:
        next: label of the next shape.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._side = SIDE * _FINE
        self._image = Image.fromarray(leaves(rng, (self._side, self._side), _LEAVES))
        self.next = int(np.asarray(self._image).max()) + 1
        self._wanted: dict[int, float] = {}

    def labels(self) -> LabelMap:
        """Return the map, int32 (SIDE * _FINE, SIDE * _FINE)."""
        return np.asarray(self._image)

    def place(self, outline: Polygon) -> int | None:
        """Draw a symbol at a random place, size, rotation and squeeze, and return its label; None if no place fits.

        Args:
            outline: about as large as the unit circle.
        """
        rng, label = self._rng, self.next
        radius = _FINE * math.exp(rng.uniform(*np.log(_DIAMETER))) / 2
        shape = radius * outline @ _turned(rng)
        wanted = {**self._wanted, label: _VISIBLE * _area(shape)}
        for centre in rng.random((_TRIALS, 2)) * self._side:
            trial = self._image.copy()
            ImageDraw.Draw(trial).polygon((shape + centre).ravel().tolist(), fill=label)
            visible = np.bincount(np.asarray(trial).ravel(), minlength=label + 1)
            if all(visible[each] >= least for each, least in wanted.items()):
                self._image, self._wanted, self.next = trial, wanted, label + 1
                return label
        return None

    def box(self, label: int) -> tuple[float, float, float, float]:
        """Return the box around the pixels with a label: x1, y1, x2, y2 in px of the image."""
        mask = np.asarray(self._image) == label
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        return columns[0] / _FINE, rows[0] / _FINE, (columns[-1] + 1) / _FINE, (rows[-1] + 1) / _FINE

    def draw_lines(self) -> None:
        """Draw lines across, and scribble that looks like text."""
        draw = ImageDraw.Draw(self._image)
        for _ in range(self._rng.poisson(_LINES)):
            stroke = self._stroke if self._rng.random() < 0.5 else self._scribble
            stroke(draw)
            self.next += 1

    def _stroke(self, draw: ImageDraw.ImageDraw) -> None:
        ends = self._rng.random(4) * self._side
        draw.line(ends.tolist(), fill=self.next, width=int(self._rng.integers(1, 3 * _FINE)))

    def _scribble(self, draw: ImageDraw.ImageDraw) -> None:
        """Draw short strokes along a line."""
        rng = self._rng
        size = _FINE * rng.uniform(2, 6)
        steps = np.arange(rng.integers(*_MARKS))[:, np.newaxis] * (size, 0)
        starts = rng.random(2) * self._side + steps
        for start, stroke in zip(starts, size * rng.random((len(starts), 4, 2))):
            draw.line((start + stroke).ravel().tolist(), fill=self.next, width=_FINE)


def _turned(rng: np.random.Generator) -> Polygon:
    """A random rotation of a random squeeze, float64 (2, 2)."""
    turn = rng.uniform(0, 2 * math.pi)
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return np.asarray(np.diag([1, rng.uniform(0.65, 1)]) @ rotation)


def _area(shape: Polygon) -> float:
    """Area of a polygon without crossings (shoelace formula)."""
    following = np.roll(shape, -1, axis=0)
    return abs(float((shape[:, 0] * following[:, 1] - shape[:, 1] * following[:, 0]).sum())) / 2


# The kinds of symbols: polygons about as large as the unit circle, symmetric about the x axis


def _arc(start: float, end: float, radius: float = 1.0, corners: int = 33) -> Polygon:
    """Points on a circle about 0 between two angles, which are given in turns."""
    angles = 2 * math.pi * np.linspace(start, end, corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _ring() -> Polygon:
    return np.concatenate([_arc(0, 1), _arc(1, 0, 0.55)])


def _star() -> Polygon:
    corners = _arc(0, 1, corners=11)[:-1]
    corners[1::2] *= 0.42
    return corners


def _cross() -> Polygon:
    arm = 0.3
    quarter = np.array([(0.95, -arm), (0.95, arm), (arm, arm)])
    rotation = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(rotation, k) for k in range(4)])


def _crescent() -> Polygon:
    outer, inner = _arc(0.12, 0.88), _arc(0.78, 0.22, 0.75)
    return np.concatenate([outer, inner + (outer[-1] - inner[0]) * (1, 0)])


def _heart() -> Polygon:
    t = 2 * math.pi * np.linspace(0, 1, 40, endpoint=False)
    across = 16 * np.sin(t) ** 3
    along = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([along + 2, across], axis=1) / 17


def _arrow() -> Polygon:
    half = [(1, 0), (0.15, 0.75), (0.15, 0.28), (-0.95, 0.28)]
    return np.array(half + [(x, -y) for x, y in half[:0:-1]])


_SYMBOLS: dict[str, Callable[[], Polygon]] = {
    "ring": _ring, "star": _star, "cross": _cross, "crescent": _crescent, "heart": _heart, "arrow": _arrow
}  # fmt: skip

_OUTLINES = [outline() for outline in _SYMBOLS.values()]

CLASSES = tuple(_SYMBOLS)
"""Kinds of symbols; mirroring and rotation keep the kind."""


def _picture(split: str, index: int) -> RgbImage:
    return scene(split, index).picture


CALIBRATION = SyntheticImages("demo scene", 1000, partial(_picture, "calibration"))
"""Images for calibration."""

VALIDATION = SyntheticImages("demo scene", 200, partial(_picture, "validation"))
"""Images for measuring accuracy."""
