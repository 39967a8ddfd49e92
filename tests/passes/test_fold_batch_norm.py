import numpy as np
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    Net,
    assert_untouched,
    conditional,
    csp,
    depthwise_net,
    initializers,
    nodes,
    ops,
    relu_net,
    rewrite_checked,
    shared_weights,
    silu_chain,
    v8,
    with_outputs,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxq.passes.fold_batch_norm import FoldBatchNorm

STEP = FoldBatchNorm()
CHANNELS = 8
SHAPES = [(), (1,), (1, 1, 1), (1, 1, 1, 1), (CHANNELS, 1, 1), (1, CHANNELS, 1, 1)]


def behind(net, x, op, values, left=False, dtype=np.float32):
    """Arithmetic with a constant after a tensor."""
    factor = net.const(values, dtype)
    return net.add(op, factor, x) if left else net.add(op, x, factor)


def transposed(net, x, channels, group=1, bias=True):
    """A ConvTranspose that doubles the size."""
    inputs = [x, net.const(net.normal(net.channels[x], channels // group, 2, 2, scale=0.4), name="up_weight")]
    inputs += [net.const(net.normal(channels), name="up_bias")] if bias else []
    y = net.add("ConvTranspose", *inputs, name="up", kernel_shape=[2, 2], strides=[2, 2], group=group)
    net.channels[y] = channels
    return y


def norm(net, x):
    """A BatchNormalization with parameters of its own."""
    return net.norm(x)


def random_factor(net, shape):
    """Values in [0.5, 1.5], of either sign."""
    return net.rng.uniform(0.5, 1.5, shape) * net.rng.choice([-1, 1], shape)


# --- what is folded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_batch_normalization_goes_into_the_conv(bias):
    net = Net()
    before = net.model(norm(net, net.conv("images", CHANNELS, 3, stride=2, bias=bias)))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert ops(after) == ["Conv"]
    assert list(after.graph.node[0].output) == ["output"]
    assert len(after.graph.initializer) == 2


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_a_batch_normalization_goes_into_the_conv_transpose(bias):
    net = Net()
    x = net.conv("images", 4)
    before = net.model(norm(net, transposed(net, x, CHANNELS, bias=bias)))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert ops(after) == ["Conv", "ConvTranspose"]


def test_epsilon_counts():
    net = Net()
    x = net.conv("images", CHANNELS)
    zero, one = net.const(np.zeros(CHANNELS)), net.const(np.ones(CHANNELS))
    before = net.model(net.add("BatchNormalization", x, one, zero, zero, zero, epsilon=0.25))
    after, _ = rewrite_checked(STEP, before)
    doubled = initializers(before)["conv0_weight"] * 2
    assert np.allclose(initializers(after)["conv0_weight"], doubled, rtol=1e-6)


def test_a_batch_normalization_without_epsilon_has_the_default_one():
    net = Net()
    x = net.conv("images", CHANNELS)
    zero, one = net.const(np.zeros(CHANNELS)), net.const(np.ones(CHANNELS))
    after, edits = rewrite_checked(STEP, net.model(net.add("BatchNormalization", x, one, zero, zero, zero)))
    assert edits == 1
    assert ops(after) == ["Conv"]


@pytest.mark.parametrize("group", [2, CHANNELS])
def test_a_batch_normalization_goes_into_a_conv_in_groups(group):
    net = Net()
    x = net.conv("images", CHANNELS)
    after, edits = rewrite_checked(STEP, net.model(norm(net, net.conv(x, CHANNELS, 3, group=group))))
    assert edits == 1
    assert ops(after) == ["Conv", "Conv"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
def test_arithmetic_with_a_constant_per_channel_goes_into_the_conv(op, shape):
    net = Net()
    before = net.model(behind(net, net.conv("images", CHANNELS, 3), op, random_factor(net, shape)))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert ops(after) == ["Conv"]
    assert list(after.graph.node[0].output) == ["output"]


@pytest.mark.parametrize("op", ["Mul", "Add"])
@pytest.mark.parametrize("shape", [(), (CHANNELS, 1, 1)], ids=str)
def test_the_constant_may_stand_on_the_left_where_order_does_not_matter(op, shape):
    net = Net()
    before = net.model(behind(net, net.conv("images", CHANNELS), op, random_factor(net, shape), left=True))
    after, edits = rewrite_checked(STEP, before)
    assert (edits, ops(after)) == (1, ["Conv"])


@pytest.mark.parametrize("op", ["Mul", "Div", "Add", "Sub"])
def test_arithmetic_with_a_constant_per_channel_goes_into_the_conv_transpose(op):
    net = Net()
    x = transposed(net, net.conv("images", 4), CHANNELS)
    after, edits = rewrite_checked(STEP, net.model(behind(net, x, op, random_factor(net, (CHANNELS, 1, 1)))))
    assert (edits, ops(after)) == (1, ["Conv", "ConvTranspose"])


def test_a_bias_that_stands_apart_becomes_the_bias():
    net = Net()
    bias = random_factor(net, (1, CHANNELS, 1, 1)).astype(np.float32)
    before = net.model(behind(net, net.conv("images", CHANNELS, bias=False), "Add", bias))
    after, _ = rewrite_checked(STEP, before)
    stored = initializers(after)
    assert np.array_equal(stored[nodes(after)["conv0"].input[2]], bias.ravel())
    assert np.array_equal(stored["conv0_weight"], initializers(before)["conv0_weight"])


def test_a_chain_goes_into_the_conv_from_its_first_to_its_last_node():
    net = Net()
    x = net.conv("images", CHANNELS, 3, bias=False)
    x = behind(net, x, "Add", random_factor(net, (CHANNELS, 1, 1)))
    x = norm(net, x)
    x = behind(net, x, "Mul", random_factor(net, ()))
    x = behind(net, x, "Sub", random_factor(net, (1, CHANNELS, 1, 1)))
    x = behind(net, x, "Div", random_factor(net, (CHANNELS, 1, 1)))
    after, edits = rewrite_checked(STEP, net.model(net.silu(x)))
    assert edits == 5
    assert ops(after) == ["Conv", "Sigmoid", "Mul"]


@settings(max_examples=30, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["Mul", "Div", "Add", "Sub", "BatchNormalization"]), st.sampled_from(SHAPES)),
        min_size=1,
        max_size=5,
    ),
    bias=st.booleans(),
    transpose=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_chain_of_arithmetic_per_channel_is_folded_whole(steps, bias, transpose, seed):
    net = Net(seed=seed)
    x = net.conv("images", CHANNELS, bias=bias, name="conv")
    if transpose:
        x = transposed(net, net.add("Relu", x), CHANNELS, bias=bias)
    for op, shape in steps:
        x = norm(net, x) if op == "BatchNormalization" else behind(net, x, op, random_factor(net, shape))
        net.channels[x] = CHANNELS
    after, edits = rewrite_checked(STEP, net.model(x))
    assert edits == len(steps)
    assert ops(after) == (["Conv", "Relu", "ConvTranspose"] if transpose else ["Conv"])


@pytest.mark.parametrize("build", [silu_chain, csp, relu_net, depthwise_net, v8])
def test_every_batch_normalization_of_a_network_is_folded(build):
    before = build(batch_norm=True)
    after, edits = rewrite_checked(STEP, before)
    assert edits == ops(before).count("BatchNormalization") > 0
    assert ops(after) == ops(build())


def test_convs_that_share_weights_get_weights_of_their_own():
    after, edits = rewrite_checked(STEP, shared_weights())
    assert edits == 2
    left, right = nodes(after)["left"], nodes(after)["right"]
    assert left.input[1] != right.input[1]
    assert left.input[2] != right.input[2]
    stored = initializers(after)
    assert not np.array_equal(stored[left.input[1]], stored[right.input[1]])


def test_a_conv_that_shares_weights_with_one_that_takes_nothing_leaves_them_alone():
    net = Net()
    x = net.conv("images", CHANNELS)
    weight = net.const(net.normal(CHANNELS, CHANNELS, 1, 1), name="weight")
    plain = net.add("Conv", x, weight, name="plain")
    scaled = behind(net, net.add("Conv", x, weight, name="scaled"), "Mul", 3.0)
    before = net.model(net.add("Add", plain, scaled))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 1
    assert nodes(after)["plain"].input[1] == "weight"
    assert np.array_equal(initializers(after)["weight"], initializers(before)["weight"])


def test_constants_that_are_outputs_keep_their_values():
    net = Net(batch_norm=True)
    before = with_outputs(net.model(net.norm(net.conv("images", CHANNELS, name="first"))), "first_weight", "first_bias")
    _, edits = rewrite_checked(STEP, before)
    assert edits == 1


def test_a_new_bias_does_not_take_the_name_of_another_constant():
    net = Net()
    bias = net.const(random_factor(net, (CHANNELS, 1, 1)), name="first_bias")
    first = net.add("Add", net.conv("images", CHANNELS, bias=False, name="first"), bias)
    second = net.add("Mul", net.add("Sigmoid", "images"), net.slice(bias, 0, 0, end=3))
    after, edits = rewrite_checked(STEP, net.model(first, second))
    assert edits == 1
    assert initializers(after)["first_bias"].shape == (CHANNELS, 1, 1)


def test_what_reads_the_folded_node_reads_the_conv():
    net = Net()
    x = net.conv("images", CHANNELS, name="conv")
    x = net.add("Mul", x, net.const(2), name="scale")
    net.channels[x] = CHANNELS
    after, _ = rewrite_checked(STEP, net.model(net.silu(x), net.conv(x, 4)))
    assert list(nodes(after)["conv"].output) == ["scale_out"]


# --- what is not ------------------------------------------------------------------------------------------------------


def refuse(build):
    """Assert that nothing is folded in the graph that `build` makes of a Conv's output; it gives the output's name."""
    net = Net()
    assert_untouched(STEP, net.model(*np.atleast_1d(build(net, net.conv("images", CHANNELS)))))


def test_a_conv_with_another_reader_is_kept():
    refuse(lambda net, x: [norm(net, x), net.add("Relu", x)])


def test_a_conv_whose_output_is_multiplied_twice_is_kept():
    refuse(lambda net, x: [behind(net, x, "Mul", 2.0), behind(net, x, "Mul", 3.0)])


def test_a_conv_that_makes_an_output_is_kept():
    refuse(lambda net, x: [x, norm(net, x)])


def test_a_conv_that_a_subgraph_reads_is_kept():
    before = conditional()
    before.graph.node.append(helper.make_node("Mul", ["read_inside_out", "two"], ["more"], "scale"))
    before.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    before.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1, 8, 32, 32]))
    assert_untouched(STEP, before)


