"""Which nodes run on integers, why others do not, and what `include` changes."""

import re
from dataclasses import replace
from functools import cache

import pytest
from graphs import (
    NARROW_TENSORRT,
    Net,
    attention,
    csp,
    depthwise_net,
    dropout_chain,
    exported,
    nodes,
    planned,
    prepared,
    products,
    sppf,
    v5,
    v8,
    yolox,
)
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from plans import ALL, assert_complete, code, ending, every_target, plan_of, point, tensors

from onnxq.errors import ModelError
from onnxq.facts import DecodeBoundary, Plan
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.find_sizes import FindSizes
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Pipeline
from onnxq.qdq.selection import Network, NodeSelection, demand, refuse, withdraw
from onnxq.targets import GENERIC, OPENVINO, ORT, TARGETS, TENSORRT
from onnxq.targets.float_last import products as multiplications
from onnxq.targets.sizes import ImageSizes, declared_sizes

# --- reasons ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
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
    widest = TARGETS[target].activations[0]
    act_bits = bits[1] if widest in TARGETS[target].clips else widest.bits
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


@pytest.mark.slow
@every_target
@pytest.mark.parametrize("name", ["yolo11n", "yolo26n", "yolov6n", "yolov7-tiny", "yolov8n-dynamic", "yolov8n-nms"])
def test_every_node_of_a_real_export_runs_on_integers_or_has_a_reason(name, target):
    model = real(name)
    facts = Pipeline([FindDecode(), FindSizes(), PlanQuantization(target)]).run(model)
    plan = facts[Plan]
    assert_complete(model, plan)
    convs = [n for n, node in model.nodes.items() if node.op == "Conv" and n in facts[DecodeBoundary].body]
    last = set(facts[DecodeBoundary].last)
    expected = set(convs)
    if target is ORT:
        near = {n for n in convs if code(plan, n) == "stem"}
        assert convs[0] in near <= set(convs[:8])
        assert all(model.nodes[n].inputs[1].shape[0] <= 32 for n in near - {convs[0]})
        behind = {n for n in convs if code(plan, n) == "behind-depthwise"}
        assert all(model.nodes[n].inputs[1].shape[1:] <= (256, 1, 1) for n in behind)
        expected -= near | behind | {n for n in last if tuple(model.nodes[n].inputs[1].shape[2:]) != (1, 1)}
    if target is TENSORRT:
        expected -= last
    if target.float_last is not None:
        cheap = {n for n in last if code(plan, n) == "last-layer"}
        counts = {n: multiplications(model.nodes[n], facts[ImageSizes]) for n in convs}
        assert bool(cheap) == (None not in counts.values())
        assert not cheap or sum(counts[n] for n in cheap) <= target.float_last.share * sum(counts.values())
        expected -= cheap
    if target in (ORT, OPENVINO, TENSORRT):
        expected = {n for n in expected if model.nodes[n].attrs.get("group", 1) == 1}
    if target.quantizes_decode:
        expected |= {n for n, node in model.nodes.items() if node.op == "Conv"}
    assert {n for n in plan.layers if model.nodes[n].op == "Conv"} == expected


