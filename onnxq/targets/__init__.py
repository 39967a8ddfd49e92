"""Targets: where each runtime needs its Q/DQ pairs, as data, in a file each.

A new target is a file with a `Target`, its import here and its place in `TARGETS`: the command line, `Config`, the
passes, the report and the tests over all targets follow.
"""

from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.generic import GENERIC
from onnxq.targets.openvino import OPENVINO
from onnxq.targets.ort import ORT
from onnxq.targets.tensorrt import TENSORRT

TARGETS: dict[str, Target] = {target.name: target for target in (ORT, OPENVINO, TENSORRT, GENERIC)}
"""Name for `--target` -> target."""

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
