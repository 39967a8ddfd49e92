"""Lookups that node selection uses: the Concats that join scores. `test_selection.py` has what follows from them."""

import pytest
from graphs import Net, csp, prepared, v5, v6, v8, v10, yolox

from onnxq.facts import DecodeBoundary
from onnxq.passes.find_decode import FindDecode
from onnxq.pipeline import Pipeline
from onnxq.qdq.network import Network
from onnxq.targets import GENERIC
from onnxq.targets.sizes import declared_sizes


def joining(model):
    """Names of the Concats of the decode that join scores with other values."""
    working = prepared(model)
    boundary = Pipeline([FindDecode()]).run(working)[DecodeBoundary]
    network = Network(working, boundary, GENERIC, declared_sizes(working))
    return {node.name for node in network.nodes if network.joins_scores(node)}


@pytest.mark.parametrize(("build", "count"), [(v5, 3), (v6, 3), (v8, 1), (v10, 1), (yolox, 3)])
def test_boxes_and_scores_of_a_detector(build, count):
    assert len(joining(build())) == count


def test_a_concat_of_features_joins_no_scores():
    assert not joining(csp())


def detector(join):
    """Two last Convs, for boxes and for scores, and what `join` makes of them."""
    net = Net()
    x = net.block("images", 8)
    boxes, scores = net.conv(x, 4, name="boxes"), net.add("Sigmoid", net.conv(x, 3, name="scores"))
    net.prefix = "decode_"
    return net.model(join(net, boxes, scores))


def rows(net, x, channels):
    return net.add("Transpose", net.reshape(x, 1, channels, -1), perm=[0, 2, 1])


@pytest.mark.parametrize(
    ("join", "is_joined"),
    [
        (lambda net, boxes, scores: net.concat(boxes, scores), True),
        (lambda net, boxes, scores: net.concat(scores, boxes), True),
        (lambda net, boxes, scores: net.concat(net.add("Softmax", boxes, axis=1), scores), False),
        (lambda net, boxes, scores: net.concat(boxes, net.add("Mul", scores, net.const(640))), False),
        (lambda net, boxes, scores: net.concat(net.add("Mul", boxes, net.const(8)), boxes), False),
        (lambda net, boxes, scores: net.concat(rows(net, boxes, 4), rows(net, scores, 3), axis=2), True),
        (lambda net, boxes, scores: net.concat(boxes, net.add("ReduceMax", scores, axes=[1], keepdims=1)), True),
        (lambda net, boxes, scores: net.add("Mul", net.concat(boxes, boxes), net.const(2)), False),
    ],
    ids=["joined", "scores first", "two kinds of scores", "in px", "boxes", "moved", "selected", "no scores"],
)
def test_scores_are_values_of_a_sigmoid_or_softmax_that_were_moved_but_not_changed(join, is_joined):
    assert bool(joining(detector(join))) == is_joined
