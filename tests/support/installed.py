"""Marks of tests that need optional runtimes, and the interpreters of the environments that have vendors' compilers."""

import importlib.util
import os
import sys

import pytest

from onnxq.runtime import OpenVino

needs_openvino = pytest.mark.skipif(not OpenVino.is_installed(), reason="OpenVINO is not installed")

MODULES = {"tensorrt-rtx": "tensorrt_rtx", "qnn": "onnxruntime_qnn", "rknn": "rknn"}
"""Compilers, and the modules that they are in."""


def interpreter(compiler):
    """Return the interpreter of a compiler's environment: of `ONNXQ_QNN`, or this one; None if neither has it."""
    given = os.environ.get(f"ONNXQ_{compiler.partition('-')[0].upper()}")
    return given or (sys.executable if importlib.util.find_spec(MODULES[compiler]) else None)


def needs_compiler(name):
    """Return the mark of tests that run a compiler."""
    return pytest.mark.skipif(interpreter(name) is None, reason=f"{name} is not installed")
