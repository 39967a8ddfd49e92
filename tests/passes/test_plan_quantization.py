import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    NARROW_TENSORRT,
    Net,
    attention,
    conditional,
    csp,
    depthwise_net,
    dropout_chain,
    exported,
    feed,
    leaky_net,
    nodes,
    pan,
    planned,
    prepared,
    products,
    quantized,
    relu_net,
    run,
    silu_chain,
    sppf,
    v5,
    v8,
    yolox,
)
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from onnxq.errors import ConfigError, ModelError
from onnxq.facts import DecodeBoundary, Plan
from onnxq.numerics.scheme import INT8, UINT8
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Pipeline
from onnxq.qdq.reasons import Code
from onnxq.targets import GENERIC, OPENVINO, ORT, TARGETS, TENSORRT, Role

ALL = {**BACKBONES, **DETECTORS}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def plan_of(model, target=ORT, **options):
    return planned(model, target, **options)[1]


def code(plan, name):
    """The code of the reason why a node stays float; None if it runs on integers."""
    return plan.skipped[name].code if name in plan.skipped else None


def tensors(plan):
    """Names of the tensors that pass through a pair."""
    return {p.tensor for p in plan.points}


def point(plan, tensor):
    return next(p for p in plan.points if p.tensor == tensor)


def group(plan, tensor):
    """The tensors on the grid of this one."""
    return {p.tensor for p in plan.points if p.group == point(plan, tensor).group}


def assert_complete(model, plan):
    """Assert that each node is either meant for integers or has a reason, and that the plan fits the graph."""
    names = set(model.nodes)
    assert plan.integer | plan.skipped.keys() == names
    assert not plan.integer & plan.skipped.keys()
    assert all(reason.code in set(Code) and reason.text for reason in plan.skipped.values())
    assert set(plan.layers) <= plan.integer
    found = model.graph.tensors()
    for p in plan.points:
        assert p.tensor in found
        assert all(found[p.tensor] in model.nodes[user].inputs for user in p.users)
        assert set(p.sources) <= {q.tensor for q in plan.points}
        assert bool(p.sources) != (p.known is not None)
    assert len({p.tensor for p in plan.points}) == len(plan.points)
    assert {w.tensor for w in plan.weights} == {model.nodes[n].inputs[1].name for n in plan.layers}
    for w in plan.weights:
        inputs = {model.nodes[name].inputs[0].name for name in w.users}
        assert inputs <= {p.tensor for p in plan.points}
    for members in plan.groups().values():
        assert len({(p.scheme, p.known) for p in members}) == 1


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
        (OPENVINO, {"images", "relu0_out", "concat0_out", "relu2_out"}),
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
        (ORT, ["conv1", "conv2", "last"]),
        (OPENVINO, ["conv0", "conv1", "conv2", "last"]),
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


def ending(net, x):
    """The model of a graph that goes on with one more layer, and the last one."""
    return net.model(net.conv(net.silu(net.conv(x, 8, name="behind")), 4, name="last"))


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
        lambda net, x: net.pool(x),
        lambda net, x: net.concat(net.add("Flatten", net.reshape(x, 1, 8, 1024), axis=2), axis=1),
    ],
    ids=["Transpose", "Reshape", "Slice", "Squeeze", "Resize", "MaxPool", "Flatten"],
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
    net = Net()
    x = net.block("images", 8, stride=16)
    x = net.pool(net.pool(net.block(x, 8, kernel=kernel)))
    plan = plan_of(ending(net, x))
    assert ({"maxpool0", "maxpool1"} <= plan.integer) == integer
    assert code(plan, "maxpool1") == (None if integer else "float-inputs")
    assert "maxpool1_out" in tensors(plan)  # what reads it runs on integers


@pytest.mark.parametrize(
    ("stride", "kernel", "act", "dynamic", "is_float"),
    [
        (16, 1, "silu", False, True),
        (8, 1, "silu", False, False),
        (16, 3, "silu", False, False),
        (16, 1, "Relu", False, False),
        (16, 1, "LeakyRelu", False, False),
        (16, 1, "silu", True, False),
    ],
)
def test_deep_1x1_convs_into_a_silu_have_a_float_output_on_onnxruntime(stride, kernel, act, dynamic, is_float):
    net = Net(size=64, dynamic=dynamic)
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


# --- what is known without data ---------------------------------------------------------------------------------------


