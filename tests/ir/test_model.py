import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from texts import WEIGHT, parsed, weighted

from onnxq.ir import Model, remove, replace_uses


def named(*names):
    """A model that gives the name of the greater of two values."""
    model = parsed("i = ArgMax<axis=1>(x) y = Gather(names, i)", "float[1,2] x", "string[1,1] y")
    model.graph.initializer.append(helper.make_tensor("names", TensorProto.STRING, [2], names or ("cat", "né")))
    return model


def initialized(values):
    """A model that casts a constant to float."""
    model = parsed("a = Cast<to=1>(w) y = Add(x, a)", "float[3] x", "float[3] y")
    model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


def run(model, x):
    return ReferenceEvaluator(model).run(None, {"x": x})[0]


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

    def test_names_of_classes_survive_once_they_are_read(self):
        model = Model(named())
        assert model.graph.tensors()["names"].values.tolist() == ["cat", "né"]
        [names] = model.to_proto().graph.initializer
        assert list(names.string_data) == [b"cat", "né".encode()]
        assert Model(named()).to_proto() == model.to_proto()

    def test_inner_optionals_and_sequences_survive(self):
        model = parsed(
            "o = Optional(x) a = OptionalGetElement(o) s = SequenceConstruct(a, x) y = ConcatFromSequence<axis=1>(s)",
            outputs="float[1,8] y",
        )
        after = Model(onnx.shape_inference.infer_shapes(model)).to_proto()
        onnx.checker.check_model(after, full_check=True)
        assert [node.op_type for node in after.graph.node] == [node.op_type for node in model.graph.node]
        assert {value.name for value in after.graph.value_info} == {"a", "s"}

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

    def test_depends_on_names_of_classes(self):
        one, same, other = (Model(named(*names)).digest() for names in (("cat", "dog"), ("cat", "dog"), ("cat", "cow")))
        assert one == same != other

    @pytest.mark.parametrize("kind", ["int4", "uint4", "bfloat16", "float8_e4m3fn"])
    def test_constants_may_be_of_any_type(self, kind):
        one, same, other = (
            Model(initialized(np.array(values).astype(getattr(ml_dtypes, kind))))
            for values in ([1, 2, 7], [1, 2, 7], [1, 2, 6])
        )
        assert one.digest() == same.digest() != other.digest()
        [after] = one.to_proto().graph.initializer
        assert numpy_helper.to_array(after).tolist() == [1, 2, 7]

    def test_constants_may_be_empty_or_scalars(self):
        empty = numpy_helper.from_array(np.zeros((0,), np.float32), "roi")
        scalar = numpy_helper.from_array(np.float32(3), "three")
        proto = parsed("a = Mul(x, three) y = Concat<axis=1>(a, roi)")
        proto.graph.initializer.extend([empty, scalar])
        first = Model(proto).digest()
        proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.float32(4), "three"))
        assert Model(proto).digest() != first
