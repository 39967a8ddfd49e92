from functools import cache

import numpy as np
import onnx
import pytest
from cases import paired
from graphs import (
    BACKBONES,
    DETECTORS,
    NARROW_TENSORRT,
    Net,
    attention,
    csp,
    depthwise_net,
    feed,
    initializers,
    nodes,
    ops,
    pan,
    planned,
    prepared,
    quantized,
    relu_net,
    run,
    sppf,
    sqnr,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from inference import makers, readers

from onnxq.facts import FittedRanges, Plan, QuantizationParameters, QuantizationPoint, QuantizedWeight
from onnxq.ir import Model
from onnxq.numerics.scheme import INT8, UINT8, Range, Scheme
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.pipeline import Facts
from onnxq.targets import OPENVINO, TARGETS, TENSORRT

ALL = {**BACKBONES, **DETECTORS}
PAIR = {"QuantizeLinear", "DequantizeLinear", "Clip"}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def inserted(model, plan, activations, weights):
    """Return the model after the pass, with the given plan and qparams."""
    working = Model(model)
    edits = InsertQdq().run(working, Facts([plan, FittedRanges({}), QuantizationParameters(activations, weights)]))
    RemoveUnused().run(working, Facts())
    return working.to_proto(), edits


@cache
def result(name, target):
    """A network, quantized, and the facts found on the way; not to be edited."""
    return quantized(ALL[name](), TARGETS[target], matmul=False)


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@every_target
@pytest.mark.parametrize("build", [csp, relu_net, depthwise_net, attention])
def test_weights_are_int8_and_biases_float(build, target):
    model = build()
    after, facts = quantized(model, target, matmul=False)
    stored, made_by = initializers(after), makers(after)
    before = initializers(prepared(model).to_proto())
    for name in facts[Plan].layers:
        conv = nodes(after)[name]
        weight = made_by[conv.input[1]]
        assert weight.op_type == "DequantizeLinear"
        original = nodes(model)[name].input[1]
        assert list(weight.input) == [f"{original}_{what}" for what in ("quantized", "scale", "zero_point")]
        integers, scale, zero_point = (stored[t] for t in weight.input)
        assert integers.dtype == zero_point.dtype == np.int8
        assert scale.dtype == np.float32
        axis = next(a.i for a in weight.attribute if a.name == "axis")
        assert scale.shape == zero_point.shape == (integers.shape[axis],)
        assert original not in stored
        parameters = facts[QuantizationParameters]
        assert np.array_equal(scale, parameters.weights[original].scale)
        assert np.array_equal(integers, parameters.quantized(original, before[original]))
        assert np.array_equal(stored[conv.input[2]], before[nodes(model)[name].input[2]])


@every_target
def test_activations_have_one_scale_of_rank_0(target):
    after, facts = quantized(csp(), target)
    stored = initializers(after)
    for point in facts[Plan].points:
        scale, zero_point = (stored[t] for t in nodes(after)[f"{point.tensor}_QuantizeLinear"].input[1:])
        assert scale.shape == zero_point.shape == ()
        assert scale.dtype == np.float32
        assert zero_point.dtype == target.activations[0].dtype
        grid = facts[QuantizationParameters].activations[point.tensor]
        assert (scale, zero_point) == (grid.scale, grid.zero_point)


@pytest.mark.parametrize("build", [sppf, pan, csp])
def test_a_group_shares_its_scale_and_zero_point_named_after_its_first_tensor(build):
    after, facts = quantized(build())
    for group, points in facts[Plan].groups().items():
        for point in points:
            if point.users:
                parameters = nodes(after)[f"{point.tensor}_QuantizeLinear"].input[1:]
                assert list(parameters) == [f"{group}_scale", f"{group}_zero_point"]
    scales = [name for name in initializers(after) if name.endswith("_scale") and initializers(after)[name].ndim == 0]
    assert len(scales) == len(facts[Plan].groups())


def test_a_shared_weight_is_stored_once():
    net = Net()
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 1, 1, scale=0.3), name="weight")
    ends = [net.silu(net.add("Conv", x, weight, name=name)) for name in ("left", "right")]
    y = net.add("Add", *ends)
    net.channels[y] = 8
    after, _ = quantized(net.model(net.conv(net.silu(net.conv(y, 8)), 4)), matmul=False)
    assert nodes(after)["left"].input[1] == nodes(after)["right"].input[1] == "weight_dequantized"
    assert "weight" not in initializers(after)
    assert list(initializers(after)).count("weight_quantized") == 1


