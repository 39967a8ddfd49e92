import math
import shutil
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from command_line import draw
from graphs import DETECTORS, quantized, v8, with_metadata

from onnxq.calibration import demo
from onnxq.compilers import COMPILERS, Built, Compiler, Ran
from onnxq.compilers.proof import DEFAULTS, prove
from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.runtime import ExactRuntime
from onnxq.targets import TARGETS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A detector quantized for onnxruntime, the float one, and a folder of two pictures."""
    folder = tmp_path_factory.mktemp("files")
    model = with_metadata(v8())
    onnx.save(quantized(model, TARGETS["ort"])[0], folder / "int8.onnx")
    onnx.save(model, folder / "float.onnx")
    for number in range(2):
        draw(folder / "images" / f"{number}.png", number, (64, 48))
    return folder


class Noisy(Compiler):
    """Computes the file exactly and adds noise; puts one wanted layer in float and forgets another."""

    name = title = "noisy"

    def __init__(self, noise):
        self.noise = noise
        self.job = None

    def require(self, python):
        self.python = python

    def build(self, job):
        self.job = job
        runs = [ExactRuntime(job.model).run(feed) for feed in job.feeds]
        outputs = [{name: array * np.float32(1 + self.noise) for name, array in each.items()} for each in runs]
        wanted = [layer.name for layer in job.layers if layer.is_wanted]
        layers = {layer.name: Ran("float16", False, "a reason") for layer in job.layers}
        layers.update({name: Ran("int8 x int8", True) for name in wanted[2:]})
        del layers[wanted[1]]
        return Built("1.0", layers, outputs, ["/x (Concat)"], ["a note"])


def test_layers_and_what_fell_off(files):
    proof = prove(files / "int8.onnx", Noisy(0.0))
    assert [layer.name for layer in proof.fallen] == [layer.name for layer in proof.wanted[:2]]
    first, second = proof.fallen
    assert (first.types, first.reason) == ("float16", "a reason")
    assert second.types == ""
    assert "not in the compiler's graph" in second.reason
    others = [layer for layer in proof.layers if not layer.wanted]
    assert others
    assert {layer.reason for layer in others} == {"not quantized in the file"}
    assert all(not layer.reason for layer in proof.wanted[2:])
    assert (proof.version, proof.on_cpu, proof.notes) == ("1.0", ("/x (Concat)",), ("a note",))


@pytest.mark.parametrize(("noise", "expected"), [(0.1, 20.0), (0.01, 40.0), (0.0, math.inf)])
def test_the_noise_is_measured_against_the_exact_computation(files, noise, expected):
    proof = prove(files / "int8.onnx", Noisy(noise))
    assert list(proof.outputs.values()) == pytest.approx([expected], abs=0.01)
    assert proof.images == 4
    assert proof.agreement is None


def test_images_tell_the_agreement(files):
    settings = replace(DEFAULTS, confidence=0.001)
    proof = prove(files / "int8.onnx", Noisy(0.0), files / "images", settings=settings)
    assert proof.images == 2
    numbers = proof.agreement.numbers("detect")
    assert numbers["objects"] > 0
    assert (numbers["found_again"], numbers["new"], numbers["score_difference"]) == (1.0, 0, 0.0)


def test_the_compiler_gets_the_options(files):
    compiler = Noisy(0.0)
    prove(files / "int8.onnx", compiler, device="X1", python="/some/python", timeout=7.0)
    assert (compiler.python, compiler.job.python) == ("/some/python",) * 2
    assert (compiler.job.device, compiler.job.timeout) == ("X1", 7.0)
    prove(files / "int8.onnx", compiler)
    assert compiler.job.python == sys.executable


def test_a_relative_path_of_the_interpreter_holds_in_other_folders(files, monkeypatch):
    monkeypatch.chdir(files)
    compiler = Noisy(0.0)
    prove(files / "int8.onnx", compiler, python="venv/bin/python")
    assert compiler.job.python == str(files / "venv" / "bin" / "python")
    prove(files / "int8.onnx", compiler, python="sh")
    assert compiler.job.python == shutil.which("sh")


def test_onnxruntime_proves_a_file_for_it(files):
    proof = prove(files / "int8.onnx", COMPILERS["ort"])
    assert proof.wanted
    assert proof.fallen == []
    assert min(proof.outputs.values()) > 15


def test_a_float_file_has_nothing_to_prove(files):
    with pytest.raises(ModelError, match="no layer has quantized data and weights, so there is nothing to prove"):
        prove(files / "float.onnx", COMPILERS["ort"])
    with pytest.raises(ModelError, match="nothing to prove"):
        prove(demo.model_path(), COMPILERS["ort"])


class Failing(Noisy):
    """Fails with each file."""

    def build(self, job):
        raise ModelError("it failed", "its last words")


def test_an_operator_that_no_compiler_takes_is_named(files, tmp_path):
    with pytest.raises(ModelError) as raised:
        prove(files / "int8.onnx", Failing(0.0))
    assert raised.value.args == ("it failed", "its last words")
    model, _ = quantized(DETECTORS["v7_end2end"](), TARGETS["ort"])
    onnx.save(model, tmp_path / "nms.onnx")
    with pytest.raises(ModelError) as raised:
        prove(tmp_path / "nms.onnx", Failing(0.0))
    assert raised.value.args[:2] == ("it failed", "its last words")
    hint = "the size of an output of NonMaxSuppression is unknown before the run; export the model without NMS"
    assert raised.value.args[2:] == (hint,)


def test_what_is_absent_is_told_before_anything_is_read(files):
    with pytest.raises(ConfigError, match="rknn-toolkit2 is not installed"):
        prove(files / "absent.onnx", COMPILERS["rknn"])
    with pytest.raises(ModelError, match="no such file"):
        prove(files / "absent.onnx", COMPILERS["ort"])
    with pytest.raises(DataError):
        prove(files / "int8.onnx", COMPILERS["ort"], files / "nothing")
