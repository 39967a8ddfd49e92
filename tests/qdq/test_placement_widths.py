import pytest
from graphs import (
    NARROW_TENSORRT,
    Net,
    csp,
    leaky_net,
    yolox,
)
from plans import ending, every_target, group, plan_of, point

from onnxq.errors import ConfigError
from onnxq.numerics.scheme import INT8, UINT8
from onnxq.targets import GENERIC, OPENVINO, ORT, TENSORRT

# --- widths and schemes -----------------------------------------------------------------------------------------------


def test_first_and_last_layers_keep_8_bits():
    plan = plan_of(csp(), OPENVINO, weight_bits=4, act_bits=6)
    assert {w.tensor: w.scheme.bits for w in plan.weights} == {
        "conv0_weight": 8, "conv1_weight": 4, "conv2_weight": 4, "conv3_weight": 4, "conv4_weight": 4, "last_weight": 8,
    }  # fmt: skip
    assert {p.tensor: p.scheme.bits for p in plan.points} == {
        "images": 8, "mul0_out": 6, "split0_out1": 6, "mul2_out": 6, "concat0_out": 6, "mul4_out": 8,
    }  # fmt: skip


def test_convs_near_the_image_keep_8_bits_up_to_the_first_wide_one():
    net = Net()
    x = net.block(net.block("images", 16, stride=2), 32)
    side = net.block(x, 16)
    model = net.model(net.conv(net.block(net.concat(net.block(x, 48), side), 16), 4, name="last"))
    plan = plan_of(model, OPENVINO, weight_bits=4, act_bits=4, include=("last",))
    assert {w.tensor: w.scheme.bits for w in plan.weights} == {
        "conv0_weight": 8, "conv1_weight": 8, "conv2_weight": 8, "conv3_weight": 4, "conv4_weight": 4, "last_weight": 8,
    }  # fmt: skip
    # conv2 and conv3 read the same tensor, which has the width of the wider one.
    assert {p.tensor: p.scheme.bits for p in plan.points} == {
        "images": 8, "mul0_out": 8, "mul1_out": 8, "concat0_out": 4, "mul4_out": 8,
    }  # fmt: skip


def test_levels_inside_silu_and_of_the_input_stay_8_bits():
    plan = plan_of(csp(), act_bits=4)
    for p in plan.points:
        wide = p.tensor.startswith(("conv", "sigmoid")) or "last" in p.users
        assert p.scheme.bits == (8 if wide else 4), p.tensor


def test_a_group_has_the_width_of_its_widest_member():
    net = Net()
    x = net.block(net.block("images", 8), 8)
    pooled = net.pool(x)
    model = net.model(net.conv(net.block(pooled, 8), 4), net.conv(x, 4, name="reads_the_ungrouped"))
    plan = plan_of(model, act_bits=4)
    assert group(plan, "mul1_out") == {"mul1_out", "maxpool0_out"}
    assert {point(plan, name).scheme.bits for name in group(plan, "mul1_out")} == {8}


def test_first_layers_behind_focus_slices_keep_8_bits():
    for target in (OPENVINO, GENERIC):
        plan = plan_of(yolox(), target, weight_bits=4, act_bits=4)
        assert {w.tensor: w.scheme.bits for w in plan.weights}["conv0_weight"] == 8
        assert point(plan, "concat0_out").scheme.bits == 8


@pytest.mark.parametrize(
    ("target", "container", "symmetric"),
    [(ORT, UINT8, False), (OPENVINO, UINT8, False), (TENSORRT, INT8, True), (GENERIC, UINT8, False)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_activations_have_the_type_that_the_target_takes(target, container, symmetric):
    for p in plan_of(csp(), target).points:
        assert (p.scheme.container, p.scheme.symmetric, p.scheme.axis) == (container, symmetric, None)


@every_target
def test_activations_can_be_made_symmetric(target):
    plan = plan_of(csp(), target, symmetric=True)
    assert all(p.scheme.symmetric for p in plan.points)
    assert {p.scheme.container for p in plan.points} == {target.activations[0]}


@every_target
def test_weights_are_symmetric_int8_with_a_scale_per_output_channel(target):
    for w in plan_of(leaky_net(), target).weights:
        assert (w.scheme.bits, w.scheme.container, w.scheme.symmetric, w.scheme.axis) == (8, INT8, True, 0)


# --- weights ----------------------------------------------------------------------------------------------------------


def shared():
    """Two Convs with one weight, and biases of their own."""
    net = Net()
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 1, 1, scale=0.3), name="weight")
    left = net.add("Conv", x, weight, net.const(net.normal(8), name="left_bias"), name="left")
    right = net.add("Conv", x, weight, name="right")
    y = net.add("Add", net.silu(left), net.silu(right))
    net.channels[y] = 8
    return ending(net, y)


