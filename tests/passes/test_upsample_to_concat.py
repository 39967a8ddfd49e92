import onnx
import pytest
from graphs import Net, copy, initializers, nodes, ops, pan, quantized, rewrite_checked
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxq.passes.upsample_to_concat import UpsampleToConcat
from onnxq.targets import GENERIC

STEPS = ["Transpose", "Concat", "Reshape", "Concat", "Reshape", "Transpose"]


def before(model, **options):
    """The model quantized around every operator, with its Resize."""
    return quantized(model, GENERIC, **options)[0]


def upsampled(channels=8, scales=(1, 1, 2, 2), sizes=None, coordinates="asymmetric", rounding="floor", **options):
    """A block, a Resize, another block and a last Conv."""
    net = Net(**options)
    x = net.block("images", channels)
    how = ["", net.const(scales)] if sizes is None else ["", "", net.ints(*sizes)]
    modes = {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    y = net.add("Resize", x, *how, **modes)
    net.channels[y] = channels
    return net.model(net.conv(net.block(y, 8), 4))


def replaced(model):
    """Return whether the pass replaces the model's Resize; assert that the numbers stay the same."""
    after, edits = rewrite_checked(UpsampleToConcat(), model)
    assert ops(after).count("Resize") == ops(model).count("Resize") - edits
    return edits == 1


def test_the_upsampling_of_a_neck():
    model = before(pan())
    count = ops(model).count("Resize")
    after, edits = rewrite_checked(UpsampleToConcat(), model)
    assert edits == count > 0
    assert "Resize" not in ops(after)
    assert ops(after).count("QuantizeLinear") == ops(model).count("QuantizeLinear") - count


@settings(max_examples=8, deadline=None)
@given(channels=st.integers(1, 9), size=st.sampled_from([2, 6, 20]), batch=st.integers(1, 2))
def test_of_any_size(channels, size, batch):
    assert replaced(before(upsampled(channels, size=size, batch=batch)))


def test_narrow_grids():
    assert replaced(before(upsampled(), act_bits=4))


def test_the_steps_stand_on_integers_and_have_its_name():
    model = before(upsampled())
    resize = next(n for n in model.graph.node if n.op_type == "Resize")
    after, _ = rewrite_checked(UpsampleToConcat(), model)
    steps = [n for n in after.graph.node if n.name.startswith(resize.name) and n.op_type in STEPS]
    assert [n.op_type for n in steps] == STEPS
    types = {v.name: v.type.tensor_type.elem_type for v in onnx.shape_inference.infer_shapes(after).graph.value_info}
    assert {types[n.output[0]] for n in steps} == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize(
    ("coordinates", "rounding", "alike"),
    [
        ("asymmetric", "floor", True),
        ("half_pixel", "round_prefer_floor", True),
        ("pytorch_half_pixel", "round_prefer_floor", True),
        ("asymmetric", "ceil", False),
        ("half_pixel", "ceil", False),
        ("align_corners", "floor", False),
    ],
)
def test_only_modes_that_repeat_each_pixel(coordinates, rounding, alike):
    assert replaced(before(upsampled(coordinates=coordinates, rounding=rounding))) == alike


@pytest.mark.parametrize("scales", [(1, 1, 3, 3), (1, 1, 2, 4), (1, 1, 1, 1)], ids=str)
def test_other_scales_stay(scales):
    assert not replaced(before(upsampled(scales=scales)))


@pytest.mark.parametrize(("height", "width", "alike"), [(128, 128, True), (128, 64, False)])
def test_given_sizes(height, width, alike):
    assert replaced(before(upsampled(size=64, sizes=(1, 8, height, width)))) == alike


def test_images_of_unknown_size_stay():
    assert not replaced(before(upsampled(dynamic=True)))


def test_outputs_of_the_model_stay():
    net = Net()
    x = net.block("images", 8, act="Relu")
    y = net.add("Resize", x, "", net.const((1, 1, 2, 2)), mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric")  # fmt: skip
    net.channels[y] = 8
    model = before(net.model(net.conv(net.block(y, 8), 4), y))
    [resize] = [n for n in model.graph.node if n.op_type == "Resize"]
    [quantize] = [n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == resize.output[0]]
    dequantize = next(n for n in model.graph.node if n.output[0] == resize.input[0])
    quantize.input[1:] = dequantize.input[1:]
    assert not replaced(model)


def test_floats_and_other_grids_stay():
    model = before(upsampled())
    resize = next(n for n in model.graph.node if n.op_type == "Resize")
    quantize = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == resize.output[0])
    scale = initializers(model)[quantize.input[1]]
    other = copy(model)
    other.graph.initializer.append(numpy_helper.from_array(2 * scale, "other_scale"))
    nodes(other)[quantize.name].input[1] = "other_scale"
    assert not replaced(other)
    assert not replaced(upsampled())
