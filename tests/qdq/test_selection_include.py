import re

import pytest
from graphs import (
    NARROW_TENSORRT,
    Net,
    csp,
    depthwise_net,
    feed,
    nodes,
    planned,
    quantized,
    relu_net,
    run,
    sqnr,
    v8,
)

from onnxq.api import plan, quantize
from onnxq.config import Config
from onnxq.errors import ConfigError
from onnxq.facts import Plan, Verification
from onnxq.targets import GENERIC, OPENVINO, ORT, TENSORRT

# --- include ----------------------------------------------------------------------------------------------------------


def codes(model, target, **options):
    return {name: reason.code for name, reason in planned(model, target, **options)[1].skipped.items()}


def pairs_around(model, name):
    """Return the operators before a node's data and weight, and after it."""
    node = nodes(model)[name]
    makers = {output: other.op_type for other in model.graph.node for output in other.output}
    behind = [other.op_type for other in model.graph.node if node.output[0] in other.input]
    return [makers.get(tensor) for tensor in node.input[:2]], behind


@pytest.mark.parametrize(
    ("build", "target", "name", "code"),
    [
        (csp, ORT, "conv0", "stem"),
        (depthwise_net, ORT, "conv1", "depthwise"),
        (depthwise_net, OPENVINO, "conv3", "depthwise"),
        (relu_net, NARROW_TENSORRT, "last", "last-layer"),
        (csp, TENSORRT, "conv2", "too-few-channels"),
    ],
    ids=["stem", "depthwise", "depthwise-openvino", "last", "narrow"],
)
def test_a_layer_that_is_float_by_taste_runs_on_integers_if_included(build, target, name, code):
    model = build()
    others = {"include": ["re:^conv[13]$"]} if code == "too-few-channels" else {}
    assert codes(model, target, **others)[name] == code
    include = [*others.get("include", []), name]
    assert name not in codes(model, target, include=include)
    after, facts = quantized(model, target, include=include)
    assert name in facts[Plan].layers
    before, _ = pairs_around(after, name)
    assert before == ["DequantizeLinear", "DequantizeLinear"]


def test_an_included_depthwise_conv_really_runs_on_integers_and_what_that_costs():
    model = depthwise_net()
    feeds = [feed(model, seed) for seed in range(4)]
    plain, included = (quantize(model, feeds, Config(include=names)) for names in ((), ("conv1",)))
    assert set(included.facts[Plan].layers) - set(plain.facts[Plan].layers) == {"conv1"}
    assert included.facts[Verification].unfused == ()
    [before], [one], [more] = (run(m, feed(model)).values() for m in (model, plain.model, included.model))
    assert sqnr(before, more) < sqnr(before, one)
    assert sqnr(before, more) > 30


def test_an_included_node_without_consumers_on_integers_gets_pairs_on_both_sides():
    net = Net()
    x = net.add("Add", net.block("images", 8), net.block("images", 8), name="sum")
    net.channels[x] = 8
    model = net.model(net.conv(net.add("Tanh", x), 4, name="last"))
    assert codes(model, GENERIC)["sum"] == "no-consumer"
    after, _ = quantized(model, GENERIC, include=["sum"])
    assert pairs_around(after, "sum") == (["DequantizeLinear", "DequantizeLinear"], ["QuantizeLinear"])


def test_a_max_pool_of_floats_can_be_included():
    net = Net()
    model = net.model(net.conv(net.block(net.pool(net.add("Tanh", "images")), 8), 4))
    assert codes(model, ORT, include=["conv0"])["maxpool0"] == "float-inputs"
    assert "maxpool0" not in codes(model, ORT, include=["conv0", "maxpool0"])


@pytest.mark.parametrize(
    ("build", "target", "pattern", "message"),
    [
        (v8, ORT, "decode_dfl", "Conv 'decode_dfl' cannot run on integers: decode: after the last layers"),
        (csp, OPENVINO, "op:Mul", "Mul 'mul0' cannot run on integers: no-rule: OpenVINO runs Mul in float"),
        (csp, ORT, "re:mul0", "Mul 'mul0' cannot run on integers: float-producer: its Conv 'conv0' has a float output"),
        (csp, NARROW_TENSORRT, "last", None),
    ],
    ids=["decode", "no-rule", "float-producer", "possible"],
)
def test_what_cannot_run_on_integers_is_refused_with_the_node_and_the_reason(build, target, pattern, message):
    if message is None:
        planned(build(), target, include=[pattern])
        return
    with pytest.raises(ConfigError, match=re.escape(f"--include {pattern}: {message}; leave it out")):
        planned(build(), target, include=[pattern])


def test_a_computed_weight_cannot_be_included():
    net = Net()
    weight = net.add("Tanh", net.const(net.normal(8, 8, 1, 1)))
    weight = net.add("Mul", weight, net.add("GlobalAveragePool", net.conv("images", 8, kernel=1)))
    y = net.add("Conv", net.block("images", 8), weight, name="computed")
    net.channels[y] = 8
    model = net.model(net.conv(y, 4))
    with pytest.raises(ConfigError, match="'computed' cannot run on integers: weight-not-constant"):
        planned(model, OPENVINO, include=["computed"])


def test_a_node_is_not_both_excluded_and_included():
    message = "--exclude re:conv2 and --include conv2 both match node 'conv2'; drop one of them"
    with pytest.raises(ConfigError, match=message):
        planned(csp(), ORT, exclude=["re:conv2"], include=["conv2"])


def test_what_runs_on_integers_anyway_can_be_included():
    assert planned(csp(), GENERIC, include=["conv2", "op:Concat"])[1] == planned(csp(), GENERIC)[1]


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match="--include op:Cnov: no node of the model matches; did you mean Conv"):
        planned(csp(), ORT, include=["op:Cnov"])


def test_config_has_the_option_too():
    chosen, _ = plan(csp(), Config(include=("conv0",)))
    assert "conv0" in chosen.layers
