"""Each example runs and makes what it promises."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from graphs import Net, ops
from PIL import Image

from models import make
from onnxq.calibration.dead_leaves import dead_leaves_image
from onnxq.cli import main

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

SIDE = 128
"""Side of the model's input, px."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a working directory with a model and four images."""
    monkeypatch.setattr(make, "SIZE", SIDE)
    onnx.save(make.build(), tmp_path / "model.onnx")
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.fromarray(dead_leaves_image(number, (256, 256))).save(tmp_path / "images" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python_blocks(page):
    """Return the Python code of a page, each line at its line number in the page, so that tracebacks name it."""
    lines, inside = [], False
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        lines.append(line if inside else "")
    return "\n".join(lines)


def run_script(name, *arguments):
    """Run an example in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def call(*command):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)


def assert_quantized(path):
    model = onnx.load(path)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) > 10
    image = np.random.default_rng(0).random((1, 3, SIDE, SIDE), np.float32)
    before, after = (ort.InferenceSession(str(p)).run(None, {"images": image})[0] for p in ("model.onnx", path))
    assert before.shape == after.shape
    assert np.isfinite(after).all()
    return {p.key: p.value for p in model.metadata_props}


@pytest.mark.slow
def test_after_export(folder):
    ran = call(EXAMPLES / "after_export.sh", "model.onnx", "images")
    assert ran.returncode == 0, ran.stderr
    assert_quantized("model.int8.onnx")
    assert "SQNR dB" in ran.stdout


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_makefile(folder):
    command = ("make", "-f", EXAMPLES / "Makefile", f"PYTHON={sys.executable}", "TARGET=openvino")
    ran = call(*command)
    assert ran.returncode == 0, ran.stderr
    assert assert_quantized("model.int8.onnx")["onnxq.target"] == "openvino"
    assert json.loads(Path("model.json").read_text())
    assert "Nothing to be done" in call(*command).stdout


@pytest.mark.slow
def test_reader(folder):
    run_script("reader.py", "model.onnx", "images", "out.onnx")
    assert assert_quantized("out.onnx")["onnxq.samples"] == "4"


@pytest.mark.slow
def test_pipeline(folder):
    steps = [
        {"type": "metadata", "values": {"site": "roof"}},
        {"type": "quantize", "data": "images", "target": "openvino", "method": "minmax"},
        {"type": "check", "least_sqnr": 10},
    ]
    Path("plan.json").write_text(json.dumps({"input": "model.onnx", "output": "out.onnx", "steps": steps}))
    run_script("pipeline.py", "plan.json")
    metadata = assert_quantized("out.onnx")
    assert (metadata["site"], metadata["task"], metadata["onnxq.method"]) == ("roof", "detect", "minmax")
    steps[2]["least_sqnr"] = 200
    Path("plan.json").write_text(json.dumps({"input": "model.onnx", "output": "other.onnx", "steps": steps}))
    with pytest.raises(SystemExit, match="too noisy"):
        run_script("pipeline.py", "plan.json")
    assert not Path("other.onnx").exists()


@pytest.mark.slow
def test_the_options_of_the_workflow_are_known(folder):
    [line] = [line for line in (EXAMPLES / "workflow.yml").read_text().splitlines() if "python -m onnxq" in line]
    command = line.split("run: ")[1].replace("calibration/", "images").replace("validation/", "images").split()
    assert command[:3] == ["python", "-m", "onnxq"]
    assert main([*command[3:], "--on-calibration", "--no-speed"]) == 0
    assert_quantized("model.int8.onnx")


@pytest.mark.slow
def test_the_page_about_passes(folder):
    net = Net()
    scaled = net.add("Mul", net.block("images", 8), net.const(1.0))
    onnx.save(net.model(net.conv(net.block(scaled, 8), 4)), "yolo.onnx")
    page = ROOT / "docs" / "passes.md"
    names = {"__name__": "page"}
    exec(compile(python_blocks(page), str(page), "exec"), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    before, after = onnx.load("yolo.onnx"), onnx.load("yolo.int8.onnx")
    assert "QuantizeLinear" in ops(after)
    assert ops(before).count("Mul") == ops(after).count("Mul") + 1
    assert list(Path("steps").iterdir())
