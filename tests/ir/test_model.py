import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from onnxq.errors import ModelError
from onnxq.ir import (
    Model,
    Variable,
    ancestors,
    constant,
    data_inputs,
    feeds_only_silu,
    is_float,
    is_silu,
    producer,
    remove,
    replace_uses,
)
from onnxq.ir.storage import load_proto

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def parsed(body, inputs="float[1,4] x", outputs="float[1,4] y"):
    return parser.parse_model(f"{HEAD} g ({inputs}) => ({outputs}) {{ {body} }}")


def imported(body, *signature):
    """The graph of a model in text, and its nodes by the name of their first output."""
    graph = Model(parsed(body, *signature)).graph
    return graph, {node.outputs[0].name: node for node in graph.nodes}


def weighted():
    """A small model with weights and all that can stand beside a graph."""
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


def run(model, x):
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


class TestLoad:
    def test_what_was_saved_is_loaded(self, tmp_path):
        onnx.save(weighted(), tmp_path / "a.onnx")
        assert load_proto(tmp_path / "a.onnx") == weighted()

    def test_external_data_is_read(self, tmp_path):
        model = weighted()
        onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
        loaded = load_proto(tmp_path / "a.onnx")
        weight = loaded.graph.initializer[0]
        assert not external_data_helper.uses_external_data(weight)
        np.testing.assert_array_equal(numpy_helper.to_array(weight), WEIGHT)

    def test_missing_external_data(self, tmp_path):
        onnx.save(weighted(), tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
        (tmp_path / "a.bin").unlink()
        with pytest.raises(ModelError, match=r"a\.onnx: its external data cannot be read .*copy the data files beside"):
            load_proto(tmp_path / "a.onnx")

    def test_missing(self, tmp_path):
        with pytest.raises(ModelError, match=r"none\.onnx: no such file; check the path$"):
            load_proto(tmp_path / "none.onnx")

    def test_a_folder(self, tmp_path):
        with pytest.raises(ModelError, match=r": is a folder, not an ONNX file; name the file$"):
            load_proto(tmp_path)

    def test_empty(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"")
        with pytest.raises(ModelError, match=r"a\.onnx: not an ONNX file, or one without nodes; export it again"):
            load_proto(tmp_path / "a.onnx")

    @pytest.mark.parametrize("content", [b"hello, world", b"\x89PNG\r\n\x1a\n" + bytes(100), b"PK\x03\x04", b"<html>"])
    @pytest.mark.parametrize("name", ["a.onnx", "a.pt", "a"])
    def test_not_an_onnx_file(self, tmp_path, content, name):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=f"{name}: not an ONNX file"):
            load_proto(tmp_path / name)

    @pytest.mark.parametrize("name", ["a.json", "a.textproto", "a.onnxtxt"])
    def test_the_extension_does_not_stand_for_another_format(self, tmp_path, name):
        (tmp_path / name).write_bytes(b"hello, world")
        with pytest.raises(ModelError, match=f"{name}: not an ONNX file"):
            load_proto(tmp_path / name)
        onnx.save(weighted(), tmp_path / name, format="protobuf")
        assert load_proto(tmp_path / name) == weighted()

    def test_a_name_too_long(self, tmp_path):
        with pytest.raises(ModelError, match=r"a: no such file; check the path$"):
            load_proto(tmp_path / ("a" * 300))

    def test_cut_short_anywhere_in_the_graph(self, tmp_path):
        content = weighted().SerializeToString()
        graph = weighted().graph.SerializeToString()
        end = content.index(graph) + len(graph)
        path = tmp_path / "a.onnx"
        for length in range(end):
            path.write_bytes(content[:length])
            with pytest.raises(ModelError, match=r"a\.onnx: not an ONNX file, or "):
                load_proto(path)

    def test_a_path_as_text_will_do(self, tmp_path):
        onnx.save(weighted(), tmp_path / "a.onnx")
        assert load_proto(str(tmp_path / "a.onnx")) == weighted()


