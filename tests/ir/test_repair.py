import numpy as np
import onnx
import pytest
from graphs import DETECTORS, Net, copy, initializers, nodes, ops, run, silu_chain, v8, with_node_names
from onnx import TensorProto, helper, numpy_helper, parser, shape_inference
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from onnxq.errors import ModelError
from onnxq.ir.repair import repair

SILU = '<ir_version: 8, opset_import: ["": 17, "local": 1]>'
FUNCTIONS = parser.parse_model(
    f"""{SILU} net (float[1,3,4,4] images) => (float[1,3,4,4] output)
    {{ x = local.silu(images) output = local.silu(x) }}
    <domain: "local", opset_import: ["": 17]> silu (a) => (b) {{ gate = Sigmoid(a) b = Mul(a, gate) }}"""
)


def checked(model):
    """Return the repaired model: valid, same numbers, nothing left to repair; the original is unchanged."""
    before = copy(model)
    after = repair(model)
    assert model == before
    assert after != model
    onnx.checker.check_model(after, full_check=True)
    assert repair(after) is after
    return after


def sparse(values, flat):
    values = np.asarray(values, np.float32)
    indices = np.flatnonzero(values) if flat else np.argwhere(values)
    stored = numpy_helper.from_array(values[values != 0], "sparse")
    return helper.make_sparse_tensor(stored, numpy_helper.from_array(indices.astype(np.int64), "places"), values.shape)


@pytest.mark.parametrize("name", DETECTORS)
def test_what_needs_no_mending_is_given_back_itself(name):
    model = DETECTORS[name]()
    assert repair(model) is model


def test_functions_are_inlined():
    after = checked(FUNCTIONS)
    assert ops(after) == ["Sigmoid", "Mul"] * 2
    assert not after.functions
    assert np.array_equal(run(FUNCTIONS)["output"], run(after)["output"])


def test_a_graph_gets_a_name():
    model = copy(silu_chain())
    model.graph.name = ""
    assert checked(model).graph.name


def test_of_nodes_of_one_name_the_first_keeps_it():
    model = with_node_names(silu_chain(), ["a", "b", "a", "b", "c"])
    after = checked(model)
    assert [node.name for node in after.graph.node][:6] == ["a", "b", "", "", "c", ""]
    run(after)


def test_of_metadata_entries_of_one_key_the_last_stays():
    model = silu_chain()
    for value in ("a", "b"):
        model.metadata_props.add(key="twice", value=value)
    model.metadata_props.add(key="once", value="c")
    after = repair(model)
    assert [(entry.key, entry.value) for entry in after.metadata_props] == [("twice", "b"), ("once", "c")]
    onnx.checker.check_model(after, full_check=True)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)


@pytest.mark.parametrize(("given", "opset", "expected"), [(99, 17, 10), (13, 23, 11), (10, 17, None), (6, 13, None)])
def test_a_needlessly_new_ir_version_is_lowered(given, opset, expected):
    model = silu_chain(opset=13)
    model.ir_version, model.opset_import[0].version = given, opset
    if expected is None:
        assert repair(model) is model
    else:
        assert checked(model).ir_version == expected


def test_operator_domains_that_are_not_listed_are():
    model = copy(silu_chain())
    model.graph.node.append(helper.make_node("Sort", ["output"], ["sorted"], domain="b.c"))
    model.graph.node.append(helper.make_node("Sort", ["output"], ["sorted2"], domain="a"))
    assert [(entry.domain, entry.version) for entry in checked(model).opset_import][1:] == [("a", 1), ("b.c", 1)]


@pytest.mark.parametrize("flat", [True, False], ids=["flat indices", "an index per axis"])
@pytest.mark.parametrize("kind", ["initializer", "Constant"])
def test_sparse_tensors_are_written_out(kind, flat):
    net = Net()
    x = net.block("images", 8)
    y = net.add("Mul", x, "sparse")
    values = np.zeros((1, 8, 1, 1), np.float32)
    values[0, [1, 6], 0, 0] = 2, -3
    dense = numpy_helper.from_array(values, "sparse")
    net.weights.append(dense)
    net.channels[y] = 8
    expected = net.model(net.conv(y, 4))
    model = copy(expected)
    model.graph.initializer.remove(dense)
    if kind == "initializer":
        model.graph.sparse_initializer.append(sparse(values, flat))
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["sparse"], sparse_value=sparse(values, flat)))
    after = checked(model)
    assert np.array_equal(run(expected)["output"], run(after)["output"])
    if kind == "initializer":
        assert np.array_equal(initializers(after)["sparse"], values)


