"""Accuracy must be measured on held-out images: images that the model was not calibrated with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from onnxq.errors import ConfigError


def require_held_out(calibration: Sequence[Path], evaluation: Sequence[Path]) -> None:
    """Refuse to measure on calibration images.

    Args:
        calibration: files that the model is calibrated with.
        evaluation: files that it is measured on; files that do not exist are ignored.

    Raises:
        ConfigError: both have a file with the same content, under whatever name.
    """
    known = {_digest(file): file for file in calibration}
    for file in evaluation:
        if file.is_file() and (twin := known.get(_digest(file))) is not None:
            raise ConfigError(
                f"--images: {file} is also a calibration image, as {twin}; a model looks better on images that it was "
                "fitted to: give other images, or --on-calibration to measure on these"
            )


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
