"""Preprocessing from image files to the input of a detector: decode, letterbox or crop, normalize.

Images are uint8 (height, width, 3), RGB; sizes are (height, width); boxes are xyxy in px.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from onnxq.errors import DataError

PADDING = 114
"""Grey level, 0 to 255, with which the training of YOLOv5 and of YOLOX pads images."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file, turned upright by its EXIF orientation.

    Palette, grey, CMYK and 16-bit images become 8-bit RGB; transparency is dropped.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: the file is missing, unreadable or not an image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, OverflowError and more for broken files
        raise DataError(f"{path}: cannot be read as an image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip at 255; OpenCV keeps the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # Pillow warns about palettes with transparency
    return image.convert("RGB")


@dataclass(frozen=True)
class Letterbox:
    """Placement of an image on its canvas: canvas px = image px * `ratio` + (`left`, `top`); negative in a crop."""

    ratio: float
    left: int
    top: int

    def undo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes, float32 (n, 4) xyxy, in image px instead of canvas px."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        return (boxes - offset) / np.float32(self.ratio)


def letterbox(image: NDArray[np.uint8], size: tuple[int, int], centred: bool) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale an image up or down to fit a canvas, keeping its aspect ratio, and pad the rest with grey.

    Args:
        image: uint8 (height, width, 3).
        size: the canvas, (height, width) in px.
        centred: place the image in the middle, else at the top left.

    Returns:
        The canvas, uint8 (*size, 3), and the placement of the image on it.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    scaled = max(1, round(height * ratio)), max(1, round(width * ratio))
    top, left = ((size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2) if centred else (0, 0)
    canvas = np.full((*size, 3), PADDING, np.uint8)
    canvas[top : top + scaled[0], left : left + scaled[1]] = _resize(image, scaled)
    return canvas, Letterbox(ratio, left, top)


def crop(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale an image so that its shorter side fits, antialiased, and keep its middle, as Ultralytics' classifiers do.

    On a canvas that is not square, the whole image is stretched.

    Args:
        image: uint8 (height, width, 3).
        size: the canvas, (height, width) in px.

    Returns:
        The canvas, uint8 (*size, 3), and the placement of the image on it; for a stretched one, by its height.
    """
    height, width = image.shape[:2]
    shorter, scaled = height, size
    if size[0] == size[1]:
        shorter = min(height, width)
        scaled = size[0] * height // shorter, size[0] * width // shorter
    top, left = round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)
    picture = Image.fromarray(image).resize((scaled[1], scaled[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture)[top : top + size[0], left : left + size[1]], Letterbox(size[0] / shorter, -left, -top)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize bilinearly with half-pixel centres and without antialiasing, within one level of OpenCV's INTER_LINEAR.

    Published accuracies were measured this way; `Image.resize` antialiases and differs by several levels.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    affine = (width / size[1], 0.0, 0.0, 0.0, height / size[0], 0.0)
    picture = Image.fromarray(image)
    return np.asarray(picture.transform((size[1], size[0]), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Preprocess:
    """How images become the input of a detector.

    Attributes:
        name: what `--preprocess` takes.
        bgr: channels are blue, green, red; else red, green, blue.
        divisor: divides the levels 0 to 255.
        centred: the letterbox places the image in the middle, else at the top left.
        cropped: the middle of the image fills the input, without a letterbox.
        levels: values are uint8, else float32.
        channels_last: (height, width, 3), else (3, height, width).
    """

    name: str
    bgr: bool
    divisor: float
    centred: bool
    cropped: bool = False
    levels: bool = False
    channels_last: bool = False

    @property
    def value_range(self) -> tuple[float, float]:
        """Least and greatest value of the model's input."""
        return 0.0, 255.0 / self.divisor

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the model's input; float32 also for a float16 input."""
        return np.dtype(np.uint8 if self.levels else np.float32)

    def shape(self, size: tuple[int, int], batch: int = 1) -> tuple[int, ...]:
        """Return the shape of the model's input, for a size of (height, width) px."""
        return (batch, *size, 3) if self.channels_last else (batch, 3, *size)

    def describe(self) -> str:
        """Return a description, `RGB, 0-1, letterbox centred`."""
        place = f"letterbox {'centred' if self.centred else 'top-left'}"
        if self.cropped:
            place = "cropped to the middle"
        layout = ", channels last" if self.channels_last else ""
        kind = " in uint8" if self.levels else ""
        return f"{'BGR' if self.bgr else 'RGB'}, 0-{self.value_range[1]:g}{kind}, {place}{layout}"

    def __call__(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[Any], Letterbox]:
        """Return the model's input for an image.

        Args:
            image: uint8 (height, width, 3), RGB.
            size: the model's input, (height, width) in px.

        Returns:
            The input of `dtype` and `shape(size)`, C-contiguous, and the placement of the image on it.
        """
        canvas, placed = crop(image, size) if self.cropped else letterbox(image, size, self.centred)
        pixels: NDArray[Any] = canvas[:, :, ::-1] if self.bgr else canvas
        values = (pixels if self.channels_last else pixels.transpose(2, 0, 1))[np.newaxis]
        if self.levels:
            return np.ascontiguousarray(values), placed
        return np.divide(values, np.float32(self.divisor), dtype=np.float32, order="C"), placed


YOLO = Preprocess("yolo", bgr=False, divisor=255.0, centred=True)

YOLO_255 = Preprocess("yolo-255", bgr=False, divisor=1.0, centred=True)
"""For graphs that divide by 255."""

YOLO_CROP = Preprocess("yolo-crop", bgr=False, divisor=255.0, centred=True, cropped=True)
"""For classifiers."""

YOLOX = Preprocess("yolox", bgr=True, divisor=1.0, centred=False)

PREPROCESSES = {each.name: each for each in (YOLO, YOLO_255, YOLO_CROP, YOLOX)}
