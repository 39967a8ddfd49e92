"""Rules that several targets share."""

from onnxq.ir import MOVES_VALUES, QDQ_OPS
from onnxq.targets.base import Role, Rule

CONV_IN_OUT = {
    "Conv": Rule(Role.LAYER),
}

CONV_IN = {
    "Conv": Rule(Role.LAYER, output=False),
}

CARRIERS = {
    op: Rule(Role.CARRIER, shared=True)
    # Not Gather, whose indices may be computed; Cast and Identity are gone or stay float. MaxPool and Resize select.
    for op in sorted((MOVES_VALUES - QDQ_OPS - {"Cast", "Gather", "Identity"}) | {"MaxPool", "Resize"})
}

ELEMENTWISE = {
    op: Rule(Role.ELEMENTWISE) for op in ("Sigmoid", "Mul", "Add", "LeakyRelu", "AveragePool", "GlobalAveragePool")
}

RELU = {op: Rule(Role.ELEMENTWISE) for op in ("Relu", "Clip")}
