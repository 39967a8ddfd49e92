"""Reading models as the rest of onnxq expects them: from a file, repaired."""

from pathlib import Path

import onnx

from onnxq.ir.repair import repair
from onnxq.ir.storage import load_proto


def load(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """Read a model from a file, or take one in memory, and repair faults of exporters; see `repair`.

    Large weights stay in their file and are linked to; `onnxq.ir.embedded` returns a model that holds them.

    Raises:
        ModelError: the file cannot be read, or the model cannot be repaired.
    """
    return repair(model if isinstance(model, onnx.ModelProto) else load_proto(Path(model)))
