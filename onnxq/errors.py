"""Exceptions for what the user can repair: a model, data, an option, an order of passes.

    OnnxqError
    ├── ModelError      the ONNX file or graph cannot be read, quantized or written
    ├── DataError       calibration or evaluation data is missing, unreadable or does not fit the model
    ├── ConfigError     an option has a value that cannot be used with this model or with another option
    └── PipelineError   passes stand in an order that cannot work, or one reads a fact that it does not declare

Each message has one line or a few: it names the node, file or option, the cause, and the remedy. Any other exception is
a bug and keeps its traceback.
"""

__all__ = ["ConfigError", "DataError", "ModelError", "OnnxqError", "PipelineError"]


class OnnxqError(Exception):
    """Base class of every exception that onnxq raises on purpose.

    Args:
        args: the lines of the message.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class ModelError(OnnxqError):
    """The ONNX file or graph cannot be read, quantized or written."""


class DataError(OnnxqError):
    """Calibration or evaluation data is missing, unreadable or does not fit the model."""


class ConfigError(OnnxqError):
    """An option has a value that cannot be used with this model or with another option."""


class PipelineError(OnnxqError):
    """Passes stand in an order that cannot work, or a pass reads a fact that it does not declare."""
