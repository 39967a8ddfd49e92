"""Target ort: onnxruntime on CPUs."""

from onnxq.targets.base import POINTWISE_TO_MATMUL, Role, Rule, Target
from onnxq.targets.rules import CARRIERS, CONV_IN_OUT, ELEMENTWISE, RELU
from onnxq.targets.stem import FloatStemRule

ORT = Target(
    name="ort",
    title="onnxruntime on CPUs",
    rules={
        **CONV_IN_OUT,
        **ELEMENTWISE,
        **RELU,
        **CARRIERS,
        "MaxPool": Rule(Role.CARRIER, shared=True, behind_integers=True),
    },
    lowering=(POINTWISE_TO_MATMUL, "upsample-to-concat", "expand-softmax"),
    quantizes_last_layers=False,
    float_silu_stride=16,
    fused_activations=frozenset({"Relu", "Clip"}),
    float_depthwise=True,
    stem=FloatStemRule(channels=32, products=64),
    takes_int4=True,
    runtime="ort",
)
