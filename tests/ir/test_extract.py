from itertools import pairwise

import ml_dtypes
import numpy as np
import onnx
import pytest
from graphs import BUILDERS, Net, copy, csp, feed, nodes, run, silu_chain
from onnx import TensorProto, helper
from texts import imported, parsed, weighted

from onnxq.ir import Constant, before_selection, comparable, ending_at, node_alone, remove, segment_behind
from onnxq.ir.extract import read_from, segment_from
from onnxq.runtime.session import open_session
from onnxq.runtime.session import run as run_session

TREE = "a = Relu(x) b = Neg(a) c = Exp(a) d = Add(b, c) y = Neg(d) z = Abs(b)"


class TestEndingAt:
    @pytest.mark.parametrize("name", ["csp", "conditional", "attention", "v10"])
    def test_every_tensor_has_the_same_values(self, name):
        model = BUILDERS[name]()
        values = feed(model)
        computed = [t for node in model.graph.node for t in node.output if t]
        expected = run(model, values, computed)
        for tensor in computed[:: max(1, len(computed) // 8)]:
            cut = ending_at(model, [tensor])
            [found] = run_session(open_session(cut, optimized=False), values)
            assert np.array_equal(found, expected[tensor]), tensor

    def test_only_what_is_needed_stays_in_order(self):
        cut = ending_at(parsed(TREE), ["d"])
        assert [node.output[0] for node in cut.graph.node] == ["a", "b", "c", "d"]
        assert [output.name for output in cut.graph.output] == ["d"]

    def test_outputs_stand_as_they_were_asked_for_and_once_each(self):
        cut = ending_at(parsed(TREE), ["z", "c", "z"])
        assert [output.name for output in cut.graph.output] == ["z", "c"]
        assert [node.output[0] for node in cut.graph.node] == ["a", "b", "c", "z"]

    def test_weights_behind_the_cut_go(self):
        model = csp()
        first = nodes(model)["conv0"]
        cut = ending_at(model, first.output)
        assert {w.name for w in cut.graph.initializer} == {*first.input} - {"images"}

    def test_inputs_stay_all(self):
        model = parsed("a = Relu(x) y = Add(a, k)", "float[1,4] x, float[1,4] k")
        cut = ending_at(model, ["a"])
        assert [value.name for value in cut.graph.input] == ["x", "k"]
        values = np.float32([[-1, 2, -3, 4]])
        [found] = run_session(open_session(cut), {"x": values, "k": values})
        assert np.array_equal(found, np.maximum(values, 0))

    def test_an_input_can_be_an_output(self):
        cut = ending_at(silu_chain(), ["images", "output"])
        values = feed(cut)
        [image, _] = run_session(open_session(cut), values)
        assert np.array_equal(image, values["images"])

    def test_all_beside_the_graph_stays_and_the_model_does(self):
        model = weighted()
        before = copy(model)
        cut = ending_at(model, ["y"])
        assert model == before
        assert cut == model
        cut.graph.node[0].name = "changed"
        assert model == before

    def test_descriptions_are_the_given_ones_then_those_of_the_model(self):
        model = parsed("a = Relu(x) b = Neg(a) c = Exp(b) y = Neg(c)")
        model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 4]))
        model.graph.value_info.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 4]))
        given = helper.make_tensor_value_info("b", TensorProto.FLOAT, ["n", 4])
        cut = ending_at(model, ["a", "b", "c", "y"], {"b": given})
        assert list(cut.graph.output) == [
            model.graph.value_info[0], given, onnx.ValueInfoProto(name="c"), model.graph.output[0]
        ]  # fmt: skip
        assert not cut.graph.value_info

    def test_inner_descriptions_stay_of_what_is_left(self):
        model = parsed("a = Relu(x) b = Neg(a) c = Exp(b) y = Neg(c)")
        model.graph.value_info.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "abc")
        assert [value.name for value in ending_at(model, ["b"]).graph.value_info] == ["a"]


