"""The script that measures large inputs, on small ones."""

import json

import onnx
import pytest
from PIL import Image

from docs.tools import load
from docs.tools.load import Case, Cost
from onnxq import plan


def test_a_chain_has_as_many_nodes_as_asked_for_and_is_quantized(tmp_path):
    path = load.chain(tmp_path / "a.onnx", 30)
    assert len(onnx.load(path).graph.node) == 30
    found, _ = plan(path)
    assert len(found.layers) > 5


def test_a_heavy_model_has_as_many_convs_as_asked_for(tmp_path):
    path = load.heavy(tmp_path / "a.onnx", 2, 64)
    weights = [tuple(tensor.dims) for tensor in onnx.load(path).graph.initializer]
    assert weights.count((64, 64, 3, 3)) == 2
    assert len(plan(path)[0].layers) > 2


def test_a_wide_model_has_as_many_outputs_as_asked_for(tmp_path):
    path = load.wide(tmp_path / "a.onnx", 7)
    assert len(onnx.load(path).graph.output) == 7
    assert plan(path)[0].ops


def test_a_detector_has_the_batch_size_and_classes_that_are_asked_for(tmp_path):
    model = onnx.load(load.detector(tmp_path / "a.onnx", size=64, batch=3, classes=9))
    assert [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == [3, 3, 64, 64]
    made = onnx.shape_inference.infer_shapes(model).graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in made] == [3, 3 * (5 + 9), 2, 2]


def test_pictures_are_made_once_with_annotations_of_each(tmp_path):
    folder = load.pictures(tmp_path / "p", 5)
    before = (folder / "00003.jpg").stat().st_mtime_ns
    assert load.pictures(folder, 5) == folder
    assert (folder / "00003.jpg").stat().st_mtime_ns == before
    with Image.open(folder / "00004.jpg") as picture:
        assert picture.size == (64, 48)
    said = json.loads((tmp_path / "p.json").read_text())
    assert [image["file_name"] for image in said["images"]] == sorted(path.name for path in folder.iterdir())
    assert {entry["image_id"] for entry in said["annotations"]} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize("name", load.CASES)
def test_each_case_is_a_command_of_files_that_exist(tmp_path, name, monkeypatch):
    monkeypatch.setattr(load, "detector", lambda path, *options, **more: path)
    monkeypatch.setattr(load, "wide", lambda path, outputs: path)
    monkeypatch.setattr(load, "heavy", lambda path, convs: path)
    cases = list(load.CASES[name](tmp_path, [30]))
    assert {case.command[0] for case in cases} <= {
        f"onnxq{part}" for part in ("", ".evaluate", ".compare", ".prove", ".benchmark")
    }
    assert all(case.at_once == 1 or not case.size for case in cases)


def test_rows_have_the_factor_of_a_doubling(monkeypatch):
    costs = iter([Cost(10, 100), Cost(21, 150), Cost(40, 160), None])
    monkeypatch.setattr(load, "measure", lambda case: next(costs))
    cases = [Case("nodes", [], 5000), Case("nodes", [], 10_000), Case("nodes", [], 15_000), Case("runs", [], at_once=8)]
    assert list(load.rows(iter(cases)))[2:] == [
        "| nodes | 5,000 | 10.0 |  | 100 |",
        "| nodes | 10,000 | 21.0 | 2.10 | 150 |",
        "| nodes | 15,000 | 40.0 |  | 160 |",
        "| runs |  | failed | | |",
    ]


def test_a_command_is_measured_and_a_failed_one_is_none(tmp_path):
    found = load.measure(Case("", ["json.tool", "--help"], at_once=2))
    assert found is not None
    assert found.seconds > 0
    assert 1 < found.megabytes < 1000
    assert load.measure(Case("", ["json.tool", str(tmp_path / "none")])) is None
