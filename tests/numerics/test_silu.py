import numpy as np
import pytest

from onnxq.numerics.silu import SILU_FLAT_BELOW, SILU_MINIMUM, silu, silu_slope


def test_silu_and_its_slope():
    x = np.linspace(-30, 30, 601)
    expected = x / (1 + np.exp(-x))
    np.testing.assert_allclose(silu(x), expected, rtol=1e-9, atol=1e-9)
    step = 1e-5
    np.testing.assert_allclose(silu_slope(x), (silu(x + step) - silu(x - step)) / (2 * step), atol=1e-8)
    assert silu(np.linspace(-2, -1, 100_001)).min() == pytest.approx(SILU_MINIMUM, abs=1e-8)
    assert abs(silu(np.float64(SILU_FLAT_BELOW))) < 5e-4