def test_the_grid_of_a_sigmoid_is_known():
    known = point(plan_of(silu_chain()), "sigmoid1_out").known
    assert (known.low, known.high) == (0, 255 / 256)


def test_the_range_of_a_constant_is_known():
    net = Net()
    factors = net.const(np.linspace(-2, 3, 8).reshape(8, 1, 1), name="factors")
    x = net.add("Mul", net.block("images", 8), factors)
    net.channels[x] = 8
    plan = plan_of(ending(net, x))
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


# --- reasons ----------------------------------------------------------------------------------------------------------


@every_target
@pytest.mark.parametrize("name", ALL)
def test_every_node_runs_on_integers_or_has_a_reason(name, target):
    assert_complete(*planned(ALL[name](), target))


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(sorted(ALL)),
    target=st.sampled_from(sorted(TARGETS)),
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    symmetric=st.booleans(),
    excluded=st.sets(st.sampled_from(["re:[02]$", "re:^(mul|sigmoid)0$|relu|concat", "conv0"]), max_size=2),
)
def test_every_plan_is_complete(name, target, bits, symmetric, excluded):
    act_bits = bits[1] if TARGETS[target].clips else 8
    options = {"weight_bits": bits[0], "act_bits": act_bits, "symmetric": symmetric, "exclude": sorted(excluded)}
    try:
        model, plan = planned(ALL[name](), TARGETS[target], **options)
    except ModelError:  # no layer is left
        reject()
    assert_complete(model, plan)


@cache
def real(name):
    """A real export, prepared; planning does not edit it."""
    return prepared(exported(name))


@every_target
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n", "yolov6n", "yolov7-tiny", "yolov8n-dynamic", "yolov8n-nms"])
def test_every_node_of_a_real_export_runs_on_integers_or_has_a_reason(name, target):
    model = real(name)
    facts = Pipeline([FindDecode(), PlanQuantization(target)]).run(model)
    plan = facts[Plan]
    assert_complete(model, plan)
    convs = [n for n, node in model.nodes.items() if node.op == "Conv" and n in facts[DecodeBoundary].body]
    last = set(facts[DecodeBoundary].last)
    expected = set(convs)
    if target is ORT:
        near = {n for n in convs if code(plan, n) == "stem"}
        assert convs[0] in near <= set(convs[:8])
        assert all(model.nodes[n].inputs[1].shape[0] <= 32 for n in near - {convs[0]})
        expected -= near | {n for n in last if tuple(model.nodes[n].inputs[1].shape[2:]) != (1, 1)}
    if target is TENSORRT:
        expected -= last
    if target is not GENERIC:
        expected = {n for n in expected if model.nodes[n].attrs.get("group", 1) == 1}
    assert {n for n in plan.layers if model.nodes[n].op == "Conv"} == expected


def test_reasons_of_a_detector_on_onnxruntime():
    plan = plan_of(v8())
    assert {name: reason.code for name, reason in plan.skipped.items() if not name.startswith("decode_")} == {
        "conv0": "stem",
        "sigmoid0": "float-producer",
        "mul0": "float-producer",
    }
    decode = {reason.code for name, reason in plan.skipped.items() if name.startswith("decode_")}
    assert decode == {"decode"}


def test_reasons_of_a_csp_block_on_openvino():
    plan = plan_of(csp(), OPENVINO)
    others = [n for n in nodes(csp()) if not re.match(r"conv|last", n)]
    assert {name: str(reason) for name, reason in plan.skipped.items()} == {
        name: f"no-rule: OpenVINO runs {nodes(csp())[name].op_type} in float" for name in others
    }


def test_a_dropout_is_no_hindrance():
    plan = plan_of(dropout_chain(), GENERIC)
    assert set(plan.skipped) == {"identity3"}  # in front of the output


@every_target
def test_the_decode_stays_float(target):
    for build in (v5, v8, yolox):
        model, plan = planned(build(), target)
        decode = [name for name in model.nodes if name.startswith("decode_")]
        assert decode
        assert not plan.integer & set(decode)


@pytest.mark.parametrize("kernel", [1, 3])
def test_last_layers_run_on_integers_in_onnxruntime_where_they_can_have_a_float_output(kernel):
    net = Net()
    x = net.block("images", 8)
    plan = plan_of(net.model(net.conv(net.block(x, 8), 4, kernel, name="last")))
    assert ("last" in plan.layers) == ("last_weight" in {w.tensor for w in plan.weights}) == (kernel == 1)
    assert code(plan, "last") == (None if kernel == 1 else "last-layer")
    assert "last_out" not in tensors(plan)


@pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda t: t.name)
def test_last_layers_run_on_integers_and_have_no_pair_behind(target):
    plan = plan_of(v8(), target)
    last = {f"{kind}{k}" for kind in ("box", "cls") for k in range(3)}
    assert last <= set(plan.layers)
    assert not tensors(plan) & {f"{name}_out" for name in last}


def test_a_node_that_makes_an_output_stays_float():
    net = Net()
    x = net.block("images", 8)
    plan = plan_of(net.model(x, net.conv(net.block(x, 8), 4)))
    assert code(plan, "mul0") == "model-output"
    assert "output0" in tensors(plan)  # the Conv behind it still reads integers
    assert point(plan, "output0").users == ("conv1",)


def test_a_layer_that_makes_an_output_stays_float_where_its_pair_would_stand_on_it():
    net = Net()
    x = net.conv(net.block("images", 8), 8, 3, name="seen")
    model = net.model(x, net.conv(net.block(net.silu(x), 8), 4))
    plan = plan_of(model)
    assert code(plan, "seen") == "model-output"
    assert "output0" not in tensors(plan)
    assert "seen" in plan_of(model, OPENVINO).layers


def integer_arithmetic():
    """A map is resized to twice the size of another, by int64 arithmetic, and the arithmetic reaches the layers."""
    net = Net(dynamic=True)
    x = net.block("images", 8, stride=2)
    size = net.slice(net.add("Shape", x), 0, 2, end=4)
    double = net.add("Add", net.add("Mul", size, net.ints(3)), net.add("Div", size, net.ints(-1)))
    whole = net.concat(net.slice(net.add("Shape", x), 0, 0, end=2), double, axis=0)
    y = net.add("Resize", x, "", "", whole, mode="nearest", name="resize")
    net.channels[y] = 8
    return net.model(net.conv(net.block(y, 8), 4, name="last"))


@every_target
def test_integer_arithmetic_is_left_alone(target):
    model, plan = planned(integer_arithmetic(), target)
    for name in ("shape0", "mul1", "add0", "div0", "concat0", "slice0"):
        assert code(plan, name) == "not-float32"
    assert not tensors(plan) & {f"{name}_out" for name in ("shape0", "mul1", "add0", "div0", "concat0", "slice0")}
    assert ("resize" in plan.integer) == (target in (ORT, GENERIC))
    assert_complete(model, plan)


def test_products_with_matrices_run_on_integers_where_every_operator_does():
    plan = plan_of(products(), GENERIC)
    assert {"mix", "hidden", "classes"} <= set(plan.layers)
    axes = {weight.users[0]: weight.scheme.axis for weight in plan.weights}
    assert (axes["mix"], axes["hidden"], axes["classes"]) == (1, 0, 1)
    for target in (ORT, OPENVINO, TENSORRT):
        assert not {"mix", "hidden", "classes"} & set(plan_of(products(), target).layers)


@pytest.mark.parametrize(
    ("attributes", "bias"), [({"alpha": 2.0}, 10), ({"beta": 0.5}, 10), ({"transA": 1}, 10), ({}, 1)]
)
def test_a_gemm_that_does_more_than_to_multiply_stays_float(attributes, bias):
    net = Net()
    means = net.add("Flatten", net.add("GlobalAveragePool", net.block("images", 8)))
    x = net.add("Transpose", means, perm=[1, 0]) if "transA" in attributes else means
    weight = net.const(net.normal(8, 10))
    hidden = net.add("Gemm", x, weight, net.const(net.normal(bias)), name="hidden", **attributes)
    last = net.add("Gemm", net.silu(hidden), net.const(net.normal(10, 8)), name="last")
    model = net.model(net.add("Softmax", last, axis=1))
    plan = plan_of(model, GENERIC)
    assert code(plan, "hidden") == "not-a-plain-product"
    assert "last" in plan.layers


def test_a_conv_with_a_computed_weight_stays_float():
    net = Net()
    x = net.block("images", 8)
    weight = net.add("Mul", net.const(net.normal(8, 8, 1, 1)), net.add("ReduceMax", "images", keepdims=0))
    y = net.add("Conv", x, weight, name="computed")
    net.channels[y] = 8
    plan = plan_of(net.model(net.conv(net.block(y, 8), 4)))
    assert code(plan, "computed") == "weight-not-constant"


