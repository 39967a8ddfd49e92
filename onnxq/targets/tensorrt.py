"""Target tensorrt: TensorRT."""

from dataclasses import replace

from onnxq.numerics.scheme import INT8
from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.few_channels import FewChannelsRule
from onnxq.targets.rules import CARRIERS, CONV_IN
from onnxq.targets.tensorrt_parser import violations

# One Q behind a Concat is enough: TensorRT moves a Q backwards, and a DQ forwards, across operators that only move
# values, so the Q ends up in the layers whose outputs are joined. If another consumer reads one of these outputs as
# integers, the Q meets the DQ there: with equal scales both vanish, with different ones each such input costs a pass
# over memory. Therefore a Concat binds its inputs to its own scale. Resize is the only other carrier with a Q in front:
# TensorRT is not known to move a Q across it, and its input is the smaller side.
# Weights are never int4: TensorRT's int4 has a scale per block of 64 or 128 weights (guide, "Quantization Schemes"),
# while these weights have one per output channel.
# ConvTranspose stays float: TensorRT-RTX 1.7.1 runs it in float in any case, and the integer kernels of TensorRT have a
# scale per input channel (NVIDIA/TensorRT, issues 1694 and 2380), which is impossible for a sum over these channels.
# Activations are never narrower than 8 bits: they need a Clip of integers, which TensorRT-RTX takes, but its
# documentation lists floats only, and no numbers of it can be checked without a GPU.
TENSORRT = Target(
    name="tensorrt",
    title="TensorRT",
    rules={
        **CONV_IN,
        "Add": Rule(Role.ELEMENTWISE, output=False, residual=True),
        **{op: replace(rule, input=False, output=False, binding=op == "Concat") for op, rule in CARRIERS.items()},
        "Resize": Rule(Role.CARRIER, output=False, shared=True),
    },
    activations=(INT8,),
    symmetric_activations=True,
    lowering=("scales-to-batch-norm",),
    strongly_typed=True,
    clips=(),
    # Ultralytics and NVIDIA's yolo_deepstream keep them float as well.
    quantizes_last_layers=False,
    fused_activations=frozenset({"Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid"}),
    # TensorRT-RTX 1.7.1 runs the Mul in the kernel of the SiLU and the Q: an engine has no more kernels, and moves no
    # more bytes.
    scaling_stride=1,
    # Model-Optimizer would quantize them, which costs YOLOX-Nano three quarters of its AP (simulated in onnxruntime).
    float_depthwise=True,
    few_channels=FewChannelsRule(channels=16),
    # As in Model-Optimizer: a float layer gains nothing from rounded inputs.
    bypasses_dq=frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"}),
    file_rules=violations,
    runs_on_cpus=False,
)
