from graphs import csp, nodes, planned, quantized, v8
from plans import code, tensors

from onnxq.targets import ORT


def test_silu_has_pairs_on_all_sides_but_behind_a_float_conv():
    _, plan = planned(csp(), ORT)
    assert {"conv1_out", "sigmoid1_out", "mul1_out"} <= tensors(plan)
    assert not {"conv0_out", "sigmoid0_out", "conv4_out"} & tensors(plan)


def test_the_image_stays_float_and_so_does_the_stem():
    _, plan = planned(v8(), ORT)
    assert code(plan, "conv0") == "stem"
    assert "images" not in tensors(plan)


def test_last_1x1_convs_become_products():
    after, _ = quantized(v8(), ORT)
    assert nodes(after)["box0"].op_type == "Gemm"
