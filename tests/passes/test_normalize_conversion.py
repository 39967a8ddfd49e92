import logging

import numpy as np
import onnx
import pytest
from cases import fast_first
from graphs import Net, assert_same_numbers, assert_untouched, csp, feed, nodes, ops, rewrite, run
from onnx import TensorProto, helper, numpy_helper, version_converter

from onnxq.errors import ModelError
from onnxq.passes import normalize
from onnxq.passes.normalize import Normalize

STEP = Normalize()

SHRINKING = [0.75, 0.5, 1 / 3, 0.3, 0.25]
GROWING = [1, 1.25, 1.5, 1.7, 2, 3, 4]


def resized(opset, scale, mode, wide=None):
    """A Conv, a Resize or Upsample of the opset by `scale`, and by `wide` across, and a Conv."""
    net = Net(opset=opset)
    x = net.conv("images", 4)
    scales = [1.0, 1.0, float(scale), float(wide or scale)]
    if opset < 9:
        y = net.add("Upsample", x, mode=mode, scales=scales, name="resize")
    else:
        y = net.add("Upsample" if opset == 9 else "Resize", x, net.const(scales), mode=mode, name="resize")
    net.channels[y] = 4
    return net.model(net.conv(y, 4))


def feature_pyramid(opset, mode):
    """Two maps, each resized to the size of the one before and added to it, as in an FPN."""
    net = Net(opset=opset)
    maps = [net.conv("images", 4, stride=2)]
    for _ in range(2):
        maps.append(net.conv(maps[-1], 4, stride=2))
    x = maps.pop()
    while maps:
        grown = net.add("Upsample" if opset == 9 else "Resize", x, net.const([1, 1, 2, 2]), mode=mode)
        x = net.add("Add", grown, maps.pop())
        net.channels[x] = 4
    return net.model(net.conv(x, 4))


def normalized_over(op, opset, axis, **attributes):
    """A Conv, and a Softmax or the like that is added to its result."""
    net = Net(opset=opset)
    x = net.conv("images", 4)
    attributes |= {} if axis is None else {"axis": axis}
    return net.model(net.add("Add", x, net.add(op, x, name="normalized", **attributes)))


def in_branches(opset, inner, weights=()):
    """An If in both branches of which the nodes `inner(tensor, branch)` stand behind a Conv."""
    net = Net(opset=opset)
    x = net.conv("images", 4)
    net.weights += weights
    condition = net.add("Greater", net.add("ReduceMean", "images", keepdims=0), net.const(0.5))
    branches = {}
    for kind in ("then_branch", "else_branch"):
        made = inner(x, kind)
        output = helper.make_tensor_value_info(made.output[0], TensorProto.FLOAT, None)
        branches[kind] = helper.make_graph([made], kind, [], [output])
    return net.model(net.add("If", condition, name="if", **branches), shape=[1, 4, "height", "width"])


def modes(model, name="resize"):
    """Return coordinates and rounding of the only Resize."""
    [resize] = [node for node in model.graph.node if node.op_type == "Resize"]
    found = {a.name: helper.get_attribute_value(a) for a in resize.attribute}
    return found["coordinate_transformation_mode"], found["nearest_mode"]


# --- Resize and Upsample ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least_opset", fast_first([13, 21, 19]))
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    ("opset", "scale"),
    [*[(opset, scale) for opset in (7, 8, 9, 10) for scale in GROWING], *[(10, scale) for scale in SHRINKING]],
)
def test_a_resize_of_an_old_operator_set_computes_the_same(opset, scale, mode, least_opset):
    before = resized(opset, scale, mode)
    after, _ = rewrite(Normalize(least_opset), before)
    assert "Resize" in ops(after)
    assert_same_numbers(before, after)
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(Normalize(least_opset), after)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("scale", "wide"), [(1.7, 1), (1, 0.6), (0.3, 0.75), (1.5, 0.5)])
def test_scales_may_differ(scale, wide, mode):
    before = resized(10, scale, mode, wide)
    assert_same_numbers(before, rewrite(STEP, before)[0])


def test_rounding_is_up_along_axes_that_shrink_and_down_along_others():
    assert modes(rewrite(STEP, resized(10, 0.75, "nearest"))[0]) == (b"asymmetric", b"ceil")
    assert modes(rewrite(STEP, resized(10, 1.25, "nearest"))[0]) == (b"asymmetric", b"floor")
    assert modes(rewrite(STEP, resized(8, 2, "nearest"))[0]) == (b"asymmetric", b"floor")


