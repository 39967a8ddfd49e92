"""Preprocessing from images to the input of a detector: letterbox, stretch or crop, and normalize.

Images are uint8 (height, width, 3), RGB; sizes are (height, width); boxes are xyxy in px.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxq.errors import ConfigError, DataError

PADDING = 114
"""Grey level, 0 to 255, with which the training of YOLOv5 and of YOLOX pads images."""

_COLOURS = 3

_WHOLE = 4_000_000
"""Pixels above which an image is resized plane by plane: Pillow copies it, and takes 4 bytes for a pixel of colours."""


@dataclass(frozen=True)
class Letterbox:
    """Placement of an image on its canvas.

    Attributes:
        ratio: canvas px per image px, down the image.
        left, top: of the image on the canvas, px; negative in a crop.
        widening: across the image, the ratio is `ratio * widening`; 1 unless the image is stretched.
    """

    ratio: float
    left: int
    top: int
    widening: float = 1.0

    @property
    def ratio_across(self) -> float:
        """Canvas px per image px, across the image."""
        return self.ratio * self.widening

    def of_size(self, decoded: tuple[int, int], size: tuple[int, int]) -> "Letterbox":
        """Return the placement of a picture that was decoded at a smaller scale, in px of its whole size.

        Args:
            decoded: (height, width) of the image that was placed.
            size: (height, width) of the whole picture.
        """
        ratio, across = self.ratio * decoded[0] / size[0], self.ratio_across * decoded[1] / size[1]
        return replace(self, ratio=ratio, widening=across / ratio)

    def undo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return boxes, float32 (n, 4) xyxy, in image px instead of canvas px."""
        offset = np.array([self.left, self.top, self.left, self.top], np.float32)
        across, down = self.ratio_across, self.ratio
        ratios = np.array([across, down, across, down], np.float32)
        undone: NDArray[np.float32] = (boxes - offset) / ratios
        return undone


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


