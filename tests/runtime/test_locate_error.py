from dataclasses import replace

import numpy as np
import pytest
from cpu import saturates
from faulty import erring
from graphs import Net, csp, feed, pan, planned, quantized, run, saturating, silu_chain, v8
from installed import needs_openvino
from verification import ROOM

from onnxq.facts import Plan
from onnxq.ir.quantized_layers import made_float
from onnxq.numerics.scheme import INT8
from onnxq.runtime import OnnxRuntime, OpenVino, locate_error
from onnxq.runtime.locate_error import WRONG, altered, layer_errors, layers_before
from onnxq.targets import GENERIC, OPENVINO, ORT

RUNTIMES = {"ort": (OnnxRuntime, GENERIC), "openvino": (OpenVino, OPENVINO)}


def wrong(build, *names, target=OPENVINO):
    """The layers that are wrong if these constants are."""
    model, facts = quantized(build(), target)
    errors = layer_errors(model, facts[Plan].layers, erring(*names), feed(model))
    assert sorted(error.layer for error in errors) == sorted(facts[Plan].layers)
    return [error.layer for error in errors if error.sqnr < WRONG]


@pytest.mark.slow
@pytest.mark.parametrize("layer", range(6))
def test_the_layer_is_found_wherever_it_stands(layer):
    name = f"conv{layer}" if layer < 5 else "last"
    assert wrong(csp, f"{name}_weight_scale") == [name]


@pytest.mark.slow
def test_no_other_layer_of_many_is_blamed():
    layers = planned(v8(), OPENVINO)[1].layers
    assert all(wrong(v8, f"{name}_weight_scale") == [name] for name in layers)


def test_each_of_several_is_found():
    scales = [f"conv{number}_weight_scale" for number in (1, 2)]
    assert sorted(wrong(silu_chain, *scales)) == ["conv1", "conv2"]


def test_products_of_matrices_are_found_too():
    model, facts = quantized(v8(), ORT, **ROOM)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    scale = next(n.input[1] for n in model.graph.node if n.output[0] == gemm.input[1])
    errors = layer_errors(model, facts[Plan].layers, erring(scale), feed(model))
    assert [error.layer for error in errors if error.sqnr < WRONG] == [gemm.name]
    assert not errors[0].saturates


def test_a_fault_that_wide_sums_mend_is_saturation():
    model, facts = quantized(csp(), OPENVINO)
    runtime = erring("conv2_weight_scale", only_narrow=True)
    worst, *others = layer_errors(model, facts[Plan].layers, runtime, feed(model))
    assert (worst.layer, worst.saturates) == ("conv2", True)
    assert not any(error.saturates for error in others)


def test_a_right_runtime_has_no_wrong_layer_and_the_worst_comes_first():
    model, facts = quantized(csp(), GENERIC, **ROOM)
    errors = layer_errors(model, facts[Plan].layers, OnnxRuntime, feed(model))
    assert errors[0].sqnr > WRONG + 10
    assert [error.sqnr for error in errors] == sorted(error.sqnr for error in errors)


@pytest.mark.parametrize("kind", RUNTIMES)
def test_saturated_sums_are_told(kind):
    runtime, target = RUNTIMES[kind]
    if not runtime.is_installed():
        pytest.skip(f"{runtime.title} is not installed")
    model, facts = quantized(saturating(), target, limited=False)
    errors = layer_errors(model, facts[Plan].layers, runtime, feed(model))
    found = [error for error in errors if error.sqnr < WRONG]
    assert all(error.saturates for error in found)
    assert bool(found) == saturates(runtime)


@pytest.mark.slow
@needs_openvino
@pytest.mark.parametrize(("build", "behind"), [(csp, "conv4"), (pan, "conv2")])
def test_a_fault_that_needs_the_layers_before_is_found_with_them(build, behind):
    """On CPUs without AMX, OpenVINO 2026.4 computes a Conv on signed integers after a Concat wrongly."""
    target = replace(OPENVINO, activations=(INT8,), symmetric_activations=True)
    model, facts = quantized(build(), target, **ROOM)
    layers = facts[Plan].layers
    exact, found = run(model), OpenVino(model).run(feed(model))
    if all(np.abs(found[name] - exact[name]).max() < 0.1 * np.abs(exact[name]).max() for name in exact):
        pytest.skip("OpenVINO computes signed integers through a Concat rightly on this CPU")
    alone, together = (layer_errors(model, layers, OpenVino, feed(model), depth) for depth in (0, 1))
    assert alone[0].sqnr > WRONG
    wrong = {error.layer for error in together if error.sqnr < WRONG}
    assert behind in wrong
    assert not any(error.saturates for error in together)


def test_only_layers_before_an_output_count():
    model, facts = quantized(pan(), OPENVINO)
    layers = facts[Plan].layers
    before = {name: layers_before(model, [name], layers) for name in ("output0", "output1")}
    assert "last0" in before["output0"]
    assert "last0" not in before["output1"]
    both = layers_before(model, list(before), layers)
    assert set(both) == set(before["output0"]) | set(before["output1"])
    assert both == [name for name in layers if name in both]


def test_a_wrong_layer_before_right_ones_of_another_branch_is_found():
    def build():
        net = Net()
        x = net.block("images", 8)
        side = net.silu(net.conv(x, 8, name="side"))
        late = net.block(net.block(x, 8), 8)
        return net.model(net.conv(net.silu(net.conv(net.concat(side, late), 8, name="join")), 4, name="last"))

    assert wrong(build, "side_weight_scale") == ["side"]


def test_an_error_behind_the_layers_is_nobodys():
    assert wrong(silu_chain) == []


def test_the_number_of_layers_at_once_changes_no_error(monkeypatch):
    model, facts = quantized(v8(), OPENVINO)
    runtime, layers = erring("conv3_weight_scale"), facts[Plan].layers
    found = layer_errors(model, layers, runtime, feed(model))
    for at_once, size in ((1, 1), (3, 1), (1, 2**16)):
        monkeypatch.setattr(locate_error, "_AT_ONCE", at_once)
        monkeypatch.setattr(locate_error, "_BYTES", size)
        assert layer_errors(model, layers, runtime, feed(model)) == found


def test_layers_with_other_nodes_around_them_are_altered():
    model, facts = quantized(silu_chain(), GENERIC, **ROOM)
    layers = facts[Plan].layers
    assert altered(model, model, layers) == []
    changed = made_float(model, layers[1:2])
    found = altered(model, changed, layers)
    assert layers[1] in found
    assert 0 < len(found) < len(layers)