def test_a_weight_that_a_float_layer_reads_too_stays_as_it_is_for_that_one():
    net = Net()
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 1, 1, scale=0.3), name="weight")
    left, right = (net.add("Conv", x, weight, name=name) for name in ("left", "right"))
    y = net.add("Add", net.silu(left), net.silu(right))
    net.channels[y] = 8
    model = net.model(net.conv(net.silu(net.conv(y, 8)), 4))
    after, _ = quantized(model, matmul=False, exclude=["left"])
    assert nodes(after)["left"].input[1] == "weight"
    assert nodes(after)["right"].input[1] == "weight_dequantized"
    assert np.array_equal(initializers(after)["weight"], initializers(model)["weight"])


# --- numbers ----------------------------------------------------------------------------------------------------------


def assert_close(model, after):
    """Assert that two models give much the same, on a feed of the calibration and on another one."""
    for seed, least in ((0, 27), (10, 21)):
        values = feed(model, seed)
        one, other = run(model, values), run(after, values)
        assert min(sqnr(one[name], other[name]) for name in one) > least


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target"), paired(sorted(ALL.keys() - {"v5_raw", "v7_end2end", "v10"}), TARGETS))
def test_the_output_is_close_to_that_of_the_float_model(name, target):
    assert_close(ALL[name](), result(name, target)[0])


@pytest.mark.slow
@every_target
@pytest.mark.parametrize("method", ["uh", "mse"])
def test_the_output_is_close_with_other_methods(method, target):
    model = csp()
    assert_close(model, quantized(model, target, method=method, weight_method="mse")[0])


