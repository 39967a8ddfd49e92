import re
from dataclasses import replace

import pytest
from graphs import (
    NARROW_TENSORRT,
    Net,
    attention,
    csp,
    leaky_net,
    nodes,
    pan,
    planned,
    prepared,
    relu_net,
    v8,
)
from plans import assert_complete, code, every_target, plan_of, tensors

from onnxq.errors import ConfigError, ModelError
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.find_sizes import FindSizes
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Pipeline
from onnxq.targets import GENERIC, OPENVINO, ORT, Role

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
    with pytest.raises(ModelError, match=r"no Conv can be quantized: excluded: matches op:Conv$"):
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


# --- widths that change nothing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "pattern", "why"),
    [
        (
            ORT,
            "conv0",
            "'conv0' stays float (stem: 8 channels at 16 x 16, integer kernels save no time); "
            "--include conv0 puts it on integers",
        ),
        (ORT, "re:^(sigmoid|mul)[04]$", "'sigmoid0', and 3 more stay float (float-producer: its Conv 'conv0' has"),
        (OPENVINO, "conv2", "'conv2' stays float (excluded: matches conv2)"),
        (OPENVINO, "op:Add", "'add0' stays float (no-rule: OpenVINO runs Add in float)"),
        (
            GENERIC,
            "op:Sigmoid",
            "the widths of what it reads follow from other nodes; name the Convs of the same tensors",
        ),
        (GENERIC, "op:Concat", "the widths of what it reads follow from other nodes"),
    ],
)
def test_a_width_that_no_node_takes_is_warned_of(target, pattern, why, caplog):
    excluded = ["conv2"] if target is OPENVINO else []
    plan = plan_of(csp(), target, exclude=excluded, bits=[(pattern, (4, 4))])
    assert f"--bits {pattern}=4/4 has no effect: {why}" in caplog.text
    assert plan == plan_of(csp(), target, exclude=excluded)


@pytest.mark.parametrize(
    ("target", "pattern"), [(ORT, "op:Conv"), (ORT, "conv2"), (OPENVINO, "last"), (GENERIC, "op:Conv")]
)
def test_a_width_that_a_node_takes_is_not_warned_of(target, pattern, caplog):
    plan = plan_of(csp(), target, bits=[(pattern, (4, 4))])
    assert not caplog.text
    assert plan != plan_of(csp(), target)


def test_a_width_that_takes_effect_once_the_node_runs_on_integers_is_not_warned_of(caplog):
    plan = plan_of(csp(), ORT, include=["conv0"], bits=[("conv0", (4, 8))])
    assert not caplog.text
    assert {w.tensor: w.scheme.bits for w in plan.weights}["conv0_weight"] == 4


# --- the rest ---------------------------------------------------------------------------------------------------------


@every_target
def test_the_graph_is_not_touched(target):
    model = prepared(pan())
    before = model.to_proto().SerializeToString(deterministic=True)
    Pipeline([FindDecode(), FindSizes(), PlanQuantization(target)]).run(model)
    assert model.to_proto().SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("target", [ORT, OPENVINO, NARROW_TENSORRT, GENERIC], ids=lambda t: t.name)
def test_attention_stays_float_between_its_convs(target):
    plan = plan_of(attention(), replace(target, behind_depthwise=0))
    assert {"matmul0", "softmax0", "matmul1"} <= plan.skipped.keys()
    assert {"conv1", "projection"} <= set(plan.layers)


@every_target
def test_each_layer_reads_a_point_and_no_two_points_of_a_tensor_share_a_user(target):
    model, plan = planned(v8(), target)
    assert all(target.rules[model.nodes[name].op].role is Role.LAYER for name in plan.layers)
    for name in plan.layers:
        read = [p for p in plan.points if name in p.users and p.tensor == model.nodes[name].inputs[0].name]
        assert len(read) == 1
