import numpy as np
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    Net,
    assert_untouched,
    conditional,
    csp,
    initializers,
    nodes,
    ops,
    rewrite,
    rewrite_checked,
    v8,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.errors import ModelError
from onnxq.ir import Model
from onnxq.passes import fold_constants
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes

STEP = FoldConstants()


def shaped(model):
    """The model with its shapes, as the pass finds it."""
    return rewrite(InferShapes(), model)[0]


def grid_by_nodes(net):
    """The cells' corners [1, 1024, 2], as an exporter that folds nothing leaves them."""
    steps = net.add("Range", net.const(0), net.const(32), net.const(1))
    rows = net.add("Expand", net.unsqueeze(steps, 1), net.ints(32, 32))
    columns = net.add("Transpose", rows, perm=[1, 0])
    corners = net.concat(net.unsqueeze(columns, 2), net.unsqueeze(rows, 2), axis=2)
    return net.reshape(net.add("Mul", corners, net.const(8)), 1, 1024, 2)


# --- constants --------------------------------------------------------------------------------------------------------


def test_a_grid_becomes_one_initializer():
    net = Net()
    x = net.add("Transpose", net.reshape(net.conv("images", 2), 1, 2, 1024), perm=[0, 2, 1])
    after, edits = rewrite_checked(STEP, shaped(net.model(net.add("Add", x, grid_by_nodes(net)), shape=[1, 1024, 2])))
    assert ops(after) == ["Conv", "Reshape", "Transpose", "Add"]
    assert edits == 9
    grid = initializers(after)["reshape1_out"]
    assert grid.shape == (1, 1024, 2)
    assert grid[0, 33].tolist() == [8, 8]
    assert len(after.graph.initializer) == 4


def biased_like(kind):
    """A Conv whose bias gets the type of the image, from a constant of another type."""
    net = Net(opset=17)
    bias = net.add("CastLike", net.const([1, 2, 3, 4], kind), "images")
    weight = net.const(net.normal(4, 3, 1, 1), name="weight")
    return net.model(net.add("Conv", "images", weight, bias, name="last"))


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.int64])
def test_a_constant_that_gets_the_type_of_a_tensor(kind):
    after, edits = rewrite_checked(STEP, shaped(biased_like(kind)))
    assert edits == 1
    assert ops(after) == ["Conv"]


def test_a_second_run_folds_nothing():
    net = Net()
    x = net.reshape(net.conv("images", 2), 1, 1024, 2)
    after, _ = rewrite(STEP, shaped(net.model(net.add("Add", x, grid_by_nodes(net)), shape=[1, 1024, 2])))
    assert_untouched(STEP, after)


def test_integers_stay_integers():
    net = Net()
    shape = net.concat(net.ints(1, -1), net.add("Div", net.ints(64), net.ints(2)), axis=0)
    before = net.model(net.add("Reshape", "images", shape), shape=[1, 96, 32])
    after, edits = rewrite_checked(STEP, shaped(before))
    assert edits == 2
    assert initializers(after)["concat0_out"].dtype == np.int64
    assert initializers(after)["concat0_out"].tolist() == [1, -1, 32]


def test_every_used_output_of_a_node_becomes_a_constant():
    net = Net()
    first, _, third = net.split(net.const(np.arange(6).reshape(1, 6, 1, 1)), 3, 1, 2)
    x = net.add("Add", "images", first)
    after, edits = rewrite_checked(STEP, net.model(x, net.add("Mul", net.conv(x, 2), third)))
    assert edits == 1
    assert initializers(after)[first].ravel().tolist() == [0, 1, 2]
    assert initializers(after)[third].ravel().tolist() == [4, 5]


def test_an_optional_output_that_is_left_out_is_no_hindrance():
    net = Net()
    values = net.add_many("Dropout", net.const(np.ones((3, 1, 1))), outputs=2)[0]
    net.nodes[-1].output[1] = ""
    after, edits = rewrite_checked(STEP, net.model(net.add("Mul", "images", values)))
    assert edits == 1
    assert initializers(after)[values].ravel().tolist() == [1, 1, 1]


def test_an_input_that_is_left_out_is_no_hindrance():
    net = Net()
    scales = net.const([1, 1, 2, 2])
    large = net.add("Resize", net.const(np.ones((1, 3, 16, 16))), "", scales, mode="nearest")
    after, edits = rewrite_checked(STEP, net.model(net.add("Add", "images", large)))
    assert edits == 1
    assert initializers(after)["resize0_out"].shape == (1, 3, 32, 32)