def stretch(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale an image to fill a canvas, whatever its aspect ratio, as the training of transformers and of PicoDet does.

    Args:
        image: uint8 (height, width, 3).
        size: the canvas, (height, width) in px.

    Returns:
        The canvas, uint8 (*size, 3), and the placement of the image on it.
    """
    down, across = size[0] / image.shape[0], size[1] / image.shape[1]
    return _resize(image, size), Letterbox(down, 0, 0, across / down)


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

    def resized(part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = Image.fromarray(part)
        to = size[1], size[0]
        return np.asarray(picture.transform(to, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR))

    if height * width <= _WHOLE:
        return resized(image)
    return np.stack([resized(np.ascontiguousarray(image[:, :, plane])) for plane in range(image.shape[2])], axis=2)


@dataclass(frozen=True)
class Values:
    """The values that the levels 0 to 255 become: (level / `divisor` - `mean`) / `deviation`.

    Attributes:
        name: the word of `--preprocess`.
        divisor: divides the levels.
        mean, deviation: subtracted from the planes red, green and blue, and divided by; empty: neither is done.
    """

    name: str
    divisor: float
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    def of(self, level: float) -> tuple[float, ...]:
        """Return the values of a level of the planes red, green and blue."""
        value = level / self.divisor
        if not self.mean:
            return (value,) * _COLOURS
        return tuple((value - mean) / deviation for mean, deviation in zip(self.mean, self.deviation, strict=True))


UNIT = Values("0-1", 255.0)

LEVELS = Values("0-255", 1.0)

IMAGENET = Values("imagenet", 255.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet, as torchvision, Detectron and PaddleDetection use them."""

SIGNED = Values("signed", 255.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

PLACES: dict[str, str] = {
    "centred": "letterbox centred",
    "top-left": "letterbox top-left",
    "stretch": "stretched",
    "crop": "cropped to the middle",
}
"""Word of `--preprocess` for how an image is placed on the canvas -> description."""


@dataclass(frozen=True)
class Preprocess:
    """How images become the input of a detector.

    Attributes:
        bgr: planes are blue, green, red; else red, green, blue.
        values: the values that the levels become.
        place: how the image is placed, a key of `PLACES`.
        planes: number of planes: 3, or 1 for grey; images give no other number.
        levels: the levels stay as they are, uint8; else the values are float32.
        channels_last: (height, width, planes), else (planes, height, width).
    """

    bgr: bool
    values: Values
    place: str
    planes: int = _COLOURS
    levels: bool = False
    channels_last: bool = False

    @property
    def name(self) -> str:
        """What `--preprocess` takes for the order of planes, the values and the place."""
        said = self.bgr, self.values, self.place
        known = (name for name, each in PREPROCESSES.items() if (each.bgr, each.values, each.place) == said)
        return next(known, f"{'bgr' if self.bgr else 'rgb'},{self.values.name},{self.place}")

    @property
    def value_range(self) -> tuple[float, float]:
        """Least and greatest value of the model's input."""
        return (0.0, 255.0) if self.levels else (min(self.values.of(0)), max(self.values.of(255)))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the model's input; float32 also for a float16 input."""
        return np.dtype(np.uint8 if self.levels else np.float32)

    def shape(self, size: tuple[int, int], batch: int = 1) -> tuple[int, ...]:
        """Return the shape of the model's input, for a size of (height, width) px."""
        return (batch, *size, self.planes) if self.channels_last else (batch, self.planes, *size)

    def describe(self) -> str:
        """Return a description, `RGB, 0-1, letterbox centred`."""
        colours = "BGR" if self.bgr else "RGB"
        if self.planes != _COLOURS:
            colours = "grey" if self.planes == 1 else f"{self.planes} planes"
        values = LEVELS if self.levels else self.values
        scale = {IMAGENET: "0-1 less ImageNet's mean, by its deviation", SIGNED: "-1 to 1"}.get(values, values.name)
        layout = ", channels last" if self.channels_last else ""
        return f"{colours}, {scale}{' in uint8' if self.levels else ''}, {PLACES[self.place]}{layout}"

    def __call__(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[Any], Letterbox]:
        """Return the model's input for an image.

        Args:
            image: uint8 (height, width, 3), RGB.
            size: the model's input, (height, width) in px.

        Returns:
            The input of `dtype` and `shape(size)`, C-contiguous, and the placement of the image on it.

        Raises:
            DataError: the input has neither 3 planes nor 1.
        """
        if self.planes not in (1, _COLOURS):
            raise DataError(
                f"the model's input has {self.planes} planes, and an image has {_COLOURS}: "
                "calibrate with arrays of that shape, as .npy or .npz files or an iterable of them; "
                "images cannot measure such a model"
            )
        if self.place in ("centred", "top-left"):
            canvas, placed = letterbox(image, size, self.place == "centred")
        else:
            canvas, placed = (crop if self.place == "crop" else stretch)(image, size)
        pixels: NDArray[Any] = canvas[:, :, ::-1] if self.bgr else canvas
        if self.planes == 1:
            pixels = np.asarray(Image.fromarray(canvas).convert("L"))[:, :, None]
        planes = (pixels if self.channels_last else pixels.transpose(2, 0, 1))[np.newaxis]
        if self.levels:
            return np.ascontiguousarray(planes), placed
        values = np.divide(planes, np.float32(self.values.divisor), dtype=np.float32, order="C")
        if self.values.mean:
            values -= self._per_plane(self.values.mean)
            values /= self._per_plane(self.values.deviation)
        return values, placed

    def plain(self, level: float) -> NDArray[np.float32]:
        """Return the values of a grey level, 0 to 255, as float32 that broadcasts to the model's input."""
        if self.levels or not self.values.mean:
            return np.full((1, 1, 1, 1), level if self.levels else level / self.values.divisor, np.float32)
        mean, deviation = self._per_plane(self.values.mean), self._per_plane(self.values.deviation)
        return (np.float32(level / self.values.divisor) - mean) / deviation

    def undo(self, planes: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the levels 0 to 255 of values as the model takes them, float64 (planes, ...) as the planes are."""
        if self.levels or not self.values.mean:
            return planes if self.levels else planes * self.values.divisor
        shape = (-1,) + (1,) * (planes.ndim - 1)
        mean, deviation = (self._per_plane(each).reshape(shape) for each in (self.values.mean, self.values.deviation))
        return np.asarray((planes * deviation + mean) * self.values.divisor, np.float64)

    def _per_plane(self, numbers: tuple[float, ...]) -> NDArray[np.float32]:
        """Numbers of red, green and blue in the order of the planes, along the axis of the planes."""
        ordered = [float(np.mean(numbers))] if self.planes == 1 else list(numbers[::-1] if self.bgr else numbers)
        return np.array(ordered, np.float32).reshape((1, 1, 1, -1) if self.channels_last else (1, -1, 1, 1))


YOLO = Preprocess(bgr=False, values=UNIT, place="centred")

YOLO_255 = Preprocess(bgr=False, values=LEVELS, place="centred")
"""For graphs that divide by 255."""

YOLO_CROP = Preprocess(bgr=False, values=UNIT, place="crop")
"""For classifiers."""

YOLOX = Preprocess(bgr=True, values=LEVELS, place="top-left")

STRETCH = Preprocess(bgr=False, values=UNIT, place="stretch")
"""For RT-DETR and its kin, and PaddleDetection's exports."""

PREPROCESSES = {"yolo": YOLO, "yolo-255": YOLO_255, "yolo-crop": YOLO_CROP, "yolox": YOLOX}

_WORDS: dict[str, tuple[str, object]] = {
    "rgb": ("bgr", False),
    "bgr": ("bgr", True),
    **{values.name: ("values", values) for values in (UNIT, LEVELS, IMAGENET, SIGNED)},
    **{place: ("place", place) for place in PLACES},
}
"""Word of `--preprocess` -> attribute of `Preprocess`, and its value."""

PREPROCESS_WORDS = f"auto, {', '.join(PREPROCESSES)}, or words of {', '.join(_WORDS)} joined by commas"
"""What `--preprocess` takes, for help and messages."""


Change = Callable[[Preprocess], Preprocess]
"""Makes the preprocessing that `--preprocess` says of the one that was recognized."""


def is_scale_said(said: Change) -> bool:
    """Return whether `--preprocess` says the values of the image."""
    return said(YOLO).values == said(YOLO_255).values


def is_order_said(said: Change) -> bool:
    """Return whether `--preprocess` says the order of the planes."""
    return said(YOLO).bgr == said(YOLOX).bgr


def parse_preprocess(text: str) -> Change:
    """Return the function that makes of the preprocessing that was recognized the one that `--preprocess` says.

    Args:
        text: "auto", or a key of `PREPROCESSES`, or words that each decide one thing and leave the others as
            recognized, as in `stretch` and `rgb,0-1,top-left`; a key may precede words.

    Raises:
        ConfigError: a word is unknown, or two words decide the same.
    """
    first, *others = text.split(",")
    named = PREPROCESSES.get(first)
    words = others if named is not None or first == "auto" else [first, *others]
    unknown = [word for word in words if word not in _WORDS]
    if unknown:
        raise ConfigError(f"preprocess: {unknown[0]!r} is unknown; give one of {PREPROCESS_WORDS}")
    decided = dict(_WORDS[word] for word in words)
    if len(decided) < len(words):
        raise ConfigError(f"preprocess: two words of {text!r} decide the same; leave one out")
    changes: Any = decided
    return lambda guess: replace(guess if named is None else named, **changes)
