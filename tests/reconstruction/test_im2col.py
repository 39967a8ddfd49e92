import numpy as np
import onnx
import pytest
from graphs import Net, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxq.ir import Model
from onnxq.reconstruction.im2col import Im2col


def layer(op, weight, size=(9, 7), bias=None, **attributes):
    """A model of one layer over images of this size, and its node."""
    channels = weight.shape[1] * attributes.get("group", 1) if op == "Conv" else weight.shape[0]
    names = ["x", "weight", *(["bias"] if bias is not None else [])]
    constants = [numpy_helper.from_array(weight, "weight")]
    constants += [numpy_helper.from_array(bias, "bias")] if bias is not None else []
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], "layer", **attributes)],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, channels, *size])],
        [onnx.ValueInfoProto(name="y")],
        constants,
    )
    model = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    )
    return model, Model(model).graph.nodes[0]


def assert_unfolds(op, weight, size=(9, 7), **attributes):
    """Assert that at every position the products of the unfolded layer are what onnxruntime computes."""
    model, node = layer(op, weight, size, **attributes)
    unfolding = Im2col.of(node)
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    y = run(model, {"x": x})["y"]
    places = np.stack(np.divmod(np.arange(np.prod(unfolding.size(y.shape))), unfolding.size(y.shape)[1]))
    columns = unfolding.columns(x[0], places)
    assert columns.shape[:2] == (unfolding.matrix(weight).shape[0], unfolding.inputs)
    found = unfolding.matrix(weight) @ columns
    np.testing.assert_allclose(found, unfolding.outputs(y[0], places), atol=1e-4)
    assert unfolding.outputs(y[0], places).size == y.size
    assert np.array_equal(unfolding.weight(unfolding.matrix(weight)), weight)


@settings(max_examples=60, deadline=None)
@given(
    group=st.sampled_from([1, 2, 4]),
    outputs=st.integers(1, 3),
    inputs=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
)
def test_a_conv_is_a_product_of_matrices(group, outputs, inputs, kernel, strides, dilations, pads):
    weight = np.random.default_rng(0).normal(size=(group * outputs, inputs, *kernel)).astype(np.float32)
    assert_unfolds("Conv", weight, group=group, strides=strides, dilations=dilations, pads=pads)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 2), (1, 1)])
def test_so_is_a_transposed_conv_without_overlap(kernel):
    weight = np.random.default_rng(0).normal(size=(3, 5, *kernel)).astype(np.float32)
    assert_unfolds("ConvTranspose", weight, strides=kernel)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [1, 1]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1]},
        {"strides": [2, 2], "output_padding": [1, 1]},
        {"strides": [2, 2], "group": 3},
    ],
)
def test_other_transposed_convs_are_none(attributes):
    weight = np.zeros((3, 5, 2, 2), np.float32)
    assert Im2col.of(layer("ConvTranspose", weight, **attributes)[1]) is None


def test_nor_convs_that_pad_by_themselves_or_have_a_computed_weight():
    weight = np.zeros((3, 5, 3, 3), np.float32)
    assert Im2col.of(layer("Conv", weight, auto_pad="SAME_UPPER")[1]) is None
    net = Net()
    y = net.add("Conv", "images", net.add("Identity", net.const(weight[:, :3])))
    node = next(n for n in Model(net.model(y)).graph.nodes if n.op == "Conv")
    assert Im2col.of(node) is None


def test_channels_of_a_transposed_conv_are_repeated_for_its_taps_and_averaged_back():
    unfolding = Im2col.of(layer("ConvTranspose", np.zeros((3, 5, 2, 2), np.float32), strides=[2, 2])[1])
    spread = unfolding.per_output(np.arange(5.0))
    assert spread.shape == (1, 20)
    assert np.array_equal(unfolding.per_channel(spread), np.arange(5))


def test_beyond_the_border_there_are_zeros():
    unfolding = Im2col.of(layer("Conv", np.zeros((1, 1, 3, 3), np.float32), pads=[1, 1, 1, 1])[1])
    corner = unfolding.columns(np.full((1, 4, 4), 7, np.uint8), np.zeros((2, 1), np.int64))
    assert corner.dtype == np.uint8
    assert corner.reshape(3, 3).tolist() == [[0, 0, 0], [0, 7, 7], [0, 7, 7]]


def product(op, weight, lead, **attributes):
    """A model of one Gemm or MatMul over rows of these leading dimensions, and its node."""
    inputs = weight.shape[1 if attributes.get("transB") else 0]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "weight"], ["y"], "layer", **attributes)],
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [*lead, inputs])],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model), Model(model).graph.nodes[0]


@pytest.mark.parametrize(
    ("op", "lead", "attributes"),
    [
        ("Gemm", (2,), {}),
        ("Gemm", (1,), {"transB": 1}),
        ("MatMul", (1,), {}),
        ("MatMul", (2, 6), {}),
        ("MatMul", (1, 3, 4), {}),
    ],
)
def test_each_row_of_a_product_is_a_position(op, lead, attributes):
    weight = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    model, node = product(op, weight, lead, **attributes)
    unfolding = Im2col.of(node)
    x = np.random.default_rng(1).normal(size=(*lead, 7 if attributes else 5)).astype(np.float32)
    y = run(model, {"x": x})["y"]
    height, width = unfolding.size(y.shape)
    assert (height, width) == (1, np.prod(lead))
    places = np.stack([np.zeros(width, np.int64), np.arange(width)])
    [inputs], [outputs] = unfolding.fields(x), unfolding.fields(y)
    columns = unfolding.columns(inputs, places)
    assert columns.shape == (1, unfolding.inputs, width)
    found = unfolding.matrix(weight) @ columns
    np.testing.assert_allclose(found, unfolding.outputs(outputs, places), atol=1e-5)
    assert unfolding.outputs(outputs, places).size == y.size
    assert np.array_equal(unfolding.weight(unfolding.matrix(weight)), weight)
    scales = np.arange(float(found.shape[1]))
    assert np.array_equal(unfolding.per_channel(unfolding.per_output(scales)), scales)
