"""The work of a run is known before anything runs."""

import logging

import numpy as np
import onnx
import pytest
from graphs import Net, csp, v8
from onnx import TensorProto, helper

from onnxq import Config, plan
from onnxq.errors import ModelError
from onnxq.ir.checks import work
from onnxq.ir.checks.activations import check_run
from onnxq.ir.checks.work import check_work

IMAGE = {"images": (1, 3, 32, 32)}


@pytest.fixture
def products(monkeypatch):
    """Count the products of a graph of one node that matters, and its name."""
    monkeypatch.setattr(work, "MOST", 1)
    monkeypatch.setattr(work, "TOLD", 0)
    monkeypatch.setattr(work, "_LEAST", 0)
    found = []
    monkeypatch.setattr(work, "_duration", lambda seconds: found.append(round(seconds * work.PER_SECOND)) or "long")

    def count(*nodes, **shapes):
        inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
        outputs = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
        graph = helper.make_graph(nodes, "g", inputs, outputs)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        with pytest.raises(ModelError):
            check_run(model, {})
        return found[-1]

    return count


@pytest.mark.parametrize(
    ("node", "shapes", "expected"),
    [
        (("Conv", {"group": 2, "pads": [1] * 4}), {"x": [2, 4, 8, 8], "w": [6, 2, 3, 3]}, 2 * 6 * 8 * 8 * 2 * 3 * 3),
        (("Conv", {"strides": [2, 2]}), {"x": [1, 4, 8, 8], "w": [6, 4, 2, 2]}, 6 * 4 * 4 * 4 * 2 * 2),
        (("ConvTranspose", {"strides": [2, 2]}), {"x": [1, 4, 8, 8], "w": [4, 6, 2, 2]}, 4 * 8 * 8 * 6 * 2 * 2),
        (("MatMul", {}), {"x": [5, 7, 11], "w": [11, 3]}, 5 * 7 * 11 * 3),
        (("Gemm", {"transA": 1}), {"x": [11, 7], "w": [11, 3]}, 7 * 11 * 3),
        (("MaxPool", {"kernel_shape": [3, 3]}), {"x": [1, 2, 8, 8]}, 2 * 6 * 6 * 9),
        (("ReduceMax", {"axes": [1], "keepdims": 0}), {"x": [4, 1000]}, 4000),
        (("LSTM", {"hidden_size": 5}), {"x": [9, 2, 3], "w": [1, 20, 3], "r": [1, 20, 5]}, 9 * 2 * (60 + 100)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_products_of_a_node(products, node, shapes, expected):
    op, attributes = node
    assert products(helper.make_node(op, list(shapes), ["y"], **attributes), **shapes) == expected


def looping(trips, goes_on=True, keeps=True, condition="goes_on"):
    """A Loop that adds vectors of 1000 elements."""
    kind = TensorProto.FLOAT
    body = helper.make_graph(
        [
            helper.make_node("Identity" if keeps else "Not", ["c"], ["c_out"]),
            helper.make_node("Add", ["v", "v"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", kind, [1000]),
        ],
        [
            helper.make_tensor_value_info("c_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", kind, [1000]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", condition, "x"], ["y"], name="loop", body=body)],
        "g",
        [helper.make_tensor_value_info("x", kind, [1000])],
        [helper.make_tensor_value_info("y", kind, None)],
        [
            helper.make_tensor("trips", TensorProto.INT64, [], [trips]),
            helper.make_tensor("goes_on", TensorProto.BOOL, [], [goes_on]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


@pytest.mark.parametrize("condition", ["goes_on", ""])
def test_a_loop_that_a_constant_ends_is_refused_if_it_takes_hours(condition):
    said = r"some 2e\+17 products, 100 % of them in node 'loop' \(Loop\), which is 46 days for a picture on two cores; "
    with pytest.raises(ModelError, match=said):
        check_run(looping(10**12, condition=condition), {})
    with pytest.raises(ModelError, match="over a million days"):
        check_run(looping(2**62, condition=condition), {})


@pytest.mark.parametrize("ends", [{"goes_on": False}, {"keeps": False}, {"trips": 5}], ids=str)
def test_a_loop_that_ends_otherwise_counts_once(ends, caplog):
    check_run(looping(**{"trips": 10**12, **ends}), {})
    assert not caplog.messages


def test_minutes_are_told(caplog):
    check_run(looping(10**8), {})
    assert caplog.messages == [
        "a run of the model takes some 2e+13 products, 100 % of them in node 'loop' (Loop), which is 7 minutes for a "
        "picture on two cores; a smaller --image-size takes less"
    ]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_large_input_is_refused_before_a_part_runs(monkeypatch):
    net = Net(size=32)
    x = net.conv("images", 8)
    for _ in range(20):
        x = net.conv(x, 8)
    model = net.model(x)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "h"
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "w"
    monkeypatch.setattr(work, "TOLD", 10**8)
    monkeypatch.setattr(work, "MOST", 10**8)
    plan(model, Config(image_size=(32, 32)))
    with pytest.raises(ModelError, match="give a smaller --image-size"):
        plan(model, Config(image_size=(640, 640)))


@pytest.mark.parametrize("build", [v8, csp], ids=lambda build: build.__name__)
def test_detectors_are_not_mentioned(build, caplog):
    check_run(build(), IMAGE)
    assert not caplog.messages


def test_a_graph_without_shapes_counts_its_nodes():
    nodes = [helper.make_node("Relu", ["x"], [f"y{k}"]) for k in range(3)]
    check_work(helper.make_graph(nodes, "g", [], []))
    assert sum(each for each, _ in work._work(helper.make_graph(nodes, "g", [], []), work._NOTHING)) == 3 * work._LEAST


def test_constants_of_several_elements_are_no_number_of_times():
    model = looping(10**12)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.full(2, 10**12), "trips"))
    check_run(model, {})
