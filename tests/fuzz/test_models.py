"""Malformed models end in one error that says what is wrong, or are planned as they are; nothing else happens.

A longer run: `ONNXQ_FUZZ=10000 pytest tests/fuzz`. The seed of a model that fails is in the name of the test.
"""

import contextlib
import os

import pytest
from mutations import mutated

from onnxq import Config, OnnxqError, plan
from onnxq.targets import TARGETS

SEEDS = range(int(os.environ.get("ONNXQ_FUZZ", "80")))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_plan_or_one_error(seed, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(mutated(seed).SerializeToString())
    with contextlib.suppress(OnnxqError):
        found, _ = plan(path, Config(target=list(TARGETS)[seed % len(TARGETS)]))
        assert found.ops