def test_reasons_of_a_detector_on_onnxruntime():
    plan = plan_of(v8())
    found = {name: reason.code for name, reason in plan.skipped.items() if not name.startswith("decode_")}
    assert {name for name, each in found.items() if each == "last-layer"} == {"cls0", "box1", "cls1", "box2", "cls2"}
    assert {name: each for name, each in found.items() if each not in ("last-layer", "no-consumer")} == {
        "conv0": "stem",
        "sigmoid0": "float-producer",
        "mul0": "float-producer",
    }
    # Nothing but last layers reads these.
    assert {name for name, each in found.items() if each == "no-consumer"} == {
        f"{op}{k}" for op in ("sigmoid", "mul") for k in range(6, 11)
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
def test_the_decode_stays_float_unless_the_target_quantizes_it(target):
    for build in (v5, v8, yolox):
        model, plan = planned(build(), target)
        decode = [name for name in model.nodes if name.startswith("decode_")]
        assert decode
        assert bool(plan.integer & set(decode)) == target.quantizes_decode


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
    rule = target.rules.get("Resize")
    assert ("resize" in plan.integer) == (rule is not None and rule.output)
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
    with pytest.raises(ModelError, match="no Conv can be quantized: model-output: makes an output of the model"):
        plan_of(model, GENERIC)
    assert plan_of(model, OPENVINO).layers == ("conv0",)


# --- layers that stay float because integers lose ---------------------------------------------------------------------


@pytest.mark.parametrize("target", [ORT, OPENVINO, NARROW_TENSORRT], ids=lambda t: t.name)
def test_depthwise_convs_stay_float_where_they_lose(target):
    plan = plan_of(depthwise_net(), target)
    assert code(plan, "conv1") == code(plan, "conv3") == "depthwise"
    assert "conv2" in plan.layers
    assert "mul0_out" not in tensors(plan)


def behind_depthwise(channels):
    """Convs 0 to 5: wide, depthwise, two 1x1 with a MaxPool between, 3x3, 1x1."""
    net = Net()
    x = net.block("images", channels, stride=2)
    x = net.block(x, channels, group=channels)
    x = net.pool(net.block(x, 16, kernel=1))
    net.channels[x] = 16
    x = net.block(net.block(net.block(x, 16, kernel=1), 16), 16, kernel=1)
    return net.model(net.conv(x, 4, name="last"))


def test_narrow_1x1_convs_behind_a_float_depthwise_conv_stay_float():
    target = replace(ORT, behind_depthwise=40)
    plan = plan_of(behind_depthwise(40), target)
    assert str(plan.skipped["conv2"]) == "behind-depthwise: 40 input channels behind a float depthwise Conv"
    assert code(plan, "conv3") == "behind-depthwise"
    assert {"conv4", "conv5"} <= set(plan.layers)
    assert {"conv2", "conv3"} <= set(plan_of(behind_depthwise(41), target).layers)
    assert {"conv2", "conv3"} <= set(plan_of(behind_depthwise(40), replace(ORT, float_depthwise=False)).layers)


def test_narrow_1x1_convs_run_on_integers_if_no_other_layer_does():
    assert plan_of(depthwise_net(), ORT).layers == plan_of(depthwise_net(), replace(ORT, behind_depthwise=0)).layers


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
    plan = plan_of(net.model(net.conv(x, 4, name="last")), include=("last",))
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


# --- the three phases -------------------------------------------------------------------------------------------------


def network_of(model, target):
    working = prepared(model)
    boundary = Pipeline([FindDecode()]).run(working)[DecodeBoundary]
    return working, boundary, Network(working, boundary, target, declared_sizes(working))


def test_refused_nodes_stay_float_whatever_stands_around_them():
    _, _, network = network_of(csp(), ORT)
    refused = refuse(network, {"conv3": "op:Conv"}, (), {})
    assert {name: reason.code for name, reason in refused.items()} == {"conv0": "stem", "conv3": "excluded"}


def test_demand_walks_from_the_outputs_backwards():
    _, _, network = network_of(csp(), ORT)
    refused = refuse(network, {"conv2": "conv2", "conv4": "conv4"}, (), {})
    integer, unwanted = demand(network, refused, ())
    assert "concat0" in unwanted
    assert unwanted["concat0"].code == "no-consumer"
    assert not integer & (refused.keys() | unwanted.keys())
    assert integer | refused.keys() | unwanted.keys() == {node.name for node in network.nodes}


def test_withdrawn_nodes_are_some_of_those_in_demand():
    _, _, network = network_of(csp(), ORT)
    integer, _ = demand(network, refuse(network, {}, (), {}), ())
    withdrawn = withdraw(network, integer, ())
    assert withdrawn.keys() <= integer
    assert withdrawn.keys() == {"sigmoid0", "mul0", "sigmoid4", "mul4"}
    assert {reason.code for reason in withdrawn.values()} == {"float-producer"}


@pytest.mark.parametrize("target", [ORT, OPENVINO, TENSORRT, GENERIC], ids=lambda target: target.name)
@pytest.mark.parametrize("build", [csp, sppf, attention, depthwise_net, v8])
def test_each_node_has_integers_or_one_reason_in_graph_order(build, target):
    working, boundary, network = network_of(build(), target)
    selection = NodeSelection(working, boundary, target, network.sizes, {})
    names = [node.name for node in network.nodes]
    assert selection.integer | selection.skipped.keys() == set(names)
    assert not selection.integer & selection.skipped.keys()
    assert list(selection.skipped) == [name for name in names if name in selection.skipped]


def test_numbers_in_the_reasons():
    net = Net(size=64)
    x = net.block(net.block("images", 16, stride=2), 16, group=16)
    model = net.model(net.conv(net.block(x, 48), 6, kernel=3, name="last"))
    skipped = planned(model, ORT)[1].skipped
    assert str(skipped["conv0"]) == "stem: 16 channels at 32 x 32, integer kernels save no time"
    assert str(skipped["conv1"]) == "depthwise: 16 channels with a 3 x 3 kernel each"
    assert str(skipped["last"]) == "last-layer: 6 channels of boxes or scores"
    narrow = planned(csp(), TENSORRT, include=["conv1"])[1].skipped
    assert str(narrow["conv2"]) == "too-few-channels: 4 in, 4 out, kernel 3 x 3"
    assert str(narrow["sigmoid0"]) == "no-rule: TensorRT runs Sigmoid in float"
