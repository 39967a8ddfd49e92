"""Synthetic calibration images, "dead leaves", for use without data.

Shapes whose sizes follow a power law occlude each other. The images have the features that the first layers of a
detector respond to in photographs: sharp edges of every direction and contrast at all scales, between smooth and
textured regions (Lee, Mumford and Huang, "Occlusion Models for Natural Images", IJCV 2001; Baradad et al., "Learning to
See by Looking at Noise", NeurIPS 2021).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

LabelMap = NDArray[np.int32]
"""(height, width): which shape is the uppermost at each pixel; 0: none."""

RgbImage = NDArray[np.uint8]
"""(height, width, 3), RGB."""


@dataclass(frozen=True)
class SyntheticImages:
    """Images that are painted on demand, and are in no file.

    Attributes:
        noun: one of them in messages, "synthetic scene".
        count: number of images.
        paint: returns the image of an index below `count`, uint8 (height, width, 3), RGB.
    """

    noun: str
    count: int
    paint: Callable[[int], RgbImage]


SCENE_COUNT = 64
"""Number of images that calibrate a model without data."""

_SEED = 0xDEAD1EAF

_SIDE = 640  # radii below are in px of a scene of 640 x 640

_SMALLEST = (4.0, 24.0)  # bounds of the radius of the smallest leaf: a busy and a calm scene

_LARGEST = 300.0

_COVERAGE = 2.5  # area of all leaves / area of the scene

_ROUND = 24  # corners that make a polygon as good as an ellipse

_CORNERS = (3, 4, 4, 6, 9, _ROUND, _ROUND)

_CELLS = (2, 4, 12, 48)  # px between the points of the texture's finer and coarser grids

_VIVID = 4  # factor of colour, and divisor of texture, for shapes that stand out

_CHROMA = np.array([[1.0, 0.0, -1.0], [-0.5, 1.0, -0.5]])  # yellow-blue and green-magenta


def dead_leaves_image(index: int, size: tuple[int, int]) -> RgbImage:
    """Paint a scene of leaves; the same index and size always give the same image.

    Args:
        index: number of the scene, 0 or more.
        size: (height, width) in px.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    rng = generator(index)
    return develop(rng, leaves(rng, size))


def generator(*seed: int) -> np.random.Generator:
    """Return a generator of random numbers for seeds of 0 or more; the numbers are the same on every machine."""
    return np.random.Generator(np.random.PCG64([_SEED, *seed]))


def leaves(rng: np.random.Generator, size: tuple[int, int], smallest: tuple[float, float] = _SMALLEST) -> LabelMap:
    """Return which leaf is the uppermost at each pixel.

    Args:
        rng: random numbers of the scene.
        size: (height, width) in px.
        smallest: bounds of the radius of the smallest leaf, px in a scene of 640 x 640.

    Returns:
        int32 (height, width): 1 and up, falling in size; 0: none.
    """
    return _paint(rng, _leaves(rng, size, smallest), size)


def develop(rng: np.random.Generator, labels: LabelMap, shrink: int = 1, vivid: int | None = None) -> RgbImage:
    """Render a label map: colour and texture for each label, light from one side, blur and noise.

    Args:
        rng: random numbers of the scene.
        labels: int32 (height, width), 0 and up.
        shrink: px of the map along a side of one px of the image, for smooth edges.
        vivid: labels from this on have more colour and less texture; None: no label has.

    Returns:
        uint8 (height / shrink, width / shrink, 3), RGB.
    """
    picture = _colour(rng, labels, vivid)
    picture *= _slope(rng, labels.shape)
    blur = ImageFilter.BoxBlur(rng.uniform(0, 0.4))
    blurred = np.asarray(Image.fromarray(_pixels(picture)).reduce(shrink).filter(blur))
    noise = rng.uniform(0.5, 6) * rng.standard_normal((*blurred.shape[:2], 1), dtype=np.float32)
    return _pixels(blurred + noise)


def _leaves(
    rng: np.random.Generator, size: tuple[int, int], bounds: tuple[float, float] = _SMALLEST
) -> NDArray[np.float64]:
    """Radii in px of leaves that cover the scene `_COVERAGE` times, float64 (count,), falling."""
    scale = math.sqrt(size[0] * size[1]) / _SIDE
    smallest = math.exp(rng.uniform(*np.log(bounds)))
    mean_square = 2 * math.log(_LARGEST / smallest) / (smallest**-2 - _LARGEST**-2)
    count = math.ceil(_COVERAGE * _SIDE**2 / (math.pi * mean_square))
    return scale * _radii(rng, count, smallest, _LARGEST)


