import json
import re
from typing import ClassVar

import numpy as np
import onnx
import pytest
from graphs import csp, feed, quantized, v8, with_levels, with_metadata

from onnxq.benchmark import main
from onnxq.evaluation import latency
from onnxq.evaluation.latency import measure_latency
from onnxq.progress import silent
from onnxq.runtime import OnnxRuntime, OpenVino


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
    """Keeps a log of what runs, in turn."""

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


def test_the_tables(models, tmp_path, capsys):
    target = tmp_path / "b.json"
    assert main([*map(str, models), "--rounds", "2", "--threads", "1", "--json", str(target)]) == 0
    numbers = json.loads(target.read_text())["models"]
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines()]
    first, second = (next(row for row in rows if row and row[0] == path.name) for path in models)
    assert first[2] == first[4] == "1.00"
    assert second[2] == f"{numbers[0]['least'] / numbers[1]['least']:.2f}"
    assert second[4] == f"{numbers[0]['median'] / numbers[1]['median']:.2f}"
    assert any(row and row[0] == "all" for row in rows)
    assert re.search(r"QLinearConv +\d+\.\d\d \(10\)", out)
    assert "onnxruntime, 1 thread, 2 rounds after 3 to warm up" in err


def test_quiet_prints_tables_only(models, capsys):
    assert main([str(models[0]), "--rounds", "1", "-q"]) == 0
    assert capsys.readouterr().err == ""


def test_all_numbers_as_json(models, tmp_path, capsys):
    target = tmp_path / "b.json"
    assert main([*map(str, models), "--rounds", "2", "--threads", "1", "--json", str(target), "-q"]) == 0
    written = json.loads(target.read_text())
    assert (written["runtime"], written["threads"], written["rounds"]) == ("ort", 1, 2)
    assert [m["path"] for m in written["models"]] == list(map(str, models))
    assert written["models"][1]["operators"]["QLinearConv"]["count"] == 10
    assert all(m["least"] <= m["median"] <= m["p90"] for m in written["models"])


@pytest.mark.skipif(not OpenVino.is_installed(), reason="OpenVINO is not installed")
def test_in_openvino(models, capsys):
    assert main([*map(str, models), "--rounds", "1", "--runtime", "openvino"]) == 0
    assert "Convolution" in capsys.readouterr().out


def test_without_openvino(models, capsys, monkeypatch):
    monkeypatch.setattr(OpenVino, "is_installed", classmethod(lambda cls: False))
    assert main([str(models[0]), "--runtime", "openvino"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: --runtime openvino: it is not installed; pip install 'onnxq[openvino]'"


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--threads", "0"], ["--runtime", "tpu"]])
def test_usage(models, options):
    with pytest.raises(SystemExit) as caught:
        main([str(models[0]), *options])
    assert caught.value.code == 2


def test_a_missing_model_is_one_line(capsys):
    assert main(["nowhere.onnx"]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere.onnx: no such file")
