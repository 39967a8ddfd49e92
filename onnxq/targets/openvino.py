"""Target openvino: OpenVINO."""

from onnxq.targets.base import Target
from onnxq.targets.rules import CONV_IN

OPENVINO = Target(
    name="openvino",
    title="OpenVINO",
    rules=CONV_IN,
    scaling_stride=1,
    float_depthwise=True,
    takes_int4=True,
    runtime="openvino",
)
