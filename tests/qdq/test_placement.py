from dataclasses import replace

import numpy as np
import pytest
from graphs import (
    NARROW_TENSORRT,
    Net,
    attention,
    conditional,
    csp,
    feed,
    pan,
    planned,
    quantized,
    relu_net,
    run,
    silu_chain,
    sppf,
    sqnr,
)
from plans import assert_complete, code, ending, group, plan_of, point, tensors

from onnxq.facts import Plan
from onnxq.targets import GENERIC, OPENVINO, ORT, QNN

# --- what gets a pair, by target --------------------------------------------------------------------------------------

CSP_EVERYWHERE = {
    "images", "conv0_out", "sigmoid0_out", "mul0_out", "conv1_out", "sigmoid1_out", "mul1_out", "split0_out0",
    "split0_out1", "conv2_out", "sigmoid2_out", "mul2_out", "conv3_out", "sigmoid3_out", "mul3_out", "add0_out",
    "concat0_out", "conv4_out",
}  # fmt: skip
# conv4 is 1x1 and just before the last layer: it has a float output into a float SiLU.
CSP_FLOAT_ON_ORT = {"images", *(f"{op}{k}_out" for op in ("conv", "sigmoid") for k in (0, 4))}
CSP_ON_ORT = CSP_EVERYWHERE - CSP_FLOAT_ON_ORT | {"mul4_out"}
CSP_CONV_INPUTS = {"images", "mul0_out", "split0_out1", "mul2_out", "concat0_out", "mul4_out"}
CSP_ON_TENSORRT = CSP_CONV_INPUTS - {"mul4_out"}


