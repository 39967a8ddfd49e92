"""Models that find given objects, and images, to compare models on."""

from pathlib import Path

import numpy as np
import onnx
from PIL import Image
from tables import SIZE, always, table_of

AWAY = (40, 40, 60, 60)
"""A box that does not overlap `tables.BOX`."""


def noise_images(folder: Path) -> Path:
    """Make a folder with three images of noise, and return it."""
    folder.mkdir()
    for number in range(3):
        levels = np.random.default_rng(number).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


def save_models(folder: Path, *models: onnx.ModelProto) -> list[Path]:
    """Save models as `0.onnx` and so on, and return the paths."""
    paths = [folder / f"{number}.onnx" for number in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        onnx.save(model, path)
    return paths


def finding(*boxes: tuple[float, ...], **metadata: str) -> onnx.ModelProto:
    """Return a v8 with two classes that finds these, (x1, y1, x2, y2, score, class), on every image."""
    return always(table_of(list(boxes), "v8", 2), **metadata)