def test_what_a_subgraph_reads_is_folded_in_the_graph_around_it():
    net = Net()
    half = net.add("Div", net.const(1), net.const(2), name="half")
    positive = net.add("Greater", net.add("ReduceMax", "images", keepdims=0), half)
    branches = {
        f"{kind}_branch": helper.make_graph(
            [helper.make_node(op, ["images", "half_out"], [f"{kind}_out"])],
            kind,
            [],
            [helper.make_tensor_value_info(f"{kind}_out", TensorProto.FLOAT, None)],
        )
        for kind, op in (("then", "Add"), ("else", "Mul"))
    }
    after, edits = rewrite_checked(STEP, shaped(net.model(net.add("If", positive, **branches))))
    assert edits == 1
    assert initializers(after)["half_out"] == 0.5


OPERATIONS = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Max": np.maximum}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.floats(-4, 4, width=32)), min_size=1, max_size=5),
    st.floats(-4, 4, width=32),
)
def test_a_chain_of_arithmetic_is_folded_to_its_value(steps, start):
    net = Net()
    value, expected = net.const(start), np.float32(start)
    for op, operand in steps:
        value = net.add(op, value, net.const(operand))
        expected = OPERATIONS[op](expected, np.float32(operand))
    after, edits = rewrite(STEP, net.model(net.add("Add", "images", value)))
    assert edits == len(steps)
    assert ops(after) == ["Add"]
    assert initializers(after)[value] == expected


# --- shapes -----------------------------------------------------------------------------------------------------------


def test_arithmetic_on_a_known_shape_is_folded_away():
    net = Net()
    x = net.conv("images", 4)
    shape = net.add("Shape", x)
    rows = net.unsqueeze(net.add("Gather", shape, net.const(2, np.int64), axis=0), 0)
    wanted = net.concat(net.ints(1, 4), net.add("Div", rows, net.ints(2)), net.ints(-1), axis=0)
    after, edits = rewrite_checked(STEP, shaped(net.model(net.add("Reshape", x, wanted), shape=[1, 4, 16, 64])))
    assert ops(after) == ["Conv", "Reshape"]
    assert edits == 5
    assert initializers(after)["concat0_out"].tolist() == [1, 4, 16, -1]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({}, [1, 3, 32, 32]),
        ({"start": 1}, [3, 32, 32]),
        ({"start": 1, "end": 3}, [3, 32]),
        ({"start": -2}, [32, 32]),
        ({"start": 0, "end": -3}, [1]),
        ({"start": 2, "end": 9}, [32, 32]),
    ],
)
def test_a_part_of_a_known_shape_is_folded(bounds, expected):
    net = Net(opset=15)
    before = net.model(net.add("Add", "images", net.add("ReduceMax", net.add(
        "Cast", net.add("Shape", "images", **bounds), to=TensorProto.FLOAT), keepdims=0)))  # fmt: skip
    after, edits = rewrite_checked(STEP, before)
    assert (ops(after), edits) == (["Add"], 3)
    net = Net(opset=15)
    x = net.add("Reshape", "images", net.add("Concat", net.add("Shape", "images", **bounds), net.ints(-1), axis=0))
    after, edits = rewrite_checked(STEP, net.model(x))
    assert edits == 2
    assert initializers(after)["concat0_out"].tolist() == [*expected, -1]


def first_half(net, x):
    """Half of the channels, as PyTorch exports `chunk`: the bound of the Slice is computed from the shape."""
    channels = net.add("Gather", net.add("Shape", x), net.ints(1), axis=0)
    middle = net.add("Div", net.add("Add", channels, net.ints(1)), net.ints(2))
    return net.add("Slice", x, net.ints(0), middle, net.ints(1))


def test_shapes_behind_what_was_folded_become_known_and_what_hangs_on_them_is_folded():
    net = Net()
    x = "images"
    for _ in range(3):
        x = net.conv(x, 8)
        x = first_half(net, x)
        net.channels[x] = 4
    after, edits = rewrite_checked(STEP, shaped(net.model(net.conv(x, 4))))
    assert ops(after) == [*["Conv", "Slice"] * 3, "Conv"]
    assert edits == 12
    known = {info.name: [dim.dim_value for dim in info.type.tensor_type.shape.dim] for info in after.graph.value_info}
    assert known[x] == [1, 4, 32, 32]


