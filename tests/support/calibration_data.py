"""Calibration data as files, arrays and feeds, whose samples can be told apart by their grey level."""

import re

import numpy as np
import pytest
from PIL import Image

from onnxq.calibration.samples import open_samples
from onnxq.errors import DataError
from onnxq.yolo.preprocess import YOLO

SIZE = (8, 8)

IMAGE = ("x", (1, 3, 8, 8), np.float32)


def opened(source, *inputs, **options):
    """Open for a model with the given (name, shape, dtype) inputs, the first of which takes images."""
    inputs = inputs or (IMAGE,)
    specs = {name: (shape, dtype) for name, shape, dtype in inputs}
    return open_samples(source, inputs=specs, image_input=inputs[0][0], size=SIZE, preprocess=YOLO, **options)


def batched(batch):
    return ("x", (batch, 3, 8, 8), np.float32)


def drawn(samples):
    return [loader() for loader in samples.loaders]


def levels(samples):
    """The grey level that each of the samples was painted with, and the padding left out."""
    rows = [row for sample in drawn(samples) if sample for row in sample.feed["x"][: sample.valid]]
    return [round(float(row[0, 4, 4]) * 255) for row in rows]


def refused(message):
    """Expect a DataError whose text contains the message."""
    return pytest.raises(DataError, match=re.escape(message))


def paint(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (level, level, level)).save(path)
    return path


def arrays(count):
    """Float32 (count, 3, 8, 8); sample i is filled with i / 255, as a picture of level i would be."""
    return np.repeat(np.arange(count, dtype=np.float32) / 255, 3 * 8 * 8).reshape(count, 3, 8, 8)


class Reader:
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


class Tensor:
    """A tensor of another library, as numpy sees it."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


def feeds(count):
    return [{"x": row[None]} for row in arrays(count)]
