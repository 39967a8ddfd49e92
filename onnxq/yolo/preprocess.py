"""Image files to the array that a detector takes: decode, letterbox or crop, normalize.

Arrays hold images as uint8 (height, width, 3) in RGB; sizes are (height, width); boxes are xyxy in pixels.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from onnxq.errors import DataError

PADDING = 114
"""The grey, 0 to 255, that both YOLOv5's and YOLOX's training pads pictures with."""


def read_image(path: Path) -> NDArray[np.uint8]:
    """Decode an image file, turned upright as its EXIF orientation says.

    Palette, grey, CMYK and 16-bit pictures become 8-bit RGB; transparency is dropped.

    Returns:
        uint8 (height, width, 3), RGB.

    Raises:
        DataError: the file is missing, unreadable or no image.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Exception as error:  # on broken files Pillow lets out SyntaxError, struct.error, OverflowError and more
        raise DataError(f"{path}: cannot be read as an image: {error}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip at 255 where OpenCV keeps the high byte
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.info.pop("transparency", None)  # Pillow warns of palettes that have it
    return image.convert("RGB")


@dataclass(frozen=True)
class Letterbox:
    """Where a picture went on its canvas: canvas px = image px * `ratio` + (`left`, `top`); below 0 in a crop."""

    ratio: float
    left: int
    top: int

    def undo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map boxes, float32 (n, 4) xyxy, from canvas px to image px."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        return (boxes - offset) / np.float32(self.ratio)


def letterbox(image: NDArray[np.uint8], size: tuple[int, int], centred: bool) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale a picture up or down to fit a canvas, keeping its aspect ratio, and pad the rest with grey.

    Args:
        image: uint8 (height, width, 3).
        size: the canvas, (height, width) in px.
        centred: put the picture in the middle rather than at the top left.

    Returns:
        The canvas, uint8 (*size, 3), and where the picture is on it.
    """
    height, width = image.shape[:2]
    ratio = min(size[0] / height, size[1] / width)
    scaled = max(1, round(height * ratio)), max(1, round(width * ratio))
    top, left = ((size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2) if centred else (0, 0)
    canvas = np.full((*size, 3), PADDING, np.uint8)
    canvas[top : top + scaled[0], left : left + scaled[1]] = _resize(image, scaled)
    return canvas, Letterbox(ratio, left, top)


def crop(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale a picture so that its shorter side fits, antialiased, and keep its middle, as Ultralytics classifies.

    A canvas that is not square takes the whole picture, stretched.

    Args:
        image: uint8 (height, width, 3).
        size: the canvas, (height, width) in px.

    Returns:
        The canvas, uint8 (*size, 3), and where the picture is on it; of a stretched one by its height.
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
    """Bilinear with pixel centres at halves and no antialiasing, as OpenCV's INTER_LINEAR within one level.

    Published accuracies were measured so; `Image.resize` antialiases and is several levels off.
    """
    height, width = image.shape[:2]
    if (height, width) == size:
        return image
    affine = (width / size[1], 0.0, 0.0, 0.0, height / size[0], 0.0)
    picture = Image.fromarray(image)
    return np.asarray(picture.transform((size[1], size[0]), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))


@dataclass(frozen=True)
class Preprocess:
    """How a detector wants its pictures.

    Attributes:
        name: what the command line calls it.
        bgr: channels are blue, green, red.
        divisor: what the levels 0 to 255 are divided by.
        centred: the letterbox puts the picture in the middle, else at the top left.
        cropped: there is no letterbox; the middle of the picture fills the input.
        levels: values are uint8, else float32.
        channels_last: each pixel's three values lie together, else there are three planes.
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
        """The least and the greatest value that the model's input can have."""
        return 0.0, 255.0 / self.divisor

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the model's input; float32 for one of float16 too."""
        return np.dtype(np.uint8 if self.levels else np.float32)

    def shape(self, size: tuple[int, int], batch: int = 1) -> tuple[int, ...]:
        """Of the model's input, for pictures of (height, width) px."""
        return (batch, *size, 3) if self.channels_last else (batch, 3, *size)

    def describe(self) -> str:
        """Say it in words: `RGB, 0-1, letterbox centred`."""
        place = f"letterbox {'centred' if self.centred else 'top-left'}"
        if self.cropped:
            place = "cropped to the middle"
        layout = ", channels last" if self.channels_last else ""
        kind = " in uint8" if self.levels else ""
        return f"{'BGR' if self.bgr else 'RGB'}, 0-{self.value_range[1]:g}{kind}, {place}{layout}"

    def __call__(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[Any], Letterbox]:
        """Make a model's input of a picture.

        Args:
            image: uint8 (height, width, 3), RGB.
            size: the model's input, (height, width) in px.

        Returns:
            `dtype` and `shape(size)`, C-contiguous, and where the picture is on it.
        """
        canvas, placed = crop(image, size) if self.cropped else letterbox(image, size, self.centred)
        pixels: NDArray[Any] = canvas[:, :, ::-1] if self.bgr else canvas
        values = (pixels if self.channels_last else pixels.transpose(2, 0, 1))[np.newaxis]
        if self.levels:
            return np.ascontiguousarray(values), placed
        return np.divide(values, np.float32(self.divisor), dtype=np.float32, order="C"), placed


YOLO = Preprocess("yolo", bgr=False, divisor=255.0, centred=True)

YOLO_255 = Preprocess("yolo-255", bgr=False, divisor=1.0, centred=True)
"""For graphs that divide by 255 themselves."""

YOLO_CROP = Preprocess("yolo-crop", bgr=False, divisor=255.0, centred=True, cropped=True)
"""For classifiers."""

YOLOX = Preprocess("yolox", bgr=True, divisor=1.0, centred=False)

PREPROCESSES = {each.name: each for each in (YOLO, YOLO_255, YOLO_CROP, YOLOX)}
