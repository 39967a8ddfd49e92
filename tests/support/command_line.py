"""Helpers for tests of `python -m onnxq`: run it, and read the files that it writes."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from graphs import initializers, silu_chain
from PIL import Image, ImageDraw

from onnxq.config import Config
from onnxq.passes import default

ROOT = Path(__file__).parents[2]

PASSES = [step.name for step in default(Config(), silu_chain(), None)]

NEVER_SATURATES = ("--bits", "re:.=7/8", "--no-reconstruct")
"""Options with which no sum of a runtime saturates on any CPU; onnxq would warn of it."""

SENTINEL = b"what was here before"


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def table(self):
        """The text of stdout without its line breaks."""
        return " ".join(self.out.split())


def save(model, name="model.onnx"):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, name)
    return Path(name)


def draw(name, seed=0, size=(48, 40)):
    """A picture of a few random shapes; size is (width, height)."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", size, tuple(map(int, rng.integers(0, 256, 3))))
    pen = ImageDraw.Draw(picture)
    for _ in range(6):
        x, y = map(int, rng.integers(0, size))
        colour = tuple(map(int, rng.integers(0, 256, 3)))
        pen.ellipse([x - 8, y - 6, x + 8, y + 6], fill=colour)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    picture.save(name)


def snapshot():
    """Every file below the working directory."""
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def metadata(name):
    return {entry.key: entry.value for entry in onnx.load(name).metadata_props}


def runs(name, size=(1, 3, 32, 32)):
    """Assert that onnxruntime loads and runs a valid model, and give its first output."""
    onnx.checker.check_model(onnx.load(name), full_check=True)
    session = ort.InferenceSession(name, providers=["CPUExecutionProvider"])
    [first, *_] = session.run(None, {session.get_inputs()[0].name: np.zeros(size, np.float32)})
    assert np.isfinite(first).all()
    return first


def spawn(*argv, seed="0", code=None, **environment):
    """`python -m onnxq`, or this code, in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "COLUMNS": "100", **environment}
    env.pop("FORCE_COLOR", None)
    command = [sys.executable, *(["-m", "onnxq"] if code is None else ["-c", code]), *map(str, argv)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return Ran(done.returncode, done.stdout, done.stderr)


def scales(name):
    """The scales of the activations by tensor."""
    model = onnx.load(name)
    values = initializers(model)
    return {n.input[0]: float(values[n.input[1]]) for n in model.graph.node if n.op_type == "QuantizeLinear"}


def zero_points(name):
    """The zero points of the activations."""
    model = onnx.load(name)
    values = initializers(model)
    return [values[n.input[2]] for n in model.graph.node if n.op_type == "QuantizeLinear"]


def integer_layers(name):
    """Names of the Convs whose weights are integers, with these."""
    model = onnx.load(name)
    values = initializers(model)
    stored = {n.output[0]: values.get(n.input[0]) for n in model.graph.node if n.op_type == "DequantizeLinear"}
    layers = (n for n in model.graph.node if n.op_type in ("Conv", "Gemm"))
    return {n.name: stored[n.input[1]] for n in layers if n.input[1] in stored}


def refused(onnxq, *argv, code=1):
    """Assert that a run ends with one line of error, and that no file is made, changed or left; give the line."""
    Path("model.int8.onnx").write_bytes(SENTINEL)
    before = snapshot()
    ran = onnxq(*argv)
    assert ran.code == code, ran
    assert ran.out == ""
    assert snapshot() == before
    lines = [line for line in ran.err.splitlines() if not re.match(r"calibrating: \d+/\d+$|warning: ", line)]
    assert len(lines) == 1, ran.err
    assert lines[0].startswith("error: ")
    return lines[0]


def misused(onnxq, *argv):
    """Assert that a run ends with how to use it, and that nothing is written; give the last line."""
    before = snapshot()
    ran = onnxq(*argv)
    assert ran.code == 2
    assert ran.out == ""
    assert snapshot() == before
    first, last = ran.err.splitlines()
    assert first.startswith("usage: onnxq INPUT.onnx ")
    assert last.startswith("onnxq: error: ")
    return last