def test_a_shared_weight_is_listed_once_with_all_its_users():
    plan = plan_of(shared())
    weight = next(w for w in plan.weights if w.tensor == "weight")
    assert weight.users == ("left", "right")
    assert [w.tensor for w in plan.weights].count("weight") == 1


def test_a_weight_shared_with_an_excluded_layer_is_quantized_for_the_other_alone():
    plan = plan_of(shared(), exclude=["left"])
    weight = next(w for w in plan.weights if w.tensor == "weight")
    assert weight.users == ("right",)


# --- layers of few weights --------------------------------------------------------------------------------------------


def with_products(counts):
    """A graph of 1x1 Convs with so many weights each, between a first and a last one."""
    net = Net()
    x = net.block("images", 64)
    for number, count in enumerate(counts):
        x = net.conv(x, count // net.channels[x], name=f"conv{number + 1}")
    return ending(net, x)


def weight_widths(plan):
    return {weight.users[0]: weight.scheme.bits for weight in plan.weights}


def test_layers_of_the_fewest_weights_keep_8_bits_up_to_a_fifth_of_all_weights():
    counts = [64 * 64, 64 * 96, 96 * 32, 32 * 32, 32 * 256, 256 * 64]
    plan = plan_of(with_products(counts), OPENVINO, weight_bits=4)
    widths = weight_widths(plan)
    sizes = {f"conv{number + 1}": count for number, count in enumerate(counts)}
    narrow = {name for name in sizes if widths[name] == 4}
    assert min(sizes[name] for name in narrow) >= max(size for name, size in sizes.items() if name not in narrow)
    assert narrow == {"conv1", "conv2", "conv5", "conv6"}
    assert widths["conv3"] == widths["conv4"] == 8


@pytest.mark.parametrize("options", [{"act_bits": 4}, {"bits": [("op:Conv", (4, 8))]}])
def test_they_do_not_if_activations_are_narrower_or_a_width_is_asked_for(options):
    widths = weight_widths(plan_of(with_products([64 * 64, 64 * 16]), OPENVINO, weight_bits=4, **options))
    assert widths["conv1"] == widths["conv2"] == 4


# --- widths of single nodes -------------------------------------------------------------------------------------------


def widths_of(plan, layer):
    """Widths of a layer's weight and of what it reads."""
    weight = next(w for w in plan.weights if layer in w.users)
    read = [p for p in plan.points if layer in p.users]
    return weight.scheme.bits, *(p.scheme.bits for p in read)


def test_nodes_can_have_widths_of_their_own():
    model = csp()
    plan = plan_of(model, OPENVINO, weight_bits=4, act_bits=4, bits=[("conv2", (6, 5)), ("re:conv[34]", (3, 7))])
    assert widths_of(plan, "conv1") == (4, 4)
    assert widths_of(plan, "conv2") == (6, 5)
    assert widths_of(plan, "conv3") == (3, 7)


def test_the_last_pattern_counts_also_at_the_ends():
    plan = plan_of(csp(), OPENVINO, weight_bits=4, act_bits=4, bits=[("op:Conv", (5, 5)), ("last", (2, 3))])
    assert widths_of(plan, "conv0") == (5, 5)
    assert widths_of(plan, "last") == (2, 3)


def test_of_several_readers_the_widest_wish_counts():
    net = Net()
    x = net.block("images", 8)
    both = net.concat(net.conv(x, 8, name="left"), net.conv(x, 8, name="right"))
    model = ending(net, both)
    for left, expected in ((3, 6), (7, 7)):
        plan = plan_of(model, OPENVINO, act_bits=6, bits=[("left", (8, left))])
        assert widths_of(plan, "left") == (8, expected)
    plan = plan_of(model, OPENVINO, act_bits=6, bits=[("left", (8, 3)), ("right", (8, 4))])
    assert widths_of(plan, "right") == (8, 4)


def test_widths_of_no_node_are_an_error():
    with pytest.raises(ConfigError, match=r"--bits conv99: no node of the model matches; did you mean conv"):
        plan_of(csp(), bits=[("conv99", (4, 4))])


def test_narrow_inputs_need_a_target_that_has_them():
    with pytest.raises(ConfigError, match="4 bits: TensorRT has no Clip"):
        plan_of(csp(), NARROW_TENSORRT, bits=[("conv2", (8, 4))])
