"""Fixtures of the tests of whole runs."""

import pytest
from graphs import NARROW_TENSORRT

from onnxq.targets import TARGETS


@pytest.fixture
def narrow_convs(monkeypatch):
    """TensorRT's integer kernels take the few channels that the graphs of the tests have."""
    monkeypatch.setitem(TARGETS, "tensorrt", NARROW_TENSORRT)