def test_a_conv_with_a_computed_weight_is_kept():
    net = Net()
    weight = net.add("Add", net.const(net.normal(CHANNELS, 3, 1, 1)), net.add("ReduceMax", "images", keepdims=0))
    assert_untouched(STEP, net.model(net.add("Mul", net.add("Conv", "images", weight), net.const(2))))


def test_a_conv_with_a_computed_bias_is_kept():
    net = Net()
    bias = net.add("Add", net.const(net.normal(CHANNELS)), net.add("ReduceMax", "images", keepdims=0))
    weight = net.const(net.normal(CHANNELS, 3, 1, 1))
    assert_untouched(STEP, net.model(net.add("Mul", net.add("Conv", "images", weight, bias), net.const(2))))


def test_a_conv_transpose_in_groups_is_kept():
    net = Net()
    x = transposed(net, net.conv("images", CHANNELS), CHANNELS, group=2)
    assert_untouched(STEP, net.model(norm(net, x)))


def test_a_conv_over_one_dimension_is_kept():
    net = Net()
    x = net.add("Conv", net.reshape("images", 1, 3, 1024), net.const(net.normal(4, 3, 1)))
    assert_untouched(STEP, net.model(net.add("Mul", x, net.const(2))))


@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div"])
@pytest.mark.parametrize(
    "shape", [(32,), (32, 1), (CHANNELS, 32, 32), (1, 1, 32, 32), (1, CHANNELS, 1, 32), (2, 1, 1, 1)], ids=str
)
def test_arithmetic_that_differs_within_a_channel_is_kept(op, shape):
    refuse(lambda net, x: behind(net, x, op, random_factor(net, shape)))


