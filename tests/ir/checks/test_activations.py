"""The memory of a run is known before anything runs."""

import pytest
from graphs import Net, csp, silu_chain, v8
from onnx import TensorProto, helper

from onnxq import Config, memory, plan, quantize
from onnxq.errors import ModelError
from onnxq.ir.checks.activations import check_activations, value_bytes

IMAGE = {"images": (1, 3, 32, 32)}

GIGABYTE = 10**9


def growing(op, factor):
    """A small detector whose input is enlarged by a factor, first by 1."""
    net = Net()
    x = net.conv("images", 4)
    if op == "Resize":
        x = net.add(op, x, "", net.const([1.0, 1.0, factor, factor]), name="big")
    elif op == "Tile":
        x = net.add(op, x, net.ints(1, 1, factor, factor), name="big")
    elif op == "Expand":
        x = net.add(op, net.add("ReduceMean", x, axes=[2, 3]), net.ints(1, 4, 32 * factor, 32 * factor), name="big")
    else:
        x = net.add(op, x, net.ints(0, 0, 0, 0, 0, 0, 32 * (factor - 1), 32 * (factor - 1)), name="big")
    net.channels[x] = 4
    return net.model(net.add("GlobalAveragePool", x, name="end"))


@pytest.mark.parametrize("op", ["Resize", "Tile", "Expand", "Pad"])
def test_tensors_that_grow(op):
    with memory.limited_to(GIGABYTE):
        check_activations(growing(op, 2), IMAGE)
        with pytest.raises(ModelError) as raised:
            check_activations(growing(op, 1000), IMAGE)
    assert str(raised.value).startswith(f"the tensors of a run, of which node 'big' ({op}) makes one of (1, 4, 32000, ")
    assert "would take 49.2 GB of memory, and the limit is 1.0 GB: give a smaller --image-size" in str(raised.value)


@pytest.mark.parametrize("ask", [lambda model: plan(model), lambda model: quantize(model)], ids=["plan", "quantize"])
def test_are_refused_before_they_are_computed(ask):
    with memory.limited_to(GIGABYTE), pytest.raises(ModelError, match="node 'big'"):
        ask(growing("Tile", 1000))


@pytest.mark.parametrize("build", [v8, csp, silu_chain], ids=lambda build: build.__name__)
def test_small_detectors_need_little(build):
    model = build()
    with memory.limited_to(10**6):
        check_activations(model, IMAGE)
    with memory.limited_to(10**4), pytest.raises(ModelError, match="the tensors of a run"):
        check_activations(model, IMAGE)


def test_tensors_that_are_not_needed_any_more_are_not_counted():
    net = Net()
    x = "images"
    for number in range(50):
        x = net.add("Relu", x, name=f"relu{number}")
    model = net.model(x)
    with memory.limited_to(3 * 3 * 4 * 3 * 32 * 32):
        check_activations(model, IMAGE)
    model.graph.output.extend(helper.make_tensor_value_info(f"relu{k}_out", TensorProto.FLOAT, None) for k in range(50))
    with memory.limited_to(3 * 3 * 4 * 3 * 32 * 32), pytest.raises(ModelError, match=r"would take 1\.8"):
        check_activations(model, IMAGE)


def test_an_input_that_is_too_large():
    model = v8()
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 2**17
    with (
        memory.limited_to(GIGABYTE),
        pytest.raises(ModelError, match=r"the input 'images' of the shape \(1, 3, 131072, 131072\) would take 206"),
    ):
        plan(model)
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "side"
    with (
        memory.limited_to(GIGABYTE),
        pytest.raises(ModelError, match="the input 'images' of 1 x 3 x 131072 x 131072 values would take"),
    ):
        plan(model, Config(image_size=(2**17, 2**17)))


def test_bytes_of_a_tensor():
    assert value_bytes(helper.make_tensor_value_info("a", TensorProto.FLOAT16, [2, 3])) == 12
    assert value_bytes(helper.make_tensor_value_info("a", TensorProto.FLOAT, [])) == 4
    assert value_bytes(helper.make_tensor_value_info("a", TensorProto.FLOAT, None)) == 0
    assert value_bytes(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 3])) == 0
