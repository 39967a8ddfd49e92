"""Marks of tests that need optional runtimes."""

import pytest

from onnxq.runtime import OpenVino

needs_openvino = pytest.mark.skipif(not OpenVino.is_installed(), reason="OpenVINO is not installed")
