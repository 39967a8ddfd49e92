"""Targets: the Q/DQ rules of each runtime as data, one file per target.

A new target is a file with a `Target`, an import here and an entry in `TARGETS`. The command line, `Config`, the
passes, the report and the tests over all targets pick it up.
"""

from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.generic import GENERIC
from onnxq.targets.openvino import OPENVINO
from onnxq.targets.ort import ORT
from onnxq.targets.qnn import QNN
from onnxq.targets.tensorrt import TENSORRT

TARGETS: dict[str, Target] = {target.name: target for target in (ORT, OPENVINO, TENSORRT, QNN, GENERIC)}
"""Name for `--target` -> target."""

__all__ = [
    "GENERIC",
    "OPENVINO",
    "ORT",
    "QNN",
    "TARGETS",
    "TENSORRT",
    "Role",
    "Rule",
    "Target",
]
