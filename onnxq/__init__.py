"""onnxq quantizes exported YOLO detectors: a float .onnx in, a fast QDQ .onnx out that keeps its mAP."""

from pathlib import Path

if not (Path(__file__).parent / "passes").is_dir():
    # A clone without symbolic links, not installed: the passes are beside this folder.
    __path__.append(str(Path(__file__).parent.parent))

from onnxq.process import interrupts

if interrupts.is_command():
    interrupts.end_at_once()  # before what takes a second to import

from onnxq.api import Quantized, plan, quantize
from onnxq.config import Config
from onnxq.errors import ConfigError, DataError, ModelError, OnnxqError, PipelineError
from onnxq.version import VERSION as __version__

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "ModelError",
    "OnnxqError",
    "PipelineError",
    "Quantized",
    "__version__",
    "plan",
    "quantize",
]