class TestModel:
    def test_inputs_and_outputs_stay_as_declared_whatever_stands_among_the_inner_tensors(self):
        model = weighted()
        for name, length in (("x", "(rows + 1)//2"), ("y", "1 + rows")):
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT16, [length, 4]))
        model.graph.output[0].doc_string = "boxes"
        read = Model(model)
        assert [(t.dtype, t.shape) for t in read.graph.outputs] == [(np.float32, ["batch", 4])]
        after = read.to_proto()
        assert list(after.graph.input) == list(model.graph.input)
        assert list(after.graph.output) == list(model.graph.output)

    def test_all_beside_the_graph_survives(self):
        before, after = weighted(), Model(weighted()).to_proto()
        for model in (before, after):
            model.ClearField("graph")
        assert after == before

    def test_documentation_within_the_graph_survives(self):
        after = Model(weighted()).to_proto().graph
        assert (after.name, after.doc_string) == ("net", "the graph")
        assert [p.value for p in after.metadata_props] == ["fixed"]
        assert [node.doc_string for node in after.node] == ["as exported", "", "a function"]
        assert [[(p.key, p.value) for p in node.metadata_props] for node in after.node] == [
            [], [("module", "backbone.0")], []
        ]  # fmt: skip

    def test_the_graph_survives(self):
        before, after = weighted(), Model(weighted()).to_proto()
        onnx.checker.check_model(after, full_check=True)
        assert [(n.op_type, n.name, n.domain, list(n.input), list(n.output)) for n in after.graph.node] == [
            (n.op_type, n.name, n.domain, list(n.input), list(n.output)) for n in before.graph.node
        ]
        assert [list(after.graph.input), list(after.graph.output)] == [
            list(before.graph.input), list(before.graph.output)
        ]  # fmt: skip
        x = np.float32([[1, -2, 3, 4], [0, 1, -1, 0]])
        np.testing.assert_array_equal(run(after, x), run(before, x))

    def test_nodes_without_documentation_get_none(self):
        after = Model(weighted()).to_proto().graph
        assert [node.HasField("doc_string") for node in after.node] == [True, False, True]

    def test_a_second_round_trip_changes_nothing(self):
        once = Model(weighted()).to_proto()
        assert Model(once).to_proto() == once

    def test_what_is_stored_twice_is_the_same(self):
        model = Model(weighted())
        assert model.to_proto() == model.to_proto()

    def test_the_given_model_is_not_changed(self):
        given = weighted()
        model = Model(given)
        model.add_metadata("stride", "64")
        model.add_metadata("onnxq.bits", "8")
        model.set_doc("first", "changed")
        model.graph.nodes[1].op = "Sigmoid"
        model.graph.nodes[0].inputs[1].values = np.ones((4, 4), np.float32)
        model.graph.doc_string = "changed"
        model.graph.inputs[0].shape = [1, 4]
        model.to_proto().graph.node[0].name = "changed"
        assert given == weighted()

    def test_edits_are_stored(self):
        model = Model(weighted())
        model.graph.nodes[1].op = "Sigmoid"
        model.graph.nodes[0].inputs[1].values = np.eye(4, dtype=np.float32)
        after = model.to_proto()
        x = np.float32([[1, -2, 3, 4]])
        np.testing.assert_allclose(run(after, x), 2 / (1 + np.exp(-x)), rtol=1e-6)

    def test_editing_can_go_on_after_storing(self):
        model = Model(weighted())
        before = model.to_proto()
        model.graph.nodes[1].op = "Sigmoid"
        assert before.graph.node[1].op_type == "Relu"
        assert model.to_proto().graph.node[1].op_type == "Sigmoid"

    def test_metadata_is_added_and_replaced(self):
        model = Model(weighted())
        model.add_metadata("stride", "64")
        model.add_metadata("onnxq.bits", "8")
        expected = {"names": "{0: 'cat'}", "stride": "64", "onnxq.bits": "8"}
        assert model.metadata == expected
        stored = model.to_proto()
        assert {p.key: p.value for p in stored.metadata_props} == expected
        assert len(stored.metadata_props) == 3

    def test_nodes_are_documented(self):
        model = Model(weighted())
        assert model.set_doc("second", "float, why not")
        assert model.set_doc("first", "beside")
        assert [node.doc_string for node in model.to_proto().graph.node] == [
            "as exported\nonnxq: beside", "onnxq: float, why not", "a function"
        ]  # fmt: skip
        # What was beside the text stays.
        assert model.to_proto().graph.node[1].metadata_props[0].value == "backbone.0"

    def test_what_is_said_of_a_node_takes_the_place_of_what_was_said_before(self):
        model = Model(weighted())
        model.set_doc("first", "once")
        model.set_doc("second", "once")
        again = Model(model.to_proto())
        assert again.set_doc("first", "twice")
        assert not again.set_doc("first", "twice")
        assert again.set_doc("second", "")
        assert not again.set_doc("third", "")
        assert [node.doc_string for node in again.to_proto().graph.node] == [
            "as exported\nonnxq: twice", "", "a function"
        ]  # fmt: skip

    def test_a_removed_node_takes_its_documentation_along(self):
        model = Model(weighted())
        first, second, _ = model.graph.nodes
        replace_uses(second.outputs[0], first.outputs[0])
        remove(model.graph, [second])
        assert [(n.name, n.doc_string) for n in model.to_proto().graph.node] == [
            ("first", "as exported"), ("third", "a function")
        ]  # fmt: skip

    def test_another_model_takes_the_place_of_all(self):
        model = Model(weighted())
        model.add_metadata("a", "b")
        other = parsed("y = Relu(x)")
        model.replace(other)
        assert model.metadata == {}
        after = model.to_proto()
        assert (after.producer_name, len(after.functions), len(after.opset_import)) == ("", 0, 1)
        assert [n.op_type for n in after.graph.node] == ["Relu"]

    def test_names_and_opset(self):
        model = Model(weighted())
        assert model.opset == 17
        assert list(model.nodes) == ["first", "second", "third"]
        assert model.output_names == {"y"}
        assert model.taken_names() == {"first", "second", "third", "x", "w", "m", "r", "y"}


