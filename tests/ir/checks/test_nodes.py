import onnx
import pytest
from graphs import csp, v5_raw, v8
from onnx import AttributeProto, TensorProto, helper

from onnxq.errors import ModelError
from onnxq.ir.checks.nodes import check_nodes, check_tensor_values, check_texts, check_values

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)


def model(*nodes, outputs=(Y,), opset=17):
    graph = helper.make_graph(list(nodes), "g", [X], list(outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def node(op, inputs, outputs=("y",), **attributes):
    return helper.make_node(op, inputs, list(outputs), "n", **attributes)


@pytest.mark.parametrize("make", [v8, csp, v5_raw])
def test_sound_models(make):
    check_nodes(make())
    check_values(make().graph)


@pytest.mark.parametrize("version", [-1, 0, 99, 2**62])
def test_any_version_of_the_operators(version):
    check_nodes(model(node("Relu", ["x"]), opset=version))


@pytest.mark.parametrize(
    "sound",
    [
        node("Relu", ["x"], unknown=3),
        node("Nonsense", ["x", "x"], ("y", "z")),
        node("Clip", ["x", "", ""]),
        node("Dropout", ["x"], ("y", "")),
        node("Concat", ["x"] * 50, axis=1),
        helper.make_node("DecodeImage", ["x"], ["y"], domain="ai.onnx.contrib", mode=3),
    ],
)
def test_what_an_exporter_may_write(sound):
    check_nodes(model(sound))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (node("Relu", ["nowhere"]), r"node 'n' \(Relu\) reads 'nowhere', which no node makes"),
        (node("Relu", []), r"node 'n' \(Relu\) has 0 inputs instead of 1"),
        (node("Concat", [], axis=1), r"node 'n' \(Concat\) has 0 inputs instead of 1 or more"),
        (node("Conv", ["x"]), r"node 'n' \(Conv\) has 1 inputs instead of 2 to 3"),
        (node("Conv", ["x", ""]), r"node 'n' \(Conv\) leaves out its input W"),
        (node("Relu", ["x"], ("y", "z")), r"node 'n' \(Relu\) has 2 outputs instead of 1"),
        (node("Concat", ["x"]), r"node 'n' \(Concat\) has no attribute 'axis'"),
        (node("Concat", ["x"], axis=1.5), r"the attribute 'axis' of node 'n' \(Concat\) is no INT"),
        (node("Transpose", ["x"], perm=1), r"the attribute 'perm' of node 'n' \(Transpose\) is no INTS"),
        (node("Relu", ["x"], ("",)), "no node makes the output 'y'"),
    ],
)
def test_malformed_ones_are_named(wrong, message):
    with pytest.raises(ModelError, match=f"^{message}; export the model again$"):
        check_nodes(model(wrong))


def test_two_nodes_with_one_output():
    with pytest.raises(ModelError, match=r"node 'n' \(Sigmoid\) makes 'y', and so does another node"):
        check_nodes(model(node("Relu", ["x"]), node("Sigmoid", ["x"])))


def test_an_attribute_twice():
    wrong = node("Concat", ["x"], axis=1)
    wrong.attribute.append(wrong.attribute[0])
    with pytest.raises(ModelError, match=r"node 'n' \(Concat\) has the attribute 'axis' twice"):
        check_nodes(model(wrong))


@pytest.mark.parametrize("value", [b"\xff", [b"a", b"\xff"]])
@pytest.mark.parametrize("op", ["Conv", "Nonsense"])
def test_an_attribute_that_is_not_utf_8(op, value):
    wrong = node(op, ["x", "x"], more=value)
    with pytest.raises(ModelError, match=r"^the attribute '\w+' of node 'n' \(\w+\) is not UTF-8; export the model"):
        check_nodes(model(wrong))


@pytest.mark.parametrize("op", ["Constant", "Nonsense"])
def test_an_attribute_without_a_value(op):
    wrong = node(op, [])
    wrong.attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR))
    with pytest.raises(ModelError, match=r"the attribute 'value' of .* has no value"):
        check_nodes(model(wrong))


def test_subgraphs_see_what_is_around_them():
    def branch(name):
        return helper.make_graph([helper.make_node("Relu", [name], ["r"], "inner")], "b", [], [Y.__class__(name="r")])

    condition = helper.make_node("Constant", [], ["c"], value_int=1)
    check_nodes(model(condition, node("If", ["c"], then_branch=branch("x"), else_branch=branch("x"))))
    with pytest.raises(ModelError, match=r"node 'inner' \(Relu\) reads 'nowhere'"):
        check_nodes(model(condition, node("If", ["c"], then_branch=branch("x"), else_branch=branch("nowhere"))))


@pytest.mark.parametrize("kind", [99, -1])
@pytest.mark.parametrize("part", ["input", "output", "value_info"])
def test_unknown_element_types(kind, part):
    graph = model(node("Relu", ["x"])).graph
    value = getattr(graph, part).add(name="v")
    value.type.tensor_type.elem_type = kind
    with pytest.raises(ModelError, match=f"'v' has the element type {kind}, which the installed onnx does not know"):
        check_values(graph)


@pytest.mark.parametrize("dims", [[1, 3, 2**31, 32], [2**40], [2**15, 0, 2**15, -5]])
def test_inputs_that_no_memory_holds(dims):
    value = onnx.helper.make_tensor_value_info("v", TensorProto.FLOAT, dims)
    with pytest.raises(ModelError, match=r"the input 'v' of the shape .* would take"):
        check_values(onnx.GraphProto(input=[value]))


@pytest.mark.parametrize(
    ("kind", "words"), [("sequence_type", "sequence"), ("map_type", "map"), ("sparse_tensor_type", "sparse tensor")]
)
@pytest.mark.parametrize("part", ["input", "output"])
def test_inputs_and_outputs_that_are_no_tensors(kind, words, part):
    graph = model(node("Relu", ["x"])).graph
    check_tensor_values(graph)
    getattr(getattr(graph, part).add(name="v").type, kind).SetInParent()
    with pytest.raises(ModelError, match=f"^the {part} 'v' is no tensor but of type {words}; export"):
        check_tensor_values(graph)


def test_an_input_without_a_type():
    graph = model(node("Relu", ["x"])).graph
    graph.input.add(name="v")
    with pytest.raises(ModelError, match=r"^the input 'v' has no element type; export the model again$"):
        check_tensor_values(graph)
    graph.initializer.add(name="v")
    check_tensor_values(graph)


@pytest.mark.parametrize("text", [b"node_one", b"attr_one", b"input_one", b"meta_one", b"dim_one", b"const_one"])
def test_texts_that_are_not_utf_8(text):
    relu = helper.make_node("Relu", ["input_one"], ["y"], "node_one", attr_one=[1])
    shape = helper.make_tensor_value_info("input_one", TensorProto.FLOAT, ["dim_one"])
    graph = helper.make_graph([relu], "g", [shape], [Y], [helper.make_tensor("const_one", TensorProto.FLOAT, [1], [1])])
    made = helper.make_model(graph)
    helper.set_model_props(made, {"key": "meta_one"})
    check_texts(made)
    wrong = onnx.ModelProto.FromString(made.SerializeToString().replace(text, b"\xff" + text[1:]))
    with pytest.raises(ModelError, match=r"^the model has a name that is not UTF-8, b'\\xff"):
        check_texts(wrong)
