"""Runtimes that can run a model on this machine. One file per runtime."""

from onnxq.runtime.base import IntegerLayers, OperatorTime, Runtime, Source
from onnxq.runtime.openvino import OpenVino
from onnxq.runtime.ort import OnnxRuntime

RUNTIMES: dict[str, type[Runtime]] = {"ort": OnnxRuntime, "openvino": OpenVino}

__all__ = [
    "RUNTIMES",
    "IntegerLayers",
    "OnnxRuntime",
    "OpenVino",
    "OperatorTime",
    "Runtime",
    "Source",
]
