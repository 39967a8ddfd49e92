"""Runtimes that run a model on this machine, one file each; only this package imports onnxruntime and openvino.

- base: the interface `Runtime`
- ort, openvino, exact: its implementations, by name in `RUNTIMES`
- session: sessions of onnxruntime for onnxq's own computations, exact on every CPU
- streaming: many samples through a model in bounded memory
- compare_run: a run against the exact computation: rounded differently, or wrong, and what helps
- locate_error: the layers that a runtime computes wrongly
- same_function: whether a converted model computes what it did before, and the first node that does not
- cpu: the name and the instructions of this machine's CPU

From 1.29 on, onnxruntime sends events of what it runs to its maker, and keeps files for that in the home and temporary
folders. It does neither here, unless the environment says `ORT_DISABLE_TELEMETRY=0` or onnxruntime was imported before.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when onnxruntime is imported

from onnxq.runtime.base import IntegerLayers, ModelSource, OperatorTime, Runtime
from onnxq.runtime.exact import ExactRuntime
from onnxq.runtime.openvino import OpenVino
from onnxq.runtime.ort import OnnxRuntime
from onnxq.runtime.session import Feed

RUNTIMES: dict[str, type[Runtime]] = {"ort": OnnxRuntime, "openvino": OpenVino, "exact": ExactRuntime}
"""Name, as in `Target.runtime` and `--runtime` -> class."""

__all__ = [
    "RUNTIMES",
    "ExactRuntime",
    "Feed",
    "IntegerLayers",
    "ModelSource",
    "OnnxRuntime",
    "OpenVino",
    "OperatorTime",
    "Runtime",
]
