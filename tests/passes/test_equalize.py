import numpy as np
import onnx
import pytest
from graphs import (
    DETECTORS,
    Net,
    assert_untouched,
    conditional,
    csp,
    depthwise_net,
    initializers,
    nodes,
    rewrite_checked,
    run,
    silu_chain,
    with_outputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, shape_inference
from unbalanced import FACTORS, edited, with_rows

from onnxq.passes.equalize import Equalize

STEP = Equalize()
CHANNELS = 8


def between(build, factors=FACTORS):
    """Two Convs, and between them what `build` makes of the first one's output; the channels are of unequal size."""
    net = Net()
    made = np.atleast_1d(build(net, net.conv("images", CHANNELS, 3, name="maker"))).tolist()
    return with_rows(net.model(*(net.conv(x, 4, 3, name=f"reader{k}") for k, x in enumerate(made))), factors=factors)


def equalized(model):
    """The model after the pass, which must find something, and compute the same as before but for rounding."""
    after, edits = rewrite_checked(STEP, model)
    assert edits > 0
    before, result = run(model), run(after)
    for name, expected in before.items():
        assert np.abs(result[name] - expected).max() <= 1e-5 * np.abs(expected).max()
    assert [node.SerializeToString() for node in after.graph.node] == [
        node.SerializeToString() for node in model.graph.node
    ]
    return after


def norms(model, layer, axis):
    """Return the norms of a layer's weights by channel of an axis, with the bias for output channels."""
    values = initializers(model)
    weight = np.moveaxis(values[f"{layer}_weight"], axis, 0).astype(np.float64)
    squares = np.square(weight).reshape(weight.shape[0], -1).sum(axis=1)
    return np.sqrt(squares + (np.square(values[f"{layer}_bias"]) if axis == 0 else 0))


def spread(values):
    """Octaves from the least to the greatest; scales are rounded, which leaves up to 0.36 between two norms."""
    return float(np.log2(values.max() / values.min()))


# --- through what it passes -------------------------------------------------------------------------------------------


def prelu(net, x, *shape):
    return net.add("PRelu", x, net.const(net.rng.uniform(-0.5, 0.5, shape)))


def resized(net, x, *scales, **attributes):
    return net.add("Resize", x, "", net.const(scales), **attributes)


def parts(net, x):
    return net.concat(*reversed(net.split(x, 3, 4, 1)))


def thirds(net, x):
    """Slices of the channels from three sides that cover all channels."""
    made = [net.slice(x, 1, 1, 2, CHANNELS), net.slice(x, 1, 0, 2), net.slice(x, 1, CHANNELS - 1, -1, -(2**31))]
    net.channels.update({made[0]: 4, made[1]: 4})
    return net.concat(*made)


def beside_fixed(net, x):
    return net.concat(net.conv("images", 4, 3, name="other"), x, net.add("Sigmoid", "images"))


def added(net, x):
    return net.add("Add", net.add("Relu", x), net.conv("images", CHANNELS, 3, name="other"))


PASSED = {
    "nothing": lambda net, x: x,
    "relu": lambda net, x: net.add("Relu", x),
    "leaky": lambda net, x: net.add("LeakyRelu", x, alpha=0.1),
    "prelu": lambda net, x: prelu(net, x, CHANNELS, 1, 1),
    "prelu of one slope": lambda net, x: prelu(net, x, 1),
    "max pool": lambda net, x: net.pool(x),
    "average pool": lambda net, x: net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1),
    "average pool of real counts": lambda net, x: net.add("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4),
    "nearest": lambda net, x: net.upsample(x),
    "linear": lambda net, x: resized(net, x, 1, 1, 2, 1.5, mode="linear"),
    "to a size": lambda net, x: net.add("Resize", x, "", "", net.ints(1, CHANNELS, 48, 40), mode="cubic"),
    "split and concat": parts,
    "slices": thirds,
    "slice without axes": lambda net, x: net.add("Slice", x, net.ints(0, 0), net.ints(1, CHANNELS), "", net.ints(1, 1)),
    "split without lengths": lambda net, x: net.add("Concat", *net.add_many("Split", x, "", outputs=2, axis=1), axis=1),
    "slice of rows": lambda net, x: net.slice(x, -2, 3, end=20),
    "split of rows": lambda net, x: net.split(x, 8, 24, axis=2),
    "concat with others": beside_fixed,
    "concat from behind": lambda net, x: net.add("Concat", x, axis=-3),
    "add": added,
    "add to itself": lambda net, x: net.add("Add", x, x),
    "two readers": lambda net, x: [net.add("Relu", x), net.pool(x)],
    "a chain": lambda net, x: net.add("Relu", net.pool(net.upsample(parts(net, net.add("LeakyRelu", x))))),
}


@pytest.mark.parametrize("build", PASSED.values(), ids=PASSED)
def test_scales_go_through(build):
    before = between(build)
    after = equalized(before)
    assert not np.array_equal(initializers(after)["maker_weight"], initializers(before)["maker_weight"])
    assert spread(norms(after, "maker", 0)) < spread(norms(before, "maker", 0)) - 2


def test_what_makes_a_channel_and_what_reads_it_are_of_one_size():
    after = equalized(between(PASSED["relu"]))
    assert spread(norms(after, "maker", 0) / norms(after, "reader0", 1)) < 0.4


def test_a_split_into_equal_parts():
    net = Net()
    halves = net.add_many("Split", net.conv("images", CHANNELS, 3, name="maker"), outputs=2, axis=1)
    net.channels.update(dict.fromkeys(halves, 4))
    after = equalized(with_rows(net.model(*(net.conv(x, 4, name=f"reader{k}") for k, x in enumerate(halves)))))
    assert spread(norms(after, "maker", 0)[:4] / norms(after, "reader0", 1)) < 0.4
    assert spread(norms(after, "maker", 0)[4:] / norms(after, "reader1", 1)) < 0.4


@pytest.mark.parametrize("group", [2, 4, CHANNELS])
def test_readers_and_makers_in_groups(group):
    net = Net()
    x = net.add("Relu", net.conv("images", CHANNELS, 3, name="maker"))
    x = net.add("Relu", net.conv(x, 2 * CHANNELS, 3, group=group, name="grouped"))
    model = with_rows(net.model(net.conv(x, 4, name="reader")))
    model = with_rows(model, "grouped", factors=np.concatenate([FACTORS, FACTORS[::-1]]))
    after = equalized(model)
    for layer in ("maker", "grouped"):
        assert spread(norms(after, layer, 0)) < spread(norms(model, layer, 0)) - 2


def transposed(net, x, channels, group=1, name="up"):
    weight = net.const(net.normal(net.channels[x], channels // group, 2, 2, scale=0.4), name=f"{name}_weight")
    bias = net.const(net.normal(channels), name=f"{name}_bias")
    y = net.add("ConvTranspose", x, weight, bias, name=name, kernel_shape=[2, 2], strides=[2, 2], group=group)
    net.channels[y] = channels
    return y


@pytest.mark.parametrize("group", [1, 2, 4])
def test_conv_transposes_read_and_make(group):
    net = Net()
    x = transposed(net, net.add("Relu", net.conv("images", CHANNELS, name="maker")), CHANNELS, group)
    model = with_rows(net.model(net.conv(net.add("Relu", x), 4, name="reader")))
    if group == 1:
        model = with_rows(model, "up", axis=1)
    after = equalized(model)
    assert spread(norms(after, "maker", 0)) < spread(norms(model, "maker", 0)) - 2


def test_a_depthwise_conv_without_activation_takes_scales_in_and_hands_others_on():
    net = Net()
    x = net.conv(net.conv("images", CHANNELS, name="maker"), CHANNELS, 3, group=CHANNELS, name="depthwise")
    after = equalized(with_rows(with_rows(net.model(net.silu(net.conv(x, 4, name="reader")))), "depthwise"))
    made, read = norms(after, "depthwise", 0), norms(after, "reader", 1)
    assert spread(made / read) < 0.4


def test_a_layer_without_bias():
    net = Net()
    x = net.conv("images", CHANNELS, bias=False, name="maker")
    after = equalized(with_rows(net.model(net.conv(net.add("Relu", x), 4, name="reader"))))
    assert len(nodes(after)["maker"].input) == 2


def test_a_bias_that_is_shared_is_scaled_for_each():
    net = Net()
    bias = net.const(net.normal(CHANNELS), name="bias")
    x = "images"
    for name, count in (("maker", 3), ("second", CHANNELS)):
        weight = net.const(net.normal(CHANNELS, count, 1, 1), name=f"{name}_weight")
        x = net.add("Relu", net.add("Conv", x, weight, bias, name=name))
        net.channels[x] = CHANNELS
    model = edited(
        net.model(net.conv(x, 4)), lambda values: values["maker_weight"].__imul__(FACTORS.reshape(-1, 1, 1, 1))
    )
    after, edits = rewrite_checked(STEP, model)
    assert edits > 0
    assert nodes(after)["maker"].input[2] != nodes(after)["second"].input[2]


@pytest.mark.parametrize("dead", ["row", "column"])
def test_channels_of_nothing_stay_as_they_are(dead):
    def edit(values):
        if dead == "row":
            values["maker_weight"][3], values["maker_bias"][3] = 0, 0
        else:
            values["reader0_weight"][:, 3] = 0

    model = edited(between(PASSED["relu"]), edit)
    after = equalized(model)
    for name in ("maker_weight", "maker_bias"):
        assert np.isfinite(initializers(after)[name]).all()
        assert np.array_equal(initializers(after)[name][3], initializers(model)[name][3])


def test_a_bias_counts():
    def edit(values):
        values["maker_weight"][0] /= 1000
        values["maker_bias"][:] = [1.5, *[0.1] * 7]

    assert_untouched(STEP, edited(between(PASSED["relu"], np.ones(CHANNELS)), edit))


def test_the_original_constants_are_not_written_to():
    model = between(PASSED["relu"])
    before = {name: values.copy() for name, values in initializers(model).items()}
    equalized(model)
    assert all(np.array_equal(values, before[name]) for name, values in initializers(model).items())


OF_EIGHT = {"split and concat", "slices", "slice without axes", "to a size", "prelu", "a chain"}
"""Those made for eight channels."""

CHAIN = st.lists(
    st.sampled_from(sorted(PASSED.keys() - {"split of rows", "two readers", "add", "concat with others"})), max_size=3
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(stretches=st.lists(CHAIN, min_size=1, max_size=3), kinds=st.integers(0, 2), seed=st.integers(0, 1000))
def test_any_chain_of_these_computes_the_same(stretches, kinds, seed):
    net = Net(seed=seed, size=24)
    x = net.conv("images", CHANNELS, 3, name="maker")
    for k, stretch in enumerate(stretches):
        for name in stretch:
            channels = net.channels[x]
            if channels == CHANNELS or name not in OF_EIGHT:
                x = PASSED[name](net, x)
                net.channels.setdefault(x, channels)
        kind = (kinds + k) % 3
        if kind == 0:
            x = net.conv(x, CHANNELS, 3)
        elif kind == 1:
            x = net.conv(x, net.channels[x], 3, group=net.channels[x])
        else:
            x = transposed(net, x, CHANNELS, name=f"up{k}")
    model = with_rows(net.model(x), factors=2 ** net.rng.uniform(-6, 6, CHANNELS))
    model = shape_inference.infer_shapes(model)
    rewrite_checked(STEP, model)


# --- what is not scaled -----------------------------------------------------------------------------------------------


BLOCKS = {
    "silu": lambda net, x: net.silu(x),
    "hard swish": lambda net, x: net.add("HardSigmoid", x),
    "clip": lambda net, x: net.add("Clip", x, net.const(0), net.const(6)),
    "tanh": lambda net, x: net.add("Tanh", x),
    "multiplied": lambda net, x: net.add("Mul", x, x),
    "shifted": lambda net, x: net.add("Add", x, net.const(1)),
    "softmax": lambda net, x: net.softmax(x, 1),
    "transposed": lambda net, x: net.add("Transpose", x, perm=[0, 1, 3, 2]),
    "reshaped": lambda net, x: net.reshape(x, 1, CHANNELS, 16, 64),
    "normalized": lambda net, x: net.norm(x),
    "concat of rows": lambda net, x: net.concat(x, x, axis=2),
    "add of another kind": lambda net, x: net.add("Add", x, net.silu(net.conv("images", CHANNELS, 3))),
    "add of one channel": lambda net, x: net.add("Add", x, net.conv("images", 1, 3)),
    "prelu of a computed slope": lambda net, x: net.add("PRelu", x, net.add("ReduceMax", x, axes=[2, 3])),
    "crop": lambda net, x: net.add(
        "Resize", x, net.const([0, 0, 0, 0, 1, 1, 2, 2]), "", net.ints(1, CHANNELS, 32, 32), mode="linear",
        coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=1.0,
    ),
    "resized channels": lambda net, x: resized(net, x, 1, 1.1, 1, 1, mode="linear"),
    "another reader": lambda net, x: [net.add("Relu", x), net.silu(x)],
    "its shape": lambda net, x: [x, net.add("Expand", net.conv("images", CHANNELS, 3), net.add("Shape", x))],
}  # fmt: skip


@pytest.mark.parametrize("build", BLOCKS.values(), ids=BLOCKS)
def test_scales_do_not_go_through(build):
    assert_untouched(STEP, between(build))


def test_an_output_of_the_model_keeps_its_scale():
    net = Net()
    x = net.conv("images", CHANNELS, name="maker")
    assert_untouched(STEP, with_rows(net.model(net.conv(x, 4), x)))
    net = Net()
    x = net.conv("images", CHANNELS, name="maker")
    assert_untouched(STEP, with_rows(net.model(net.conv(net.add("Relu", x), 4), x)))


@pytest.mark.parametrize("name", ["maker_weight", "maker_bias", "reader_weight"])
def test_layers_whose_constants_are_outputs_are_left_alone(name):
    net = Net()
    x = net.add("Relu", net.conv("images", CHANNELS, name="maker"))
    assert_untouched(STEP, with_outputs(with_rows(net.model(net.conv(x, 4, name="reader"))), name))


def test_what_a_subgraph_reads_keeps_its_scale():
    model = conditional()
    model.graph.node.append(helper.make_node("Conv", ["read_inside_out", "last_weight"], ["more"], "more"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 8, 1, 1), np.float32), "own_weight"))
    model.graph.node[-1].input[1] = "own_weight"
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 4, 32, 32]))
    onnx.checker.check_model(model, full_check=True)
    assert_untouched(STEP, with_rows(model, "read_inside"))