def test_what_is_folded_tells_more_shapes_which_are_folded_too():
    net = Net()
    x = net.conv("images", 4)
    for _ in range(2):
        shape = net.add("Shape", x)
        # By way of floats, as older versions of PyTorch scale images, which shape inference does not follow.
        sides = net.add("Cast", net.slice(shape, 0, 2), to=TensorProto.FLOAT)
        doubled = net.add("Cast", net.add("Floor", net.add("Mul", sides, net.const(2))), to=TensorProto.INT64)
        sizes = net.concat(net.slice(shape, 0, 0, end=2), doubled, axis=0)
        up = net.add("Resize", x, "", "", sizes, mode="nearest")
        net.channels[up] = 4
        x = net.conv(up, 4)
    after, _ = rewrite_checked(STEP, shaped(net.model(x, shape=[1, 4, 128, 128])))
    assert ops(after) == ["Conv", "Resize", "Conv", "Resize", "Conv"]
    assert [v.tolist() for k, v in initializers(after).items() if k.startswith("concat")] == [
        [1, 4, 64, 64],
        [1, 4, 128, 128],
    ]
    assert Model(after).graph.tensors()["resize1_out"].shape == [1, 4, 128, 128]


def test_the_shape_of_a_constant_is_folded():
    net = Net()
    shape = net.add("Shape", net.const(np.zeros((1, 3, 1024))))
    after, edits = rewrite_checked(STEP, net.model(net.add("Reshape", "images", shape), shape=[1, 3, 1024]))
    assert edits == 1
    assert initializers(after)["shape0_out"].tolist() == [1, 3, 1024]


def test_a_shape_that_is_not_fully_known_stays():
    net = Net(dynamic=True)
    x = net.conv("images", 4)
    assert_untouched(STEP, shaped(net.model(net.add("Reshape", x, net.add("Shape", x)), shape=["b", 4, "h", "w"])))


def test_a_shape_nothing_is_known_of_stays():
    net = Net()
    x = net.conv("images", 4)
    assert_untouched(STEP, net.model(net.add("Reshape", x, net.add("Shape", x)), shape=[1, 4, 32, 32]))


# --- what goes because nothing needs it -------------------------------------------------------------------------------


def test_nodes_and_constants_that_nothing_needs_go():
    before = csp()
    unused = [
        helper.make_node("Sigmoid", ["conv0_out"], ["unused"], "unused"),
        helper.make_node("Mul", ["unused", "conv0_out"], ["unused_too"], "unused_too"),
    ]
    before.graph.node.extend(unused)
    before.graph.initializer.add(name="unread", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0])
    after, edits = rewrite_checked(STEP, before)
    assert edits == 2
    assert not nodes(after).keys() & {"unused", "unused_too"}
    assert "unread" not in initializers(after)


def test_inputs_that_nothing_reads_stay():
    before = csp()
    before.graph.input.append(helper.make_tensor_value_info("unread", TensorProto.FLOAT, [1]))
    after, edits = rewrite(STEP, before)
    assert edits == 0
    assert [t.name for t in after.graph.input] == ["images", "unread"]


def test_what_only_a_subgraph_reads_stays():
    assert_untouched(STEP, conditional())


# --- what is not folded -----------------------------------------------------------------------------------------------


def test_a_constant_that_is_an_output_stays_computed():
    net = Net()
    assert_untouched(STEP, net.model(net.conv("images", 4), net.add("Add", net.const([1]), net.const([2]))))


@pytest.mark.parametrize("op", ["RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"])
def test_random_nodes_stay(op):
    net = Net()
    random = net.add(op, net.const([1, 2])) if op.endswith("Like") else net.add(op, shape=[3, 1, 1])
    model = net.model(net.add("Add", net.conv("images", 3), net.add("ReduceMax", random, keepdims=0)))
    assert_untouched(STEP, model)


def test_nodes_with_subgraphs_stay():
    before = conditional()
    nodes(before)["if0"].input[0] = "always"
    before.graph.initializer.append(helper.make_tensor("always", TensorProto.BOOL, [], [True]))
    after, edits = rewrite_checked(STEP, before)
    assert edits == 2  # the old condition
    assert "If" in ops(after)


def test_nodes_of_other_domains_stay_and_so_does_what_depends_on_them():
    net = Net()
    before = net.model(net.add("Add", "images", net.add("Neg", net.add("Neg", net.const([1])))))
    nodes(before)["neg0"].op_type, nodes(before)["neg0"].domain = "Gelu", "com.microsoft"
    before.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert_untouched(STEP, before)


