import numpy as np
import pytest
from graphs import BACKBONES, DETECTORS, Net, assert_untouched, feed, ops, rewrite, rewrite_checked
from onnx import helper

from onnxq import Config, quantize
from onnxq.facts import Plan
from onnxq.passes.fold_pad import FoldPad
from onnxq.passes.infer_shapes import InferShapes

AROUND = (0, 0, 1, 2, 0, 0, 3, 0)
"""Above 1, left 2, below 3."""


def padded(net, x, amounts=AROUND, *more, mode="constant"):
    y = net.add("Pad", x, net.ints(*amounts), *more, mode=mode)
    net.channels[y] = net.channels[x]
    return y


def network(amounts=AROUND, *more, mode="constant", change=None, **options):
    """A Pad between two Convs, the second of which pads one pixel itself; `change` edits that one's node."""
    net = Net(opset=18 if len(more) > 1 else 17)
    more = [x if isinstance(x, str) else net.const(x, np.asarray(x).dtype.type) for x in more]
    x = padded(net, net.block("images", 8), amounts, *more, mode=mode)
    y = net.conv(x, 40, kernel=3, name="padded", **options)
    if change is not None:
        change(next(node for node in net.nodes if node.name == "padded"))
    return inferred(net.model(net.conv(net.block(y, 40, stride=4), 4)))


def inferred(model):
    return rewrite(InferShapes(), model)[0]


def pads(model, name="padded"):
    node = next(node for node in model.graph.node if node.name == name)
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}["pads"]


def without(*names):
    def change(node):
        for name in names:
            node.attribute.remove(next(a for a in node.attribute if a.name == name))

    return change


def valid(node):
    without("pads")(node)
    node.attribute.append(helper.make_attribute("auto_pad", "VALID"))


def same(node):
    without("pads")(node)
    node.attribute.append(helper.make_attribute("auto_pad", "SAME_UPPER"))


@pytest.mark.parametrize("build", [*BACKBONES.values(), *DETECTORS.values()], ids=lambda build: build.__name__)
def test_models_without_pads_are_left_alone(build):
    assert_untouched(FoldPad(), build())


@pytest.mark.parametrize(
    "model",
    [
        network(mode="reflect"),
        network(mode="edge"),
        network(AROUND, np.float32(0.5)),
        network((0, 0, 1, 1, 0, 0, -1, 0)),
        network((0, 0, 1, 1, 1, 0, 0, 0)),
        network(change=same),
    ],
    ids=["reflected", "of the edge", "of a value", "cropped", "in front of the batch", "in front of SAME"],
)
def test_what_is_no_padding_with_zeros_stays(model):
    assert_untouched(FoldPad(), model)


def test_pads_of_channels_and_computed_ones_stay():
    net = Net()
    x = padded(net, net.block("images", 7), (0, 0, 0, 0, 0, 1, 0, 0))
    net.channels[x] = 8
    assert_untouched(FoldPad(), inferred(net.model(net.conv(x, 4))))
    net = Net()
    amounts = net.add("Mul", net.add("Shape", "images"), net.const([0] * 4, np.int64))
    y = net.add("Pad", net.block("images", 8), net.add("Concat", amounts, amounts, axis=0))
    net.channels[y] = 8
    assert_untouched(FoldPad(), inferred(net.model(net.conv(y, 4))))


def test_pads_in_front_of_others_than_convs_stay():
    net = Net()
    x = padded(net, net.block("images", 8))
    y = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    net.channels[y] = 8
    assert_untouched(FoldPad(), inferred(net.model(net.conv(y, 4))))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (network(), [2, 3, 4, 1]),
        (network(AROUND, np.float32(0)), [2, 3, 4, 1]),
        (network((1, 2, 3, 0), np.float32(0), np.int64([2, 3])), [2, 3, 4, 1]),
        (network((2, 1, 0, 3), np.float32(0), np.int64([-1, 2])), [2, 3, 4, 1]),
        (network((1, 2, 3, 0), "", np.int64([2, 3])), [2, 3, 4, 1]),
        (network(change=without("pads")), [1, 2, 3, 0]),
        (network(change=valid), [1, 2, 3, 0]),
        (network(stride=2, group=4), [2, 3, 4, 1]),
    ],
    ids=["plain", "zero given", "axes", "axes from behind", "no value", "Conv without pads", "VALID", "strided groups"],
)
def test_zeros_go_into_the_conv(model, expected):
    after, edits = rewrite_checked(FoldPad(), model)
    assert edits == 1
    assert "Pad" not in ops(after)
    assert pads(after) == expected


def test_one_pad_behind_the_other():
    net = Net()
    x = padded(net, padded(net, net.block("images", 8)), (0, 0, 1, 0, 0, 0, 0, 1))
    after, edits = rewrite_checked(FoldPad(), inferred(net.model(net.conv(x, 4, name="padded"))))
    assert (edits, ops(after).count("Pad"), pads(after)) == (2, 0, [2, 2, 3, 1])


def test_a_pad_that_others_read_stays_for_them():
    net = Net()
    x = padded(net, net.block("images", 8))
    pooled = net.add("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1])
    model = net.model(net.conv(x, 4, name="padded"), net.conv(x, 2, kernel=3, name="other"), pooled)
    after, edits = rewrite_checked(FoldPad(), inferred(model))
    assert (edits, ops(after).count("Pad")) == (2, 1)
    assert (pads(after), pads(after, "other")) == ([1, 2, 3, 0], [2, 3, 4, 1])


def test_a_pad_that_is_an_output_stays():
    net = Net()
    x = padded(net, net.block("images", 8))
    after, edits = rewrite_checked(FoldPad(), inferred(net.model(net.conv(x, 4, name="padded"), x)))
    assert (edits, ops(after).count("Pad"), pads(after)) == (1, 1, [1, 2, 3, 0])


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "generic"])
def test_none_is_left_when_it_is_quantized(target):
    model = network()
    found = quantize(model, [feed(model)], Config(target=target))
    assert "Pad" not in ops(found.model)
    assert not any(op == "Pad" for op in found.facts[Plan].ops.values())
