"""Which last layers run on integers, and what stands around them."""

import numpy as np
import pytest
from graphs import Net, v8
from plans import code, plan_of, tensors

from onnxq.targets import OPENVINO, ORT


@pytest.mark.parametrize("kernel", [1, 3])
def test_last_layers_run_on_integers_in_onnxruntime_where_they_can_have_a_float_output(kernel):
    net = Net()
    x = net.block("images", 8)
    plan = plan_of(net.model(net.conv(net.block(x, 8), 4, kernel, name="last")))
    assert ("last" in plan.layers) == ("last_weight" in {w.tensor for w in plan.weights}) == (kernel == 1)
    assert code(plan, "last") == (None if kernel == 1 else "last-layer")
    assert "last_out" not in tensors(plan)


def test_a_silu_before_a_last_layer_stays_float_also_if_its_channels_are_divided():
    def plan(divided):
        net = Net(size=64)
        x = net.conv(net.block("images", 8), 8, name="before")
        y = net.silu(x)
        if divided:
            y = net.add("Mul", y, net.const(np.linspace(1, 2, 8).reshape(8, 1, 1)), name="divide")
            net.channels[y] = 8
        return plan_of(net.model(net.conv(y, 4, name="last")), include=("before",))

    for each in (plan(False), plan(True)):
        assert {"before", "last"} <= set(each.layers)
        assert "before_out" not in tensors(each)
    assert "divide" not in plan(True).integer


@pytest.mark.parametrize("target", [ORT, OPENVINO], ids=lambda t: t.name)
def test_last_layers_run_on_integers_and_have_no_pair_behind(target):
    last = {f"{kind}{k}" for kind in ("box", "cls") for k in range(3)}
    plan = plan_of(v8(), target, include=tuple(last))
    assert last <= set(plan.layers)
    assert not tensors(plan) & {f"{name}_out" for name in last}
