"""SiLU, x * sigmoid(x), the activation of most YOLO networks."""

import numpy as np

from onnxq.numerics.arrays import Float64Array

SILU_MINIMUM = -0.27846454
"""Least value of x * sigmoid(x), at x = -1.27846454."""

SILU_FLAT_BELOW = -10.0
"""|silu(x)| < 5e-4 below it: histograms of SiLU inputs count everything further down as if it were here."""


def silu(x: Float64Array) -> Float64Array:
    """Return x * sigmoid(x), float64 of the shape of x."""
    return x * _sigmoid(x)


def silu_slope(x: Float64Array) -> Float64Array:
    """Return the derivative of `silu`, float64 of the shape of x."""
    gate = _sigmoid(x)
    return gate * (1 + x * (1 - gate))


def _sigmoid(x: Float64Array) -> Float64Array:
    return 0.5 * (1 + np.tanh(0.5 * x))