@pytest.mark.parametrize("opset", [9, 10])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_feature_pyramid_computes_the_same(opset, mode):
    before = feature_pyramid(opset, mode)
    assert_same_numbers(before, rewrite(STEP, before)[0])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("opset", "scale"), [(9, 1.25), (10, 1.25), (10, 0.75)])
def test_a_resize_inside_if_computes_the_same(opset, scale, mode):
    def inner(x, branch):
        return helper.make_node("Upsample" if opset == 9 else "Resize", [x, "scales"], [f"{branch}_y"], mode=mode)

    scales = numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")
    before = in_branches(opset, inner, [scales])
    after, _ = rewrite(STEP, before)
    values = feed(before)
    assert np.array_equal(run(after, values)["output"], run(before, values)["output"])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_computed_scales_are_taken_for_those_of_a_larger_image(mode):
    net = Net(opset=10)
    x = net.conv("images", 4)
    sides = net.add("Slice", net.add("Shape", x), net.ints(2), net.ints(4))
    sides = net.add("Cast", sides, to=TensorProto.FLOAT)
    grown = net.add("Floor", net.add("Mul", sides, net.const(1.7)))
    scales = net.add("Concat", net.const([1, 1]), net.add("Div", grown, sides), axis=0)
    before = net.model(net.add("Resize", x, scales, mode=mode))
    assert_same_numbers(before, rewrite(STEP, before)[0])


@pytest.mark.parametrize("opset", [11, 12])
def test_a_resize_that_has_modes_keeps_them(opset):
    net = Net(opset=opset)
    x = net.conv("images", 4)
    before = net.model(net.add("Resize", x, net.const([]), net.const([1, 1, 1.25, 1.25]), mode="linear", name="resize"))
    after, _ = rewrite(STEP, before)
    assert [a.name for a in nodes(after)["resize"].attribute] == ["mode"]
    assert_same_numbers(before, after)


# --- Hardmax, Softmax, LogSoftmax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Hardmax", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("opset", "axis"),
    [*[(opset, axis) for opset in (7, 9, 11, 12) for axis in (None, 0, 1, 2, 3)], (11, -1), (12, -2), (12, -4)],
)
def test_axes_from_one_to_the_last_are_still_taken_as_one(op, opset, axis):
    before = normalized_over(op, opset, axis)
    after, _ = rewrite(STEP, before)
    assert_same_numbers(before, after)
    onnx.checker.check_model(after, full_check=True)
    assert_untouched(STEP, after)


