import pytest
from onnx import TensorProto, checker, helper, inliner

from onnxq.errors import ModelError
from onnxq.ir.checks.functions import MOST_NODES, calls_of, check_functions
from onnxq.ir.repair import repair
from onnxq.memory import limited_to

OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]


def call(name, given="x", made="y"):
    return helper.make_node(name, [given], [made], f"call_{name}", domain="local")


def function(name, *nodes, opset=17):
    return helper.make_function("local", name, ["x"], ["y"], list(nodes), [helper.make_opsetid("", opset), OPSETS[1]])


def model(*functions):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([call("f0")], "g", ends[:1], ends[1:])
    return helper.make_model(graph, functions=list(functions), opset_imports=OPSETS)


RELU = helper.make_node("Relu", ["x"], ["y"])


def doubling(count):
    """Functions that each call the next twice."""
    made = [function(f"f{k}", call(f"f{k + 1}", "x", "a"), call(f"f{k + 1}", "a", "y")) for k in range(count)]
    return model(*made, function(f"f{count}", RELU))


def branching(name):
    """A function that calls another one in a branch."""
    branch = helper.make_graph([call(name, "x", "b")], "b", [], [helper.make_tensor_value_info("b", 1, None)])
    return helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)


def test_the_order_of_functions_does_not_matter():
    sound = model(function("f2", RELU), function("f0", branching("f1")), function("f1", call("f2")))
    check_functions(sound)
    assert [node.name for node in calls_of(sound)] == ["call_f0"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (model(function("f0", call("f0"))), "the local function 'local.f0' calls itself"),
        (model(function("f0", branching("f1")), function("f1", call("f0"))), "the local function '.*' calls itself"),
        (model(function("f0", RELU), function("f1", call("f1"))), "the local function 'local.f1' calls itself"),
        (model(function("f0", RELU), function("f0", RELU)), "the local function 'local.f0' is defined 2 times"),
        (doubling(60), f"the model has over {MOST_NODES} nodes when its local functions are inlined"),
        (doubling(20_000), f"the model has over {MOST_NODES} nodes when its local functions are inlined"),
    ],
)
def test_functions_that_cannot_be_inlined(wrong, message):
    with pytest.raises(ModelError, match=f"^{message}.*; export the model again$"):
        repair(wrong)


def test_the_bytes_of_what_is_inlined_are_counted():
    check_functions(doubling(10))
    with limited_to(10_000), pytest.raises(ModelError, match=r"^the model, when its local functions are inlined, wo"):
        check_functions(doubling(10))


def test_functions_that_the_inliner_refuses(monkeypatch):
    def refuse(_):
        raise checker.ValidationError("calls are too deep.\nmore")

    monkeypatch.setattr(inliner, "inline_local_functions", refuse)
    with pytest.raises(ModelError, match=r"^its local functions cannot be inlined \(calls are too deep\); export the"):
        repair(model(function("f0", RELU)))


def test_functions_that_the_inliner_leaves():
    with pytest.raises(ModelError, match=r"^node 'call_f0' \(f0\) calls a local function of another opset; export"):
        repair(model(function("f0", RELU, opset=13)))