def test_arithmetic_that_adds_a_dimension_is_kept():
    refuse(lambda net, x: behind(net, x, "Mul", np.full((1, 1, 1, 1, 1), 2.0)))


def test_arithmetic_that_makes_several_channels_of_one_is_kept():
    net = Net()
    assert_untouched(STEP, net.model(behind(net, net.conv("images", 1), "Mul", random_factor(net, (CHANNELS, 1, 1)))))


@pytest.mark.parametrize("op", ["Div", "Sub"])
@pytest.mark.parametrize("shape", [(), (CHANNELS, 1, 1)], ids=str)
def test_division_of_and_subtraction_from_a_constant_are_kept(op, shape):
    refuse(lambda net, x: behind(net, x, op, random_factor(net, shape), left=True))


def test_division_by_zero_is_kept():
    refuse(lambda net, x: behind(net, x, "Div", np.arange(CHANNELS).reshape(-1, 1, 1)))


def test_arithmetic_of_two_computed_tensors_is_kept():
    refuse(lambda net, x: net.add("Mul", x, net.add("ReduceMax", "images", keepdims=0)))


def test_arithmetic_of_a_tensor_with_itself_is_kept():
    refuse(lambda net, x: net.add("Mul", x, x))


def test_arithmetic_behind_something_else_is_kept():
    refuse(lambda net, x: behind(net, net.add("Relu", x), "Mul", 2.0))


