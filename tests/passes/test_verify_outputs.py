import math

import numpy as np
import onnx
import pytest
from graphs import (
    Net,
    copy,
    csp,
    feed,
    initializers,
    nodes,
    pan,
    quantized,
    run,
    sqnr,
    v7_end2end,
    v10,
)
from onnx import numpy_helper
from verification import ROOM, edited, verified, verify

from onnxq.errors import ModelError
from onnxq.ir import before_selection
from onnxq.targets import GENERIC, OPENVINO, TARGETS

try:
    import openvino
except ImportError:
    openvino = None


# --- the outputs ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_the_outputs_are_compared_over_all_feeds(target):
    model = pan()
    feeds = [feed(model, seed) for seed in range(3)]
    after, _, checked = verified(model, target, feeds, **ROOM)
    assert list(checked.sqnr) == ["output0", "output1"]
    for name, decibels in checked.sqnr.items():
        one = np.stack([run(model, values, optimized=True)[name] for values in feeds])
        other = np.stack([run(after, values, optimized=True)[name] for values in feeds])
        assert abs(decibels - sqnr(one, other)) < 0.1
        assert decibels > 20


def test_equal_outputs_have_no_noise():
    model = csp()
    _, facts = quantized(model)
    checked = verify(model, model, facts, GENERIC)
    assert checked.sqnr == {"output": math.inf}
    assert checked.simulated["output"] > 100


def test_what_objects_are_selected_from_is_compared_instead_of_them():
    for build in (v7_end2end, v10):
        model = build()
        after, _, checked = verified(model, **ROOM)
        names = before_selection(model.graph)
        assert set(checked.sqnr) == set(checked.against_exact) == set(names)
        plain, found = (run(each, feed(model), list(names)) for each in (model, after))
        assert checked.simulated == pytest.approx({name: sqnr(plain[name], found[name]) for name in names}, abs=0.5)
        assert min(checked.sqnr.values()) > 15
        assert checked.warnings == ()


def test_outputs_that_are_integers_are_not_compared():
    model = copy(csp())
    [output] = model.graph.output
    shape = [dim.dim_value for dim in output.type.tensor_type.shape.dim]
    model.graph.node.append(onnx.helper.make_node("Cast", [output.name], ["whole"], to=onnx.TensorProto.INT32))
    model.graph.output.append(onnx.helper.make_tensor_value_info("whole", onnx.TensorProto.INT32, shape))
    assert set(verified(model)[2].sqnr) == {"output"}


def test_an_output_that_is_zero_is_not_compared():
    net = Net()
    x = net.conv(net.block("images", 8), 4)
    y = net.conv(net.block("images", 8), 4)
    model = net.model(x, net.add("Sub", y, y))
    assert list(verified(model, OPENVINO)[2].sqnr) == ["output0"]


def test_without_feeds_nothing_is_compared_but_the_model_is_loaded():
    model = csp()
    after, facts = quantized(model)
    checked = verify(model, after, facts, feeds=[])
    assert (checked.sqnr, checked.fused) == ({}, 5)
    nodes(after)["conv1"].op_type = "NoSuchOperator"
    nodes(after)["conv1"].domain = "not.there"
    after.opset_import.append(onnx.helper.make_opsetid("not.there", 1))
    with pytest.raises(ModelError, match=r"onnxruntime cannot load the model: .*NoSuchOperator"):
        verify(model, after, facts, feeds=[])


def test_nan_of_the_float_model_is_refused():
    model = csp()
    after, facts = quantized(model)
    bad = feed(model)
    bad["images"][:] = np.nan
    with pytest.raises(
        ModelError, match="the float model gives NaN in output 'output'; check the model and its prepro"
    ):
        verify(model, after, facts, feeds=[feed(model), bad])


def test_nan_of_the_quantized_model_is_refused():
    def spoil(after):
        scale = next(w for w in after.graph.initializer if w.name == "last_bias_scale")
        scale.CopyFrom(numpy_helper.from_array(np.full(4, np.nan, np.float32), scale.name))

    model = csp()
    after, facts = edited(model, spoil)
    assert np.isnan(initializers(after)["last_bias_scale"]).all()
    with pytest.raises(ModelError, match="the quantized model gives NaN in output 'output'"):
        verify(model, after, facts)
