from graphs import csp, depthwise_net, planned, products, v8
from plans import code

from onnxq.targets import GENERIC


def test_every_operator_runs_on_integers_up_to_the_output_of_the_model():
    for model, ends in ((csp(), {"last", "sigmoid4", "mul4"}), (depthwise_net(), {"last", "sigmoid3", "mul3"})):
        _, plan = planned(model, GENERIC)
        assert plan.skipped.keys() == ends
        assert code(plan, "last") == "model-output"


def test_products_with_matrices_do_too():
    working, plan = planned(products(), GENERIC)
    layers = {node.name for node in working.graph.nodes if node.op in ("Gemm", "MatMul")}
    assert layers & set(plan.layers)


def test_the_decode_stays_float():
    _, plan = planned(v8(), GENERIC)
    assert {code(plan, name) for name in plan.skipped} == {"decode"}
