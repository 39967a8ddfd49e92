import numpy as np
import onnx
import pytest
from graphs import Net, assert_same_numbers, feed, nodes, ops, quantized, rewrite
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq import Config, quantize
from onnxq.facts import Plan
from onnxq.passes.split_max_pool import SplitMaxPool
from onnxq.targets import GENERIC


def pooled(kernel=(13, 13), size=16, dynamic=False, dull=False, **attributes):
    """A Conv, a MaxPool named `pool` that keeps the size, and two Convs; `dull`: all that is pooled is below 0."""
    net = Net(size=size, dynamic=dynamic)
    x = net.block("images", 8, 3)
    if dull:
        x = net.add("Add", x, net.const(np.float32(-30)))
        net.channels[x] = 8
    attributes = {"kernel_shape": list(kernel), "pads": [side // 2 for side in kernel] * 2, **attributes}
    y = net.add("MaxPool", x, name="pool", **attributes)
    net.channels[y] = 8
    return net.model(net.conv(net.block(y, 8, 3), 4))


def kernels(model):
    pools = [node for node in model.graph.node if node.op_type == "MaxPool"]
    return [tuple(a.ints) for node in pools for a in node.attribute if a.name == "kernel_shape"]


def split(model, **options):
    """Return the windows after the pass; assert that numbers stay the same, and that a second time changes nothing."""
    before, facts = quantized(model, GENERIC, **options)
    after, edits = rewrite(SplitMaxPool(), before, facts)
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(before, after)
    assert rewrite(SplitMaxPool(), after, facts)[1] == 0
    assert edits == (len(kernels(after)) > len(kernels(before)))
    return kernels(after)


@pytest.mark.parametrize(
    ("kernel", "size", "windows"),
    [
        ((7, 7), 16, [(7, 7)]),
        ((9, 9), 16, [(5, 5)] * 2),
        ((11, 11), 16, [(5, 5)] * 2 + [(3, 3)]),
        ((13, 13), 16, [(5, 5)] * 3),
        ((1, 9), 16, [(1, 5)] * 2),
        ((33, 3), 40, [(5, 3)] + [(5, 1)] * 7),
        ((35, 3), 40, [(35, 3)]),
        ((13, 13), 10, [(5, 5)] * 3),  # wider than the image
        ((13, 13), 7, [(13, 13)]),  # each window has all of the image
        ((7, 7), 6, [(5, 5), (3, 3)]),
        ((5, 5), 5, [(5, 5)]),
        ((5, 5), 4, [(3, 3)] * 2),
        ((5, 5), 3, [(5, 5)]),
    ],
)
def test_windows(kernel, size, windows):
    assert split(pooled(kernel, size)) == windows


@settings(max_examples=12, deadline=None)
@given(kernel=st.tuples(*[st.sampled_from(range(1, 16, 2))] * 2), size=st.integers(4, 18), dull=st.booleans())
def test_numbers_stay_the_same(kernel, size, dull):
    split(pooled(kernel, size, dull=dull))


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [2, 2]},
        {"pads": [0, 0, 12, 12]},
        {"kernel_shape": [12, 12], "pads": [6, 6, 5, 5]},
        {"kernel_shape": [7, 7], "dilations": [2, 2], "pads": [6] * 4},
        {"auto_pad": "SAME_UPPER", "pads": None},
    ],
    ids=["strides", "pads at the ends", "even", "dilated", "auto_pad"],
)
def test_others_stay(attributes):
    model = pooled(**attributes) if attributes.get("pads", [0]) else unpadded(**attributes)
    assert len(split(model)) == 1


def unpadded(pads, **attributes):
    model = pooled(**attributes)
    for node in model.graph.node:
        for attribute in [a for a in node.attribute if a.name == "pads" and node.op_type == "MaxPool"]:
            node.attribute.remove(attribute)
    return model


def test_images_of_unknown_size():
    assert split(pooled((9, 9), dynamic=True)) == [(5, 5)] * 2
    assert split(pooled((5, 5), dynamic=True)) == [(5, 5)]


def test_narrow_grids():
    assert split(pooled(), act_bits=4) == [(5, 5)] * 3


def test_a_float_pool_gets_no_q_in_between():
    model = pooled()
    before, facts = quantized(model, GENERIC, exclude=("pool",))
    after, edits = rewrite(SplitMaxPool(), before, facts)
    assert edits == 1
    assert ops(after).count("QuantizeLinear") == ops(before).count("QuantizeLinear")
    assert_same_numbers(before, after)


def test_integers_have_the_scale_of_the_input_all_the_way():
    before, facts = quantized(pooled(), GENERIC)
    assert "pool" in facts[Plan].integer
    after, _ = rewrite(SplitMaxPool(), before, facts)
    assert ops(after).count("QuantizeLinear") == ops(before).count("QuantizeLinear") + 2
    named = nodes(after)
    source = next(node for node in after.graph.node if node.output[0] == named["pool"].input[0])
    for node in named.values():
        if node.name.startswith("pool_") and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert list(node.input[1:]) == list(source.input[1:]) or node.name == "pool_out_QuantizeLinear"


def test_a_file_for_generic_has_none_that_rknn_toolkit2_gets_wrong():
    model = pooled()
    found = quantize(model, [feed(model, seed) for seed in range(2)], Config(target="generic"))
    assert kernels(found.model) == [(5, 5)] * 3
    ort = quantize(model, [feed(model, seed) for seed in range(2)], Config(target="ort"))
    assert kernels(ort.model) == [(13, 13)]
