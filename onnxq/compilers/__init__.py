"""Compilers of vendors that run on a plain CPU, and what they make of a file.

- base: the interface `Compiler`
- tensorrt, qnn, rknn, runtimes: its implementations, by name in `COMPILERS`
- layers: the layers of a file, and which of them are meant for integers
- process, workers: a compiler in a process, and maybe an environment, of its own
- proof: one file in one compiler: layers on integers, noise against the exact computation, agreement
"""

from onnxq.compilers.base import Built, Compiler, Job, Ran
from onnxq.compilers.qnn import Qnn
from onnxq.compilers.rknn import Rknn
from onnxq.compilers.runtimes import OpenVinoCpu, Ort
from onnxq.compilers.tensorrt import TensorRtRtx

COMPILERS: dict[str, Compiler] = {each.name: each for each in (TensorRtRtx(), Qnn(), Rknn(), Ort(), OpenVinoCpu())}
"""Name, as in `--with` -> compiler."""

OF_TARGET = {
    "ort": "ort",
    "openvino": "openvino",
    "tensorrt": "tensorrt-rtx",
    "generic": "qnn",
    "qnn": "qnn",
    "rknn": "rknn",
}
"""Name of a target -> the compiler that its files are for."""

__all__ = ["COMPILERS", "OF_TARGET", "Built", "Compiler", "Job", "Ran"]
