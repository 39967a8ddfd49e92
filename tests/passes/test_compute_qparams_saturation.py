"""What a quantized file computes is the same on CPUs that add pairs of products in 16 bits with saturation."""

import numpy as np
import pytest
from cases import fast_first, paired
from graphs import (
    Net,
    attention,
    csp,
    depthwise_net,
    feed,
    leaky_net,
    pan,
    prepared,
    products,
    relu_net,
    saturating,
    silu_chain,
    sppf,
    v8,
)
from saturation import excesses

from onnxq import Config, quantize
from onnxq.facts import Migration

FEEDS = 4

CPU_TARGETS = ["ort", "openvino", "generic"]

every_cpu_target = pytest.mark.parametrize("target", CPU_TARGETS)


def worst(model, found, feeds):
    """The greatest excess of each layer over all feeds."""
    floats = prepared(model).to_proto()
    each = [excesses(floats, found.model, found.facts, values) for values in feeds]
    return {name: max(excess[name] for excess in each) for name in each[0]}


def quantized(build, target, cpu, **options):
    model = build()
    feeds = [feed(model, seed) for seed in range(FEEDS)]
    return model, feeds, quantize(model, feeds, Config(target=target, cpu=cpu, **options))


GRAPHS = [saturating, silu_chain, csp, sppf, pan, leaky_net, relu_net, products, attention, depthwise_net, v8]


@pytest.mark.slow
@pytest.mark.parametrize(("build", "target"), paired(GRAPHS, CPU_TARGETS))
def test_no_sum_saturates_on_the_calibration_data(build, target):
    model, feeds, found = quantized(build, target, "any")
    excess = worst(model, found, feeds)
    assert excess == dict.fromkeys(excess, 0)


@pytest.mark.parametrize("build", [silu_chain, csp, v8], ids=lambda b: b.__name__)
def test_neither_do_sums_of_weights_that_scales_migrated_into(build):
    model, feeds, found = quantized(build, "openvino", "any", migrate=True)
    assert found.facts[Migration].scales
    excess = worst(model, found, feeds)
    assert excess == dict.fromkeys(excess, 0)


def with_positive_weights(op, *shape, **attributes):
    """A layer whose weights and inputs have one sign, between two Convs."""
    net = Net()
    x = net.add("Relu", net.conv("images", 8, 3, name="first"))
    weight = net.const(np.abs(net.normal(*shape, scale=0.3)))
    x = net.add("Relu", net.add(op, x, weight, name="layer", **attributes))
    net.channels[x] = 24
    return net.model(net.conv(x, 8, 3, name="last"))


def filters_per_channel():
    return with_positive_weights("Conv", 24, 1, 3, 3, group=8, pads=[1, 1, 1, 1])


def transposed():
    """OpenVINO runs it on integers."""
    return with_positive_weights("ConvTranspose", 8, 24, 2, 2, strides=[2, 2])


@pytest.mark.parametrize("build", [filters_per_channel, transposed], ids=lambda b: b.__name__)
def test_neither_do_sums_of_unusual_convs(build):
    excess = {}
    for cpu in ("any", "vnni"):
        model, feeds, found = quantized(build, "generic", cpu)
        excess[cpu] = worst(model, found, feeds)
    assert excess["any"] == dict.fromkeys(excess["any"], 0)
    assert excess["vnni"]["layer"] > 1000


@every_cpu_target
@pytest.mark.parametrize("build", fast_first([saturating, csp, v8]), ids=lambda b: b.__name__)
def test_with_vnni_weights_some_do(build, target):
    model, feeds, found = quantized(build, target, "vnni")
    assert max(worst(model, found, feeds).values()) > 1000


@pytest.mark.parametrize("target", ["openvino", "generic"])
def test_layers_that_read_images_do_not_saturate_on_any_image(target):
    excess = {}
    for cpu in ("any", "vnni"):
        model, feeds, found = quantized(csp, target, cpu)
        rng = np.random.default_rng(0)
        shape = feeds[0]["images"].shape
        pictures = [
            np.ones(shape),
            rng.integers(0, 2, shape),
            np.kron(rng.integers(0, 2, (1, 1, 4, 4)), np.ones((8, 8))),
        ]
        pictures = [np.broadcast_to(each, shape).astype(np.float32) for each in pictures]
        excess[cpu] = worst(model, found, [{"images": each} for each in pictures])["conv0"]
    assert excess["any"] == 0 < excess["vnni"]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "target"), paired([(8, 4), (4, 8), (4, 4)], CPU_TARGETS, each=1))
def test_no_sum_saturates_with_fewer_bits(bits, target):
    model, feeds, found = quantized(csp, target, "any", weight_bits=bits[0], act_bits=bits[1])
    excess = worst(model, found, feeds)
    assert excess == dict.fromkeys(excess, 0)
