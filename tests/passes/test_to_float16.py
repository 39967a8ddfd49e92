import numpy as np
import onnx
import pytest
from graphs import (
    DETECTORS,
    NARROW_TENSORRT,
    Net,
    attention,
    conditional,
    csp,
    initializers,
    nodes,
    ops,
    pan,
    preparing,
    quantized,
    run,
    sqnr,
)
from graphs import feed as feed_of
from onnx import TensorProto, helper, version_converter

from onnxq.facts import DecodeBoundary
from onnxq.ir import Model
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.to_float16 import MIN_OPSET, ToFloat16
from onnxq.pipeline import Pipeline

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16


def modern(model):
    """The model in the operator set that has float16 scales."""
    if model.opset_import[0].version >= MIN_OPSET:
        return model
    converted = version_converter.convert_version(model, MIN_OPSET)
    converted.ir_version = 9
    return converted


def halved(model, prepare=True):
    """Return the float model before the pass, the model after it, the edits and the decode's nodes."""
    working = Model(modern(model))
    facts = Pipeline([*(preparing() if prepare else []), FindDecode()]).run(working)
    before = working.to_proto()
    edits = ToFloat16().run(working, facts)
    after = working.to_proto()
    onnx.checker.check_model(after, full_check=True)
    assert ToFloat16().run(working, facts) == 0
    return before, after, edits, facts[DecodeBoundary].tail


