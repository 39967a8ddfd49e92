"""Target qnn: Qualcomm's NPU (Hexagon, HTP) through QNN, in onnxruntime-qnn."""

from onnxq.numerics.scheme import INT8, UINT8, UINT16
from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.edges import misread_by_qnn, moved_by_qnn
from onnxq.targets.rules import CARRIERS, CONV_IN_OUT, ELEMENTWISE, RELU

_DECODE = (
    "Abs", "Div", "Exp", "Neg", "Pow", "ReduceMax", "ReduceMean", "ReduceSum", "Softmax", "Sqrt", "Sub", "Tanh",
)  # fmt: skip
"""Operators of decodes. In QNN's simulator the outputs of each keep 60 dB and more at 16 bits."""


def _misfused(height: int, width: int) -> bool:
    """Return whether QNN computes Conv, Sigmoid and Mul of 16-bit integers with this output wrongly.

    QNN 2.51 fuses the three. The result is wrong if the output has 9 to 12 rows, or more rows and at most 8 columns
    (`findings/qnn_uint16_silu.sh`).
    """
    return 9 <= height <= 12 or (height > 12 and width <= 8)


# What is not quantized runs in float16, which rounds boxes near 640 px at each operator by up to a quarter of a pixel.
# With 16 bits the decode is quantized as well, up to where boxes and scores are joined. Activations have one scale for
# each tensor: a file with one for each channel fails to load.
QNN = Target(
    name="qnn",
    title="QNN",
    rules={
        **CONV_IN_OUT,
        **{op: Rule(Role.LAYER) for op in ("ConvTranspose", "Gemm", "MatMul")},
        **ELEMENTWISE,
        **{op: Rule(Role.ELEMENTWISE) for op in ("HardSigmoid", "HardSwish", "Elu", *_DECODE)},
        **RELU,
        **CARRIERS,
    },
    activations=(UINT16, UINT8),
    weights=(INT8,),
    quantizes_decode=True,
    least_decode_bits=16,
    float_joins=True,
    takes_int4=True,
    clips=(),
    fused_activations=frozenset({"Relu", "Clip"}),
    misfused_silu=_misfused,
    miscomputed=moved_by_qnn,
    misread=misread_by_qnn,
    runs_on_cpus=False,
)
