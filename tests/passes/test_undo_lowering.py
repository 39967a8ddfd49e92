import numpy as np
import onnx
import pytest
from graphs import BACKBONES, DETECTORS, Net, copy, feed, nodes, ops, quantized, rewrite, rewrite_checked, run, v8
from onnx import helper, numpy_helper, shape_inference

from onnxq import Config, quantize
from onnxq.facts import Plan
from onnxq.ir import Model
from onnxq.passes.expand_softmax import ExpandSoftmax
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.normalize import Normalize
from onnxq.passes.strip_qdq import StripQdq
from onnxq.passes.undo_lowering import UndoLowering
from onnxq.pipeline import Pipeline


def product(op="Gemm", bias=True, image=(-1, 32, 32, 6), order=(0, 3, 1, 2), size=32, **attributes):
    """A block, a product over its 8 channels that gives 6, and a last Conv."""
    net = Net(size=size)
    x = net.add("Transpose", net.block("images", 8), perm=[0, 2, 3, 1], name="channels_last")
    matrix, vector = net.const(net.normal(8, 6), name="matrix"), net.const(net.normal(6), name="vector")
    if op == "Gemm":
        y = net.add(op, net.reshape(x, -1, 8), matrix, *([vector] if bias else []), name="product", **attributes)
        y = net.reshape(y, *image)
    else:
        y = net.add(op, x, matrix, name="product")
        if bias:
            y = net.add("Add", y, vector)
    y = net.add("Transpose", y, perm=order)
    net.channels[y] = 6
    model = net.model(net.conv(y, 4, name="last"))
    return shape_inference.infer_shapes(model, data_prop=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("op", ["Gemm", "MatMul"])
def test_a_product_at_every_position_becomes_a_conv(op, bias):
    after, edits = rewrite_checked(UndoLowering(), product(op, bias))
    assert edits == 1
    assert ops(after) == ["Conv", "Sigmoid", "Mul", "Conv", "Conv"]
    assert len(nodes(after)["product"].input) == 2 + bias


def test_all_that_was_turned_into_products_comes_back():
    made = quantized(v8())[0]
    working = Model(copy(made))
    Pipeline([Normalize(quantized=True), StripQdq(), InferShapes(), UndoLowering()]).run(working)
    after = working.to_proto()
    assert "Gemm" in ops(made)
    assert "Gemm" not in ops(after)
    assert {n.name for n in v8().graph.node if n.op_type == "Conv"} <= {n.name for n in after.graph.node}
    values = feed(v8(), 9)
    stripped = Model(copy(made))
    Pipeline([Normalize(quantized=True), StripQdq()]).run(stripped)
    expected, found = run(stripped.to_proto(), values)["output"], run(after, values)["output"]
    assert np.allclose(expected, found, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("opset", [13, 18])
def test_the_steps_of_a_softmax_become_one(opset):
    net = Net(opset=opset)
    x = net.reshape(net.conv(net.block("images", 8), 8), 1, 4, 2, 1024)
    given = shape_inference.infer_shapes(net.model(net.softmax(x, axis=1)), data_prop=True)
    expanded, edits = rewrite(ExpandSoftmax(), given)
    assert edits == 1
    after, edits = rewrite_checked(UndoLowering(), expanded)
    assert edits == 1
    assert ops(after) == ops(given)


def with_slices(change):
    """The steps of a Softmax over three values with a Split; a function may change the nodes first."""
    text = """
        <ir_version: 8, opset_import: ["" : 13]>
        g (float[1,3,4] x) => (float[1,3,4] y) <int64[3] lengths = {1, 1, 1}, int64[1] axes = {1}>
        {
            a, b, c = Split<axis=1>(x, lengths)
            m = Max(a, b, c)
            d = Sub(x, m)
            p = Exp(d)
            s = ReduceSum<keepdims=1>(p, axes)
            y = Div(p, s)
        }
    """
    model = onnx.parser.parse_model(text)
    change(model.graph)
    return model


def _first_twice(graph):
    graph.node[1].input[:] = ["a", "b", "b"]


def _axis_of_another(graph):
    graph.node[0].attribute[0].i = 0
    graph.node[0].output[:] = ["a"]
    graph.node[1].input[:] = ["a"]
    graph.initializer[0].CopyFrom(helper.make_tensor("lengths", 7, [1], [1]))


def _longer_slices(graph):
    del graph.node[0].output[2], graph.node[1].input[2]
    graph.initializer[0].CopyFrom(helper.make_tensor("lengths", 7, [2], [1, 2]))


def _read_slice(graph):
    graph.output.append(helper.make_tensor_value_info("b", 1, [1, 1, 4]))


def test_slices_are_the_maximum_only_if_all_of_them_are_compared():
    assert rewrite(UndoLowering(), with_slices(lambda graph: None))[1] == 1
    for change in (_first_twice, _axis_of_another, _longer_slices, _read_slice):
        assert rewrite(UndoLowering(), with_slices(change))[1] == 0


def test_steps_over_one_axis_are_a_softmax_unless_others_read_them():
    for axes, more, edits in (((1, 1), "", 1), ((1, 2), "", 0), ((1, 1), "output", 0), ((1, 1), "reader", 0)):
        net = Net()
        x = net.conv(net.block("images", 8), 8)
        powers = net.add("Exp", net.add("Sub", x, net.add("ReduceMax", x, axes=[axes[0]])))
        y = net.add("Div", powers, net.add("ReduceSum", powers, net.ints(axes[1])))
        others = {"": [], "output": [powers], "reader": [net.add("Neg", powers)] if more == "reader" else []}[more]
        assert rewrite(UndoLowering(), net.model(y, *others))[1] == edits


@pytest.mark.slow
def test_a_file_for_onnxruntime_is_quantized_anew_as_the_float_model():
    feeds = [feed(v8(), seed) for seed in range(2)]
    first = quantize(v8(), feeds).model
    assert "Gemm" in ops(first)
    assert "Softmax" not in ops(first)
    again, wanted = (quantize(m, feeds, Config(target="openvino", requantize=m is first)) for m in (first, v8()))
    assert sorted(again.facts[Plan].layers) == sorted(wanted.facts[Plan].layers)


def _read_twice(model):
    inner = nodes(model)["product"].output[0]
    model.graph.output.append(helper.make_tensor_value_info(inner, 1, [1024, 6]))


def _computed_matrix(model):
    model.graph.node.insert(0, helper.make_node("Neg", ["matrix"], ["minus"], "minus"))
    nodes(model)["product"].input[1] = "minus"


def _another_order(model):
    del nodes(model)["channels_last"].attribute[:]
    nodes(model)["channels_last"].attribute.append(helper.make_attribute("perm", [0, 3, 2, 1]))


@pytest.mark.parametrize("edit", [_read_twice, _computed_matrix, _another_order])
def test_other_structures_are_not_touched(edit):
    model = product()
    edit(model)
    assert rewrite(UndoLowering(), model)[1] == 0


@pytest.mark.parametrize(
    "model",
    [
        product(image=(-1, 16, 64, 6)),
        product(alpha=0.5),
        product(order=(0, 3, 2, 1)),
    ],
    ids=["another image", "a factor", "another order"],
)
def test_other_products_are_not_touched(model):
    assert rewrite(UndoLowering(), model)[1] == 0


@pytest.mark.parametrize("shape", [(1,), (6, 1)], ids=["for all", "by column"])
def test_another_summand_is_no_bias(shape):
    model = product("MatMul", size=6)
    for weight in model.graph.initializer:
        if weight.name == "vector":
            weight.CopyFrom(numpy_helper.from_array(np.full(shape, 0.5, np.float32), "vector"))
    assert rewrite(UndoLowering(), model)[1] == 0


@pytest.mark.parametrize("name", [*BACKBONES, *DETECTORS])
def test_a_float_model_is_not_touched(name):
    assert rewrite(UndoLowering(), (BACKBONES | DETECTORS)[name]())[1] == 0
