import numpy as np
import pytest
from backbones import recurrent, shared_towers
from graphs import BUILDERS, Net, planned

from onnxq.facts import QuantizedWeight
from onnxq.ir import LAYERS, Model
from onnxq.numerics.scheme import INT8, Scheme
from onnxq.reconstruction.walk import products_of, steps
from onnxq.targets import GENERIC

SCHEME = Scheme(4, INT8, symmetric=True, axis=0)


def order(proto):
    """The steps of a model, all of whose weights are fitted."""
    model = Model(proto)
    layers = [node for node in model.graph.nodes if node.op in LAYERS]
    users = {}
    for node in layers:
        users.setdefault(node.inputs[1].name, []).append(node.name)
    weights = [QuantizedWeight(tensor, SCHEME, tuple(names)) for tensor, names in users.items()]
    return steps(model, [node.name for node in layers], weights)


def test_layers_that_share_a_weight_follow_the_inputs_of_all():
    assert order(shared_towers()) == [
        ("conv0",),
        ("conv1",),
        ("conv2",),
        ("tower0_0", "tower0_1", "tower0_2"),
        ("tower1_0", "tower1_1", "tower1_2"),
        ("last_0",),
        ("last_1",),
        ("last_2",),
    ]


def test_layers_that_read_each_other_are_steps_of_their_own():
    assert order(recurrent()) == [("conv0",), ("step0",), ("step1",), ("step2",), ("last",)]


def test_two_weights_that_alternate_are_steps_of_their_own_and_what_shares_a_weight_behind_is_not():
    net = Net()
    x = "images"
    shared = {name: net.const(net.normal(3, 3, 1, 1), name=name) for name in ("a", "b", "c")}
    for k in range(2):
        x = net.add("Conv", net.add("Conv", x, shared["a"], name=f"a{k}"), shared["b"], name=f"b{k}")
    ends = [net.add("Conv", x, shared["c"], name=f"c{k}") for k in range(2)]
    net.channels.update(dict.fromkeys(ends, 3))
    assert order(net.model(*ends)) == [("a0",), ("b0",), ("a1",), ("b1",), ("c0", "c1")]


@pytest.mark.parametrize("name", BUILDERS)
def test_layers_with_weights_of_their_own_stay_in_their_order(name):
    model, plan = planned(BUILDERS[name](), GENERIC)
    own = [weight for weight in plan.weights if len(weight.users) == 1]
    assert steps(model, plan.layers, own) == [(layer,) for layer in plan.layers]


@pytest.mark.parametrize(
    ("second", "is_fitted"),
    [
        ({"pads": [1] * 4, "strides": [2, 2]}, True),
        ({"pads": [2] * 4, "dilations": [2, 2]}, True),
        ({"pads": [1] * 4, "group": 2}, False),
    ],
    ids=str,
)
def test_users_must_arrange_the_weight_alike(second, is_fitted):
    net = Net()
    data = {group: net.block("images", 4 * group) for group in (1, 2)}
    weight = net.const(net.normal(4, 4, 3, 3), name="weight")
    outputs = [
        net.add("Conv", data[options.get("group", 1)], weight, name=name, **options)
        for name, options in (("one", {"pads": [1] * 4}), ("two", second))
    ]
    net.channels.update(dict.fromkeys(outputs, 4))
    products = products_of(QuantizedWeight("weight", SCHEME, ("one", "two")), Model(net.model(*outputs)).nodes)
    assert list(products) == (["one", "two"] if is_fitted else [])


@pytest.mark.parametrize("flipped", [0, 1])
def test_a_product_of_matrices_and_a_flipped_one_do_not_arrange_it_alike(flipped):
    net = Net()
    rows = net.reshape("images", -1, 16)
    weight = net.const(np.ones((16, 16)), name="weight")
    outputs = [net.add("MatMul", rows, weight, name="one"), net.add("Gemm", rows, weight, name="two", transB=flipped)]
    nodes = Model(net.model(*outputs)).nodes
    found = products_of(QuantizedWeight("weight", SCHEME, ("one", "two")), nodes)
    assert list(found) == ([] if flipped else ["one", "two"])


def test_a_computed_bias_of_one_user_leaves_all_as_they_are():
    net = Net()
    x = net.block("images", 4)
    weight, bias = net.const(np.ones((4, 4, 1, 1)), name="weight"), net.const(np.ones(4), name="bias")
    scale = net.add("ReduceMax", "images", keepdims=0, name="scale")
    outputs = [
        net.add("Conv", x, weight, bias, name="one"),
        net.add("Conv", x, weight, net.add("Mul", bias, scale), name="two"),
    ]
    net.channels.update(dict.fromkeys(outputs, 4))
    nodes = Model(net.model(*outputs)).nodes
    assert products_of(QuantizedWeight("weight", SCHEME, ("one", "two")), nodes) == {}
    assert list(products_of(QuantizedWeight("weight", SCHEME, ("one",)), nodes)) == ["one"]