def test_arithmetic_on_an_input_is_kept():
    net = Net()
    assert_untouched(STEP, net.model(net.conv(behind(net, "images", "Div", 255.0), 4)))


def test_a_batch_normalization_with_computed_parameters_is_kept():
    net = Net()
    x = net.conv("images", CHANNELS)
    ones = net.const(np.ones(CHANNELS))
    scale = net.add("Add", ones, net.add("ReduceMax", "images", keepdims=0))
    assert_untouched(STEP, net.model(net.add("BatchNormalization", x, scale, ones, ones, ones)))


def test_a_batch_normalization_in_training_form_is_kept():
    net = Net(opset=15)
    x = net.conv("images", CHANNELS)
    ones = net.const(np.ones(CHANNELS))
    made = net.add_many("BatchNormalization", x, ones, ones, ones, ones, outputs=3, training_mode=1)
    assert_untouched(STEP, net.model(made[0]))


def test_integers_are_kept():
    net = Net()
    x = net.add("Cast", net.conv("images", CHANNELS), to=TensorProto.INT64)
    assert_untouched(STEP, net.model(behind(net, x, "Mul", 2, dtype=np.int64), types={"mul0_out": TensorProto.INT64}))


def test_weights_of_half_precision_are_kept():
    net = Net()
    x = net.add("Cast", "images", to=TensorProto.FLOAT16)
    x = net.add("Conv", x, net.const(net.normal(CHANNELS, 3, 1, 1), np.float16))
    x = behind(net, x, "Mul", 2.0, dtype=np.float16)
    assert_untouched(STEP, net.model(x, types={x: TensorProto.FLOAT16}))


@pytest.mark.parametrize("name", sorted({**BACKBONES, **DETECTORS}.keys() - {"shared_weights", "qarepvgg"}))
def test_a_network_without_batch_normalization_is_not_touched(name):
    assert_untouched(STEP, {**BACKBONES, **DETECTORS}[name]())


def test_the_original_constants_are_not_written_to():
    net = Net()
    model = net.model(norm(net, net.conv("images", CHANNELS)))
    before = {w.name: numpy_helper.to_array(w).copy() for w in model.graph.initializer}
    rewrite_checked(STEP, model)
    assert all(np.array_equal(numpy_helper.to_array(w), before[w.name]) for w in model.graph.initializer)
