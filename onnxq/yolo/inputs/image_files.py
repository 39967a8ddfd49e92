"""Image files as 8-bit RGB: upright, with the levels of deeper pictures scaled, and without Pillow's limit of pixels.

Pictures of more than 8 bits do not say which level is white: cameras of 14 bits write files of 16. The data set that a
picture belongs to decides.
"""

import functools
import logging
import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxq._text import plural
from onnxq.errors import DataError
from onnxq.remote.address import Location
from onnxq.remote.fetched import Fetched, fetched
from onnxq.yolo.inputs.large_pictures import LARGE, reduced, require_memory, to_array

log = logging.getLogger(__name__)

_LARGEST = 1 << 30
"""Most pixels that are decoded, which takes a minute."""

_ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""

_WIDTH, _HEIGHT, _PHOTOMETRIC = 256, 257, 262
"""TIFF's tags of the size, and of what the levels are: 0 if white is zero."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""Orientation -> what turns an image upright."""

_KEPT = 2
"""Large pictures that are kept at a smaller scale, 48 MB each."""

_DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Numbers of bits that cameras and files use."""

_OVERSHOOT = 1.1
"""Greatest value of pictures from 0 to 1, which resampling may have left with some overshoot."""

_LEAST_LEVELS = 32.0
"""Greatest value from which pictures of floats are taken for levels of 0 to 255. Between the two nothing is certain."""

_HIGH_BYTE = 8

_REMEDY = "save the pictures with 8 bits, or give arrays as .npy"

_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")

_opening, _decoding = threading.Lock(), threading.Lock()


@dataclass(frozen=True)
class _Depth:
    """The levels that the deep pictures of a data set use.

    Attributes:
        low, high: least and greatest value in any of the pictures.
    """

    low: float
    high: float

    def bits(self) -> int:
        """Return the number of bits that hold the greatest value, as cameras and files have them."""
        return next((bits for bits in _DEPTHS if self.high < 2**bits), _DEPTHS[-1])

    def white(self) -> float:
        """Return the float that is white.

        Raises:
            ValueError: nothing is certain; the message says what the pictures hold.
        """
        if self.high <= _OVERSHOOT and self.low >= 1.0 - _OVERSHOOT:
            return 1.0
        if self.low < 0:
            raise ValueError(f"values from {self.low:g}, below 0, to {self.high:g}")
        if self.high < _LEAST_LEVELS:
            raise ValueError(f"values up to {self.high:g}, which are neither 0 to 1 nor levels of 0 to 255")
        return float(2 ** self.bits() - 1)


class ImageReader:
    """Reads the image files of a data set; several threads may call it.

    The first picture of more than 8 bits makes it look at the levels of all of them: integers use as many bits as the
    greatest one needs, of 8, 10, 12, 14, 16, 24 or 32; floats are 0 to 1, or 0 to white like integers.

    Args:
        files: the data set; the images that are read must be among them.
    """

    def __init__(self, files: Iterable[Location]) -> None:
        self._files = list(files)
        self._lock = threading.Lock()
        self._kept: dict[str, NDArray[np.uint8]] = {}
        self._depths: dict[str, _Depth] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_lock": None, "_kept": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    def __call__(self, place: Location) -> NDArray[np.uint8]:
        """Decode an image file, turned upright by its EXIF orientation.

        Palette, grey, CMYK and deeper images become 8-bit RGB; transparency is dropped. Pictures above 64 million
        pixels are scaled down by a whole number while they are decoded, so that boxes on them are in other px; those of
        more than 8 bits are not.

        Returns:
            uint8 (height, width, 3), RGB.

        Raises:
            DataError: the file is missing, unreadable, not an image, too large, or of values that have no scale.
            ConfigError: its address cannot be reached.
        """
        path = fetched(place)
        with _naming(path), _opened(path) as image:
            width, height = image.size
            pixels = width * height
            if pixels > _LARGEST:
                raise DataError(f"{path}: has {width} x {height} pixels, more than can be decoded; cut it into tiles")
            # Pillow turns TIFF pictures itself.
            kind, turn = _deep_kind(image), 1 if image.format == "TIFF" else orientation(image)
            require_memory(path, image, bool(kind))
            with _decoding if pixels > LARGE else nullcontext():
                if pixels > LARGE and not kind:
                    return self._reduced(path, image, turn)
                return to_array(_upright(_rgb(self._scaled(path, image, kind) if kind else image), turn))

    def _reduced(self, path: Path | Fetched, image: Image.Image, turn: int) -> NDArray[np.uint8]:
        """Decode a large picture at a smaller scale, and keep the last few: each takes seconds and is read again."""
        key = str(path)
        found = self._kept.pop(key, None)
        self._kept[key] = to_array(_upright(reduced(path, image, _rgb), turn)) if found is None else found
        while len(self._kept) > _KEPT:
            del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def _scaled(self, path: Path | Fetched, image: Image.Image, kind: str) -> Image.Image:
        """Scale the levels of a picture of more than 8 bits."""
        if not all(map(math.isfinite, _extremes(image))):
            raise DataError(f"{path}: holds values that are NaN or infinite; repair it or leave it out")
        depth = self._depth(kind)
        if kind == "float":
            try:
                scale = 255 / depth.white()
            except ValueError as error:
                raise DataError(f"{path}: the pictures of floats hold {error}; {_REMEDY}") from None
            return Image.fromarray(np.rint(np.asarray(image) * scale).clip(0, 255).astype(np.uint8))
        if depth.low < 0:
            raise DataError(f"{path}: the pictures of integers hold values from {depth.low:g}, below 0; {_REMEDY}")
        if kind == "integer":
            levels = np.asarray(image)
            if _is_negative(image):
                levels = 2 ** depth.bits() - 1 - levels
            return Image.fromarray((levels >> (depth.bits() - 8)).clip(0, 255).astype(np.uint8))
        if depth.bits() == 8:
            raise DataError(f"{path}: the colours of 16 bits use 8 of them, which are lost in reading; {_REMEDY}")
        shift = 16 - depth.bits()
        return image.point([min(255, level << shift) for level in range(256)] * len(image.getbands()))

    def _depth(self, kind: str) -> _Depth:
        """Return the levels of the data set's pictures of a kind."""
        with self._lock:
            if self._depths is None:
                self._depths = _survey(self._files)
        return self._depths[kind]


def orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image, 1 to 8, without loading its pixels."""
    found = Image.Image.getexif(image).get(_ORIENTATION, 1)
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def stored_size(image: Image.Image) -> tuple[int, int]:
    """Return the size of an image as it is stored, (width, height), without loading its pixels.

    Pillow turns TIFF pictures itself while it loads them, and tells the size of that at once or then, by its version.
    """
    if image.format != "TIFF":
        return image.size
    tags = getattr(image, "tag_v2", {})
    return int(tags[_WIDTH]), int(tags[_HEIGHT])


def _upright(image: Image.Image, turn: int) -> Image.Image:
    return image if turn == 1 else image.transpose(_TURNS[turn])


def _rgb(image: Image.Image) -> Image.Image:
    image.info.pop("transparency", None)  # Pillow warns about palettes with transparency
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(path: Location) -> NDArray[np.uint8]:
    """Decode an image file that is a data set by itself, as `ImageReader` does.

    Raises:
        DataError: as from `ImageReader`.
    """
    return ImageReader([path])(path)


@functools.cache
def formats() -> tuple[str, ...]:
    """Return the formats of pictures that are read, whatever their names; Pillow may lack some.

    Others are not: for PostScript, for example, Pillow starts an interpreter, and the picture is its program.
    """
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextmanager
def _naming(path: Path | Fetched) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such image") from error
    except Exception as error:  # Pillow raises SyntaxError, struct.error, OverflowError and more for broken files
        raise DataError(f"{path}: cannot be read as an image: {error}") from error


@contextmanager
def _opened(path: Path | Fetched) -> Iterator[Image.Image]:
    """Open an image of any size: Pillow refuses large ones by a limit that is the same for the whole process."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(path.open() if isinstance(path, Fetched) else path, formats=formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        yield image


def _deep_kind(image: Image.Image) -> str:
    """Return the kind of an image of more than 8 bits that is not loaded yet; empty for others."""
    if image.mode == "F":
        return "float"
    if image.mode == "I" or image.mode.startswith("I;"):
        return "integer"
    # Pillow keeps the high bytes of colour pictures of 16 bits.
    raw = [str(tile[3]) for tile in getattr(image, "tile", ())]
    return "colour" if any(";16" in each for each in raw) else ""


def _is_negative(image: Image.Image) -> bool:
    """Return whether white is 0 in a TIFF picture, which Pillow undoes only for 8 bits."""
    return getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0


def _extremes(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    return float(values.min()), float(values.max())


def _survey(files: Iterable[Location]) -> dict[str, _Depth]:
    """Return the levels of all pictures of more than 8 bits, by kind, and say what is made of them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for place in files:
        try:
            path = fetched(place)
            with _naming(path), _opened(path) as image:
                if (kind := _deep_kind(image)) and image.width * image.height <= _LARGEST:
                    low, high = _extremes(image)
                    if not (math.isfinite(low) and math.isfinite(high)):
                        continue
                    # The level of a high byte, with all of its low bits.
                    high = high if kind != "colour" else (int(high) << _HIGH_BYTE) + 255
                    found.setdefault(kind, []).append((low, high))
        except DataError:
            continue  # said when the picture is read
    depths = {}
    for kind, extremes in found.items():
        lows, highs = zip(*extremes, strict=True)
        depths[kind] = depth = _Depth(min(lows), max(highs))
        usual = depth.bits() == 16 if kind != "float" else depth.high <= _OVERSHOOT
        if not usual and depth.low >= 0 and not (kind == "float" and depth.high < _LEAST_LEVELS):
            log.warning(
                "%d picture%s of more than 8 bits use%s levels up to %g: %d is taken for white; "
                "save them with 8 bits if another level is white",
                len(extremes), plural(len(extremes)), "s" if len(extremes) == 1 else "", depth.high,
                2 ** depth.bits() - 1,
            )  # fmt: skip
    return depths
