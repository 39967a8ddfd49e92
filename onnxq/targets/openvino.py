"""Target openvino: OpenVINO."""

from onnxq.targets.base import Target
from onnxq.targets.edges import miscomputed_by_openvino
from onnxq.targets.float_last import FloatLastRule
from onnxq.targets.rules import CONV_IN

OPENVINO = Target(
    name="openvino",
    title="OpenVINO",
    rules=CONV_IN,
    float_last=FloatLastRule(share=0.02),
    scaling_stride=1,
    float_depthwise=True,
    miscomputed=miscomputed_by_openvino,
    takes_int4=True,
    runtime="openvino",
)
