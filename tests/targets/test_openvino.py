from graphs import csp, planned, v8
from plans import tensors

from onnxq.targets import OPENVINO


def test_pairs_stand_in_front_of_convs_alone():
    model, plan = planned(csp(), OPENVINO)
    assert tensors(plan) == {node.inputs[0].name for node in model.graph.nodes if node.op == "Conv"}
    assert plan.integer == {node.name for node in model.graph.nodes if node.op == "Conv"}


def test_first_and_last_layers_run_on_integers_but_for_the_cheapest_last_ones():
    _, plan = planned(v8(), OPENVINO)
    assert {"conv0", "box0"} <= set(plan.layers)
    assert {plan.skipped[name].code for name in ("cls0", "box1", "cls1", "box2", "cls2")} == {"last-layer"}
