import re

import pytest
from graphs import (
    NARROW_TENSORRT,
    Net,
    csp,
    pan,
    planned,
    sppf,
    v5,
)
from plans import code, ending, group, plan_of, point, tensors

from onnxq.errors import ConfigError
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.targets import TENSORRT


def bottleneck(follow=lambda net, x: net.silu(x), shortcut=lambda net, x: x):
    """An Add of what two Convs make, with `follow` behind the second, and of their input after `shortcut`.

    Also the names of these two.
    """
    net = Net(opset=14)
    x = net.block("images", 8)
    y = follow(net, net.conv(net.block(x, 8), 8, name="fused"))
    z = net.add("Add", shortcut(net, x), y, name="add")
    net.channels[z] = 8
    return ending(net, z), x, y


@pytest.mark.parametrize(
    "follow",
    [
        lambda net, x: x,
        lambda net, x: net.silu(x),
        lambda net, x: net.add("Relu", x),
        lambda net, x: net.add("Clip", x, net.const(0), net.const(6)),
        lambda net, x: net.add("LeakyRelu", x),
        lambda net, x: net.add("HardSwish", x),
        lambda net, x: net.add("Sigmoid", x),
    ],
    ids=["none", "SiLU", "Relu", "Clip", "LeakyRelu", "HardSwish", "Sigmoid"],
)
def test_of_a_residual_add_the_branch_of_the_conv_stays_float_on_tensorrt(follow):
    model, x, y = bottleneck(follow)
    plan = plan_of(model, NARROW_TENSORRT)
    assert "add" in plan.integer
    assert y not in tensors(plan)
    assert "add" in point(plan, x).users
    assert point(plan, "add_out").users == ("behind",)


def test_the_identity_of_a_residual_add_gets_a_pair_of_its_own_where_no_layer_reads_it():
    model, _, y = bottleneck(shortcut=lambda net, x: net.pool(x, kernel=3))
    plan = plan_of(model, NARROW_TENSORRT)
    assert point(plan, "maxpool0_out").users == ("add",)
    assert y not in tensors(plan)


def test_where_both_branches_end_with_a_conv_the_one_further_behind_stays_float():
    model, x, y = bottleneck(shortcut=lambda net, x: net.conv(x, 8, name="shortcut"))
    plan = plan_of(model, NARROW_TENSORRT)
    assert point(plan, "shortcut_out").users == ("add",)
    assert y not in tensors(plan)
    assert set(point(plan, x).users) == {"shortcut", "conv1"}


def test_a_residual_add_with_its_relu_has_its_pair_behind_both():
    net = Net()
    x = net.block("images", 8)
    z = net.add("Relu", net.add("Add", net.conv(net.block(x, 8), 8, name="fused"), x, name="add"), name="relu")
    net.channels[z] = 8
    plan = plan_of(ending(net, z), NARROW_TENSORRT)
    assert "add" in plan.integer
    assert "add" in point(plan, x).users
    assert "relu_out" in tensors(plan)
    assert not tensors(plan) & {"add_out", "fused_out"}


def seen(inner, follow):
    """A residual Add to a Conv, of which `inner`, its own output or that of its activation, is an output as well."""
    net = Net()
    x = net.block("images", 8)
    conv = net.conv(net.block(x, 8), 8, name="fused")
    y = follow(net, conv)
    z = net.add("Add", x, y, name="add")
    net.channels[z] = 8
    last = net.conv(net.silu(net.conv(z, 8, name="behind")), 4, name="last")
    return net.model(last, conv if inner else y)


def doubled():
    """A Conv's output added to itself."""
    net = Net()
    x = net.conv(net.block("images", 8), 8, name="fused")
    z = net.add("Add", x, x, name="add")
    net.channels[z] = 8
    return ending(net, z)


def read_before_its_activation():
    """A residual Add to a Conv with Relu, whose output before the Relu is read as well."""
    net = Net()
    x = net.block("images", 8)
    y = net.conv(net.block(x, 8), 8, name="fused")
    z = net.add("Mul", net.add("Add", x, net.add("Relu", y), name="add"), y)
    net.channels[z] = 8
    return ending(net, z)


