"""Images that models are compared on: each is read or painted on demand."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.calibration.find_files import IMAGES, find_files
from onnxq.calibration.readers import is_array, is_video
from onnxq.calibration.video import frames_of
from onnxq.errors import DataError
from onnxq.remote.address import Address, Location
from onnxq.yolo.inputs.image_files import ImageReader


class ImageSource(NamedTuple):
    """An image that is read or painted on demand.

    Attributes:
        name: a name for it, without a suffix.
        load: returns it, uint8 (height, width, 3), RGB.
        file: its file, or the video that it is a frame of; None for a painted one.
    """

    name: str
    load: Callable[[], NDArray[np.uint8]]
    file: Location | None = None


def image_sources(source: str | Location | SyntheticImages) -> list[ImageSource]:
    """Return the images that a source stands for, in the order of their paths.

    Args:
        source: a folder of images, a pattern, a list, an address, a COCO file, a data set's YAML (its val split), or
            synthetic images.

    Raises:
        DataError: the source does not exist, is of an unknown kind, or has no images.
    """
    if isinstance(source, SyntheticImages):
        name = source.noun.replace(" ", "-")
        return [ImageSource(f"{name}-{index}", partial(source.paint, index)) for index in range(source.count)]
    found_files = find_files(source, split="val").files
    paths = sorted((path for path in found_files if not is_array(path)), key=lambda path: path.parts)
    if not paths:
        raise DataError(f"{source}: has no images ({', '.join(sorted(IMAGES))}); give another folder")
    reader = ImageReader([path for path in paths if isinstance(path, Address) or not is_video(path)])
    found: list[ImageSource] = []
    for path in paths:
        if isinstance(path, Path) and is_video(path):
            frames = enumerate(frames_of(path), 1)
            found += [ImageSource(f"{path.stem}-{number}", load, path) for number, load in frames]
        else:
            found.append(ImageSource(path.stem, partial(reader, path), path))
    return found
