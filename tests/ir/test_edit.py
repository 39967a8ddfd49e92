from texts import imported

from onnxq.ir import producer, remove, replace_uses


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
