"""The script that compares onnxq with other tools, as a command, on a small model."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import v8, with_metadata
from PIL import Image

from onnxq.runtime import RUNTIMES
from onnxq.targets import TARGETS

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "tools" / "side_by_side.py"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The lines that the script prints for a small detector."""
    folder = tmp_path_factory.mktemp("side by side")
    model = with_metadata(v8())
    for node in model.graph.node[:3]:
        node.ClearField("name")
    onnx.save(model, folder / "net.onnx")
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 50, 3), np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{number}.png")
    command = [sys.executable, SCRIPT, folder / "net.onnx", "--calib", folder, "--count", "2", "--rounds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_every_tool_that_is_installed_has_a_row(table):
    titles = [line.split(" | ")[0].strip("| ") for line in table if line.startswith("| ")][2:]
    installed = [name for name, runtime in RUNTIMES.items() if name in TARGETS and runtime.is_installed()]
    expected = ["float", *(f"onnxq, `--target {name}`" for name in installed), "onnxruntime's quantizer, MinMax"]
    assert titles[: len(expected)] == expected


def test_every_row_has_ratios_sizes_and_what_it_took(table):
    header, _, *rows = (line.strip("|").split("|") for line in table if line.startswith("|"))
    assert {len(row) for row in rows} == {len(header)}
    for row in rows[1:]:
        one, two, _, _, size, seconds, peak = (cell.strip() for cell in row[1:])
        assert all(0 < float(cell.split(" ")[0]) < 100 for cell in (one, two))
        assert min(map(float, (size, seconds, peak))) > 0


def test_the_versions_stand_first(table):
    assert "onnxruntime " in table[0]
    assert "numpy " in table[0]
