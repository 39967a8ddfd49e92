import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.facts import Plan, QuantizationParameters, QuantizedWeight, Statistics
from onnxq.ir import Model
from onnxq.numerics.channel_statistics import ChannelStatistics
from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.passes.correct_bias import CorrectBias
from onnxq.pipeline import Facts

SCHEME = Scheme(4, INT8, symmetric=True, axis=0)


def conv_model(weight, bias=None, group=1, before=()):
    """A model of the nodes `before`, which make x, and a Conv without padding that reads x."""
    initializers = [numpy_helper.from_array(weight, "w")]
    if bias is not None:
        initializers.append(numpy_helper.from_array(bias, "b"))
    inputs = ["x", "w"] + (["b"] if bias is not None else [])
    conv = helper.make_node("Conv", inputs, ["y"], "conv", group=group)
    given = [t for node in before for t in node.input] or ["x"]
    graph = helper.make_graph(
        [*before, conv],
        "g",
        [helper.make_tensor_value_info(t, TensorProto.FLOAT, [1, None, 6, 6]) for t in given],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        initializers,
    )
    return Model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def corrected(model, weight, means, integers=None):
    """The biases found, and the grid of the weight; `integers` are those of the weight if they are not the nearest."""
    bound = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    grid = SCHEME.qparams(Range(-bound, bound))
    plan = Plan((), (QuantizedWeight("w", SCHEME, ("conv",)),), frozenset({"conv"}), ("conv",), {})
    channels = {name: ChannelStatistics(mean, mean, mean, mean[1::2]) for name, mean in means.items()}
    parameters = QuantizationParameters({}, {"w": grid}, {} if integers is None else {"w": integers})
    facts = Facts([plan, Statistics({}, 1, "", channels), parameters])
    return CorrectBias().run(model, facts).layers, grid


def convolve(x, weight, bias, group=1):
    """Valid convolution of (channels, height, width), in plain numpy."""
    outputs, inputs, *kernel = weight.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2))
    made = []
    for o in range(outputs):
        first = o // (outputs // group) * inputs
        made.append(np.einsum("chwij,cij->hw", windows[first : first + inputs], weight[o]) + bias[o])
    return np.stack(made)


@pytest.mark.parametrize(("group", "inputs"), [(1, 6), (2, 3), (6, 1)])
def test_the_mean_output_is_that_of_the_float_weight_where_the_input_is_constant(group, inputs):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, inputs, 3, 3)).astype(np.float32)
    bias = rng.normal(size=6).astype(np.float32)
    mean = rng.normal(size=6)
    layers, grid = corrected(conv_model(weight, bias, group), weight, {"x": mean})
    x = np.broadcast_to(mean[:, None, None], (6, 6, 6))
    rounded = grid.dequantize(grid.quantize(weight))
    before = convolve(x, weight, bias, group)
    assert np.abs(convolve(x, rounded, bias, group) - before).max() > 0.01
    np.testing.assert_allclose(convolve(x, rounded, layers["conv"], group), before, atol=1e-5)


def test_the_mean_error_over_varied_inputs_vanishes():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(4, 6, 3, 3)).astype(np.float32)
    inputs = rng.gamma(2, size=(40, 6, 6, 6))
    mean = inputs.mean(axis=(0, 2, 3))
    layers, grid = corrected(conv_model(weight), weight, {"x": mean})
    rounded = grid.dequantize(grid.quantize(weight))
    none = np.zeros(4)
    error = np.mean([convolve(x, rounded, none) - convolve(x, weight, none) for x in inputs], axis=(0, 2, 3))
    left = np.mean([convolve(x, rounded, layers["conv"]) - convolve(x, weight, none) for x in inputs], axis=(0, 2, 3))
    assert np.abs(left).max() < 0.25 * np.abs(error).max()


def test_a_conv_without_bias_gets_one():
    weight = np.random.default_rng(2).normal(size=(4, 6, 1, 1)).astype(np.float32)
    layers, grid = corrected(conv_model(weight), weight, {"x": np.ones(6)})
    error = (grid.dequantize(grid.quantize(weight)) - weight).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(layers["conv"], -error, atol=1e-6)
    assert layers["conv"].dtype == np.float32


def test_integers_that_are_not_the_nearest_count():
    weight = np.random.default_rng(2).normal(size=(4, 6, 1, 1)).astype(np.float32)
    integers = np.random.default_rng(3).integers(-7, 8, weight.shape, np.int8)
    layers, grid = corrected(conv_model(weight), weight, {"x": np.ones(6)}, integers)
    error = (grid.dequantize(integers) - weight).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(layers["conv"], -error, atol=1e-6)


def test_means_come_through_concat_and_resize():
    weight = np.random.default_rng(3).normal(size=(4, 6, 1, 1)).astype(np.float32)
    concat = helper.make_node("Concat", ["left", "right"], ["x"], "concat", axis=1)
    means = {"left": np.arange(2.0), "right": np.arange(2.0, 6.0)}
    layers, _ = corrected(conv_model(weight, before=[concat]), weight, means)
    expected, _ = corrected(conv_model(weight), weight, {"x": np.arange(6.0)})
    np.testing.assert_array_equal(layers["conv"], expected["conv"])


@pytest.mark.parametrize(
    ("before", "means"),
    [
        ([], {}),
        ([helper.make_node("Concat", ["left", "right"], ["x"], "concat", axis=1)], {"left": np.ones(2)}),
        (
            [helper.make_node("Concat", ["left", "right"], ["x"], "concat", axis=2)],
            {"left": np.ones(6), "right": np.ones(6)},
        ),
        ([helper.make_node("MaxPool", ["left"], ["x"], "pool", kernel_shape=[1, 1])], {"left": np.ones(6)}),
    ],
    ids=["not observed", "a part not observed", "Concat of heights", "MaxPool"],
)
def test_a_conv_whose_input_has_no_known_mean_keeps_its_bias(before, means):
    weight = np.random.default_rng(4).normal(size=(4, 6, 1, 1)).astype(np.float32)
    assert corrected(conv_model(weight, before=before), weight, means)[0] == {}
