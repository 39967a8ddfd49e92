"""Graphs in ONNX's text form, and a model with weights, metadata and all other fields."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

from onnxq.ir import Graph, Model, Node

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def parsed(body: str, inputs: str = "float[1,4] x", outputs: str = "float[1,4] y") -> onnx.ModelProto:
    """A model in text."""
    return parser.parse_model(f"{HEAD} g ({inputs}) => ({outputs}) {{ {body} }}")


def imported(body: str, *signature: str) -> tuple[Graph, dict[str, Node]]:
    """The graph of a model in text, and its nodes by the name of their first output."""
    graph = Model(parsed(body, *signature)).graph
    return graph, {node.outputs[0].name: node for node in graph.nodes}


def weighted() -> onnx.ModelProto:
    """A small model with weights, metadata, documentation and a function of its own."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], "first", doc_string="as exported"),
            helper.make_node("Relu", ["m"], ["r"], "second"),
            helper.make_node("Twice", ["r"], ["y"], "third", domain="local", doc_string="a function"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
        doc_string="the graph",
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    twice = helper.make_function(
        "local", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = helper.make_model(
        graph, opset_imports=opsets, functions=[twice], producer_name="pytorch", producer_version="2.1",
        ir_version=8, model_version=3, domain="org.example", doc_string="the model",
    )  # fmt: skip
    helper.set_model_props(model, {"names": "{0: 'cat'}", "stride": "32"})
    model.graph.node[1].metadata_props.add(key="module", value="backbone.0")
    model.graph.metadata_props.add(key="shape", value="fixed")
    onnx.checker.check_model(model)
    return model


DOUBLE = parsed("y = Add(x, x)", "float[n,2] x", "float[n,2] y")

THREE_OUTPUTS = parsed("a = Neg(x) b = Abs(x) c = Exp(x)", "float[n,2] x", "float[n,2] a, float[n,2] b, float[n,2] c")


def rows(*values: float) -> dict[str, np.ndarray]:
    """A feed of these two models with one row per value."""
    return {"x": np.repeat(np.float32(values)[:, None], 2, axis=1)}
