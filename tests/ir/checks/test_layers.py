import numpy as np
import pytest
from graphs import csp, v5_raw, v8
from onnx import helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.ir.checks.layers import check_layers, layer_fault


def graph(op, *shapes, **attributes):
    names = [f"p{number}" for number in range(len(shapes))]
    tensors = [numpy_helper.from_array(np.zeros(s, np.float32), n) for n, s in zip(names, shapes, strict=True)]
    node = helper.make_node(op, ["x", *names], ["y"], "n", **attributes)
    return helper.make_graph([node], "g", [], [], tensors)


@pytest.mark.parametrize("make", [v8, csp, v5_raw])
def test_sound_models(make):
    check_layers(make().graph)


@pytest.mark.parametrize(
    "sound",
    [
        graph("Conv", (8, 3, 3, 3), (8,), strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1], kernel_shape=[3, 3]),
        graph("Conv", (8, 1, 3), group=8),
        graph("ConvTranspose", (8, 2, 2, 2), (4,), group=2),
        graph("Gemm", (8, 4), (4,)),
        graph("BatchNormalization", (4,), (4,), (4,), (4,)),
        graph("MatMul", (8,)),
        graph("Conv"),
    ],
)
def test_sound_layers(sound):
    check_layers(sound)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (graph("Conv", ()), r"has a weight of the shape \(\), which is no kernel"),
        (graph("Conv", (8, 3)), r"has a weight of the shape \(8, 3\), which is no kernel"),
        (graph("Conv", (0, 3, 3, 3)), "which is no kernel"),
        (graph("Conv", (8, 3, 3, 3), group=3), r"has 3 groups, and a weight of the shape \(8, 3, 3, 3\)"),
        (graph("Conv", (8, 3, 3, 3), group=0), "has 0 groups"),
        (graph("Conv", (8, 3, 3, 3), group=2**40), "has 1099511627776 groups"),
        (graph("Conv", (8, 3, 3, 3), (3,)), r"has 8 output channels, and a bias of the shape \(3,\)"),
        (graph("ConvTranspose", (8, 2, 2, 2), (2,), group=2), r"has 4 output channels, and a bias of the shape \(2,\)"),
        (graph("Conv", (8, 3, 3, 3), strides=[0, 1]), r"has strides \[0, 1\], and a kernel of the shape \(3, 3\)"),
        (graph("Conv", (8, 3, 3, 3), strides=[1]), r"has strides \[1\], and"),
        (graph("Conv", (8, 3, 3, 3), pads=[1, 1]), r"has pads \[1, 1\], and"),
        (graph("Conv", (8, 3, 3, 3), kernel_shape=[5, 3]), r"has the kernel_shape \[5, 3\], and a kernel of the shape"),
        (graph("Gemm", (8,)), r"has a weight of the shape \(8,\), which is no matrix"),
        (graph("BatchNormalization", (4,), (4,), (3,), (4,)), "has parameters of the shapes .*, which are not alike"),
    ],
)
def test_contradictions_are_named(wrong, message):
    with pytest.raises(ModelError, match=rf"^node 'n' \(\w+\) .*{message}.*; export the model again$"):
        check_layers(wrong)


@pytest.mark.parametrize(
    ("op", "weight", "group", "data", "message"),
    [
        ("Conv", (8, 3, 3, 3), 1, (1, 3, 8, 8), ""),
        ("Conv", (8, 3, 3, 3), 2, ("batch", 6, None, None), ""),
        ("Conv", (8, 3, 3, 3), 1, ("batch", None, 8, 8), ""),
        ("Conv", (8, 3, 3, 3), 1, None, ""),
        ("ConvTranspose", (8, 3, 2, 2), 1, (1, 8, 4, 4), ""),
        ("Conv", (8, 3, 3, 3), 1, (1, 4, 8, 8), "reads 3 channels, and its input has the shape (1, 4, 8, 8)"),
        ("Conv", (8, 3, 3, 3), 1, (1, 3, 8), "reads 3 channels, and its input has the shape (1, 3, 8)"),
        ("ConvTranspose", (8, 3, 2, 2), 1, (1, 3, 4, 4), "reads 8 channels, and its input has the shape (1, 3, 4, 4)"),
    ],
)
def test_layers_whose_data_does_not_fit(op, weight, group, data, message):
    assert layer_fault(op, [None, weight], {"group": group}, data) == message
