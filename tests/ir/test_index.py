import numpy as np
import onnx
import pytest
from graphs import conditional, csp, nodes, with_constant_nodes, with_initializers_as_inputs
from onnx import TensorProto, helper
from texts import WEIGHT, parsed, weighted

from onnxq.ir import ProtoIndex

TREE = "a = Relu(x) b = Neg(a) c = Exp(a) d = Add(b, c) y = Neg(d) z = Abs(b)"


@pytest.fixture
def index():
    return ProtoIndex(parsed(TREE).graph)


class TestNodes:
    def test_each_tensor_has_the_node_that_produces_it(self, index):
        assert {name: node.op_type for name, node in index.producers.items()} == {
            "a": "Relu", "b": "Neg", "c": "Exp", "d": "Add", "y": "Neg", "z": "Abs"
        }  # fmt: skip
        assert [index.nodes[place].output[0] for place in index.positions.values()] == list("abcdyz")

    def test_inputs_initializers_and_outputs_left_out_have_no_producer(self):
        model = weighted()
        model.graph.node[0].output.append("")
        assert list(ProtoIndex(model.graph).producers) == ["m", "r", "y"]

    def test_each_tensor_has_its_consumers_in_graph_order(self, index):
        consumers = {name: [node.output[0] for node in readers] for name, readers in index.consumers.items()}
        assert consumers == {"x": ["a"], "a": ["b", "c"], "b": ["d", "z"], "c": ["d"], "d": ["y"]}

    def test_a_node_that_reads_a_tensor_twice_consumes_it_once(self):
        assert len(ProtoIndex(parsed("y = Mul(x, x)").graph).consumers["x"]) == 1

    def test_a_node_consumes_what_its_subgraphs_read(self):
        model = conditional()
        [branch] = (node for node in model.graph.node if node.op_type == "If")
        captured = {name for a in branch.attribute for inner in a.g.node for name in inner.input} - {*branch.input}
        index = ProtoIndex(model.graph)
        outer = [name for name in captured if name in index.producers]
        assert outer
        assert all(branch in index.consumers[name] for name in outer)


class TestAncestors:
    def names(self, index, *arguments):
        return "".join(index.nodes[place].output[0] for place in sorted(index.ancestors(*arguments)))

    @pytest.mark.parametrize(
        ("tensors", "given", "expected"),
        [
            ("y", "", "abcdy"),
            ("z", "", "abz"),
            ("yz", "", "abcdyz"),
            ("y", "b", "acdy"),
            ("y", "bc", "dy"),
            ("y", "y", ""),
            ("x", "", ""),
        ],
    )
    def test_are_the_nodes_that_must_run(self, index, tensors, given, expected):
        assert self.names(index, list(tensors), list(given)) == expected

    def test_a_long_chain_is_no_deep_recursion(self):
        chain = " ".join(f"t{i + 1} = Neg(t{i})" for i in range(3000))
        index = ProtoIndex(parsed(f"t0 = Relu(x) {chain} y = Neg(t3000)").graph)
        assert len(index.ancestors(["y"])) == 3002

    def test_what_a_subgraph_reads_must_run(self):
        model = conditional()
        index = ProtoIndex(model.graph)
        needed = {index.nodes[place].name for place in index.ancestors(t.name for t in model.graph.output)}
        assert needed == nodes(model).keys()


class TestTensors:
    def test_constants_are_initializers_and_the_values_of_constant_nodes(self):
        plain = ProtoIndex(csp().graph)
        moved = ProtoIndex(with_constant_nodes(csp()).graph)
        assert moved.constants.keys() == plain.constants.keys() == plain.initializers.keys()
        assert not moved.initializers
        for name in plain.constants:
            assert np.array_equal(plain.values(name), moved.values(name))

    def test_values_of_what_is_not_constant_are_not_known(self):
        index = ProtoIndex(weighted().graph)
        assert np.array_equal(index.values("w"), WEIGHT)
        assert index.values("x") is None
        assert index.values("m") is None

    def test_inputs_are_those_without_a_value(self):
        index = ProtoIndex(with_initializers_as_inputs(csp()).graph)
        assert [value.name for value in index.inputs] == ["images"]

    def test_types_are_those_that_the_graph_states(self):
        model = weighted()
        model.graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT16, [1, 4]))
        model.graph.initializer.append(helper.make_tensor("k", TensorProto.INT8, [1], [3]))
        index = ProtoIndex(model.graph)
        assert index.types == {"x": 1, "y": 1, "w": 1, "m": 10, "k": 3}
        assert index.declared.keys() == {"x", "y", "m"}

    def test_the_interface_is_believed_before_inner_descriptions(self):
        model = weighted()
        model.graph.value_info.append(onnx.helper.make_tensor_value_info("y", TensorProto.DOUBLE, [1]))
        assert ProtoIndex(model.graph).types["y"] == TensorProto.FLOAT