def test_a_model_of_one_layer_is_refused_where_the_last_layer_stays_float():
    net = Net()
    model = net.model(net.conv("images", 4))
    with pytest.raises(ModelError, match="no Conv can be quantized: makes an output of the model"):
        plan_of(model, GENERIC)
    assert plan_of(model, OPENVINO).layers == ("conv0",)


# --- exclude ----------------------------------------------------------------------------------------------------------


def test_a_node_can_be_excluded_by_name():
    plan = plan_of(csp(), exclude=["conv2"])
    assert str(plan.skipped["conv2"]) == "excluded: matches conv2"
    assert "conv2_weight" not in {w.tensor for w in plan.weights}


def test_nodes_can_be_excluded_by_operator():
    plan = plan_of(csp(), exclude=["op:Concat", "op:Add"])
    assert str(plan.skipped["concat0"]) == "excluded: matches op:Concat"
    assert str(plan.skipped["add0"]) == "excluded: matches op:Add"
    assert plan.layers == ("conv1", "conv2", "conv3", "conv4", "last")


def test_nodes_can_be_excluded_by_a_regular_expression_found_anywhere_in_the_name():
    plan = plan_of(csp(), exclude=[r"re:nv[13]$"])
    assert str(plan.skipped["conv1"]) == str(plan.skipped["conv3"]) == r"excluded: matches re:nv[13]$"
    assert plan.layers == ("conv2", "conv4", "last")


