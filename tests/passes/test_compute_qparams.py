from dataclasses import replace

import numpy as np
import pytest
from graphs import Net, csp, feed, initializers, leaky_net, nodes, pan, quantized, relu_net, run

from onnxq.facts import FittedRanges, Plan, QuantizationParameters
from onnxq.targets import GENERIC, OPENVINO

every_method = pytest.mark.parametrize("method", ["minmax", "mse"])


# --- whole networks ---------------------------------------------------------------------------------------------------


def test_a_conv_transpose_has_a_scale_per_output_channel():
    model = relu_net()
    _, facts = quantized(model, GENERIC)
    grid = facts[QuantizationParameters].weights["upsample_weight"]
    weight = initializers(model)["upsample_weight"]
    assert grid.scheme.axis == 1
    assert np.allclose(grid.scale, np.abs(weight).max(axis=(0, 2, 3)) / 127, rtol=1e-6)


@pytest.mark.parametrize("group", [2, 8])
def test_groups_of_a_conv_transpose_share_scales_that_hold_the_bias_of_each(group):
    net = Net()
    x = net.block("images", 8, act="Relu")
    weight = net.const(net.normal(8, 8 // group, 2, 2, scale=1e-6), name="weight")
    bias = np.linspace(-50, 50, 8)
    y = net.add("ConvTranspose", x, weight, net.const(bias), name="upsample", strides=[2, 2], group=group)
    net.channels[y] = 8
    model = net.model(net.conv(y, 4))
    after, facts = quantized(model, GENERIC)
    grid = facts[QuantizationParameters].weights["weight"]
    assert grid.scale.shape == (8 // group,)
    steps = (
        np.abs(bias).reshape(group, -1)
        / facts[QuantizationParameters].activations[nodes(model)["upsample"].input[0]].scale
    )
    assert (steps / grid.scale).max() <= 2**30 * (1 + 1e-6)
    values = feed(model)
    expected = run(model, values)["output"]
    assert np.abs(run(after, values)["output"] - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("build", [csp, pan, leaky_net])
def test_every_point_and_weight_has_a_grid(build):
    _, facts = quantized(build(), OPENVINO)
    plan, grid = facts[Plan], facts[QuantizationParameters]
    assert grid.weights.keys() == {w.tensor for w in plan.weights}
    assert grid.activations.keys() == {p.tensor for p in plan.points}
    for point in plan.points:
        expected = point.scheme.qparams(facts[FittedRanges].groups[point.group].bounds)
        found = grid.activations[point.tensor]
        assert (found.scale, found.zero_point, found.scheme) == (expected.scale, expected.zero_point, point.scheme)


@every_method
def test_two_fits_are_equal(method):
    one, other = (
        quantized(csp(), weight_method=method, weight_bits=4)[1][QuantizationParameters].weights for _ in range(2)
    )
    assert all(np.array_equal(one[name].scale, other[name].scale) for name in one)


def test_weights_are_not_written_to():
    model = csp()
    before = initializers(model)
    quantized(model, weight_method="mse")
    assert all(np.array_equal(values, before[name]) for name, values in initializers(model).items())


def test_grids_cannot_be_written_to():
    _, facts = quantized(csp())
    grid = next(iter(facts[QuantizationParameters].weights.values()))
    with pytest.raises(ValueError, match="read-only"):
        grid.scale[0] = 1
    assert replace(grid).scale is grid.scale