class TestNodeAlone:
    def test_a_node_of_constants_computes_what_it_does_in_the_graph(self):
        graph, by_output = imported("k = Relu(x) y = Clip(k, , x)", "float x")
        clip = by_output["y"]
        remove(graph, [by_output["k"]])
        clip.inputs[0].to_constant(np.float32([1, 5]))
        clip.inputs[2] = Constant("three", np.array(3, np.float32))
        alone = node_alone(clip, 17)
        [found] = run_session(open_session(alone), {})
        assert found.tolist() == [1, 3]
        assert clip in graph.nodes
        assert clip.inputs[0].outputs == [clip]

    def test_constants_may_be_strings(self):
        _, by_output = imported("y = Concat<axis=0>(a, b)", "string[1] a, string[1] b", "string[2] y")
        for tensor, text in zip(by_output["y"].inputs, ("cat", "né"), strict=True):
            tensor.to_constant(np.array([text], object))
        [found] = run_session(open_session(node_alone(by_output["y"], 17)), {})
        assert found.tolist() == ["cat", "né"]

    def test_constants_may_have_less_than_a_byte(self):
        _, by_output = imported("y = Cast<to=1>(a)", "int4[3] a", "float[3] y")
        by_output["y"].inputs[0].to_constant(np.array([-8, 3, 7]).astype(ml_dtypes.int4))
        [found] = run_session(open_session(node_alone(by_output["y"], 21)), {})
        assert found.tolist() == [-8, 3, 7]


def rows_with_labels(net):
    """Rows of box, best score and its label, as some exporters put them at the end."""
    x = net.block("images", 8)
    boxes = net.reshape(net.conv(x, 4, name="boxes"), 1, 4, -1)
    scores = net.add("Sigmoid", net.reshape(net.conv(x, 3, name="scores"), 1, 3, -1))
    label = net.add("Cast", net.add("ArgMax", scores, axis=1, keepdims=1), to=TensorProto.FLOAT)
    best = net.add("ReduceMax", scores, axes=[1], keepdims=1)
    return net.model(net.concat(boxes, best, label)), {boxes, best, scores}


class TestBeforeSelection:
    @pytest.mark.parametrize("name", ["csp", "v8", "pan", "yolox"])
    def test_outputs_that_nothing_selects_stay(self, name):
        model = BUILDERS[name]()
        assert before_selection(model.graph) == tuple(output.name for output in model.graph.output)
        assert comparable(model, model) == (model, model)

    def test_boxes_and_scores_that_enter_a_selection_stand_for_its_rows(self):
        model = BUILDERS["v10"]()
        tensors = before_selection(model.graph)
        producers = {name: node for node in model.graph.node for name in node.output}
        assert not set(tensors) & {output.name for output in model.graph.output}
        behind, pending = set(), list(tensors)
        while pending:
            node = producers.get(pending.pop())
            if node is not None and node.output[0] not in behind:
                behind.add(node.output[0])
                assert node.op_type != "TopK"
                pending += node.input
        values = run(ending_at(model, tensors), feed(model))
        assert {array.shape[1] for array in values.values() if array.ndim == 3} == {
            max(a.shape[1] for a in values.values())
        }

    def test_labels_of_the_best_score_are_a_selection(self):
        model, entering = rows_with_labels(Net())
        assert set(before_selection(model.graph)) == entering

    def test_layers_behind_a_selection_are_measured(self):
        net = Net()
        scores = net.reshape(net.conv(net.block("images", 8), 1, name="scores"), 1, -1)
        best, _ = net.add_many("TopK", scores, net.ints(4), outputs=2)
        model = net.model(net.add("MatMul", best, net.const(np.eye(4))))
        assert before_selection(model.graph) == tuple(output.name for output in model.graph.output)

    def test_a_model_that_lacks_the_tensors_is_compared_at_its_outputs(self):
        model, _ = rows_with_labels(Net())
        other = copy(model)
        for node in other.graph.node:
            if node.op_type == "Sigmoid":
                [name] = node.output
                node.output[0] = "another"
        for node in other.graph.node:
            node.input[:] = ["another" if each == name else each for each in node.input]
        assert comparable(model, other) == (model, other)


def named(body):
    """A model in text whose nodes have the names of their outputs."""
    model = parsed(body)
    for node in model.graph.node:
        node.name = node.output[0]
    return model