def types(model):
    """Element type of every tensor, as the operators infer it."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    graph = inferred.graph
    values = [*graph.value_info, *graph.input, *graph.output]
    return {v.name: v.type.tensor_type.elem_type for v in values} | {w.name: w.data_type for w in graph.initializer}


def assert_close(before, after, least=35):
    """Assert that outputs have the same types and differ by no more than float16 does."""
    assert list(before.graph.input) == list(after.graph.input)
    assert list(before.graph.output) == list(after.graph.output)
    values = feed_of(before)
    expected, found = run(before, values), run(after, values)
    assert all(found[name].dtype == expected[name].dtype for name in expected)
    floats = [name for name in expected if expected[name].dtype == np.float32]
    assert floats
    assert all(sqnr(expected[name], found[name] + 1e-12) > least for name in floats)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_halved_up_to_its_decode(name):
    before, after, edits, tail = halved(DETECTORS[name]())
    kind = types(after)
    for node in after.graph.node:
        if node.op_type == "Cast" and node.name not in nodes(before):
            continue
        made = {kind[t] for t in node.output if t and kind.get(t) in (FLOAT, HALF)}
        assert made <= ({FLOAT} if node.name in tail else {HALF})
    assert edits >= ops(before).count("Conv") - 1  # but for the Conv of a decode
    if name != "v7_end2end":  # which gives numbers of boxes alone
        assert_close(before, after)


def test_there_is_one_cast_for_each_tensor_at_a_border():
    before, after, _, tail = halved(DETECTORS["v8"]())
    casts = [n for n in after.graph.node if n.op_type == "Cast"]
    assert len({n.input[0] for n in casts}) == len(casts)
    last = {t for node in before.graph.node if node.name in tail for t in node.input}
    made_before = {t for node in before.graph.node if node.name not in tail for t in node.output}
    assert sorted(n.output[0] for n in casts) == sorted(["images_half", *(last & made_before)])


@pytest.mark.parametrize("build", [csp, pan, attention])
def test_a_quantized_model_keeps_its_integers(build):
    before, facts = quantized(modern(build()), NARROW_TENSORRT, half=True)
    working = Model(before)
    assert ToFloat16().run(working, facts) > 0
    after = working.to_proto()
    onnx.checker.check_model(after, full_check=True)
    stored, now = initializers(before), initializers(after)
    assert {k: v.tobytes() for k, v in stored.items() if v.dtype == np.int8} == {
        k: v.tobytes() for k, v in now.items() if v.dtype == np.int8
    }
    kind = types(after)
    for one, other in zip(
        (n for n in before.graph.node if n.op_type.endswith("izeLinear")),
        (n for n in after.graph.node if n.op_type.endswith("izeLinear")),
        strict=True,
    ):
        assert now[other.input[1]].dtype == np.float16
        assert np.array_equal(now[other.input[1]].astype(np.float32), stored[one.input[1]])
        assert kind[other.input[0] if other.op_type == "QuantizeLinear" else other.output[0]] == HALF
    assert_close(before, after, least=20)  # a value of float16 may round to the next integer


def test_outputs_within_the_body_stay_float32():
    net = Net()
    x = net.block("images", 8)
    model = net.model(x, net.conv(x, 4, name="last"))
    before, after, edits, _ = halved(model)
    assert edits == len(before.graph.node)
    assert_close(before, after)


def test_a_subgraph_reads_float32():
    before, after, _, _ = halved(conditional())
    assert nodes(after)["images_half_Cast"].op_type == "Cast"
    assert_close(before, after)


def test_what_float16_cannot_hold_stays_float32():
    net = Net()
    x = net.add("Mul", net.block("images", 8), net.const(1e5), name="large")
    net.channels[x] = 8
    y = net.add("Mul", x, net.const(1e-5), name="small")
    net.channels[y] = 8
    _, after, _, _ = halved(net.model(net.conv(y, 4, name="last")))
    kind = types(after)
    assert kind[nodes(after)["large"].output[0]] == FLOAT
    assert kind[nodes(after)["small"].output[0]] == HALF
    infinite = np.float32("-inf")
    net = Net()
    x = net.add("Max", net.block("images", 8), net.const(infinite), name="masked")
    net.channels[x] = 8
    _, after, _, _ = halved(net.model(net.conv(x, 4, name="last")))
    assert types(after)[nodes(after)["masked"].output[0]] == HALF


def test_the_scales_of_a_resize_stay_float32():
    before, after, _, _ = halved(pan())
    resize = next(n for n in after.graph.node if n.op_type == "Resize")
    kind = types(after)
    assert kind[resize.input[0]] == kind[resize.output[0]] == HALF
    assert kind[resize.input[2]] == FLOAT
    assert_close(before, after)


def test_a_constant_that_the_decode_reads_too_is_there_in_both_types():
    net = Net()
    both = net.const(0.5, name="both")
    x = net.add("Mul", net.block("images", 8), both, name="body")
    net.channels[x] = 8
    _, after, _, _ = halved(net.model(net.add("Mul", net.add("Sigmoid", net.conv(x, 4, name="last")), both)))
    assert initializers(after)["both"].dtype == np.float32
    assert initializers(after)[nodes(after)["body"].input[1]].dtype == np.float16


def test_operators_of_other_domains_stay_float32():
    net = Net()
    x = net.add("Softplus", net.block("images", 8), name="foreign")
    net.channels[x] = 8
    model = modern(net.model(net.conv(x, 4, name="last")))
    nodes(model)["foreign"].op_type, nodes(model)["foreign"].domain = "QuickGelu", "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    before, after, _, _ = halved(model)
    assert nodes(after)["foreign"].input[0] in {n.output[0] for n in after.graph.node if n.op_type == "Cast"}
    assert_close(before, after)


def test_a_float16_input_is_read_as_such():
    model = modern(csp())
    model.graph.input[0].type.tensor_type.elem_type = HALF
    for node in model.graph.node:
        node.input[:] = ["wide" if name == "images" else name for name in node.input]
    model.graph.node.insert(0, helper.make_node("Cast", ["images"], ["wide"], "widen", to=FLOAT))
    _, after, edits, _ = halved(model)
    assert edits > 0
    assert "widen" not in [node.name for node in after.graph.node if node.output[0] in nodes(after)["conv0"].input]
    assert nodes(after)["conv0"].input[0] == "images"
