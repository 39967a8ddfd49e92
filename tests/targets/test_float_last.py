from dataclasses import replace

import pytest
from graphs import Net, prepared
from plans import code, plan_of

from onnxq.targets import OPENVINO
from onnxq.targets.float_last import FloatLastRule, products
from onnxq.targets.sizes import declared_sizes

# Products of four Convs.
STEM, FINE, MIDDLE, COARSE = 16 * 16 * 3 * 8, 16 * 16 * 8 * 4, 8 * 8 * 8 * 4, 4 * 4 * 8 * 4
ALL = STEM + FINE + MIDDLE + COARSE


def levels(dynamic=False):
    """Three last Convs of 4 channels on 16, 8 and 4 px."""
    net = Net(size=16, dynamic=dynamic)
    x = net.conv("images", 8, name="stem")
    y = net.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    z = net.add("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2])
    outputs = [net.conv(t, 4, name=name) for name, t in (("fine", x), ("middle", y), ("coarse", z))]
    return net.model(*outputs)


def floats(share, model=None, last=("fine", "middle", "coarse")):
    working = prepared(model or levels())
    return FloatLastRule(share).convs(working.graph.nodes, last, declared_sizes(working))


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0, set()),
        (0.999 * COARSE / ALL, set()),
        (1.001 * COARSE / ALL, {"coarse"}),
        (0.999 * (COARSE + MIDDLE) / ALL, {"coarse"}),
        (1.001 * (COARSE + MIDDLE) / ALL, {"coarse", "middle"}),
        (1, {"coarse", "middle", "fine"}),
    ],
)
def test_the_cheapest_last_convs_stay_float_up_to_a_share(share, expected):
    assert floats(share) == expected


def test_other_layers_do_not_stay_float():
    assert floats(1, last=()) == set()


def test_none_stays_float_if_a_size_is_unknown():
    assert floats(1, levels(dynamic=True)) == set()


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda net: net.conv("images", 8, kernel=3, stride=2), 8 * 8 * 8 * 3 * 9),
        (lambda net: net.conv(net.conv("images", 8), 8, group=4, name="grouped"), 16 * 16 * 8 * 2),
    ],
)
def test_products_of_a_conv(build, expected):
    net = Net(size=16)
    model = prepared(net.model(build(net)))
    [*_, conv] = (node for node in model.graph.nodes if node.op == "Conv")
    assert products(conv, declared_sizes(model)) == expected


def test_openvino_keeps_coarse_last_convs_float_unless_they_are_included():
    target = replace(OPENVINO, float_last=FloatLastRule(0.1))
    plan = plan_of(levels(), target)
    assert code(plan, "coarse") == "last-layer"
    assert {"fine", "middle"} <= set(plan.layers)
    assert "coarse" in plan_of(levels(), target, include=("coarse",)).layers
