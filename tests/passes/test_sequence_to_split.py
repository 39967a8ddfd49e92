import numpy as np
import onnx
import pytest
from graphs import (
    BACKBONES,
    DETECTORS,
    Net,
    assert_untouched,
    ops,
    quantized,
    rewrite,
    rewrite_checked,
)
from onnx import TensorProto, helper

from onnxq.facts import Plan
from onnxq.ir import Model
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.sequence_to_split import SequenceToSplit
from onnxq.pipeline import Facts
from onnxq.targets import TARGETS


def pick(net: Net, sequence: str, index: int, channels: int) -> str:
    y = net.add("SequenceAt", sequence, net.const(index, np.int64))
    net.channels[y] = channels
    return y


def chunked(lengths=4, picked=((0, 4), (1, 4)), axis=1, **options) -> onnx.ModelProto:
    """A CSP block whose halves are pieces of a sequence: (index, channels) of each."""
    net = Net(opset=17, **options)
    x = net.block("images", 8, stride=2)
    sequence = net.add("SplitToSequence", x, net.const(lengths, np.int64), axis=axis)
    pieces = [pick(net, sequence, index, channels) for index, channels in picked]
    inner = [net.block(piece, 4) for piece in pieces]
    return net.model(net.conv(net.concat(*inner), 4, name="last"))


def inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    return rewrite(InferShapes(), model)[0]


@pytest.mark.parametrize("build", [*BACKBONES.values(), *DETECTORS.values()], ids=lambda build: build.__name__)
def test_models_without_sequences_are_left_alone(build):
    assert_untouched(SequenceToSplit(), build())


@pytest.mark.parametrize(
    ("lengths", "picked"),
    [
        (4, ((0, 4), (1, 4))),
        (4, ((1, 4), (0, 4))),
        (4, ((-1, 4), (-2, 4))),
        ([4, 4], ((0, 4), (1, 4))),
        ([2, 6], ((0, 2), (1, 6))),
        (3, ((0, 3), (1, 3), (2, 2))),
    ],
)
def test_pieces_become_outputs_of_a_split(lengths, picked):
    after, edits = rewrite_checked(SequenceToSplit(), inferred(chunked(lengths, picked)))
    assert edits == 1
    assert not {"SequenceAt", "SplitToSequence"} & set(ops(after))
    assert ops(after).count("Split") == 1


def test_a_piece_that_nobody_picks_has_a_place_of_its_own():
    after, edits = rewrite_checked(SequenceToSplit(), inferred(chunked([2, 4, 2], ((1, 4),))))
    assert edits == 1
    [split] = [node for node in after.graph.node if node.op_type == "Split"]
    assert len(set(split.output)) == 3


def test_given_lengths_need_no_shapes():
    model = chunked([4, 4])
    del model.graph.value_info[:]
    assert rewrite_checked(SequenceToSplit(), model)[1] == 1


def test_one_length_for_all_needs_the_length_of_the_axis():
    model = chunked(4)
    del model.graph.value_info[:]
    assert_untouched(SequenceToSplit(), model)


def test_a_piece_picked_twice_stays():
    assert_untouched(SequenceToSplit(), inferred(chunked(4, ((0, 4), (0, 4)))))


def test_a_computed_index_stays():
    model = chunked(4)
    [first, _] = [node for node in model.graph.node if node.op_type == "SequenceAt"]
    model.graph.input.append(helper.make_tensor_value_info("which", TensorProto.INT64, []))
    first.input[1] = "which"
    working = Model(inferred(model))
    assert SequenceToSplit().run(working, Facts()) == 0


def test_without_lengths_it_stays():
    net = Net(opset=17)
    x = net.block("images", 8, stride=2)
    x = pick(net, net.add("SplitToSequence", x, axis=0, keepdims=1), 0, 8)
    assert_untouched(SequenceToSplit(), inferred(net.model(net.conv(x, 4, name="last"))))


def test_a_sequence_that_another_reader_has_stays():
    net = Net(opset=17)
    x = net.block("images", 8, stride=2)
    sequence = net.add("SplitToSequence", x, net.ints(4, 4), axis=1)
    count = net.add("Cast", net.add("SequenceLength", sequence), to=TensorProto.FLOAT)
    x = net.add("Mul", pick(net, sequence, 0, 4), count)
    net.channels[x] = 4
    assert_untouched(SequenceToSplit(), inferred(net.model(net.conv(x, 4, name="last"))))


def test_a_piece_that_a_subgraph_picks_stays():
    net = Net(opset=17)
    x = net.block("images", 8, stride=2)
    sequence = net.add("SplitToSequence", x, net.ints(4, 4), axis=1)

    def branch(name: str, index: str) -> onnx.GraphProto:
        node = helper.make_node("SequenceAt", [sequence, index], [f"{name}_out"], f"{name}_node")
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)]
        )

    positive = net.add("Greater", net.add("ReduceMax", "images", keepdims=0), net.const(0.5))
    first, second = net.const(0, np.int64), net.const(1, np.int64)
    x = net.add("If", positive, then_branch=branch("then", first), else_branch=branch("otherwise", second))
    net.channels[x] = 4
    assert_untouched(SequenceToSplit(), inferred(net.model(net.conv(x, 4, name="last"))))


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_it_is_quantized_as_a_split_is(target):
    net = Net(opset=17)
    halves = net.split(net.block("images", 8, stride=2), 4, 4)
    written_as_split = net.model(net.conv(net.concat(*(net.block(half, 4) for half in halves)), 4, name="last"))
    replaced = rewrite(SequenceToSplit(), inferred(chunked(4)))[0]
    (one, facts), (other, expected) = quantized(replaced, target), quantized(written_as_split, target)
    assert facts[Plan].layers == expected[Plan].layers
    assert ops(one) == ops(other)
