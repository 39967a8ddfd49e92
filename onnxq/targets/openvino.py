"""Target openvino: OpenVINO."""

from onnxq.targets.base import Target
from onnxq.targets.rules import CONV_IN

OPENVINO = Target(
    name="openvino",
    title="OpenVINO",
    rules=CONV_IN,
    fuses_scaling=True,
    float_depthwise=True,
    takes_int4=True,
    runtime="openvino",
)
