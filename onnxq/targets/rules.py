"""Rules that several targets share."""

from onnxq.ir import MOVES_VALUES, QDQ_OPS
from onnxq.targets.base import Role, Rule

CONV_IN_OUT = {"Conv": Rule(Role.LAYER)}
"""Convs with Q/DQ in front and behind."""

CONV_IN = {"Conv": Rule(Role.LAYER, output=False)}
"""Convs with Q/DQ in front only: integers in, float out."""

CARRIERS = {
    op: Rule(Role.CARRIER, shared=True)
    # Gather is left out because its indices may be computed; Cast and Identity are removed before or stay float.
    # MaxPool and Resize select values.
    for op in sorted((MOVES_VALUES - QDQ_OPS - {"Cast", "Gather", "Identity"}) | {"MaxPool", "Resize"})
}
"""Operators that move or select values."""

ELEMENTWISE = {
    op: Rule(Role.ELEMENTWISE) for op in ("Sigmoid", "Mul", "Add", "LeakyRelu", "AveragePool", "GlobalAveragePool")
}
"""Operators with one or two data inputs that runtimes compute on integers."""

RELU = {op: Rule(Role.ELEMENTWISE) for op in ("Relu", "Clip")}
"""Activations that are fused with the Conv before them."""
