import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    Net,
    attention,
    conditional,
    copy,
    feed,
    initializers,
    nodes,
    ops,
    rewrite,
    run,
    silu_chain,
    sqnr,
    v8,
    v10,
    with_float16,
)
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir import Model
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.normalize import Normalize
from onnxq.passes.to_float32 import ToFloat32
from onnxq.pipeline import Facts, Pipeline

FLOAT, HALF, WIDE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE


def widened(model):
    """Return a model with inferred types after the pass; a second run makes no edit."""
    working = Model(copy(model))
    Pipeline([Normalize(), InferShapes(), ToFloat32()]).run(working)
    after = working.to_proto()
    onnx.checker.check_model(after, full_check=True)
    assert ToFloat32().run(working, Facts()) == 0
    assert list(after.graph.input) == list(model.graph.input)
    assert list(after.graph.output) == list(model.graph.output)
    return after


def types_within(model):
    """Element types of all tensors but inputs and outputs, as the operators infer them."""
    bare = copy(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True, data_prop=True).graph
    return {v.type.tensor_type.elem_type for v in inferred.value_info} | {w.data_type for w in inferred.initializer}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_float32_graph_is_not_touched(name):
    working = Model(BACKBONES[name]())
    Pipeline([Normalize(), InferShapes()]).run(working)
    assert ToFloat32().run(working, Facts()) == 0


@pytest.mark.parametrize("ends", [True, False], ids=["float16 ends", "float32 ends"])
@pytest.mark.parametrize("build", [silu_chain, attention, v8, v10])
def test_a_float16_graph_computes_in_float32(build, ends):
    plain = build()
    given = with_float16(plain, ends)
    after = widened(given)
    assert HALF not in types_within(after)
    values = feed(plain)["images"]
    expected = run(plain, {"images": values})["output"]
    found = run(after, {"images": values.astype(np.float16 if ends else np.float32)})["output"]
    assert found.dtype == (np.float16 if ends else np.float32)
    assert sqnr(expected[..., :4], found[..., :4].astype(np.float32)) > 45


def test_casts_stand_only_at_float16_ends():
    assert ops(widened(with_float16(silu_chain()))).count("Cast") == 2
    after = widened(with_float16(silu_chain(), ends=False))
    assert [node.output[0] for node in after.graph.node if node.op_type == "Cast"] == ["output"]


def test_a_float16_output_that_is_read_within_is_read_as_float32():
    given = with_float16(silu_chain())
    inner = nodes(given)["conv1"].output[0]
    given.graph.output.append(helper.make_tensor_value_info(inner, HALF, [1, 8, 32, 32]))
    after = widened(given)
    readers = [node.op_type for node in after.graph.node if inner in node.input]
    assert readers == []
    assert run(after)[inner].dtype == np.float16


def test_inputs_and_constants_that_are_outputs_keep_their_type():
    given = with_float16(silu_chain())
    weight = next(w for w in given.graph.initializer if w.name == "conv0_weight")
    given.graph.output.append(helper.make_tensor_value_info(weight.name, HALF, weight.dims))
    given.graph.output.append(helper.make_tensor_value_info("images", HALF, [1, 3, 32, 32]))
    after = widened(given)
    found = run(after)
    assert found["conv0_weight"].dtype == found["images"].dtype == np.float16
    assert np.array_equal(found["conv0_weight"], numpy_helper.to_array(weight))


def test_what_subgraphs_hold_is_widened_too():
    given = with_float16(conditional())
    inside = helper.make_node("Constant", [], ["factor"], value=numpy_helper.from_array(np.float16(0.5)))
    for node in given.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                attribute.g.output[0].type.tensor_type.elem_type = HALF
            if attribute.name == "then_branch":
                made = attribute.g.output[0].name
                attribute.g.node[0].output[0] = "sum"
                attribute.g.node.extend([inside, helper.make_node("Mul", ["sum", "factor"], [made], "half")])
    onnx.checker.check_model(given, full_check=True)
    after = widened(given)
    expected, found = run(given)["output"], run(after)["output"]
    assert sqnr(expected.astype(np.float32), found.astype(np.float32)) > 45


@pytest.mark.parametrize("op", ["ConstantOfShape", "RandomNormal", "Cast"])
def test_types_that_attributes_name_are_widened(op):
    net = Net()
    x = net.block("images", 8)
    if op == "ConstantOfShape":
        filler = numpy_helper.from_array(np.array([0.5], np.float16))
        made = net.add(op, net.ints(1, 8, 32, 32), value=filler)
    elif op == "RandomNormal":
        made = net.add(op, shape=[1, 8, 32, 32], scale=1e-6, dtype=HALF)
    else:
        made = net.add(op, net.add("Cast", x, to=TensorProto.INT32), to=HALF)
    y = net.add("Add", net.add("Cast", x, to=HALF), made)
    y = net.add("Cast", y, to=FLOAT)
    net.channels[y] = 8
    given = net.model(net.conv(y, 4))
    after = widened(given)
    assert HALF not in types_within(after)
    if op != "RandomNormal":
        assert np.allclose(run(given)["output"], run(after)["output"], atol=1e-2)


def test_bfloat16_within_is_widened():
    net = Net()
    x = net.add("Cast", net.block("images", 8), to=TensorProto.BFLOAT16)
    factor = numpy_helper.from_array(np.array([0.3], ml_dtypes.bfloat16), "factor")
    net.weights.append(factor)
    y = net.add("Cast", net.add("Mul", x, "factor"), to=FLOAT)
    net.channels[y] = 8
    after = widened(net.model(net.conv(y, 4)))
    assert types_within(after) == {FLOAT}
    assert initializers(after)["factor"] == np.float32(numpy_helper.to_array(factor)[0])


def test_casts_to_the_type_that_is_there_go_and_others_stay():
    net = Net()
    x = net.add("Cast", net.block("images", 8), to=FLOAT)
    x = net.add("Cast", net.add("Cast", x, to=WIDE, name="wide"), to=FLOAT, name="narrow")
    net.channels[x] = 8
    y = net.add("Cast", net.conv(x, 4), to=FLOAT)
    given = net.model(y)
    after, edits = rewrite(ToFloat32(), onnx.shape_inference.infer_shapes(given))
    assert edits == 1
    assert {"wide", "narrow"} <= nodes(after).keys()
    assert ops(after).count("Cast") == 3
    assert np.array_equal(run(given)["output"], run(after)["output"])


@pytest.mark.parametrize("kind", [np.float64, np.complex64, ml_dtypes.float8_e4m3fn])
def test_weights_of_another_type_are_refused_by_name(kind):
    given = silu_chain()
    weight = given.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).astype(kind), weight.name))
    with pytest.raises(ModelError, match=f"layer 'conv0' has the weight 'conv0_weight' of type {np.dtype(kind)}"):
        rewrite(ToFloat32(), given)
