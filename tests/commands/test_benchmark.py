import json
import re
from importlib import metadata

import pytest
from graphs import quantized, v8, with_metadata
from installed import needs_openvino

from onnxq.benchmark import main
from onnxq.runtime import OpenVino


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A detector and its quantized file."""
    folder = tmp_path_factory.mktemp("models")
    model = with_metadata(v8())
    paths = [folder / "net.onnx", folder / "net.int8.onnx"]
    for path, content in zip(paths, (model, quantized(model)[0])):
        path.write_bytes(content.SerializeToString())
    return paths


@pytest.mark.slow
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
    version = metadata.version("onnxruntime")
    assert f"onnxruntime {version}, 1 thread, 2 rounds after 3 warm-up runs" in err


def test_quiet_prints_tables_only(models, capsys):
    assert main([str(models[0]), "--rounds", "1", "-q"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_all_numbers_as_json(models, tmp_path, capsys):
    target = tmp_path / "b.json"
    assert main([*map(str, models), "--rounds", "2", "--threads", "1", "--json", str(target), "-q"]) == 0
    written = json.loads(target.read_text())
    assert (written["runtime"], written["threads"], written["rounds"]) == ("ort", 1, 2)
    assert [m["path"] for m in written["models"]] == list(map(str, models))
    assert written["models"][1]["operators"]["QLinearConv"]["count"] == 10
    assert all(m["least"] <= m["median"] <= m["p90"] for m in written["models"])


@pytest.mark.slow
@needs_openvino
def test_in_openvino(models, capsys):
    assert main([*map(str, models), "--rounds", "1", "--runtime", "openvino"]) == 0
    assert "Convolution" in capsys.readouterr().out


def test_without_openvino(models, capsys, monkeypatch):
    monkeypatch.setattr(OpenVino, "is_installed", classmethod(lambda cls: False))
    assert main([str(models[0]), "--runtime", "openvino"]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert said == "error: --runtime openvino: not installed; pip install 'onnxq[openvino]'"


@pytest.mark.parametrize("options", [["--rounds", "0"], ["--threads", "0"], ["--runtime", "tpu"]])
def test_usage(models, options):
    with pytest.raises(SystemExit) as caught:
        main([str(models[0]), *options])
    assert caught.value.code == 2


def test_json_never_replaces_a_model(models, capsys):
    before = models[1].read_bytes()
    assert main([*map(str, models), "--rounds", "1", "--json", str(models[1])]) == 1
    assert "is a model; give another name with --json" in capsys.readouterr().err
    assert models[1].read_bytes() == before


def test_a_missing_model_is_one_line(capsys):
    assert main(["nowhere.onnx"]) == 1
    assert capsys.readouterr().err.startswith("error: nowhere.onnx: no such file")
