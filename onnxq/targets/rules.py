"""Rules that several targets share."""

from onnxq.targets.base import Role, Rule

CONV_IN_OUT = {"Conv": Rule(Role.LAYER)}
"""Convs with Q/DQ in front and behind."""

CONV_IN = {"Conv": Rule(Role.LAYER, output=False)}
"""Convs with Q/DQ in front only: integers in, float out."""

CARRIERS = {
    op: Rule(Role.CARRIER, shared=True)
    for op in (
        "MaxPool", "Resize", "Split", "Slice", "Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze",
    )
}  # fmt: skip
"""Operators that move or select values."""

ELEMENTWISE = {
    op: Rule(Role.ELEMENTWISE) for op in ("Sigmoid", "Mul", "Add", "LeakyRelu", "AveragePool", "GlobalAveragePool")
}
"""Operators with one or two data inputs that runtimes compute on integers."""

RELU = {op: Rule(Role.ELEMENTWISE) for op in ("Relu", "Clip")}
"""Activations that are fused with the Conv before them."""