@pytest.mark.parametrize("shared", ["maker", "reader"])
def test_layers_that_share_a_weight_are_left_alone(shared):
    net = Net()
    x = net.add("Relu", net.conv("images", CHANNELS, name="maker"))
    y = net.conv(x, 4, name="reader")
    data = "images" if shared == "maker" else x
    more = net.add("Conv", data, f"{shared}_weight", name="more")
    assert_untouched(STEP, with_rows(net.model(y, more)))


@pytest.mark.parametrize("what", ["weight", "bias"])
@pytest.mark.parametrize("side", ["maker", "reader"])
def test_computed_parameters_are_left_alone(what, side):
    net = Net()
    x = net.add("Relu", net.conv("images", CHANNELS, name="maker"))
    y = net.conv(x, 4, name="reader")
    layer = next(node for node in net.nodes if node.name == side)
    place = 1 + (what == "bias")
    computed = net.add("Abs", layer.input[place])
    net.nodes.insert(0, net.nodes.pop())
    layer.input[place] = computed
    assert_untouched(STEP, with_rows(net.model(y)))


def test_half_precision_is_left_alone():
    net = Net()
    x = net.add("Cast", "images", to=TensorProto.FLOAT16)
    weight = net.normal(CHANNELS, 3, 1, 1) * FACTORS.reshape(-1, 1, 1, 1)
    x = net.add("Relu", net.add("Conv", x, net.const(weight, np.float16)))
    x = net.add("Conv", x, net.const(net.normal(4, CHANNELS, 1, 1), np.float16))
    assert_untouched(STEP, net.model(x, types={x: TensorProto.FLOAT16}))


def test_a_matrix_product_is_no_reader():
    net = Net()
    x = net.reshape(net.conv("images", CHANNELS, name="maker"), 1, CHANNELS, -1)
    assert_untouched(STEP, with_rows(net.model(net.add("MatMul", net.const(net.normal(4, CHANNELS)), x))))


def test_channels_that_are_nearly_equal_are_left_alone():
    assert_untouched(STEP, between(PASSED["relu"], np.tile([0.7, 1.4], CHANNELS // 2)))


@pytest.mark.parametrize("build", [silu_chain, csp, depthwise_net])
def test_networks_of_silu_are_left_alone(build):
    assert_untouched(STEP, shape_inference.infer_shapes(build()))


@pytest.mark.parametrize("name", sorted(DETECTORS))
def test_detectors_of_balanced_weights_are_left_alone(name):
    assert_untouched(STEP, shape_inference.infer_shapes(DETECTORS[name]()))
