import math

import numpy as np
import onnx
import pytest
from graphs import Net, copy, csp, feed, pan, planned, quantized, silu_chain, v8
from onnx import numpy_helper

from onnxq.facts import Plan
from onnxq.numerics.sqnr import decibels
from onnxq.runtime import OnnxRuntime
from onnxq.runtime.locate_error import first_wrong_layer
from onnxq.targets import OPENVINO


def erring(*names):
    """onnxruntime, but with the weights (or other constants) of these names doubled."""

    class Erring(OnnxRuntime):
        def __init__(self, model, **options):
            changed = copy(model)
            for tensor in changed.graph.initializer:
                if tensor.name in names:
                    tensor.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(tensor), tensor.name))
            super().__init__(changed, **options)

    return Erring


def found(build, *names, output="output"):
    model, facts = quantized(build(), OPENVINO)
    return first_wrong_layer(model, output, facts[Plan].layers, erring(*names), feed(model))


@pytest.mark.slow
@pytest.mark.parametrize("layer", range(6))
def test_the_layer_is_found_wherever_it_stands(layer):
    name = f"conv{layer}" if layer < 5 else "last"
    assert found(csp, f"{name}_weight_scale") == name


def test_layers_of_unknown_type_are_found_too(monkeypatch):
    model, facts = quantized(csp(), OPENVINO)
    del model.graph.value_info[:]
    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", lambda made, **_: made)
    wrong = first_wrong_layer(model, "output", facts[Plan].layers, erring("conv2_weight_scale"), feed(model))
    assert wrong == "conv2"


def test_of_several_it_is_the_first():
    assert found(silu_chain, "conv1_weight_scale", "conv2_weight_scale") == "conv1"


def test_only_layers_before_the_output_count():
    scales = [f"{name}_weight_scale" for name in ("last0", "conv3")]
    assert found(pan, *scales, output="output0") == "last0"
    assert found(pan, *scales, output="output1") == "conv3"


@pytest.mark.slow
def test_branches_are_followed():
    layers = planned(v8(), OPENVINO)[1].layers
    assert all(found(v8, f"{name}_weight_scale") == name for name in layers)


def test_a_wrong_layer_before_right_ones_of_another_branch_is_found():
    def build():
        net = Net()
        x = net.block("images", 8)
        side = net.silu(net.conv(x, 8, name="side"))
        late = net.block(net.block(x, 8), 8)
        return net.model(net.conv(net.silu(net.conv(net.concat(side, late), 8, name="join")), 4, name="last"))

    assert found(build, "side_weight_scale") == "side"


def test_an_error_behind_the_layers_is_nobodys():
    assert found(silu_chain) is None


def test_decibels():
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert math.isinf(decibels(1.0, 0.0))
    assert np.isclose(decibels(1.0, 2.0), -3.0103)
