import numpy as np
import pytest
from graphs import conditional
from texts import WEIGHT, imported, weighted

from onnxq.ir import Model, Variable, ancestors, constant, data_inputs, is_float, producer
from onnxq.ir.query import with_subgraphs


class TestTensors:
    def test_constants_inputs_and_products(self):
        model = Model(weighted())
        matmul, relu, _ = model.graph.nodes
        np.testing.assert_array_equal(constant(matmul.inputs[1]), WEIGHT)
        assert constant(matmul.inputs[0]) is None
        assert producer(matmul.inputs[0]) is None
        assert producer(matmul.inputs[1]) is None
        assert producer(relu.inputs[0]) is matmul
        assert [t.name for t in data_inputs(matmul)] == ["x"]

    def test_inputs_left_out_are_no_data(self):
        _, nodes = imported("y = Clip(x, , h)", "float[4] x, float h", "float[4] y")
        assert [t.name for t in data_inputs(nodes["y"])] == ["x", "h"]

    @pytest.mark.parametrize(
        ("dtype", "expected"), [(np.float32, True), (np.float16, False), (np.int64, False), (None, False)]
    )
    def test_float_is_float32_and_known_to_be(self, dtype, expected):
        assert is_float(Variable("x", dtype)) is expected


class TestAncestors:
    def names(self, nodes):
        return sorted(node.outputs[0].name for node in ancestors(nodes))

    def test_are_the_nodes_and_all_they_depend_on_once_each(self):
        _, nodes = imported("a = Relu(x) b = Neg(a) c = Exp(a) d = Add(b, c) y = Neg(d) z = Abs(b)")
        assert self.names([nodes["d"]]) == ["a", "b", "c", "d"]
        assert self.names([nodes["d"], nodes["b"]]) == ["a", "b", "c", "d"]
        assert self.names([nodes["a"]]) == ["a"]
        assert self.names([]) == []

    def test_a_long_chain_is_no_deep_recursion(self):
        chain = " ".join(f"t{i + 1} = Neg(t{i})" for i in range(3000))
        _, nodes = imported(f"t0 = Relu(x) {chain} y = Neg(t3000)")
        assert len(list(ancestors([nodes["y"]]))) == 3002

    def test_what_the_body_of_a_subgraph_reads_from_outside_counts(self):
        body = """
            outer = Relu(x)
            unused = Abs(x)
            side = Neg(x)
            m = ReduceMax<keepdims=0>(x)
            flag = Cast<to=9>(m)
            y = If(flag) <
                then_branch = yes () => (float[1,4] p) { inner = Exp(outer)  p = Neg(inner) },
                else_branch = no () => (float[1,4] q) { q = Neg(side) }
            >
        """
        _, nodes = imported(body)
        found = self.names([nodes["y"]])
        assert {"outer", "side", "m", "flag", "y"} <= set(found)
        assert "unused" not in found

    def test_what_a_subgraph_within_a_subgraph_reads_counts(self):
        body = """
            outer = Relu(x)
            m = ReduceMax<keepdims=0>(x)
            flag = Cast<to=9>(m)
            y = If(flag) <
                then_branch = yes () => (float[1,4] p) {
                    p = If(flag) <
                        then_branch = deeper () => (float[1,4] p2) { p2 = Neg(outer) },
                        else_branch = not () => (float[1,4] q2) { q2 = Exp(x) }
                    >
                },
                else_branch = no () => (float[1,4] q) { q = Neg(x) }
            >
        """
        _, nodes = imported(body)
        assert "outer" in self.names([nodes["y"]])


def test_a_graph_comes_before_its_subgraphs():
    outer, *inner = with_subgraphs(Model(conditional()).graph)
    assert [node.op for node in outer.nodes][-2:] == ["If", "Conv"]
    assert sorted(node.op for graph in inner for node in graph.nodes) == ["Add", "Sub"]
