"""Reads a model and repairs it."""

from pathlib import Path

import onnx

from onnxq.ir.repair import repair
from onnxq.ir.storage import load_proto


def load(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Read a model from a file, or take one in memory, and mend what exporters write amiss; see `exports.mended`."""
    return repair(model if isinstance(model, onnx.ModelProto) else load_proto(Path(model)))
