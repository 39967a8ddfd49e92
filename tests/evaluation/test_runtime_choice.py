import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import fast_first
from compared import finding, save_models
from faulty import erring
from graphs import NARROW_TENSORRT, csp, feed, quantized, run, sqnr, v8, with_metadata
from installed import needs_openvino

from onnxq import Config, quantize
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.runtime_choice import CHOICES, choose_runtime, choose_runtimes, installed, may_misrun, misrun
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


# --- a runtime that is not the file's own -----------------------------------------------------------------------------


def quantized_for(target: str) -> onnx.ModelProto:
    """Return a CSP block that is quantized for a target, and names it."""
    rules = NARROW_TENSORRT if target == "tensorrt" else TARGETS[target]
    return with_metadata(quantized(csp(), rules)[0], {"onnxq.target": target})


FEEDS = [feed(csp(), seed) for seed in (0, 1)]


@pytest.mark.parametrize("target", ["openvino", "tensorrt", "qnn", "generic"])
def test_a_runtime_that_computes_a_file_for_another_one_wrongly_is_told(target, monkeypatch):
    model, wrong = quantized_for(target), erring("conv2_weight_scale")
    monkeypatch.setitem(RUNTIMES, "ort", wrong)
    told = misrun(model, "ort", FEEDS)
    found, exact = (
        np.concatenate([compute(values)["output"] for values in FEEDS])
        for compute in (wrong(model).run, lambda values: run(model, values))
    )
    assert float(re.search(r"'output' has (.+) dB against the exact result", told).group(1)) == pytest.approx(
        sqnr(exact, found), abs=0.1
    )
    assert told.startswith(f"{OnnxRuntime.described()} computes the file, which is for {target}, wrongly on this CPU")
    assert told.endswith(f"--runtime exact computes it as {target} does; --target ort makes a file for onnxruntime")


@pytest.mark.parametrize("target", fast_first(TARGETS, 2))
def test_nothing_is_told_of_a_runtime_that_computes_rightly(target):
    made = quantize(v8(), config=Config(target=target, reconstruct=False, count=2)).model
    feeds = [feed(made, seed) for seed in (0, 1)]
    assert [misrun(made, name, feeds) for name in ("ort", "exact")] == ["", ""]


def test_of_its_own_runtime_and_of_files_without_a_target_nothing_is_told(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "ort", erring("conv2_weight_scale"))
    model = quantized_for("ort")
    assert misrun(model, "ort", FEEDS) == ""
    assert misrun(quantized(csp(), TARGETS["generic"])[0], "ort", FEEDS) == ""
    assert not may_misrun("ort", "ort")
    assert not may_misrun("tensorrt", "exact")
    assert not may_misrun(None, "openvino")
    assert may_misrun("ort", "openvino")


def test_what_cannot_be_run_is_left_to_who_measures_it(monkeypatch):
    class Refusing(OnnxRuntime):
        def run(self, values):
            raise ModelError("refused")

    monkeypatch.setitem(RUNTIMES, "ort", Refusing)
    assert misrun(quantized_for("generic"), "ort", FEEDS) == ""