def _radii(rng: np.random.Generator, count: int, smallest: float, largest: float) -> NDArray[np.float64]:
    """Radii of density ~ r^-3 between the two bounds, float64 (count,), falling: every octave covers the same area.

    Inverse transform sampling from stratified quantiles, so that large leaves are rarely missing.
    """
    quantiles = (np.arange(count) + rng.random(count)) / count
    near, far = smallest**-2.0, largest**-2.0
    return np.asarray(1 / np.sqrt(far + quantiles * (near - far)))


def _paint(rng: np.random.Generator, radii: NDArray[np.float64], size: tuple[int, int]) -> LabelMap:
    """The uppermost leaf at each pixel, int32 (height, width): 1 + its index; 0: none."""
    height, width = size
    count = len(radii)
    corners = rng.choice(_CORNERS, count)
    centres = rng.random((count, 1, 2)) * (width, height)
    points = centres + radii[:, np.newaxis, np.newaxis] * _outlines(rng, corners)
    image = Image.new("I", (width, height))
    draw = ImageDraw.Draw(image)
    for label, (outline, used) in enumerate(zip(points.reshape(count, -1).tolist(), corners.tolist()), 1):
        draw.polygon(outline[: 2 * used], fill=label)
    return np.asarray(image)


def _outlines(rng: np.random.Generator, corners: NDArray[np.int64]) -> NDArray[np.float64]:
    """Polygons in the unit circle, stretched and rotated, some of them ragged.

    Args:
        rng: random numbers of the scene.
        corners: number of corners of each, int64 (count,).

    Returns:
        x and y, float64 (count, most corners, 2); only the first `corners` of each row are used.
    """
    count, most = len(corners), max(_CORNERS)
    angles = (2 * np.arange(most) + 1) * (math.pi / corners)[:, np.newaxis]
    ragged = (corners < _ROUND) & (rng.random(count) < 0.5)
    reach = 1 - 0.4 * ragged[:, np.newaxis] * rng.random((count, most))
    along = reach * np.cos(angles)
    across = reach * np.sin(angles) * rng.uniform(0.25, 1, (count, 1))
    turn = rng.uniform(0, 2 * math.pi, (count, 1))
    x = along * np.cos(turn) - across * np.sin(turn)
    y = along * np.sin(turn) + across * np.cos(turn)
    return np.stack([x, y], axis=-1)


def _colour(rng: np.random.Generator, labels: LabelMap, vivid: int | None) -> NDArray[np.float32]:
    """Colour and texture of every leaf, float32 (height, width, 3), about 0 to 255."""
    count = int(labels.max()) + 1
    grey = rng.normal(112, 24) + rng.uniform(25, 75) * rng.uniform(-1.7, 1.7, (count, 1))
    # In photographs the channels are correlated; the remainder is more yellow-blue than green-magenta.
    chroma = rng.exponential(1, (count, 1)) * rng.normal(0, (16, 8), (count, 2)) + rng.normal((7, 0), (10, 4), (1, 2))
    roughness = rng.exponential(rng.uniform(4, 40), count).astype(np.float32)
    if vivid is not None:
        chroma[vivid:] *= _VIVID
        roughness[vivid:] /= _VIVID
    colours = (grey + chroma @ _CHROMA).astype(np.float32)
    # Each leaf has its own part of one texture; a seam where the shift wraps looks like an edge of a leaf.
    places = np.arange(labels.size) + rng.integers(labels.size, size=count).take(labels.ravel())
    texture = _clouds(rng, labels.shape).ravel().take(places, mode="wrap").reshape(labels.shape)
    return np.asarray(colours.take(labels, axis=0) + (roughness.take(labels) * texture)[..., np.newaxis])


def _clouds(rng: np.random.Generator, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise with detail at every scale, as in photographs; float32 (height, width), mean 0, variance 1."""
    height, width = size
    total = np.zeros(size, np.float32)
    for cell in _CELLS:
        grid = rng.standard_normal((height // cell + 2, width // cell + 2), dtype=np.float32)
        total += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    return total / np.float32(total.std() + 1e-6)


def _slope(rng: np.random.Generator, size: tuple[int, ...]) -> NDArray[np.float32]:
    """Light from one side: factors about 1, float32 (height, width, 1)."""
    down, right = rng.uniform(-0.25, 0.25, 2)
    rows = np.linspace(-down, down, size[0], dtype=np.float32)
    columns = np.linspace(-right, right, size[1], dtype=np.float32)
    return np.asarray(1 + rows[:, np.newaxis, np.newaxis] + columns[:, np.newaxis])


def _pixels(picture: NDArray[np.float32]) -> RgbImage:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