def test_a_node_that_onnxruntime_refuses_stays_and_so_does_what_depends_on_it(caplog):
    net = Net()
    wanted = net.add("Neg", net.add("Neg", net.ints(1, 3072)))
    before = net.model(net.add("Reshape", "images", wanted), shape=[1, 3072])
    nodes(before)["neg0"].op_type = "NoSuchOperator"
    with caplog.at_level("INFO"):
        assert_untouched(STEP, before)
    assert "NoSuchOperator neg0 is not folded" in caplog.text


def test_a_constant_too_large_to_store_stays_computed():
    net = Net()
    large = net.add("Expand", net.const([1]), net.ints(1 << 11, (1 << 11) + 1))
    assert_untouched(STEP, net.model(net.add("Add", "images", net.add("ReduceMax", large, keepdims=0))))


class TestSizes:
    """Constants are sized before they are computed: a few bytes can ask for any number of elements."""

    @pytest.fixture(autouse=True)
    def _computed(self, monkeypatch):
        """Note the operators that are run."""
        self.computed = []
        opened = fold_constants.open_session

        def open_session(model, **options):
            self.computed.append(model.graph.node[0].op_type)
            return opened(model, **options)

        monkeypatch.setattr(fold_constants, "open_session", open_session)

    @staticmethod
    def model(net, large):
        return net.model(net.add("Add", "images", net.add("ReduceMax", large, keepdims=0)))

    @pytest.mark.parametrize(
        "make",
        [
            lambda net: net.add("Expand", net.const([1]), net.ints(1 << 20, 1 << 20)),
            lambda net: net.add("ConstantOfShape", net.ints(1 << 40)),
            lambda net: net.add("Tile", net.const([1, 2]), net.ints(1 << 30)),
            lambda net: net.add("Range", net.const(0), net.const(1e12), net.const(1)),
        ],
        ids=["Expand", "ConstantOfShape", "Tile", "Range"],
    )
    def test_what_no_memory_holds_is_refused(self, make):
        net = Net()
        with pytest.raises(ModelError, match=r"^node '.*' \(\w+\) makes a constant of \d+ elements from \d+, which"):
            rewrite(STEP, self.model(net, make(net)))
        assert self.computed == []

    def test_what_is_too_large_to_store_is_not_computed(self):
        net = Net()
        large = net.add("Expand", net.const([1]), net.ints(1 << 11, (1 << 11) + 1))
        assert_untouched(STEP, self.model(net, large))
        assert self.computed == []

    def test_products_of_many_terms_are_not_computed(self, monkeypatch):
        monkeypatch.setattr(fold_constants, "_MOST_PRODUCTS", 30**3)
        net = Net()
        small, large = (net.add("ConstantOfShape", net.ints(side, side)) for side in (30, 31))
        sums = [net.add("ReduceMax", net.add("MatMul", each, each), keepdims=0) for each in (small, large)]
        after, _ = rewrite(STEP, net.model(net.add("Add", "images", net.add("Add", *sums))))
        assert self.computed.count("MatMul") == 1
        assert ops(after).count("MatMul") == 1

    def test_results_together_grow_to_a_limit(self, monkeypatch):
        monkeypatch.setattr(fold_constants, "_MOST_GROWTH", 1000)
        net = Net()
        parts = [net.add("Expand", net.const([number]), net.ints(400)) for number in range(4)]
        after, _ = rewrite(STEP, self.model(net, net.concat(*parts, axis=0)))
        assert self.computed == ["Expand"] * 2
        assert ops(after).count("Expand") == 2


def test_weights_that_turn_out_to_contradict_their_layer_are_refused():
    net = Net()
    weight = net.add("Reshape", net.const(np.zeros(216)), net.ints(8, 3, 3, 3))
    model = net.model(net.add("Conv", "images", weight))
    [shape] = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT64]
    shape.CopyFrom(helper.make_tensor(shape.name, TensorProto.INT64, [2], [8, 27]))
    with pytest.raises(ModelError, match=r"\(Conv\) has a weight of the shape \(8, 27\), which is no kernel"):
        rewrite(STEP, model)


@pytest.mark.parametrize("name", sorted({**BACKBONES, **DETECTORS}))
def test_a_graph_without_constant_nodes_is_not_touched(name):
    model = {**BACKBONES, **DETECTORS}[name]()
    assert_untouched(STEP, model)
    assert_untouched(STEP, shaped(model))


def test_shapes_of_a_detector_that_were_inferred_are_kept():
    before = shaped(v8())
    after, _ = rewrite(STEP, before)
    assert {v.name for v in after.graph.value_info} == {v.name for v in before.graph.value_info}
