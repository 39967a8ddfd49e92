import pytest
from graphs import BACKBONES, DETECTORS, Net, assert_untouched, feed, rewrite, rewrite_checked
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from onnxq import Config, quantize
from onnxq.facts import Verification
from onnxq.passes.explicit_pads import ExplicitPads
from onnxq.passes.infer_shapes import InferShapes

MODES = ("VALID", "SAME_UPPER", "SAME_LOWER")


def padded(op, mode, kernel, size=32, stride=1, dilation=1, **attrs):
    """A model of one node with `auto_pad`."""
    net = Net(size=size)
    if op == "Conv":
        attrs.update(dilations=[dilation] * 2)
        inputs = ["images", net.const(net.normal(4, 3, kernel, kernel))]
    else:
        inputs, attrs = ["images"], {"kernel_shape": [kernel] * 2, **attrs}
    y = net.add(op, *inputs, auto_pad=mode, strides=[stride] * 2, name="padded", **attrs)
    net.channels[y] = 4 if op == "Conv" else 3
    return rewrite(InferShapes(), net.model(y))[0]


def attributes(model, name="padded"):
    node = next(node for node in model.graph.node if node.name == name)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    mode=st.sampled_from(MODES),
    kernel=st.integers(1, 5),
    size=st.integers(9, 40),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 2),
)
def test_computes_the_same(op, mode, kernel, size, stride, dilation):
    assume(mode == "VALID" or kernel >= stride)  # else onnxruntime refuses some
    model = padded(op, mode, kernel, size, stride, dilation if mode == "VALID" else 1)
    after, edits = rewrite_checked(ExplicitPads(), model)
    assert edits == 1
    assert "auto_pad" not in attributes(after)
    assert len(attributes(after)["pads"]) == 4


@pytest.mark.parametrize(
    ("mode", "kernel", "size", "stride", "pads"),
    [
        ("VALID", 3, 32, 2, [0, 0, 0, 0]),
        ("SAME_UPPER", 3, 32, 1, [1, 1, 1, 1]),
        ("SAME_UPPER", 3, 32, 2, [0, 0, 1, 1]),
        ("SAME_LOWER", 3, 32, 2, [1, 1, 0, 0]),
        ("SAME_UPPER", 1, 32, 2, [0, 0, 0, 0]),
        ("SAME_UPPER", 4, 32, 1, [1, 1, 2, 2]),
    ],
)
def test_the_odd_pixel_is_at_the_end_that_the_mode_names(mode, kernel, size, stride, pads):
    after, _ = rewrite(ExplicitPads(), padded("Conv", mode, kernel, size, stride))
    assert attributes(after)["pads"] == pads


def test_without_a_known_size_only_a_stride_of_one_is_written():
    for stride, edits in ((1, 1), (2, 0)):
        net = Net(dynamic=True)
        y = net.add("Conv", "images", net.const(net.normal(4, 3, 3, 3)), auto_pad="SAME_UPPER", strides=[stride] * 2)
        net.channels[y] = 4
        assert rewrite(ExplicitPads(), rewrite(InferShapes(), net.model(y))[0])[1] == edits


def test_pools_that_round_up_dilated_convs_and_transposed_ones_stay():
    assert_untouched(ExplicitPads(), padded("Conv", "SAME_UPPER", 3, dilation=2))
    assert_untouched(ExplicitPads(), padded("MaxPool", "SAME_UPPER", 3, stride=2, ceil_mode=1))
    net = Net()
    y = net.add("ConvTranspose", "images", net.const(net.normal(3, 4, 2, 2)), auto_pad="SAME_UPPER", strides=[2, 2])
    net.channels[y] = 4
    assert_untouched(ExplicitPads(), rewrite(InferShapes(), net.model(y))[0])


@pytest.mark.parametrize("build", [*BACKBONES.values(), *DETECTORS.values()], ids=[*BACKBONES, *DETECTORS])
def test_usual_exports_stay(build):
    assert_untouched(ExplicitPads(), build())


def test_a_network_of_auto_pad_is_reconstructed():
    def network(written):
        net = Net(size=64)
        x = net.block("images", 48, 3, stride=2)
        for _ in range(4):
            x = net.silu(net.conv(x, 48, 3))
        model = net.model(net.conv(x, 8))
        for node in model.graph.node:
            if node.op_type == "Conv" and not written:
                kept = [a for a in node.attribute if a.name != "pads"]
                del node.attribute[:]
                node.attribute.extend([*kept, helper.make_attribute("auto_pad", "SAME_LOWER")])
        return model

    feeds = [feed(network(True), seed) for seed in range(4)]
    config = Config(target="generic", weight_bits=4)
    found, expected = (
        next(iter(quantize(network(written), feeds, config).facts[Verification].simulated.values()))
        for written in (False, True)
    )
    assert found == pytest.approx(expected, abs=0.5)
