"""Scales that migrate through odd graphs change nothing that they compute; `ONNXQ_FUZZ=1000` runs more."""

import os

import numpy as np
import onnx
import pytest
from graphs import feed, planned, rewrite, run
from odd_graphs import odd_graph

from onnxq import OnnxqError
from onnxq.facts import Migration
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.pipeline import Facts
from onnxq.qdq.migration import migratable
from onnxq.targets import OPENVINO

SEEDS = range(int(os.environ.get("ONNXQ_FUZZ", "25")))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_function_stays_the_same(seed):
    model = odd_graph(seed)
    try:
        working, plan = planned(model, OPENVINO)
    except OnnxqError:
        pytest.skip("no Conv can be quantized")
    rng = np.random.default_rng(seed)
    scales = {
        name: np.exp(rng.normal(size=found.channels)).astype(np.float32)
        for name, found in migratable(working, plan).items()
    }
    before = working.to_proto()
    after, edits = rewrite(MigrateScales(), before, Facts([plan, Migration(scales)]))
    assert edits == len(scales)
    onnx.checker.check_model(after, full_check=True)
    expected, found = (run(each, feed(model)) for each in (before, after))
    for name, values in expected.items():
        greatest = np.abs(values[np.isfinite(values)]).max(initial=1e-6)
        np.testing.assert_allclose(found[name], values, rtol=2e-3, atol=1e-4 * greatest)
