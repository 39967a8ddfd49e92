"""Target ort: onnxruntime on CPUs."""

from onnxq.targets.base import POINTWISE_TO_MATMUL, Role, Rule, Target
from onnxq.targets.edges import misaveraged_by_onnxruntime
from onnxq.targets.float_last import FloatLastRule
from onnxq.targets.rules import CARRIERS, CONV_IN_OUT, ELEMENTWISE, RELU
from onnxq.targets.stem import FloatStemRule

# Without VNNI, x86 adds products of 8-bit integers by three instructions instead of one. They save a quarter of a float
# Conv's time and not three quarters, so what surrounds the Conv counts. A product with a float output (QGemm) takes
# longer than a float 1x1 Conv, and a 1x1 Conv with an 8-bit output does not: of the deep ones only those at stride 32,
# or with few positions, keep a float output, for the sake of accuracy.
ORT = Target(
    name="ort",
    title="onnxruntime on CPUs",
    rules={
        **CONV_IN_OUT,
        **ELEMENTWISE,
        **RELU,
        **CARRIERS,
        "MaxPool": Rule(Role.CARRIER, shared=True, behind_integers=True),
        "Mul": Rule(Role.ELEMENTWISE, behind_integers=True),
    },
    lowering=(POINTWISE_TO_MATMUL, "upsample-to-concat", "expand-softmax"),
    quantizes_last_layers=False,
    float_last=FloatLastRule(share=0.02),
    float_silu_stride=32,
    float_silu_positions=100,
    fused_activations=frozenset({"Relu", "Clip"}),
    miscomputed=misaveraged_by_onnxruntime,
    scaling_stride=8,
    float_depthwise=True,
    behind_depthwise=256,
    stem=FloatStemRule(channels=32, products=64),
    takes_int4=True,
    runtime="ort",
)
