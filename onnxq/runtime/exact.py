"""Quantized models computed as ONNX defines them, with the same result on every CPU, as a runtime."""

from typing import ClassVar

from onnxq.runtime.ort import OnnxRuntime


class ExactRuntime(OnnxRuntime):
    """onnxruntime's CPU provider without integer kernels: layers compute the dequantized values in float32.

    Sums cannot saturate, whatever the instruction set (see `exact` of `onnxq.runtime.session.open_session`). A float
    model runs as in `OnnxRuntime`.
    """

    _EXACT: ClassVar[bool] = True

    @classmethod
    def described(cls) -> str:
        """Return the version of onnxruntime, and that it is not used as usual."""
        return f"{super().described()} (exact)"
