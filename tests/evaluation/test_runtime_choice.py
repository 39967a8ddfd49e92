import os
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from compared import finding, save_models
from graphs import v8, with_metadata
from installed import needs_openvino

from onnxq import Config, quantize
from onnxq.errors import ConfigError
from onnxq.evaluation.runtime_choice import CHOICES, choose_runtime, choose_runtimes, installed
from onnxq.runtime import RUNTIMES, OnnxRuntime
from onnxq.targets import TARGETS

OWN = [target for target in TARGETS.values() if target.runtime is not None]


def aimed_at(target: str) -> onnx.ModelProto:
    """Return a model that names a target."""
    return with_metadata(v8(), {"onnxq.target": target})


def names(*models: onnx.ModelProto | Path, wanted: str = "auto") -> list[str]:
    return [choice.name for choice in choose_runtimes(models, wanted)]


@pytest.mark.parametrize("target", OWN, ids=lambda target: target.name)
def test_a_file_runs_in_the_runtime_of_its_target(target):
    if not RUNTIMES[target.runtime].is_installed():
        pytest.skip(f"{target.title} is not installed")
    made = quantize(v8(), config=Config(target=target.name, reconstruct=False, count=2)).model
    [choice] = choose_runtimes([made], "auto")
    assert choice.name == target.runtime
    assert choice.describe() == f"run in {RUNTIMES[target.runtime].described()}, its target"


@pytest.mark.parametrize("target", ["generic", "qnn", "tensorrt", "one-of-somebody-else"])
def test_a_file_for_another_processor_is_computed_exactly(target):
    [choice] = choose_runtimes([aimed_at(target)], "auto")
    assert choice.name == "exact"
    assert choice.why == f"as its target, {target}, has no runtime of its own here (or: --runtime ort)"


def test_a_target_of_a_user_s_own_has_its_runtime(monkeypatch):
    monkeypatch.setitem(TARGETS, "mine", replace(TARGETS["generic"], name="mine", runtime="ort"))
    assert names(aimed_at("mine")) == ["ort"]


def test_without_any_target_it_is_onnxruntime():
    assert names(v8(), v8()) == ["ort", "ort"]
    assert choose_runtime(None, "auto").why == "as no model names a target"


@needs_openvino
def test_a_model_without_a_target_runs_like_the_first_that_has_one(tmp_path):
    paths = save_models(tmp_path, v8(), aimed_at("openvino"), aimed_at("ort"), v8())
    choices = choose_runtimes(paths, "auto")
    assert [choice.name for choice in choices] == ["openvino", "openvino", "ort", "openvino"]
    assert choices[0].why == choices[3].why == "like 1.onnx"
    assert names(aimed_at("tensorrt"), v8(), aimed_at("openvino")) == ["exact", "exact", "openvino"]


@pytest.mark.parametrize("wanted", [name for name in RUNTIMES if RUNTIMES[name].is_installed()])
def test_what_is_asked_for_runs_all(wanted):
    found = choose_runtimes([v8(), aimed_at("ort"), aimed_at("openvino"), aimed_at("generic")], wanted)
    assert {(choice.name, choice.why) for choice in found} == {(wanted, "as --runtime says")}


def test_onnxruntime_stands_in_for_openvino_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert names(v8(), aimed_at("openvino")) == ["ort", "ort"]
    [choice] = choose_runtimes([aimed_at("openvino")], "auto")
    assert choice.describe() == (
        f"run in {OnnxRuntime.described()}, as OpenVINO, its target, is not installed (pip install 'onnxq[openvino]')"
    )


def test_a_runtime_that_is_asked_for_must_be_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    message = r"^--runtime openvino: not installed; pip install 'onnxq\[openvino\]'$"
    for act in (
        lambda: installed("openvino"),
        lambda: choose_runtime("ort", "openvino"),
        lambda: choose_runtimes([v8()], "openvino"),
    ):
        with pytest.raises(ConfigError, match=message):
            act()
    assert installed("ort") is OnnxRuntime


def test_files_that_cannot_be_read_are_left_to_who_loads_them(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"hello")
    [good] = save_models(tmp_path, with_metadata(finding(), {"onnxq.target": "generic"}))
    os.mkfifo(tmp_path / "pipe.onnx")
    unread = [tmp_path / f"{name}.onnx" for name in ("bad", "none", "pipe")]
    assert names(*unread, tmp_path, good) == ["exact"] * 5


def test_every_runtime_can_be_asked_for():
    assert set(CHOICES) == {"auto", *RUNTIMES}