@pytest.mark.parametrize("op", ["Hardmax", "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_axes_inside_if_are_still_taken_as_one(op, axis):
    before = in_branches(12, lambda x, branch: helper.make_node(op, [x], [f"{branch}_y"], axis=axis))
    after, _ = rewrite(STEP, before)
    for seed in (0, 1):
        values = feed(before, seed)
        expected = run(before, values)["output"]
        assert np.allclose(run(after, values)["output"], expected, rtol=1e-4, atol=1e-6)


def test_a_hardmax_of_the_last_axis_stays_alone_and_new_tensors_have_new_names():
    assert ops(rewrite(STEP, normalized_over("Hardmax", 12, -1))[0]) == ["Conv", "Hardmax", "Add"]
    before = normalized_over("Hardmax", 12, 1)
    before.graph.node[0].output[0] = before.graph.node[1].input[0] = "normalized_out_flat"
    before.graph.node[2].input[0] = "normalized_out_flat"
    del before.graph.value_info[:]
    assert_same_numbers(before, rewrite(STEP, before)[0])


# --- the comparison ---------------------------------------------------------------------------------------------------


def breaking(monkeypatch, change):
    """Let onnx's version converter also make a change of the model."""
    convert = version_converter.convert_version

    def converted(model, version):
        made = convert(model, version)
        change(made)
        return made

    monkeypatch.setattr(version_converter, "convert_version", converted)


def double_weights(model):
    for tensor in model.graph.initializer:
        if tensor.name == "conv1_weight":
            tensor.raw_data = (2 * numpy_helper.to_array(tensor)).tobytes()


def leaky(model):
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "alpha":
                attribute.f = 0.3


def alphas(opset, *, dynamic=False):
    """Convs with LeakyRelus behind them."""
    net = Net(opset=opset, dynamic=dynamic) if dynamic else Net(opset=opset)
    x = net.conv("images", 4)
    x = net.add("LeakyRelu", net.conv(net.add("Relu", x), 4), alpha=0.1, name="leaky")
    net.channels[x] = 4
    return net.model(net.conv(x, 4))


def test_the_first_operator_that_computes_otherwise_is_named(monkeypatch):
    breaking(monkeypatch, leaky)
    expected = r"from opset 12 to 13 by onnx, node 'leaky' \(LeakyRelu\) gives other numbers.* opset 17"
    with pytest.raises(ModelError, match=expected):
        rewrite(STEP, alphas(12))


def test_resizes_without_their_modes_are_refused(monkeypatch):
    monkeypatch.setattr(normalize, "_write_modes", lambda *_: None)
    with pytest.raises(ModelError, match=r"node 'resize' \(Upsample\) gives other numbers than before, \d+\.\d dB"):
        rewrite(STEP, resized(9, 2, "linear"))
    with pytest.raises(ModelError, match=r"node 'resize' \(Resize\)"):
        rewrite(STEP, resized(10, 0.75, "nearest"))


def test_a_resize_that_shrinks_along_one_axis_and_grows_along_the_other_is_refused():
    """onnxruntime rounds by axis at opset 10; later versions of Resize have one rounding."""
    with pytest.raises(ModelError, match=r"node 'resize' \(Resize\) gives other numbers.*opset 17"):
        rewrite(STEP, resized(10, 0.6, "nearest", 1.7))


def test_a_fault_inside_if_is_refused(monkeypatch):
    monkeypatch.setattr(normalize, "_flatten_for_hardmax", lambda *_: None)
    with pytest.raises(ModelError, match=r"node 'if' \(If\) gives other numbers"):
        rewrite(STEP, in_branches(12, lambda x, branch: helper.make_node("Hardmax", [x], [f"{branch}_y"], axis=1)))


def test_an_operator_that_is_several_afterwards_is_named(monkeypatch):
    def other_axis(model):
        for node in model.graph.node:
            if node.op_type == "Flatten":
                node.attribute[0].i = 2

    breaking(monkeypatch, other_axis)
    with pytest.raises(ModelError, match=r"node 'normalized' \(Softmax\) gives other numbers"):
        rewrite(STEP, normalized_over("Softmax", 12, 1))


def test_other_places_of_selected_objects_are_no_fault_if_scores_differ_by_rounding(monkeypatch):
    def nudge(model):
        for tensor in model.graph.initializer:
            if tensor.name == "tie":
                tensor.raw_data = np.array([0, 1e-6, 0, 0], np.float32).tobytes()

    net = Net(opset=12)
    pooled = net.add("ReduceMean", net.conv("images", 4), axes=[1, 2, 3], keepdims=1)
    scores = net.add("Add", net.add("Flatten", pooled), net.const([2e-7, 0, 0, 0], name="tie"))
    _, places = net.add_many("TopK", scores, net.ints(1), outputs=2, axis=1)
    before = net.model(places, types={places: TensorProto.INT64})
    breaking(monkeypatch, nudge)
    after, _ = rewrite(STEP, before)
    assert run(after)["output"] != run(before)["output"]


def test_a_model_of_dynamic_size_is_compared_too(monkeypatch):
    breaking(monkeypatch, leaky)
    with pytest.raises(ModelError, match="'leaky'"):
        rewrite(STEP, alphas(12, dynamic=True))


def test_a_model_that_does_not_run_before_is_converted_all_the_same(caplog, monkeypatch):
    breaking(monkeypatch, leaky)
    before = alphas(12)
    before.graph.node.append(helper.make_node("Resize", ["images", "", "three"], ["lost"], mode="nearest"))
    before.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "three"))
    before.graph.output.append(helper.make_tensor_value_info("lost", TensorProto.FLOAT, None))
    with caplog.at_level(logging.INFO):
        rewrite(STEP, before)
    assert "it is not known whether" in caplog.text


def test_a_model_that_only_runs_before_is_warned_of(caplog, monkeypatch):
    def spoil(model):
        model.graph.node[-1].attribute.append(helper.make_attribute("unheard_of", 1))

    breaking(monkeypatch, spoil)
    rewrite(STEP, csp(opset=12))
    [record] = caplog.records
    expected = "converted from opset 12 to 13 by onnx, the model does not run: onnxruntime cannot load the model: "
    assert record.getMessage().startswith(expected)
    assert record.getMessage().endswith("; export it again with opset 17")


def test_a_model_that_is_not_converted_is_not_run(monkeypatch):
    monkeypatch.setattr(normalize, "find_difference", None)
    rewrite(STEP, csp(opset=13))
