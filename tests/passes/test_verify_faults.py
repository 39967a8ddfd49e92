"""What `Verify` says of a run that is wrong, and of one that is not."""

import re
import shlex

import numpy as np
import pytest
from cpu import saturates
from faulty import erring, noisy
from graphs import csp, feed, pan, quantized, run, sqnr, v8, white_stem
from verification import ROOM, verified

from onnxq.console.arguments import make_parser, read_config
from onnxq.facts import Plan, Probe
from onnxq.ir import Model
from onnxq.passes.verify import Verify
from onnxq.pipeline import Facts
from onnxq.runtime import RUNTIMES, OnnxRuntime, OpenVino
from onnxq.runtime.cpu import this_cpu
from onnxq.targets import GENERIC, OPENVINO, ORT, TARGETS, TENSORRT

REMEDY = re.compile(r"Remedy, tried: (--exclude .*?) gives (the exact result|[\d.]+)")


def fault_of(checked):
    """The only warning, which tells a fault."""
    [warning] = checked.warnings
    assert "computes the file wrongly" in warning
    return warning


def excluded(warning):
    """The layers of the flags in a warning, as the command line reads them."""
    words = shlex.split(REMEDY.search(warning)[1])
    return read_config(make_parser().parse_args(["net.onnx", *words])).exclude


@pytest.mark.parametrize("target", [GENERIC, TENSORRT, OPENVINO], ids=lambda target: target.name)
def test_a_wrong_run_is_told_for_every_target(monkeypatch, target):
    """Where the target has no runtime here, onnxruntime stands in for it."""
    monkeypatch.setitem(RUNTIMES, "ort", erring("conv4_weight_scale"))
    monkeypatch.setattr(OpenVino, "is_installed", classmethod(lambda cls: False))
    _, plan, checked = verified(csp(), target, **({} if target is TENSORRT else ROOM))
    if "conv4" not in plan.layers:
        assert checked.warnings == ()
        return
    warning = fault_of(checked)
    assert warning.startswith(
        f"onnxruntime {OnnxRuntime.version()}, in place of the runtime of target {target.name}, computes"
    )
    assert excluded(warning) == ("conv4",)


def test_the_warning_names_cpu_output_layer_and_a_remedy_that_was_tried(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "ort", erring("conv2_weight_scale"))
    _, _, checked = verified(csp(), ORT, **ROOM)
    warning = fault_of(checked)
    assert f"on this CPU ({this_cpu()})" in warning
    assert f"'output' has {checked.against_exact['output']:.1f} dB against the exact result" in warning
    assert "Wrong, and not by saturation: conv2." in warning
    assert excluded(warning) == ("conv2",)
    assert float(REMEDY.search(warning)[2]) > 40
    assert "--cpu" not in warning


@pytest.mark.parametrize("level", range(2))
def test_a_fault_of_scores_is_found_beside_boxes_in_pixels(monkeypatch, level):
    monkeypatch.setitem(RUNTIMES, "ort", erring(f"cls{level}_weight_scale"))
    _, _, checked = verified(v8(), ORT, include=["re:cls"], **ROOM)
    assert checked.against_exact["output"] > 50
    warning = fault_of(checked)
    assert "'output[:, 4:7]' has" in warning
    assert f"Wrong, and not by saturation: cls{level}." in warning
    assert excluded(warning) == (f"cls{level}",)


def test_the_flags_of_the_remedy_make_a_file_that_runs_rightly(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "ort", erring("conv2_weight_scale", "conv3_weight_scale"))
    _, _, checked = verified(csp(), ORT, **ROOM)
    names = excluded(fault_of(checked))
    assert sorted(names) == ["conv2", "conv3"]
    assert verified(csp(), ORT, exclude=names, **ROOM)[2].warnings == ()


@pytest.mark.parametrize(("cpu", "told"), [("any", False), ("vnni", True)])
def test_saturation_is_told_with_the_option_against_it(monkeypatch, cpu, told):
    monkeypatch.setitem(RUNTIMES, "ort", erring("conv2_weight_scale", only_narrow=True))
    model = csp()
    after, facts = quantized(model, ORT, **ROOM)
    given = Facts([facts[Plan], Probe((feed(model),))])
    warning = fault_of(Verify(model, ORT, cpu=cpu).run(Model(after), given))
    assert "Its 16-bit sums of products saturate in conv2. Remedy, tried: --exclude conv2 gives" in warning
    assert warning.endswith("; --cpu any makes weights that cannot saturate") == told


def test_that_nothing_helps_is_told_plainly(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "ort", noisy(10))
    _, _, checked = verified(csp(), ORT, **ROOM)
    assert fault_of(checked).endswith(
        "No layer is wrong by itself. No remedy was found: it stays wrong with the worst layers in float"
    )


def test_another_rounding_is_not_told(monkeypatch):
    exact = verified(csp(), ORT, **ROOM)[2].simulated["output"]
    monkeypatch.setitem(RUNTIMES, "ort", noisy(exact))
    _, _, checked = verified(csp(), ORT, **ROOM)
    assert checked.warnings == ()
    assert checked.against_exact["output"] == pytest.approx(exact, abs=0.5)
    assert checked.sqnr["output"] < exact - 2


def test_all_outputs_have_one_warning(monkeypatch):
    monkeypatch.setitem(RUNTIMES, "ort", erring("conv1_weight_scale"))
    _, _, checked = verified(pan(), ORT, **ROOM)
    assert len(checked.against_exact) == 2
    assert "conv1" in fault_of(checked)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_run_is_compared_with_the_exact_computation(target):
    model = pan()
    feeds = [feed(model, seed) for seed in range(2)]
    after, _, checked = verified(model, target, feeds, **ROOM)
    runtime = RUNTIMES[target.runtime or "ort"]
    runs = (runtime if runtime.is_installed() else OnnxRuntime)(after)
    for name, decibels in checked.against_exact.items():
        exact, found = (np.stack([compute(values)[name] for values in feeds])
                        for compute in (lambda values: run(after, values), runs.run))  # fmt: skip
        if not np.array_equal(exact, found):
            assert decibels == pytest.approx(sqnr(exact, found), abs=0.1)
    assert checked.checked_in == f"{runs.title} {runs.version()}"
    assert checked.cpu == this_cpu().kind


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_what_saturates_on_this_cpu_is_told_with_a_remedy_that_works(target):
    """Every pixel is white and every weight of the first layer is the largest."""
    runtime = RUNTIMES[target.runtime or "ort"]
    runtime = runtime if runtime.is_installed() else OnnxRuntime
    model = white_stem()
    checked = verified(model, target, limited=False)[2]
    error = checked.against_exact["output"]
    if not saturates(runtime) or error > 30:
        # A target may keep the layers float, or run them in kernels with wider sums.
        assert checked.warnings == ()
        assert error > 30
        return
    warning = fault_of(checked)
    assert "16-bit sums of products saturate in" in warning
    again = verified(model, target, exclude=excluded(warning), limited=False)[2]
    assert again.warnings == ()
    assert again.against_exact["output"] > 40
    limited = verified(model, target)[2]
    assert limited.warnings == ()
    assert limited.against_exact["output"] > 40