@pytest.mark.parametrize("signed", [False, True], ids=["uint8", "int8"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["asymmetric", "symmetric"])
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.tuples(st.integers(2, 8), st.integers(2, 8)),
    low=st.floats(-2, 0),
    high=st.floats(0.01, 2),
    stride=st.sampled_from([1, 2]),
)
def test_a_single_conv_equals_the_simulation_in_numpy(signed, symmetric, seed, bits, low, high, stride):
    net = Net(seed=seed)
    weight, bias = net.normal(5, 3, 1, 1), net.normal(5)
    y = net.add(
        "Conv", "images", net.const(weight, name="w"), net.const(bias, name="b"), name="c", strides=[stride] * 2
    )
    model = net.model(y)
    scheme = Scheme(bits[0], INT8 if signed else UINT8, symmetric)
    weight_scheme = Scheme(bits[1], INT8, True, 0)
    grid = scheme.qparams(Range(low, high))
    bound = np.abs(weight).reshape(5, -1).max(axis=1).astype(np.float64)
    weight_grid = weight_scheme.qparams(Range(-bound, bound))
    plan = Plan(
        points=(QuantizationPoint("images", scheme, "images", ("c",), ("images",)),),
        weights=(QuantizedWeight("w", weight_scheme, ("c",)),),
        integer=frozenset({"c"}),
        layers=("c",),
        skipped={},
    )
    after, edits = inserted(model, plan, {"images": grid}, {"w": weight_grid})
    assert edits == (3 if bits[0] == 8 else 4)
    span = grid.high - grid.low
    image = np.random.default_rng(seed).uniform(grid.low, grid.high, (1, 3, 32, 32)).astype(np.float32)
    if bits[0] < 8:
        # Without a Clip the container saturates one level lower where the grid is symmetric.
        image += np.float32(span) * np.random.default_rng(seed + 1).normal(0, 0.5, image.shape).astype(np.float32)
    x = grid.dequantize(grid.quantize(image))[:, :, ::stride, ::stride]
    w = weight_grid.dequantize(weight_grid.quantize(weight))[:, :, 0, 0]
    expected = np.einsum("nchw,oc->nohw", x.astype(np.float64), w) + bias.reshape(1, 5, 1, 1)
    actual = run(after, {"images": image})["output"]
    assert np.abs(actual - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


@every_target
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_what_a_pair_gives_is_exactly_what_the_grid_gives(bits, target):
    model = csp()
    target = NARROW_TENSORRT if target is TENSORRT else target
    widest = target.activations[0]
    act_bits = bits if widest in target.clips else widest.bits
    after, facts = quantized(model, target, act_bits=act_bits, weight_bits=bits)
    points = [p for p in facts[Plan].points if p.users]
    # Much larger values than those of the calibration: the ends of the grids are put to the test.
    values = {"images": feed(model)["images"] * 4 - 1}
    wanted = [p.tensor for p in points if p.tensor != "images"]
    floats = {**run(after, values, outputs=wanted), **values}
    given_ones = run(after, values, outputs=[f"{p.tensor}_dequantized" for p in points])
    clipped = 0
    for point in points:
        grid = facts[QuantizationParameters].activations[point.tensor]
        expected = grid.dequantize(grid.quantize(floats[point.tensor]))
        actual = given_ones[f"{point.tensor}_dequantized"]
        if grid.scheme.symmetric and grid.scheme.bits == 8:
            # The container has a level more than the grid, below it.
            actual = np.maximum(actual, grid.low)
        assert np.array_equal(actual, expected), point.tensor
        clipped += int((floats[point.tensor] > grid.high).sum())
    assert clipped > 100


@pytest.mark.parametrize(("bits", "clips"), [(8, 0), (6, 6), (4, 6)])
def test_narrow_grids_pass_through_a_clip_of_the_integers(bits, clips):
    after, facts = quantized(pan(), act_bits=bits)
    found = [node for node in after.graph.node if node.op_type == "Clip"]
    narrow = [p for p in facts[Plan].points if p.scheme.bits < 8]
    assert len(found) == len(narrow) == clips
    for node, point in zip(found, narrow):
        assert node.name == f"{point.tensor}_Clip"
        assert list(node.input) == [f"{point.tensor}_quantized", f"{point.group}_qmin", f"{point.group}_qmax"]
        assert initializers(after)[node.input[2]] == 2**bits - 1
        assert initializers(after)[node.input[1]] == 0
        assert readers(after, node.output[0])[0].name == f"{point.tensor}_DequantizeLinear"


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7])
def test_narrow_weights_use_only_their_levels(bits):
    after, facts = quantized(csp(), OPENVINO, weight_bits=bits)
    for weight in facts[Plan].weights:
        stored = initializers(after)[f"{weight.tensor}_quantized"]
        assert stored.dtype == np.int8
        assert np.abs(stored.astype(int)).max() == 2 ** (weight.scheme.bits - 1) - 1
    assert {w.scheme.bits for w in facts[Plan].weights} == {8, bits}


def test_tensors_named_like_the_limits_of_another_do_not_mix_with_them():
    net = Net()
    x = net.block("images", 8)
    net.add("Conv", x, net.const(net.normal(8, 8, 1, 1)), name="named")
    net.nodes[-1].output[0] = "x"
    net.add("LeakyRelu", "x", alpha=0.5)
    net.nodes[-1].output[0] = "x_limits"
    net.channels["x_limits"] = 8
    model = net.model(net.conv(net.block("x_limits", 8), 4))
    after, facts = quantized(model, act_bits=5)
    assert {"x", "x_limits"} <= {p.tensor for p in facts[Plan].points}
    onnx.checker.check_model(after, full_check=True)
    assert sqnr(run(model)["output"], run(after)["output"]) > 10


def test_planning_alone_does_not_touch_the_model():
    model, plan = planned(csp())
    assert plan.points
    assert not PAIR & set(ops(model.to_proto()))


@every_target
def test_an_output_that_is_a_copy_of_a_tensor_stays_what_it_is(target):
    net = Net()
    x = net.block("images", 32)
    copies = [net.add("Identity", "images"), net.add("Identity", x)]
    after, _ = quantized(net.model(net.conv(net.block(x, 32), 4), *copies), target)
    made_by = {output: node for node in after.graph.node for output in node.output}
    assert [made_by[name].input[0] for name in [output.name for output in after.graph.output][1:]] == ["images", x]