def test_empty_lists_are_left_out():
    squeeze = helper.make_node("Transpose", ["a"], ["b"])
    constant = helper.make_node("Constant", [], ["a"])
    for node, name in ((squeeze, "perm"), (constant, "value_floats")):
        kind = onnx.AttributeProto.INTS if name == "perm" else onnx.AttributeProto.FLOATS
        node.attribute.append(onnx.AttributeProto(name=name, type=kind))
    output = helper.make_tensor_value_info("b", TensorProto.FLOAT, [0])
    graph = helper.make_graph([constant, squeeze], "g", [], [output])
    after = checked(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [[a.name for a in node.attribute] for node in after.graph.node] == [["value"], []]
    assert run(after)["b"].shape == (0,)


@pytest.mark.parametrize("field", ["sparse_initializer", "initializer", "node", "input"])
def test_malformed_models_are_refused(field):
    model = copy(silu_chain())
    part = getattr(model.graph, field)
    if field == "sparse_initializer":
        part.append(sparse([1, 0, 2], flat=True))
        part[0].dims[:] = [1]
    elif field == "initializer":
        part[0].dims[0] += 1
    elif field == "node":
        part[0].input[0] = "nowhere"
    else:
        part[0].type.tensor_type.elem_type = 99
    with pytest.raises(ModelError, match=r"; export the model again|does not know"):
        repair(model)


def test_nodes_are_put_in_order():
    model, expected = copy(v8()), v8()
    backwards = onnx.GraphProto(node=list(reversed(model.graph.node)))
    del model.graph.node[:]
    model.graph.node.extend(backwards.node)
    after = checked(model)
    assert np.array_equal(run(expected)["output"], run(after)["output"])
    assert nodes(after).keys() == nodes(expected).keys()


def test_a_node_that_depends_on_itself_is_refused():
    model = copy(silu_chain())
    model.graph.node[0].input[0] = "conv2_out"
    with pytest.raises(ModelError, match=r"node '.+' \(.+\) depends on itself"):
        repair(model)


def test_a_size_of_minus_one_is_not_known():
    model = copy(silu_chain())
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = -1
    after = checked(model)
    assert [d.WhichOneof("value") for d in after.graph.input[0].type.tensor_type.shape.dim][:2] == [None, "dim_value"]


@pytest.mark.parametrize("field", ["type", "shape"])
def test_outputs_are_declared(field):
    expected = v8()
    model = copy(expected)
    output = model.graph.output[0]
    (output if field == "type" else output.type.tensor_type).ClearField(field)
    assert checked(model).graph.output == expected.graph.output


def test_tensors_of_float16_models_that_are_said_to_be_of_another_type_are_described_no_more():
    net = Net()
    x = net.add("Cast", "images", to=TensorProto.FLOAT16)
    x = net.add("Cast", net.add("Relu", net.add("Cast", x, to=TensorProto.FLOAT)), to=TensorProto.FLOAT16)
    model = shape_inference.infer_shapes(net.model(x, types={x: TensorProto.FLOAT16}))
    wrong = next(value for value in model.graph.value_info if value.name == "relu0_out")
    wrong.type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(Fail):
        run(model)
    made = repair(model)
    assert {v.name for v in model.graph.value_info} - {v.name for v in made.graph.value_info} == {"relu0_out"}
    assert run(made)["output"].dtype == np.float16


@pytest.mark.parametrize(
    ("domain", "op"), [("com.microsoft", "FusedConv"), ("com.microsoft", "QuickGelu"), ("com.microsoft.nchwc", "Conv")]
)
def test_what_onnxruntime_made_of_a_model_is_refused(domain, op):
    model = copy(silu_chain())
    model.graph.node[0].domain, model.graph.node[0].op_type = domain, op
    with pytest.raises(ModelError, match=f"node 'conv0' is a {op} of {domain}: onnxruntime saved this graph"):
        repair(model)


@pytest.mark.parametrize(
    ("version", "message"), [(0, "states no operator set"), (99, r"opset 99, and .+ up to \d+; export it")]
)
def test_an_unknown_operator_set_is_refused(version, message):
    model = copy(silu_chain())
    model.opset_import[0].version = version
    with pytest.raises(ModelError, match=message):
        repair(model)
    del model.opset_import[:]
    with pytest.raises(ModelError, match="states no operator set"):
        repair(model)


def test_an_output_without_a_type_that_is_found_to_be_no_tensor():
    model = silu_chain()
    model.graph.node.append(helper.make_node("SequenceConstruct", [model.graph.output[0].name], ["listed"]))
    model.graph.output.add(name="listed")
    with pytest.raises(ModelError, match=r"^the output 'listed' is no tensor but of type sequence"):
        repair(model)
