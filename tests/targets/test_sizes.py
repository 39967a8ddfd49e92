"""Sizes of images: as the graph declares them, and inferred for images of one size."""

import numpy as np
import pytest
from graphs import Net, csp, prepared

from onnxq.ir import Model, Variable
from onnxq.targets.sizes import ImageSizes, declared_sizes, image_size, sizes_at


def halved(net: Net) -> Model:
    """Return a graph whose Conv `half` halves the image, and whose Resize `whole` undoes it by a computed size."""
    half = net.conv("images", 8, kernel=3, stride=2, name="half")
    of_half = net.add("Slice", net.add("Shape", half), net.ints(0), net.ints(2))
    of_image = net.add("Slice", net.add("Shape", "images"), net.ints(2), net.ints(4))
    lengths = net.add("Concat", of_half, of_image, axis=0)
    whole = net.add("Resize", half, "", "", lengths, name="whole", mode="nearest")
    net.channels[whole] = 8
    return prepared(net.model(net.conv(whole, 4, name="last")))


def outputs(model: Model, sizes: ImageSizes) -> dict[str, tuple[int, int] | None]:
    return {name: sizes.tensors.get(model.nodes[name].outputs[0].name) for name in ("half", "whole", "last")}


@pytest.mark.parametrize(
    ("shape", "expected"),
    [([1, 3, 32, 64], 2048), ([2, 32, 64, 3], 2048), (["n", 3, 32, 64], 2048), ([1, 3, "h", 64], None), ([1, 2], None),
     (None, None)],
)  # fmt: skip
def test_pixels_of_an_image(shape, expected):
    model = prepared(csp())
    model.graph.inputs[:] = [Variable("im_shape", np.float32, (1, 2)), Variable("image", np.float32, shape)]
    assert declared_sizes(model).pixels == expected


@pytest.mark.parametrize(
    ("size", "whole", "expected"),
    [((8, 8), 64 * 64, True), ((9, 8), 64 * 64, False), (None, 64 * 64, False), ((8, 8), None, False)],
)
def test_a_stride_is_told_by_the_number_of_positions(size, whole, expected):
    sizes = ImageSizes({} if size is None else {"x": size}, whole)
    assert sizes.has_stride(Variable("x", np.float32), 8) == expected


@pytest.mark.parametrize(
    ("shape", "expected"), [([1, 8, 4, 5], (4, 5)), ([1, 8, 4, "w"], None), ([1, 8, 4], None), (None, None)]
)
def test_the_size_of_an_image(shape, expected):
    assert image_size(Variable("x", np.float32, shape)) == expected


def test_declared_sizes():
    model = halved(Net(size=32))
    assert declared_sizes(model).pixels == 32 * 32
    assert outputs(model, declared_sizes(model)) == {"half": (16, 16), "whole": (32, 32), "last": (32, 32)}


def test_of_a_model_of_dynamic_size_none_is_declared():
    model = halved(Net(size=32, dynamic=True))
    assert declared_sizes(model) == ImageSizes({}, None)


def test_sizes_at_a_size_follow_through_arithmetic_on_shapes():
    model = halved(Net(size=32, dynamic=True))
    sizes = sizes_at(model, "images", (1, 3, 64, 48))
    assert sizes.pixels == 64 * 48
    assert outputs(model, sizes) == {"half": (32, 24), "whole": (64, 48), "last": (64, 48)}
    assert declared_sizes(model) == ImageSizes({}, None), "the model was changed"


def test_declared_lengths_count_before_others():
    model = halved(Net(size=32))
    assert sizes_at(model, "images", (1, 3, 64, 48)) == declared_sizes(model)


def test_declared_outputs_of_another_size_are_not_believed():
    model = halved(Net(size=32, dynamic=True))
    model.graph.outputs[0].shape = [1, 4, 32, 32]
    assert outputs(model, sizes_at(model, "images", (1, 3, 64, 48)))["last"] == (64, 48)