def test_a_name_is_not_taken_for_a_part_of_a_name():
    with pytest.raises(ConfigError):
        plan_of(csp(), exclude=["conv"])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("conv9", "--exclude conv9: no node of the model matches; did you mean conv4, conv3, conv2?"),
        ("op:Sigmoyd", "--exclude op:Sigmoyd: no node of the model matches; did you mean Sigmoid?"),
        ("op:conv", "--exclude op:conv: no node of the model matches; did you mean Conv?"),
        ("zzz", "--exclude zzz: no node of the model matches; -v lists the nodes and why each stays float"),
        ("re:zzz", "--exclude re:zzz: no node of the model matches; -v lists the nodes and why each stays float"),
        ("re:(", "--exclude re:(: not a regular expression"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(pattern, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        plan_of(csp(), exclude=[pattern])


def test_excluding_every_layer_is_refused_with_the_reasons():
    with pytest.raises(ModelError, match=r"no Conv can be quantized: excluded$"):
        plan_of(csp(), OPENVINO, exclude=["op:Conv"])


def test_a_node_of_the_decode_can_be_named():
    plan = plan_of(v8(), exclude=["decode_dfl"])
    assert code(plan, "decode_dfl") == "decode"


CONVS = [
    (build, name)
    for build in (csp, pan, leaky_net, relu_net)
    for name, node in nodes(build()).items()
    if node.op_type == "Conv" and not name.startswith("last")
]


@pytest.mark.parametrize(("build", "name"), CONVS, ids=lambda value: getattr(value, "__name__", value))
def test_a_layer_kept_float_on_onnxruntime_has_no_pair_directly_behind(build, name):
    model, plan = planned(build(), exclude=[name])
    assert name in plan.skipped
    made = model.nodes[name].outputs[0].name
    assert made not in tensors(plan)
    for reader in model.nodes[name].outputs[0].outputs:
        assert code(plan, reader.name) in (
            "float-producer",
            "no-consumer",
            "onnxruntime on CPUs runs ConvTranspose in float",
        )
    assert_complete(model, plan)


def test_a_layer_kept_float_elsewhere_may_have_a_pair_directly_behind():
    net = Net()
    x = net.conv(net.block("images", 8), 8, name="float")
    plan = plan_of(net.model(net.conv(x, 4)), OPENVINO, exclude=["float"])
    assert "float_out" in tensors(plan)


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
    plan = plan_of(model, OPENVINO, weight_bits=4, act_bits=4)
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


# --- layers that stay float because integers lose ---------------------------------------------------------------------


@pytest.mark.parametrize("target", [ORT, OPENVINO, NARROW_TENSORRT], ids=lambda t: t.name)
def test_depthwise_convs_stay_float_where_they_lose(target):
    plan = plan_of(depthwise_net(), target)
    assert code(plan, "conv1") == code(plan, "conv3") == "depthwise"
    assert "conv2" in plan.layers
    assert "mul0_out" not in tensors(plan)


def test_depthwise_convs_run_on_integers_elsewhere():
    assert {"conv1", "conv3"} <= set(plan_of(depthwise_net(), GENERIC).layers)


@pytest.mark.parametrize(
    ("follow", "integer"),
    [
        (lambda net, x: net.silu(x), False),
        (lambda net, x: net.add("LeakyRelu", x), False),
        (lambda net, x: net.add("Relu", x), True),
        (lambda net, x: net.pool(x), True),
        (lambda net, x: x, True),
    ],
    ids=["SiLU", "LeakyRelu", "Relu", "MaxPool", "Conv"],
)
def test_a_depthwise_conv_that_onnxruntime_would_quantize_anyway_runs_on_integers(follow, integer):
    net = Net()
    x = follow(net, net.conv(net.block("images", 8), 8, 3, group=8, name="depthwise"))
    net.channels[x] = 8
    assert ("depthwise" in plan_of(ending(net, x)).layers) == integer


def test_convs_in_a_few_groups_are_not_depthwise():
    net = Net()
    x = net.conv(net.block("images", 8), 8, group=2, name="grouped")
    assert "grouped" in plan_of(ending(net, x)).layers


def test_layers_on_the_image_stay_float_on_onnxruntime():
    net = Net()
    model = ending(net, net.concat(net.conv("images", 40, name="left"), net.conv("images", 4, name="right")))
    plan = plan_of(model)
    assert {code(plan, "left"), code(plan, "right")} == {"stem"}
    assert "behind" in plan.layers
    assert {"left", "right"} <= set(plan_of(model, OPENVINO).layers)


def stems(*channels):
    """The layers of a chain of blocks of these channels, by number, that are near the image."""
    net = Net()
    x = "images"
    for count in channels:
        x = net.block(x, count)
    plan = plan_of(net.model(net.conv(x, 4, name="last")))
    assert "last" in plan.layers
    return [k for k in range(len(channels)) if code(plan, f"conv{k}") == "stem"]


def test_narrow_layers_stay_float_on_onnxruntime_until_one_is_wider():
    assert stems(16, 32, 33, 16) == [0, 1]
    assert stems(40, 32, 64) == [0, 1]
    assert stems(16, 64, 16) == [0]


def test_a_network_without_wider_layers_is_not_left_whole_in_float():
    assert stems(16, 32, 32) == [0]


def test_every_branch_of_the_stem_counts():
    net = Net()
    x = net.block("images", 16)
    both = net.concat(net.block(x, 48), net.block(x, 16))
    plan = plan_of(net.model(net.conv(net.block(both, 16), 4, name="last")))
    assert [code(plan, f"conv{k}") == "stem" for k in range(4)] == [True, False, True, False]


def test_an_add_in_front_of_a_relu_kept_float_stays_float_on_onnxruntime():
    net = Net()
    x = net.block("images", 8)
    x = net.add("Relu", net.add("Add", net.conv(x, 8), net.conv(x, 8), name="add"), name="relu")
    net.channels[x] = 8
    assert code(plan_of(ending(net, x), exclude=["relu"]), "add") == "no-consumer"


# --- TensorRT ---------------------------------------------------------------------------------------------------------


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


# --- the rest ---------------------------------------------------------------------------------------------------------


@every_target
def test_the_graph_is_not_touched(target):
    model = prepared(pan())
    before = model.to_proto().SerializeToString(deterministic=True)
    Pipeline([FindDecode(), PlanQuantization(target)]).run(model)
    assert model.to_proto().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("target", [ORT, OPENVINO, NARROW_TENSORRT, GENERIC], ids=lambda t: t.name)
def test_attention_stays_float_between_its_convs(target):
    plan = plan_of(attention(), target)
    assert {"matmul0", "softmax0", "matmul1"} <= plan.skipped.keys()
    assert {"conv1", "projection"} <= set(plan.layers)


@every_target
def test_each_layer_reads_a_point_and_no_two_points_of_a_tensor_share_a_user(target):
    model, plan = planned(v8(), target)
    assert all(target.rules[model.nodes[name].op].role is Role.LAYER for name in plan.layers)
    for name in plan.layers:
        read = [p for p in plan.points if name in p.users and p.tensor == model.nodes[name].inputs[0].name]
        assert len(read) == 1


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