@pytest.mark.parametrize(
    ("build", "exclude", "reason"),
    [
        (doubled, [], "no-fused-layer"),
        (read_before_its_activation, [], "no-fused-layer"),
        (lambda: seen(True, lambda net, x: net.add("Relu", x)), [], "no-fused-layer"),
        (lambda: seen(True, lambda net, x: net.silu(x)), [], "no-fused-layer"),
        (lambda: seen(False, lambda net, x: net.silu(x)), [], "no-fused-layer"),
        (lambda: seen(False, lambda net, x: x), [], "no-fused-layer"),
        (
            lambda: bottleneck(shortcut=lambda net, x: net.add("GlobalAveragePool", x))[0],
            [],
            "no-fused-layer",
        ),
        (lambda: bottleneck()[0], ["fused"], "no-fused-layer"),
        (lambda: bottleneck()[0], ["add"], "excluded"),
        (lambda: bottleneck()[0], ["behind"], "no-consumer"),
        (lambda: bottleneck(follow=lambda net, x: net.pool(net.silu(x)))[0], [], "no-fused-layer"),
        (
            lambda: bottleneck(shortcut=lambda net, x: net.const(net.normal(8, 1, 1)))[0],
            [],
            "no-fused-layer",
        ),
    ],
    ids=[
        "to itself",
        "read before Relu",
        "output before Relu",
        "output before SiLU",
        "output",
        "output of the Conv",
        "broadcast",
        "layer excluded",
        "itself excluded",
        "no reader",
        "MaxPool between",
        "constant",
    ],
)
def test_adds_that_fuse_with_no_layer_stay_float(build, exclude, reason):
    plan = plan_of(build(), NARROW_TENSORRT, exclude=exclude)
    assert code(plan, "add") == reason


def test_an_add_of_what_others_read_too_adds_what_they_read():
    net = Net()
    x = net.block("images", 8)
    y = net.block(x, 8)
    z = net.add("Add", net.add("Add", x, y, name="add"), net.block(y, 8))
    net.channels[z] = 8
    plan = plan_of(ending(net, z), NARROW_TENSORRT)
    assert code(plan, "add") == "no-fused-layer"
    assert "add" in point(plan, x).users
    assert "add" in point(plan, y).users


def test_a_concat_dictates_the_grid_of_all_that_it_joins_on_tensorrt():
    plan = plan_of(pan(), NARROW_TENSORRT)
    # mul1 is resized into the first Concat, mul0 and mul1 are read by layers or the second Concat too.
    assert group(plan, "concat0_out") == {"mul0_out", "mul1_out", "concat0_out", "concat1_out"}
    assert not tensors(plan) & {"resize0_out", "mul3_out"}
    assert set(point(plan, "mul1_out").users) == {"resize0", "concat1"}


def test_grids_are_shared_across_what_rides_along_on_tensorrt():
    plan = plan_of(csp(), NARROW_TENSORRT)
    assert group(plan, "concat0_out") == {"split0_out1", "concat0_out"}
    assert point(plan, "concat0_out").sources == ("concat0_out",)
    assert {"split0", "concat0", "add0"} <= plan.integer


def test_one_pair_is_enough_for_pools_and_their_concat_on_tensorrt():
    plan = plan_of(sppf(), NARROW_TENSORRT)
    assert tensors(plan) == {"images", "concat0_out"}
    assert {"maxpool0", "maxpool1", "maxpool2", "concat0"} <= plan.integer


def test_values_are_not_observed_again_behind_what_moves_them_on_tensorrt():
    net = Net()
    x = net.block("images", 8)
    moved = net.pool(net.upsample(x))
    model = net.model(net.conv(net.silu(net.conv(moved, 8, name="reads")), 4, name="last"))
    plan = plan_of(model, NARROW_TENSORRT)
    assert group(plan, x) == {x, moved}
    assert point(plan, moved).sources == (x,)


def test_last_layers_stay_float_and_read_float_on_tensorrt():
    model, plan = planned(v5(), NARROW_TENSORRT)
    assert {code(plan, f"detect{k}") for k in range(3)} == {"last-layer"}
    read = model.nodes["detect0"].inputs[0].name
    assert point(plan, read).users == ("conv3",)  # the next stage reads integers


def test_layers_kept_float_read_float_on_tensorrt():
    plan = plan_of(csp(), NARROW_TENSORRT, exclude=["conv2"])
    assert point(plan, "split0_out1").users == ("add0", "concat0")


def test_narrow_convs_stay_float_on_tensorrt():
    net = Net()
    x = net.block(net.block(net.block("images", 8), 8), 16)
    plan = plan_of(net.model(net.conv(x, 4, name="last")), TENSORRT)
    assert plan.layers == ("conv0", "conv2")
    assert code(plan, "conv1") == "too-few-channels"


@pytest.mark.parametrize("bits", [2, 7])
def test_narrow_activations_are_refused_where_the_runtime_cannot_clip_integers(bits):
    message = f"{bits} bits: TensorRT has no Clip of int8, which narrow activations need; use 8 bits for activations"
    with pytest.raises(ConfigError, match=re.escape(message)):
        PlanQuantization(TENSORRT, act_bits=bits)
    assert {w.scheme.bits for w in plan_of(csp(), NARROW_TENSORRT, weight_bits=bits).weights} == {bits, 8}
