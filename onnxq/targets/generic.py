"""Target generic: runtimes that need every operator quantized."""

from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.rules import CARRIERS, CONV_IN_OUT, ELEMENTWISE, RELU

GENERIC = Target(
    name="generic",
    title="runtimes that want every operator quantized",
    rules={
        **CONV_IN_OUT,
        **{op: Rule(Role.LAYER) for op in ("ConvTranspose", "Gemm", "MatMul")},
        **ELEMENTWISE,
        "HardSwish": Rule(Role.ELEMENTWISE),
        **RELU,
        **CARRIERS,
    },
    takes_int4=True,
    fused_activations=frozenset({"Relu", "Clip"}),
)
