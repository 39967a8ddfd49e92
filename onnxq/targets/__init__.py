"""Targets: where each runtime needs its Q/DQ pairs, as data. One file per target."""

from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.generic import GENERIC
from onnxq.targets.openvino import OPENVINO
from onnxq.targets.ort import ORT
from onnxq.targets.tensorrt import TENSORRT

TARGETS: dict[str, Target] = {target.name: target for target in (ORT, OPENVINO, TENSORRT, GENERIC)}
"""By the name that `--target` takes."""

__all__ = [
    "GENERIC",
    "OPENVINO",
    "ORT",
    "TARGETS",
    "TENSORRT",
    "Role",
    "Rule",
    "Target",
]
