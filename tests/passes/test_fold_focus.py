import itertools

import numpy as np
import pytest
from graphs import BACKBONES, DETECTORS, Net, assert_untouched, feed, nodes, ops, rewrite, rewrite_checked
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxq import Config, quantize
from onnxq.passes.fold_focus import FoldFocus
from onnxq.passes.infer_shapes import InferShapes

BLOCK = list(itertools.product((0, 1), (0, 1)))
END = 2**31 - 1


def sliced(net, x, *bounds):
    """A Slice with (axis, start, step) or (axis, start, step, end) for each axis."""
    axes, starts, steps, ends = zip(*((*bound, END)[:4] for bound in bounds), strict=True)
    y = net.add("Slice", x, net.ints(*starts), net.ints(*ends), net.ints(*axes), net.ints(*steps))
    net.channels[y] = net.channels[x]
    return y


def by_slices(net, x, order=BLOCK, block=2, at_once=False):
    parts = []
    for row, column in order:
        if at_once:
            parts.append(sliced(net, x, (-1, column, block), (-2, row, block)))
        else:
            parts.append(sliced(net, sliced(net, x, (2, row, block)), (3, column, block)))
    return net.concat(*parts)


def by_space_to_depth(net, x, block=2):
    y = net.add("SpaceToDepth", x, blocksize=block)
    net.channels[y] = net.channels[x] * block**2
    return y


def by_unshuffle(net, x, perm=(0, 1, 3, 5, 2, 4), block=2):
    channels, side = net.channels[x], net.size // block
    y = net.reshape(x, 1, channels, side, block, side, block)
    y = net.reshape(net.add("Transpose", y, perm=list(perm)), 1, channels * block**2, side, side)
    net.channels[y] = channels * block**2
    return y


def network(rearrange, *, change=None, extra=None, size=32, dynamic=False, **conv):
    """The rearrangement, a Conv, and the rest of a detector; `change` edits the Conv's node, `extra` adds an output."""
    net = Net(size=size, dynamic=dynamic)
    x = rearrange(net, "images")
    y = net.conv(x, 8, name="stem", **({"kernel": 3} | conv))
    if change is not None:
        change(next(node for node in net.nodes if node.name == "stem"))
    more = [extra(net, x)] if extra is not None else []
    return inferred(net.model(net.conv(net.silu(y), 4), *more))


def inferred(model):
    return rewrite(InferShapes(), model)[0]


def attributes(model, name="stem"):
    return {a.name: helper.get_attribute_value(a) for a in nodes(model)[name].attribute}


@pytest.mark.parametrize(
    "build", [b for b in [*BACKBONES.values(), *DETECTORS.values()] if b.__name__ != "yolox"], ids=lambda b: b.__name__
)
def test_models_without_a_rearrangement_are_left_alone(build):
    assert_untouched(FoldFocus(), inferred(build()))


def test_the_first_conv_of_yolox_reads_the_image():
    before = inferred(DETECTORS["yolox"]())
    after, edits = rewrite_checked(FoldFocus(), before)
    assert (edits, ops(before).count("Slice"), ops(after).count("Slice")) == (1, 6, 0)
    first = next(node for node in after.graph.node if "images" in node.input)
    assert (first.op_type, attributes(after, first.name)["kernel_shape"]) == ("Conv", [6, 6])


REARRANGEMENTS = {
    "rows first": by_slices,
    "columns first": lambda net, x: by_slices(net, x, [(0, 0), (1, 0), (0, 1), (1, 1)]),
    "another order": lambda net, x: by_slices(net, x, [(1, 1), (0, 1), (1, 0), (0, 0)]),
    "both axes in a Slice": lambda net, x: by_slices(net, x, at_once=True),
    "SpaceToDepth": by_space_to_depth,
    "pixel_unshuffle": by_unshuffle,
    "blocks before channels": lambda net, x: by_unshuffle(net, x, (0, 3, 5, 1, 2, 4)),
    "columns before rows": lambda net, x: by_unshuffle(net, x, (0, 5, 1, 3, 2, 4)),
    "blocks of 4": lambda net, x: by_slices(net, x, list(itertools.product(range(4), range(4))), block=4),
}