class TestDigest:
    def test_survives_a_round_trip(self):
        model = Model(weighted())
        assert model.digest() == Model(model.to_proto()).digest()
        assert len(model.digest()) == 64

    def test_does_not_depend_on_what_is_not_computed(self):
        model = Model(weighted())
        before = model.digest()
        model.add_metadata("a", "b")
        model.set_doc("first", "text")
        model.graph.nodes[0].name = "other"
        assert model.digest() == before

    @pytest.mark.parametrize(
        "edit",
        [
            lambda graph: setattr(graph.nodes[1], "op", "Sigmoid"),
            lambda graph: setattr(graph.nodes[0].inputs[1], "values", np.ones((4, 4), np.float32)),
            lambda graph: setattr(graph.nodes[0].inputs[1], "values", WEIGHT.view(np.int32)),
            lambda graph: setattr(graph.nodes[0].inputs[1], "values", WEIGHT.reshape(2, 8)),
            lambda graph: setattr(graph.nodes[0].outputs[0], "name", "other"),
            lambda graph: remove(graph, graph.nodes[2:]),
            lambda graph: graph.nodes.reverse(),
        ],
        ids=["operator", "weights", "type", "shape", "tensor", "fewer nodes", "order"],
    )
    def test_depends_on(self, edit):
        model = Model(weighted())
        edit(model.graph)
        assert model.digest() != Model(weighted()).digest()

    def test_depends_on_attributes(self):
        slight, same, steep = (Model(parsed(f"y = LeakyRelu<alpha={alpha}>(x)")).digest() for alpha in (0.1, 0.1, 0.2))
        assert slight == same != steep

    def test_constants_may_be_empty_or_scalars(self):
        empty = numpy_helper.from_array(np.zeros((0,), np.float32), "roi")
        scalar = numpy_helper.from_array(np.float32(3), "three")
        proto = parsed("a = Mul(x, three) y = Concat<axis=1>(a, roi)")
        proto.graph.initializer.extend([empty, scalar])
        first = Model(proto).digest()
        proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(4), "three"))
        assert Model(proto).digest() != first


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


