"""Rules that several targets share."""

from onnxq.targets.base import Role, Rule

CONV_IN_OUT = {
    "Conv": Rule(Role.LAYER),
}

CONV_IN = {
    "Conv": Rule(Role.LAYER, output=False),
}

CARRIERS = {
    op: Rule(Role.CARRIER, shared=True)
    for op in (
        "MaxPool", "Resize", "Split", "Slice", "Concat", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze",
    )
}  # fmt: skip

ELEMENTWISE = {
    op: Rule(Role.ELEMENTWISE) for op in ("Sigmoid", "Mul", "Add", "LeakyRelu", "AveragePool", "GlobalAveragePool")
}

RELU = {op: Rule(Role.ELEMENTWISE) for op in ("Relu", "Clip")}