class TestSegmentBehind:
    @pytest.mark.parametrize("name", ["csp", "pan", "v8", "conditional", "attention", "v10"])
    def test_it_computes_what_the_whole_model_does(self, name):
        model, rng = BUILDERS[name](), np.random.default_rng(0)
        values, ends = feed(model), [output.name for output in model.graph.output]
        computed = [t for node in model.graph.node for t in node.output if t]
        every = {**values, **run(model, values, computed)}
        for node in rng.choice(model.graph.node, 6, replace=False):
            part = segment_behind(model.graph, {node.name}, ends)
            if not part.outputs:
                continue
            alone = part.model(model, [every])
            onnx.checker.check_model(alone, full_check=True)
            session = open_session(alone, optimized=False)
            found = run_session(session, {name: every[name] for name in part.inputs})
            for name, result in zip(part.outputs, found, strict=True):
                assert np.array_equal(result, every[name]), (node.name, name)

    def test_only_what_depends_on_the_nodes_and_what_that_needs_are_in_it(self):
        model = named(TREE)
        part = segment_behind(model.graph, {"c"}, ["y", "z"])
        assert ([node.name for node in part.nodes], part.inputs, part.outputs) == (["c", "d", "y"], ("a", "b"), ("y",))
        part = segment_behind(model.graph, {"b", "d"}, ["z", "y"])
        assert ([node.name for node in part.nodes], part.inputs) == (["b", "d", "y", "z"], ("a", "c"))

    def test_what_depends_on_no_input_is_computed_in_it(self):
        model = named("c = Constant <value_float = 1.0> () k = Neg(c) a = Relu(x) y = Add(a, k)")
        part = segment_behind(model.graph, {"y"}, ["y"])
        assert ([node.name for node in part.nodes], part.inputs) == (["c", "k", "y"], ("a",))

    def test_a_length_that_differs_between_runs_is_left_open(self):
        model = named(TREE)
        part = segment_behind(model.graph, {"d"}, ["y"])
        runs = [{name: np.zeros((2, width), np.float32) for name in "bcy"} for width in (3, 3, 4)]
        shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in part.model(model, runs).graph.input]
        assert shapes == [[2, 0], [2, 0]]
        same = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in part.model(model, runs[:2]).graph.input]
        assert same == [[2, 3], [2, 3]]


class TestSegmentFrom:
    @pytest.mark.parametrize("name", ["csp", "pan", "v8", "conditional", "attention", "v10"])
    def test_what_is_read_from_a_place_leads_to_all_that_follows(self, name):
        model = BUILDERS[name]()
        values = feed(model)
        places = range(0, len(model.graph.node) + 1, max(1, len(model.graph.node) // 4))
        every = {**values, **run(model, values, [t for node in model.graph.node for t in node.output if t])}
        for place, later in pairwise(places):
            given = read_from(model.graph, place)
            part = segment_from(model.graph, given, read_from(model.graph, later))
            assert {t for node in part.nodes for t in node.output}.isdisjoint(given)
            if not part.outputs:
                continue
            alone = part.model(model, [{name: every[name] for name in given}])
            found = run_session(open_session(alone, optimized=False), {name: every[name] for name in part.inputs})
            for tensor, result in zip(part.outputs, found, strict=True):
                assert np.array_equal(result, every[tensor]), tensor

    def test_what_stands_before_the_given_tensors_is_left_out(self):
        model = named(TREE)
        part = segment_from(model.graph, {"b", "c"}, ["y", "b", "z"])
        assert ([node.name for node in part.nodes], part.inputs) == (["d", "y", "z"], ("b", "c"))
        assert part.outputs == ("y", "z")


def test_nodes_from_a_place_on_read_inputs_and_what_depends_on_them():
    model = named("c = Constant <value_float = 1.0> () a = Relu(x) b = Add(a, c) d = Mul(b, c) y = Add(d, x)")
    assert read_from(model.graph, 0) == ("x",)
    assert read_from(model.graph, 2) == ("a", "x")
    assert read_from(model.graph, 3) == ("b", "x")
