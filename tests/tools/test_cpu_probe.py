"""The script that runs a model on another CPU, here on this one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import depthwise_net, feed, run

from docs.tools import cpu_probe

PROBE = Path(cpu_probe.__file__)


def test_arrays_are_grouped_by_run():
    runs = [{"x": np.arange(3), "a/b": np.ones(1)}, {"x": np.arange(2)}]
    found = cpu_probe.grouped(cpu_probe.flat(runs))
    assert [{name: array.tolist() for name, array in one.items()} for one in found] == [
        {"x": [0, 1, 2], "a/b": [1]},
        {"x": [0, 1]},
    ]


@pytest.fixture
def stored(tmp_path):
    model = depthwise_net()
    onnx.save(model, tmp_path / "net.onnx")
    given = feed(model)
    np.savez(tmp_path / "feeds.npz", **cpu_probe.flat([given, given]))
    return model, given


def probe(folder, runtime, *more):
    command = [sys.executable, str(PROBE), runtime, "net.onnx", "feeds.npz", "result.npz", "--threads", "1", *more]
    subprocess.run(command, cwd=folder, check=True)
    with np.load(folder / "result.npz") as result:
        return dict(result)


@pytest.mark.parametrize("runtime", cpu_probe.RUNTIMES)
def test_outputs(stored, tmp_path, runtime):
    if runtime == "openvino":
        pytest.importorskip("openvino")
    model, given = stored
    found = probe(tmp_path, runtime)
    for name, expected in run(model, given).items():
        for number in range(2):
            np.testing.assert_allclose(found[f"{number}/{name}"], expected, rtol=1e-3, atol=1e-4)


def test_times(stored, tmp_path):
    seconds = probe(tmp_path, "ort", "--beside", "net.onnx", "--rounds", "3")["seconds"]
    assert seconds.shape == (3, 2)
    assert (seconds > 0).all()
