"""Finds the image files that annotations name, and reads their sizes."""

import os
import re
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from PIL import Image

from onnxq._text import some
from onnxq.calibration.find_files import find_files
from onnxq.errors import DataError
from onnxq.evaluation.annotations.records import Annotations, Size
from onnxq.remote.address import Address, Location
from onnxq.remote.fetch import NothingThere, TooLarge
from onnxq.remote.fetched import Fetched, fetched
from onnxq.yolo.inputs.image_files import formats, orientation, stored_size
from onnxq.yolo.inputs.large_pictures import LARGE

_QUARTERS = 5
"""Least EXIF orientation that turns an image by a quarter."""

_UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of a file that was uploaded."""


class PictureSize(NamedTuple):
    """Size of an image file, (height, width) in px.

    Attributes:
        upright: as it is shown, turned by its EXIF orientation.
        stored: as the pixels are stored.
    """

    upright: Size
    stored: Size

    @property
    def is_large(self) -> bool:
        """Whether the picture is decoded at a smaller scale."""
        return self.stored[0] * self.stored[1] > LARGE


def find_images(read: Annotations, folder: Location) -> dict[int, Location]:
    """Return the file of each image by id; images without a file are left out.

    A name is looked up as it is written, then without the folders in front, then by the names in the folder without
    regard to case; backslashes separate folders too.

    Args:
        read: the annotations; a remark is added if names are not found as they are written.
        folder: where the images are. At an address, only folders in front of a name may differ.

    Raises:
        DataError: two images are found in one file.
    """
    if isinstance(folder, Address):
        return _find_at(read, folder)
    found: dict[int, Location] = {}
    present: dict[str, list[str]] | None = None
    mended = []
    for image in read.images:
        path = folder / image.name
        if not os.path.isfile(path):
            if present is None:
                present = _names_in(folder)
            other = _lookup(image.name, folder, present)
            if other is None:
                continue
            mended.append(f"{image.name} as {other.relative_to(folder).as_posix()}")
            path = other
        found[image.id] = path
    _refuse_shared(read, found)
    if mended:
        read.remarks.append(
            f"{len(mended)} of {len(read.images)} images are found in {folder} by another name: {some(mended)}"
        )
    return found


def _find_at(read: Annotations, folder: Address) -> dict[int, Location]:
    """Find the images below an address: by their names as they are written, or without the folders in front."""
    files = find_files(folder).files
    above = len(folder.parts)
    below = {"/".join(file.parts[above:]): file for file in files}
    found: dict[int, Location] = {}
    for image in read.images:
        place = next((below[key] for parts in _suffixes(image.name) if (key := "/".join(parts)) in below), None)
        if place is not None:
            found[image.id] = place
    _refuse_shared(read, found)
    return found


def _lookup(name: str, folder: Path, present: dict[str, list[str]]) -> Path | None:
    for parts in _suffixes(name):
        if os.path.isfile(path := folder.joinpath(*parts)):
            return path
    base = re.split(r"[/\\]", name)[-1]
    for spelling in dict.fromkeys((base, unquote(base), _UPLOAD.sub("", base))):
        for key in (_key(spelling), _key(os.path.splitext(spelling)[0])):
            there = present.get(key, [])
            if len(there) == 1 and os.path.isfile(folder / there[0]):
                return folder / there[0]
    return None


def _suffixes(name: str) -> Iterator[Sequence[str]]:
    """Yield the parts of a path, without ever more of the folders in front."""
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".", "..")]
    for first in range(len(parts)):
        yield parts[first:]


def _names_in(folder: Path) -> dict[str, list[str]]:
    """The files of a folder by their key, with and without their suffix."""
    names: dict[str, list[str]] = {}
    if os.path.isdir(folder):
        for name in sorted(os.listdir(folder)):
            for key in dict.fromkeys((_key(name), _key(os.path.splitext(name)[0]))):
                names.setdefault(key, []).append(name)
    return names


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _refuse_shared(read: Annotations, found: dict[int, Location]) -> None:
    by_path: dict[Location, str] = {}
    for image in read.images:
        path = found.get(image.id)
        if path is not None and by_path.setdefault(path, image.name) != image.name:
            raise DataError(
                f"{read.source}: {by_path[path]} and {image.name} are both found as {path}; give --images the folder "
                "that holds their folders"
            )


def picture_size(place: Location) -> PictureSize | None:
    """Return the size of an image file without decoding its pixels; None for one that cannot be opened."""
    try:
        path = fetched(place)
    except (NothingThere, TooLarge):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path.open() if isinstance(path, Fetched) else path, formats=formats()) as image:
                width, height = stored_size(image)
                turned = orientation(image) >= _QUARTERS
    except Exception:  # Pillow raises SyntaxError, struct.error, OverflowError and more; reading the image tells it
        return None
    return PictureSize((width, height) if turned else (height, width), (height, width))
