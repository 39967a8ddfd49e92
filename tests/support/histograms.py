"""Values like those of activations, as histograms, and the schemes they are tried with."""

import math

import numpy as np
import pytest

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.scheme import INT8, UINT8, Scheme
from onnxq.numerics.silu import silu

ASYMMETRIC = [Scheme(bits, container=INT8 if bits % 2 > 0 else UINT8) for bits in range(2, 9)]
SYMMETRIC = [Scheme(bits, container=INT8 if bits % 2 == 0 else UINT8, symmetric=True) for bits in range(2, 9)]
SCHEMES = ASYMMETRIC + SYMMETRIC


def _samples():
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(20_000)
    return {
        "normal": normal,
        "behind SiLU": silu(2 * normal),
        "behind ReLU": np.maximum(3 * normal, 0),
        "heavy tails": rng.standard_t(2, 20_000),
        "outliers above": np.concatenate([normal, rng.uniform(20, 40, 20)]),
        "skewed": rng.lognormal(0, 1.2, 20_000) - 0.3,
        "uniform": rng.uniform(-1, 5, 20_000),
        "two hills": np.concatenate([normal - 6, 0.2 * normal + 9]),
        "above zero": rng.gamma(2, 3, 20_000) + 4,
    }


SAMPLES = {name: x.astype(np.float32) for name, x in _samples().items()}


def histogram(values, floor=-math.inf):
    made = Histogram(floor)
    made.add(np.asarray(values, np.float32))
    return made


HISTOGRAMS = {name: histogram(x) for name, x in SAMPLES.items()}


def label(scheme):
    kind = "int" if scheme.container is INT8 else "uint"
    return f"{'symmetric' if scheme.symmetric else 'asymmetric'}-{kind}{scheme.bits}"


each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=label)
each_asymmetric = pytest.mark.parametrize("scheme", ASYMMETRIC, ids=label)
each_symmetric = pytest.mark.parametrize("scheme", SYMMETRIC, ids=label)
each_sample = pytest.mark.parametrize("name", SAMPLES)
# Half of what comes out of a ReLU is exactly zero, and not spread over its bin.
each_spread_sample = pytest.mark.parametrize("name", [name for name in SAMPLES if name != "behind ReLU"])


def rounded(x, scheme, low, high):
    """What is left of `x` on the grid that covers [low, high]; float64, by the definition."""
    scale, zero_point = scheme.grid(low, high)
    q = np.clip(np.rint(np.asarray(x, np.float64) / scale) + zero_point, scheme.qmin, scheme.qmax)
    return (q - zero_point) * scale


def cost(h, scheme, bounds):
    return float(squared_error(h, scheme, np.asarray(bounds.low), np.asarray(bounds.high))[0])
