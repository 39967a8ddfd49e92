from typing import ClassVar

import numpy as np
import onnx
import pytest
from graphs import csp, feed, quantized, v8, with_levels, with_metadata

from onnxq.evaluation import latency
from onnxq.evaluation.latency import measure_latency
from onnxq.progress import silent
from onnxq.runtime import OnnxRuntime


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A detector and its quantized file."""
    folder = tmp_path_factory.mktemp("models")
    model = with_metadata(v8())
    paths = [folder / "net.onnx", folder / "net.int8.onnx"]
    for path, content in zip(paths, (model, quantized(model)[0])):
        path.write_bytes(content.SerializeToString())
    return paths


@pytest.fixture(scope="module")
def results(models):
    return measure_latency(models, OnnxRuntime, threads=1, rounds=4, progress=silent)


@pytest.mark.slow
def test_measures_each_model(models, results):
    assert [r.path for r in results] == models
    for result, path in zip(results, models):
        assert 0 < result.least <= result.median <= result.p90
        assert result.bytes == path.stat().st_size
        assert result.peak_memory is None or result.peak_memory > 20e6
    assert "QLinearConv" not in results[0].operators
    assert results[1].operators["QLinearConv"].count == 10


def test_a_model_of_a_fixed_batch_gets_one(tmp_path):
    path = tmp_path / "two.onnx"
    path.write_bytes(csp(batch=2).SerializeToString())
    times = latency.latencies([path], OnnxRuntime, threads=1, rounds=3)
    assert times.shape == (1, 3)
    assert (times > 0).all()


class Logged(OnnxRuntime):
    """Logs the models in the order in which they run."""

    ran: ClassVar = []

    def __init__(self, model, *, threads=0):
        super().__init__(model, threads=threads)
        self._model = model

    def run(self, feed):
        self.ran.append((self._model, feed))
        return super().run(feed)


def test_a_model_of_levels_gets_all_of_them(tmp_path):
    model = with_levels(csp(), channels_last=True)
    onnx.save(model, tmp_path / "levels.onnx")
    [image] = latency._random_feed(tmp_path / "levels.onnx", None).values()
    assert (image.dtype, image.shape) == (np.uint8, (1, 32, 32, 3))
    assert (image.min(), image.max()) == (0, 254)


@pytest.mark.slow
def test_the_models_run_in_turn_on_the_same_image(models, monkeypatch):
    monkeypatch.setattr(latency, "_peak_memory", lambda *_: None)
    Logged.ran.clear()
    told = []
    measure_latency(models, Logged, threads=1, rounds=2, progress=lambda *call: told.append(call))
    assert [model for model, _ in Logged.ran] == models * 5  # three of them to warm up
    images = [values["images"] for _, values in Logged.ran]
    assert all(np.array_equal(images[0], image) for image in images)
    assert images[0].shape == feed(v8())["images"].shape
    assert told[0] == ("loading", 0, 0)
    assert told[-2:] == [("measuring", 2, 2), ("profiling", 0, 0)]
