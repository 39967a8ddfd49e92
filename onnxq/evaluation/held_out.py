"""Files by content: accuracy must be measured on held-out images, which the model was not calibrated with."""

import hashlib
import os
from collections.abc import Iterable, Sequence

from onnxq.errors import ConfigError
from onnxq.remote.address import Address, Location
from onnxq.remote.fetch import NothingThere, TooLarge
from onnxq.remote.fetched import read_bytes


def require_held_out(calibration: Sequence[Location], evaluation: Sequence[Location]) -> None:
    """Refuse to measure on calibration images.

    Args:
        calibration: files that the model is calibrated with.
        evaluation: files that it is measured on; files that do not exist are ignored.

    Raises:
        ConfigError: both have a file with the same content, under whatever name.
    """
    known = {_digest(file): file for file in calibration}
    known.pop(None, None)
    for file in evaluation:
        if (twin := known.get(_digest(file))) is not None:
            raise ConfigError(
                f"--images: {file} is also a calibration image, as {twin}; a model looks better on images that it was "
                "fitted to: give other images, or --on-calibration to measure on these"
            )


def content_digest(files: Iterable[Location]) -> str:
    """Return a digest of the content of files in this order, whatever they are called; missing ones count by name."""
    digest = hashlib.sha256()
    for file in files:
        digest.update((_digest(file) or f"missing {file}").encode() + b"\n")
    return digest.hexdigest()


def _digest(file: Location) -> str | None:
    """Return what tells the content of a file from others; None if there is no such file."""
    if not isinstance(file, Address) and not os.path.isfile(file):
        return None
    try:
        if not isinstance(file, Address):  # a video fills the memory
            with open(file, "rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()
        return hashlib.sha256(read_bytes(file)).hexdigest()
    except (NothingThere, TooLarge):
        return None
