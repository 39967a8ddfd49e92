"""Quantize with a calibration reader that was written for onnxruntime's `quantize_static`.

Run it as `python examples/reader.py yolov8n.onnx images/ yolov8n.int8.onnx`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from PIL import Image

import onnxq


class Reader:
    """A CalibrationDataReader of onnxruntime: `get_next` returns a feed, or None at the end."""

    def __init__(self, model: str, folder: str) -> None:
        image = ort.InferenceSession(model).get_inputs()[0]
        self._name, (*_, self._height, self._width) = image.name, image.shape
        self._feeds = self._read(Path(folder))

    def _read(self, folder: Path) -> Iterator[dict[str, np.ndarray]]:
        for path in sorted(folder.iterdir()):
            image = Image.open(path).convert("RGB").resize((self._width, self._height))
            yield {self._name: np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255}

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next feed."""
        return next(self._feeds, None)


if __name__ == "__main__":
    model, folder, output = sys.argv[1:]
    onnxq.quantize(model, Reader(model, folder)).save(output)