@pytest.mark.parametrize("rearrange", REARRANGEMENTS.values(), ids=REARRANGEMENTS)
@pytest.mark.parametrize("conv", [{}, {"kernel": 1}, {"stride": 2}, {"kernel": 5, "bias": False}], ids=str)
def test_the_conv_reads_what_is_rearranged(rearrange, conv):
    after, edits = rewrite_checked(FoldFocus(), network(rearrange, **conv))
    assert edits == 1
    assert nodes(after)["stem"].input[0] == "images"
    assert not {"Slice", "Concat", "SpaceToDepth", "Reshape", "Transpose"} & {*ops(after)}


@given(
    order=st.permutations(BLOCK),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.lists(st.integers(0, 2), min_size=4, max_size=4),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
@settings(max_examples=30, deadline=None)
def test_any_order_kernel_padding_and_stride(order, kernel, pads, strides):
    net = Net(size=16)
    x = by_slices(net, "images", order)
    weight = net.const(net.normal(4, 12, *kernel), name="weight")
    y = net.add("Conv", x, weight, name="stem", kernel_shape=kernel, pads=pads, strides=strides)
    after, edits = rewrite_checked(FoldFocus(), inferred(net.model(y)))
    assert edits == 1
    assert attributes(after)["pads"] == [2 * pad for pad in pads]
    stored = {w.name: numpy_helper.to_array(w) for w in after.graph.initializer}[nodes(after)["stem"].input[1]]
    assert np.count_nonzero(stored) == 4 * 12 * kernel[0] * kernel[1]


def test_images_of_any_size():
    after, edits = rewrite_checked(FoldFocus(), network(by_slices, dynamic=True))
    assert (edits, ops(after).count("Slice")) == (1, 0)


def test_inner_rearrangements_and_several_readers():
    net = Net()
    x = by_slices(net, net.block("images", 5), at_once=True)
    model = inferred(net.model(net.conv(x, 4, kernel=3), net.conv(x, 6, kernel=1)))
    after, edits = rewrite_checked(FoldFocus(), model)
    assert (edits, ops(after).count("Concat")) == (2, 0)


def valid(node):
    node.attribute.remove(next(a for a in node.attribute if a.name == "pads"))
    node.attribute.append(helper.make_attribute("auto_pad", "VALID"))


def test_a_conv_with_auto_pad_valid():
    after, edits = rewrite_checked(FoldFocus(), network(by_slices, change=valid))
    assert (edits, attributes(after)["pads"]) == (1, [0] * 4)


def same(node):
    valid(node)
    node.attribute[-1].s = b"SAME_UPPER"


def dilated(node):
    node.attribute.append(helper.make_attribute("dilations", [2, 2]))


def cropped(net, x):
    parts = [sliced(net, x, (2, row, 2, 30), (3, column, 2, 30)) for row, column in BLOCK]
    return net.concat(*parts)


def of_two_tensors(net, x):
    sources = [x, x, x, net.add("Relu", x)]
    return net.concat(*(sliced(net, t, (2, row, 2), (3, column, 2)) for t, (row, column) in zip(sources, BLOCK)))


def backwards(net, x):
    parts = [sliced(net, x, (2, 31 - row, -2, -33), (3, column, 2)) for row, column in BLOCK]
    return net.concat(*parts)


@pytest.mark.parametrize(
    "model",
    [
        network(by_slices, change=same),
        network(by_slices, change=dilated),
        network(by_slices, group=4),
        network(cropped),
        network(lambda net, x: by_slices(net, x, [*BLOCK[:3], BLOCK[0]])),
        network(of_two_tensors),
        network(backwards),
        network(lambda net, x: by_slices(net, x, [(0, 0)])),
        network(lambda net, x: by_unshuffle(net, x, (0, 1, 3, 5, 4, 2))),
        network(by_slices, extra=lambda net, x: x),
        network(by_slices, extra=lambda net, x: net.add("Relu", x)),
    ],
    ids=[
        "SAME", "dilated", "groups", "cropped", "a plane twice", "two tensors", "backwards", "a part", "turned",
        "an output", "read by another",
    ],
)  # fmt: skip
def test_what_is_no_rearrangement_for_one_conv_stays(model):
    assert_untouched(FoldFocus(), model)


@pytest.mark.parametrize("target", ["ort", "openvino", "tensorrt", "generic"])
def test_none_is_left_when_it_is_quantized(target):
    model = network(by_slices)
    found = quantize(model, [feed(model)], Config(target=target))
    assert "Slice" not in ops(found.model)
