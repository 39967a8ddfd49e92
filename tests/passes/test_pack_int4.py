import numpy as np
import pytest
from graphs import (
    assert_untouched,
    attention,
    copy,
    csp,
    depthwise_net,
    feed,
    initializers,
    nodes,
    ops,
    pan,
    quantized,
    rewrite,
    rewrite_checked,
    run,
    shared_weights,
    v8,
    with_metadata,
)
from onnx import TensorProto, helper, numpy_helper

from onnxq.facts import Plan
from onnxq.ir import Model
from onnxq.passes.pack_int4 import MIN_OPSET, PackInt4
from onnxq.runtime import RUNTIMES
from onnxq.targets import GENERIC, OPENVINO, ORT


def narrow(model, target=ORT, bits=4, **options):
    """A quantized model with weights of these bits, and its facts."""
    return quantized(model, target, weight_bits=bits, **options)


def stored(model):
    """The initializers by name, as they are stored."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def packed(model):
    """Names of the int4 initializers."""
    return [tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT4]


def dequantizing(values, dtype=np.int8, zero_point=True, readers=1):
    """A model that adds to its input what DequantizeLinears make of the initializer `w`."""
    values = np.asarray(values, dtype)
    weights = {"w": values, "scale": np.float32(0.5), "zero": np.zeros((), dtype)}
    made, x = [], "images"
    for k in range(readers):
        inputs = ["w", "scale", *(["zero"] if zero_point else [])]
        made.append(helper.make_node("DequantizeLinear", inputs, [f"d{k}"], f"dequantize{k}"))
        made.append(helper.make_node("Add", [x, f"d{k}"], [f"a{k}" if k < readers - 1 else "output"], f"add{k}"))
        x = f"a{k}"
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, values.shape)
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, values.shape)
    constants = [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items() if zero_point or k != "zero"]
    graph = helper.make_graph(made, "net", [image], [output], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", MIN_OPSET)], ir_version=8)


# --- what stays as it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [5, 8])
def test_wider_weights_stay(bits, caplog):
    assert_untouched(PackInt4(), narrow(csp(opset=MIN_OPSET), bits=bits)[0])
    assert "no weight fits in 4 bits" in caplog.text


def test_a_float_model_stays():
    assert_untouched(PackInt4(), v8(opset=MIN_OPSET))


@pytest.mark.parametrize("values", [[-9, 0], [8, 0], [127, -128]])
def test_one_integer_beyond_4_bits_keeps_the_weight(values):
    assert_untouched(PackInt4(), dequantizing(values))


def test_other_integers_stay():
    assert_untouched(PackInt4(), dequantizing([0, 7], np.uint8))
    assert_untouched(PackInt4(), dequantizing([0, 7], np.int32, zero_point=False))


# --- what is packed ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda t: t.name)
@pytest.mark.parametrize("build", [csp, pan, attention, depthwise_net, shared_weights, v8], ids=lambda b: b.__name__)
def test_weights_of_4_bits_are_packed_and_compute_the_same(build, target):
    before, _ = narrow(build(opset=MIN_OPSET), target)
    after, edits = rewrite_checked(PackInt4(), before)
    assert edits == len(packed(after)) == ops(after).count("Cast") - ops(before).count("Cast") > 0
    for optimized in (False, True):
        values = feed(before)
        expected, found = run(before, values, optimized=optimized), run(after, values, optimized=optimized)
        assert all(np.array_equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_integers_are_those_of_before(bits):
    before, facts = narrow(csp(opset=MIN_OPSET), bits=bits)
    after, edits = rewrite_checked(PackInt4(), before)
    old, new = stored(before), stored(after)
    casts = {n.input[0]: n.output[0] for n in after.graph.node if n.op_type == "Cast"}
    assert edits == len(casts) == sum(weight.scheme.bits == bits for weight in facts[Plan].weights)
    for name in packed(after):
        assert name == f"{casts[name]}_packed"
        assert list(new[name].dims) == list(old[casts[name]].dims)
        values = numpy_helper.to_array(old[casts[name]])
        assert np.array_equal(numpy_helper.to_array(new[name]).astype(np.int8), values)
        assert len(new[name].raw_data) == (values.size + 1) // 2
    kept = old.keys() & new.keys()
    assert len(kept) == len(old) - edits
    assert all(old[name] == new[name] for name in kept)


def test_other_nodes_stay_as_they_are(caplog):
    before, _ = narrow(csp(opset=MIN_OPSET))
    after, _ = rewrite(PackInt4(), before)
    assert not caplog.records
    assert [node for node in after.graph.node if node.op_type != "Cast"] == list(before.graph.node)
    for cast in (node for node in after.graph.node if node.op_type == "Cast"):
        assert helper.get_node_attr_value(cast, "to") == TensorProto.INT8


@pytest.mark.parametrize(
    ("values", "raw"),
    [
        ([1, -2], b"\xe1"),
        ([1, -2, 7], b"\xe1\x07"),
        ([-8], b"\x08"),
        ([[-1, 0, 3], [-8, 7, -7], [2, 5, -4]], b"\x0f\x83\x97\x52\x0c"),
    ],
)
def test_the_lower_half_of_a_byte_comes_first_and_a_half_left_over_is_0(values, raw):
    after, edits = rewrite_checked(PackInt4(), dequantizing(values))
    assert edits == 1
    tensor = stored(after)["w_packed"]
    assert (tensor.data_type, tensor.raw_data) == (TensorProto.INT4, raw)
    assert np.array_equal(numpy_helper.to_array(tensor).astype(np.int8), values)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 3, 3), (9, 7, 3, 3), (16, 8, 1, 1)], ids=str)
def test_of_any_shape(shape):
    values = np.random.default_rng(0).integers(-8, 8, shape)
    after, _ = rewrite_checked(PackInt4(), dequantizing(values))
    assert np.array_equal(numpy_helper.to_array(stored(after)["w_packed"]).astype(np.int8), values)


def test_what_several_read_is_packed_once():
    after, edits = rewrite_checked(PackInt4(), dequantizing([1, -2, 3], readers=2))
    assert edits == 1
    assert ops(after) == ["Cast", "DequantizeLinear", "Add", "DequantizeLinear", "Add"]


def test_names_that_are_taken_are_left_alone():
    model = dequantizing([1, 2])
    nodes(model)["add0"].name = "w_Cast"
    model.graph.initializer.append(numpy_helper.from_array(np.float32([1, 1]), "w_packed"))
    model.graph.node.append(helper.make_node("Mul", ["output", "w_packed"], ["more"], "mul"))
    model.graph.output.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [2]))
    after, _ = rewrite_checked(PackInt4(), model)
    assert packed(after) == ["w_packed_2"]
    assert initializers(after)["w_packed"].dtype == np.float32
    assert "w_Cast_2" in nodes(after)


def test_the_file_is_smaller_and_its_ir_version_knows_int4():
    before, _ = narrow(v8(opset=MIN_OPSET))
    after, _ = rewrite(PackInt4(), before)
    values = sum(numpy_helper.to_array(stored(after)[name]).size for name in packed(after))
    per_weight = 250  # a Cast and its names
    assert after.ByteSize() <= before.ByteSize() - values // 2 + per_weight * len(packed(after))
    assert before.ir_version == 8
    assert after.ir_version == 10
    newer = copy(before)
    newer.ir_version = 11
    assert rewrite(PackInt4(), newer)[0].ir_version == 11


def test_metadata_and_doc_strings_stay():
    before = with_metadata(narrow(csp(opset=MIN_OPSET))[0])
    nodes(before)["conv1"].doc_string = "seen"
    after, _ = rewrite(PackInt4(), before)
    assert after.metadata_props == before.metadata_props
    assert nodes(after)["conv1"].doc_string == "seen"


def test_the_packed_model_can_be_edited_further():
    before, _ = narrow(csp(opset=MIN_OPSET))
    working = Model(before)
    PackInt4().run(working, None)
    once = working.to_proto()
    working.graph.cleanup().toposort()
    assert stored(working.to_proto()) == stored(once)


# --- what the runtimes make of it -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
@pytest.mark.parametrize("target", [ORT, OPENVINO, GENERIC], ids=lambda t: t.name)
def test_layers_run_on_the_same_integers(target, runtime):
    if not runtime.is_installed():
        pytest.skip(f"{runtime.title} is not installed")
    before, facts = narrow(csp(opset=MIN_OPSET), target)
    after, _ = rewrite(PackInt4(), before)
    one, other = runtime(before), runtime(after)
    layers = facts[Plan].layers
    assert other.integer_layers(after, layers) == one.integer_layers(before, layers)
    values = feed(before)
    expected, found = one.run(values), other.run(values)
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_onnxruntime_folds_the_casts():
    after, _ = rewrite(PackInt4(), narrow(csp(opset=MIN_OPSET))[0])
    times = RUNTIMES["ort"].operator_times(after, feed(after), rounds=1)
    assert "Cast" not in times
    assert {"QLinearConv", "QGemm"} <= times.keys()
