"""Target generic: runtimes that need every operator quantized.

A template for other targets, which write down what differs:

- `activations` and `weights` are types of `onnxq.numerics.scheme`: `UINT8`, `INT8`, `UINT16`, `INT16`. The width of the
  first is the default; more types allow more widths. The file gets the opset that the types need: 21 for 16 bits.
- `quantizes_decode` needs rules for the operators of decodes too: Softmax, Sub, Div, Exp, Pow, ReduceSum and others,
  each `Rule(Role.ELEMENTWISE)`. `python -m onnxq MODEL --target NAME --dry-run -v` names those without one: `no-rule`.
- `CARRIERS` are the operators that move values, and `ELEMENTWISE` those of SiLU, residuals and pooling.

`onnxq.targets.base.Target` describes every field.
"""

from onnxq.numerics.scheme import INT8, UINT8
from onnxq.targets.base import Role, Rule, Target
from onnxq.targets.edges import misaveraged_by_onnxruntime
from onnxq.targets.rules import CARRIERS, CONV_IN_OUT, ELEMENTWISE, RELU

GENERIC = Target(
    name="generic",
    title="a runtime that needs every operator quantized",
    rules={
        **CONV_IN_OUT,
        **{op: Rule(Role.LAYER) for op in ("ConvTranspose", "Gemm", "MatMul")},
        **ELEMENTWISE,
        "HardSwish": Rule(Role.ELEMENTWISE),
        **RELU,
        **CARRIERS,
    },
    activations=(UINT8,),
    weights=(INT8,),
    quantizes_decode=False,
    lowering=("split-max-pool", "own-dequantize"),
    takes_int4=True,
    fused_activations=frozenset({"Relu", "Clip"}),
    miscomputed=misaveraged_by_onnxruntime,
)