class TestSilu:
    @pytest.mark.parametrize("product", ["Mul(x, s)", "Mul(s, x)"])
    def test_is_x_times_its_sigmoid_either_way_round(self, product):
        graph, nodes = imported(f"s = Sigmoid(x) y = {product}")
        assert is_silu(nodes["y"])
        assert not is_silu(nodes["s"])
        assert feeds_only_silu(graph.inputs[0])

    @pytest.mark.parametrize(
        "body",
        [
            "a = Relu(x) s = Sigmoid(a) y = Mul(x, s)",
            "s = Sigmoid(x) y = Mul(s, s)",
            "s = Tanh(x) y = Mul(x, s)",
            "s = Sigmoid(x) y = Add(x, s)",
            "y = Mul(x, x)",
            "s = HardSigmoid(x) y = Mul(x, s)",
        ],
    )
    def test_other_products_are_not(self, body):
        graph, nodes = imported(body)
        assert not is_silu(nodes["y"])
        assert not feeds_only_silu(graph.inputs[0])

    @pytest.mark.parametrize(
        "body",
        [
            "s = Sigmoid(x) y = Mul(x, s) z = Relu(x)",
            "s = Sigmoid(x) y = Mul(x, s) z = Relu(s)",
            "s = Sigmoid(x) y = Mul(x, s) z = Mul(x, s)",
            "s = Sigmoid(x) t = Sigmoid(x) y = Mul(x, s) z = Relu(t)",
        ],
    )
    def test_a_second_use_of_x_or_of_its_sigmoid(self, body):
        graph, nodes = imported(body)
        assert is_silu(nodes["y"])
        assert not feeds_only_silu(graph.inputs[0])

    def test_what_comes_out_of_a_silu_does_not_go_into_it(self):
        _, nodes = imported("s = Sigmoid(x) p = Mul(x, s) y = Relu(p)")
        assert not feeds_only_silu(nodes["p"].outputs[0])
        assert not feeds_only_silu(nodes["s"].outputs[0])


class TestEdits:
    def test_all_users_read_the_new_tensor_at_each_place(self):
        graph, nodes = imported("a = Relu(x) b = Mul(a, a) c = Add(x, a) y = Add(b, c)")
        assert replace_uses(nodes["a"].outputs[0], graph.inputs[0]) == 3
        assert [t.name for t in nodes["b"].inputs] == ["x", "x"]
        assert [t.name for t in nodes["c"].inputs] == ["x", "x"]
        assert len(nodes["a"].outputs[0].outputs) == 0

    def test_only_some_users(self):
        graph, nodes = imported("a = Relu(x) b = Neg(a) c = Abs(a) y = Add(b, c)")
        assert replace_uses(nodes["a"].outputs[0], graph.inputs[0], [nodes["c"], nodes["y"]]) == 1
        assert nodes["b"].inputs[0].name == "a"
        assert nodes["c"].inputs[0].name == "x"

    def test_nobody_reads_it(self):
        graph, nodes = imported("y = Relu(x) z = Neg(x)")
        assert replace_uses(nodes["z"].outputs[0], graph.inputs[0]) == 0

    def test_users_within_a_subgraph_read_the_new_tensor(self):
        body = """
            a = Relu(x)
            m = ReduceMax<keepdims=0>(x)
            flag = Cast<to=9>(m)
            y = If(flag) <
                then_branch = yes () => (float[1,4] p) { p = Neg(a) },
                else_branch = no () => (float[1,4] q) { q = Exp(a) }
            >
        """
        graph, nodes = imported(body)
        assert replace_uses(nodes["a"].outputs[0], graph.inputs[0]) == 2
        branches = [nodes["y"].attrs[key] for key in ("then_branch", "else_branch")]
        assert [branch.nodes[0].inputs[0].name for branch in branches] == ["x", "x"]

    def test_removed_nodes_are_gone_and_cut_from_their_tensors(self):
        graph, nodes = imported("a = Relu(x) b = Neg(x) y = Add(x, x)")
        tensor = nodes["a"].outputs[0]
        assert remove(graph, [nodes["a"], nodes["b"], nodes["a"]]) == 2
        assert [node.outputs[0].name for node in graph.nodes] == ["y"]
        assert producer(tensor) is None
        assert {id(user) for user in graph.inputs[0].outputs} == {id(nodes["y"])}

    def test_removing_nothing(self):
        graph, _ = imported("y = Relu(x)")
        assert remove(graph, []) == 0
        assert len(graph.nodes) == 1