@pytest.mark.parametrize(
    ("target", "expected"),
    [(ORT, CSP_ON_ORT), (GENERIC, CSP_EVERYWHERE), (OPENVINO, CSP_CONV_INPUTS), (NARROW_TENSORRT, CSP_ON_TENSORRT)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_tensors_of_a_csp_block(target, expected):
    assert tensors(plan_of(csp(), target)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (ORT, {"relu0_out", "relu1_out", "upsample_out", "concat0_out", "relu2_out"}),
        (GENERIC, {"images", "relu0_out", "relu1_out", "upsample_out", "concat0_out", "relu2_out"}),
        (OPENVINO, {"images", "relu0_out", "concat0_out"}),
        (NARROW_TENSORRT, {"images", "relu0_out", "concat0_out"}),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_relu_has_its_pair_behind_and_none_between_it_and_the_conv(target, expected):
    plan = plan_of(relu_net(), target)
    assert tensors(plan) == expected
    assert ("relu1" in plan.integer) == (target in (ORT, GENERIC))


@pytest.mark.parametrize(
    ("target", "layers"),
    [
        (ORT, ["conv1", "conv2"]),
        (OPENVINO, ["conv0", "conv1", "conv2"]),
        (NARROW_TENSORRT, ["conv0", "conv1", "conv2"]),
        (GENERIC, ["conv0", "conv1", "upsample", "conv2"]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_conv_transpose_runs_on_integers_where_the_target_can(target, layers):
    plan = plan_of(relu_net(), target)
    assert list(plan.layers) == layers
    if "upsample" in layers:
        assert next(w for w in plan.weights if w.tensor == "upsample_weight").scheme.axis == 1
    else:
        assert str(plan.skipped["upsample"]) == f"no-rule: {target.title} runs ConvTranspose in float"


def test_a_relu_behind_an_add_is_one_with_it():
    net = Net()
    x = net.block("images", 8)
    x = net.add("Relu", net.add("Add", net.conv(x, 8), net.conv(x, 8)))
    net.channels[x] = 8
    found = tensors(plan_of(ending(net, x)))
    assert found >= {"mul0_out", "conv1_out", "conv2_out", "relu0_out"}
    assert not found & {"add0_out", "last_out"}


@pytest.mark.parametrize(
    "carry",
    [
        lambda net, x: net.pool(x),
        lambda net, x: net.concat(x, x),
        lambda net, x: net.slice(x, 2, 0, end=16),
        lambda net, x: net.split(x, 4, 4)[0],
    ],
    ids=["MaxPool", "Concat", "Slice", "Split"],
)
@pytest.mark.parametrize("op", ["Relu", "Clip"])
@pytest.mark.parametrize("target", [ORT, GENERIC], ids=lambda t: t.name)
def test_a_relu_behind_what_moves_values_has_pairs_on_both_sides(target, op, carry):
    net = Net()
    moved = carry(net, net.block(net.block("images", 8), 8))
    x = net.add(op, moved)
    net.channels[x] = net.channels[moved]
    plan = plan_of(ending(net, x), target)
    assert {moved, x} <= tensors(plan)
    assert moved in group(plan, "mul1_out")
    assert point(plan, x).group == x


def test_a_conv_that_feeds_more_than_its_relu_has_its_pair_directly_behind():
    net = Net()
    x = net.conv(net.block("images", 8), 8, name="split_up")
    y = net.add("Add", net.add("Relu", x), net.add("LeakyRelu", x))
    net.channels[y] = 8
    plan = plan_of(ending(net, y))
    assert {"split_up_out", "relu0_out"} <= tensors(plan)
    assert set(point(plan, "split_up_out").users) == {"relu0", "leakyrelu0"}


def test_all_readers_of_a_tensor_read_one_pair():
    plan = plan_of(csp())
    assert point(plan, "split0_out1").users == ("conv2", "add0", "concat0")
    assert point(plan, "conv2_out").users == ("sigmoid2", "mul2")


def test_where_the_target_says_so_nodes_in_float_go_on_reading_float():
    plan = plan_of(csp(), replace(OPENVINO, bypasses_dq=frozenset({"Add", "Concat"})))
    assert point(plan, "split0_out1").users == ("conv2",)
    assert tensors(plan) == CSP_CONV_INPUTS


def test_readers_within_a_subgraph_go_on_reading_float():
    for target in (ORT, OPENVINO, NARROW_TENSORRT, GENERIC):
        model, plan = planned(conditional(), target)
        assert_complete(model, plan)
        assert point(plan, "mul0_out").users == ("read_inside",)


def test_the_values_of_a_subgraph_do_not_change_under_quantization_of_what_it_reads():
    model = conditional()
    after, _ = quantized(model)
    values = feed(model)
    difference = np.abs(run(after, values)["output"] - run(model, values)["output"]).max()
    assert difference < 0.05 * np.abs(run(model, values)["output"]).max()


# --- groups -----------------------------------------------------------------------------------------------------------


def test_an_sppf_stands_on_one_grid():
    plan = plan_of(sppf(), GENERIC)
    members = {"mul0_out", "maxpool0_out", "maxpool1_out", "maxpool2_out", "concat0_out"}
    assert group(plan, "mul0_out") == members
    assert {p.group for p in plan.points if p.tensor in members} == {"mul0_out"}
    assert all(point(plan, name).sources == ("mul0_out",) for name in members)


@pytest.mark.parametrize("target", [ORT, GENERIC], ids=lambda t: t.name)
def test_an_input_of_a_concat_that_others_read_keeps_its_own_grid(target):
    plan = plan_of(pan(), target)
    assert group(plan, "mul0_out") == {"mul0_out"}
    assert group(plan, "concat0_out") == {"mul1_out", "resize0_out", "concat0_out"}
    assert group(plan, "concat1_out") == {"mul3_out", "concat1_out"}
    assert set(point(plan, "concat0_out").sources) == {"mul1_out", "mul0_out"}


def test_a_split_and_a_concat_of_its_parts_stand_on_one_grid():
    plan = plan_of(csp())
    assert group(plan, "mul1_out") == {"mul1_out", "split0_out0", "split0_out1", "add0_out", "concat0_out"}
    assert point(plan, "split0_out1").sources == ("mul1_out",)
    assert set(point(plan, "concat0_out").sources) == {"mul1_out", "add0_out"}


@pytest.mark.parametrize(
    "carry",
    [
        lambda net, x: net.add("Transpose", x, perm=[0, 1, 3, 2]),
        lambda net, x: net.reshape(x, 1, 8, 16, 64),
        lambda net, x: net.slice(x, 2, 0, end=16),
        lambda net, x: net.add("Squeeze", net.unsqueeze(x, 0), net.ints(0)),
        lambda net, x: net.upsample(x),
        lambda net, x: net.concat(net.add("Flatten", net.reshape(x, 1, 8, 1024), axis=2), axis=1),
    ],
    ids=["Transpose", "Reshape", "Slice", "Squeeze", "Resize", "Flatten"],
)
def test_what_only_moves_values_stays_on_the_grid_of_its_input(carry):
    net = Net()
    x = carry(net, net.block(net.block("images", 8), 8))
    x = net.reshape(x, 1, 8, 32, -1)
    net.channels[x] = 8
    plan = plan_of(ending(net, x))
    moved = point(plan, x)
    assert "mul1_out" in group(plan, moved.tensor)
    assert moved.sources == ("mul1_out",)


@pytest.mark.parametrize(("kernel", "integer"), [(3, True), (1, False)])
def test_max_pools_of_floats_stay_float_on_onnxruntime(kernel, integer):
    net = Net(size=64)
    x = net.block("images", 8, stride=32)
    x = net.pool(net.pool(net.block(x, 8, kernel=kernel)))
    plan = plan_of(ending(net, x))
    assert ({"maxpool0", "maxpool1"} <= plan.integer) == integer
    assert code(plan, "maxpool1") == (None if integer else "float-inputs")
    assert "maxpool1_out" in tensors(plan)  # what reads it runs on integers


@pytest.mark.parametrize(
    ("size", "stride", "kernel", "act", "dynamic", "is_float"),
    [
        (352, 32, 1, "silu", False, True),
        (352, 16, 1, "silu", False, False),
        (160, 16, 1, "silu", False, True),
        (176, 16, 1, "silu", False, False),
        (352, 32, 3, "silu", False, False),
        (352, 32, 1, "Relu", False, False),
        (352, 32, 1, "LeakyRelu", False, False),
        (352, 32, 1, "silu", True, False),
    ],
)
def test_deep_1x1_convs_into_a_silu_have_a_float_output_on_onnxruntime(size, stride, kernel, act, dynamic, is_float):
    net = Net(size=size, dynamic=dynamic)
    x = net.block(net.block("images", 8, stride=stride), 8, kernel=kernel, act=act)
    plan = plan_of(ending(net, net.block(x, 8)))
    assert "conv1" in plan.layers
    on_a_grid = "conv1_out" if act == "silu" else f"{act.lower()}0_out"
    assert (on_a_grid not in tensors(plan)) == is_float
    if act == "silu":
        assert (code(plan, "mul1") == "float-producer") == is_float


def test_a_1x1_conv_of_which_nobody_wants_integers_has_a_float_output_on_onnxruntime():
    plan = plan_of(attention())
    assert "conv1" in plan.layers
    assert "conv1_out" not in tensors(plan)


def test_openvino_has_no_groups():
    assert all(len(members) == 1 for members in plan_of(pan(), OPENVINO).groups().values())


# --- what only MaxPools read ------------------------------------------------------------------------------------------


def masked(net, x, kind, value):
    """The tensor with a value beside or over some of its own, in which windows of 3 x 3 have others too."""
    if kind == "Pad":
        return net.add("Pad", x, net.ints(0, 0, 1, 1, 0, 0, 1, 1), net.const(np.float32(value)))
    is_masked = np.random.default_rng(0).random((1, 1, 32, 32)) < 0.1
    if kind == "Add":
        return net.add("Add", x, net.const(np.where(is_masked, value, 0)))
    y = net.add("Where", net.const(is_masked, bool), net.const(np.float32(value)), x)
    net.channels[y] = net.channels[x]
    return y


@pytest.mark.parametrize("target", [ORT, OPENVINO, NARROW_TENSORRT, QNN, GENERIC], ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("kind", "value"), [("Pad", -100), ("Pad", -1e9), ("Pad", -np.inf), ("Add", -100), ("Where", -1e9)]
)
def test_padding_and_masks_in_front_of_a_max_pool_do_not_set_the_scale(kind, value, target):
    net = Net()
    x = masked(net, net.block(net.block("images", 8), 8), kind, value)
    model = ending(net, net.pool(x, 3))
    after, facts = quantized(model, target)
    assert "maxpool0" in facts[Plan].integer or target in (OPENVINO, ORT)
    assert sqnr(run(model)["output"], run(after)["output"]) > 28


@pytest.mark.parametrize(
    "carry",
    [lambda net, x: x, lambda net, x: net.add("Transpose", x, perm=[0, 1, 3, 2]), lambda net, x: net.pool(x)],
    ids=["MaxPool", "Transpose", "MaxPools"],
)
def test_the_range_of_what_a_max_pool_alone_reads_is_that_of_the_maxima(carry):
    net = Net()
    x = net.block(net.block("images", 8), 8)
    pooled = net.pool(carry(net, x))
    plan = plan_of(ending(net, pooled), GENERIC)
    assert group(plan, x) >= {x, pooled}
    assert {p.sources for p in plan.points if p.tensor in group(plan, x)} == {(pooled,)}
    assert x not in plan.observed()


def test_the_range_of_what_several_max_pools_read_is_that_of_all_maxima():
    net = Net()
    x = net.block("images", 8)
    pools = [net.pool(x, kernel) for kernel in (3, 5)]
    plan = plan_of(ending(net, net.concat(*pools)), GENERIC)
    assert set(point(plan, x).sources) == set(pools)


@pytest.mark.parametrize("reader", ["Conv", "Concat", "output"])
def test_what_others_read_too_has_the_range_of_all_values(reader):
    net = Net()
    x = net.block("images", 8)
    pooled = net.pool(x)
    if reader == "output":
        model, x = net.model(net.conv(net.block(pooled, 8), 4, name="last"), x), "output1"
    else:
        model = ending(net, net.concat(net.block(x, 8) if reader == "Conv" else x, pooled))
    plan = plan_of(model, QNN, act_bits=16)
    assert point(plan, x).is_output == (reader == "output")
    assert point(plan, x).sources == point(plan, pooled).sources == (x,)


def test_a_reader_within_a_subgraph_may_have_the_name_of_a_node_on_integers():
    model = conditional()
    before = plan_of(model, GENERIC)
    chosen = next(node for node in model.graph.node if node.op_type == "If")
    inner = next(node for a in chosen.attribute for node in a.g.node if node.op_type == "Sub")
    inner.name = "read_inside"
    assert "read_inside" in before.integer
    assert plan_of(model, GENERIC) == before


def test_what_a_max_pool_reads_keeps_a_range_that_is_known():
    net = Net()
    gate = net.add("Sigmoid", net.conv(net.block("images", 8), 8))
    plan = plan_of(ending(net, net.pool(gate)), GENERIC)
    assert point(plan, gate).known == point(plan, "maxpool0_out").known
    assert point(plan, gate).known.high == 255 / 256


# --- what is known without data ---------------------------------------------------------------------------------------


def test_the_grid_of_a_sigmoid_is_known():
    known = point(plan_of(silu_chain()), "sigmoid1_out").known
    assert (known.low, known.high) == (0, 255 / 256)


def test_the_range_of_a_constant_is_known():
    net = Net()
    factors = net.const(np.linspace(-2, 3, 8).reshape(8, 1, 1), name="factors")
    x = net.add("Mul", net.block("images", 8), factors)
    net.channels[x] = 8
    plan = plan_of(ending(net, x), GENERIC)
    known = point(plan, "factors").known
    assert (known.low, known.high) == (-2, 3)
    assert point(plan, "factors").users == ("mul1",)
    assert point(plan, "factors").sources == ()


def test_the_range_of_a_group_is_known_where_that_of_all_its_sources_is():
    net = Net()
    x = net.block("images", 8)
    gates = [net.add("Sigmoid", net.conv(x, 4)) for _ in range(2)]
    plan = plan_of(ending(net, net.concat(*gates)))
    assert group(plan, "concat0_out") == {*gates, "concat0_out"}
    assert all(point(plan, name).known.high == 255 / 256 for name in group(plan, "concat0_out"))
    assert not plan.observed().keys() & set(gates)


def test_a_group_that_is_known_in_part_is_observed_whole():
    net = Net()
    x = net.block("images", 8)
    gate, other = net.add("Sigmoid", net.conv(x, 4)), net.add("LeakyRelu", net.conv(x, 4))
    plan = plan_of(ending(net, net.concat(gate, other)))
    assert group(plan, "concat0_out") == {gate, other, "concat0_out"}
    assert all(point(plan, name).known is None for name in group(plan, "concat0_out"))
    assert {gate, other} <= plan.observed().keys()


def test_only_tensors_that_come_from_somewhere_else_are_observed():
    assert plan_of(sppf(), GENERIC).observed().keys() == {"mul0_out", "conv0_out", "conv1_out", "images"}


def test_both_sides_of_a_silu_are_marked():
    plan = plan_of(csp(), replace(ORT, lowering=()))
    assert [p.tensor for p in plan.points if p.silu_input] == [f"conv{k}_out" for k in range(1, 5)]
    # mul1_out is split and joined with other tensors, whose grid it shares.
    assert [p.tensor for p in plan.points if p.silu_output] == ["mul0_out", "mul2_out", "mul3_out"]


def test_a_silu_whose_input_others_read_is_not_marked():
    net = Net()
    x = net.conv(net.block("images", 8), 8)
    y = net.add("Add", net.silu(x), x)
    net.channels[y] = 8
    plan = plan_of(ending(net, y))
    assert not point(plan, "conv1_out").silu_input
    assert point(plan, "mul1_out").silu_output
