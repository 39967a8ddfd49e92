"""Models with channels of unequal magnitudes."""

import numpy as np
import onnx
from graphs import Net, copy, initializers
from onnx import numpy_helper, shape_inference

FACTORS = np.array([0.02, 1, 0.1, 8, 0.4, 50, 2, 0.1])
"""Factors of the channels of a layer, which equalization must find."""


def uneven(**options: object) -> onnx.ModelProto:
    """Return a Conv whose output channels differ by a factor of 100 in size, a SiLU, and a Conv that reads them."""
    net = Net(**options)
    factors = np.geomspace(0.1, 10, 16)[:, None, None, None]
    weight = net.const(net.normal(16, 3, 3, 3, scale=0.3) * factors, name="maker_weight")
    x = net.add("Conv", "images", weight, name="maker", pads=[1] * 4)
    net.channels[x] = 16
    return net.model(net.conv(net.silu(x), 16, 3, name="reader"))


def joining(ratio: float, kind: str = "plain") -> onnx.ModelProto:
    """Return a Conv over two joined inputs, one `ratio` times as great, which its weights make up for.

    Of the kind "read", another Conv reads the small input, and of the kind "enlarged" the small input reaches the
    Concat through a Resize.
    """
    net = Net(size=64)
    x = net.block("images", 64, 3, stride=2)
    small = net.block(x, 64, 3, stride=2 if kind == "enlarged" else 1)
    factor = net.const(np.float32(ratio))
    great = net.add("Mul", net.conv(net.silu(net.conv(x, 64, 3)), 64, 3), factor)
    net.channels[great] = 64
    moved = net.upsample(small) if kind == "enlarged" else small
    joined = net.concat(moved, great)
    weight = net.normal(64, 128, 3, 3, scale=0.05)
    weight[:, 64:] /= ratio
    y = net.add("Conv", joined, net.const(weight, name="reader_weight"), name="reader", pads=[1] * 4)
    net.channels[y] = 64
    head = net.conv(net.block(y, 64, 3), 16)
    if kind == "plain":
        return net.model(head)
    return net.model(net.conv(net.block(net.conv(small, 64, 3, name="other"), 64, 3), 16), head)


def edited(model, edit):
    """A model after `edit` of its initializers, values by name."""
    model = shape_inference.infer_shapes(copy(model))
    values = {name: value.copy() for name, value in initializers(model).items()}
    edit(values)
    for w in model.graph.initializer:
        w.CopyFrom(numpy_helper.from_array(values[w.name].astype(values[w.name].dtype), w.name))
    return model


def with_rows(model, layer="maker", axis=0, factors=FACTORS):
    """The model with the rows of a layer's weight, and its bias, multiplied by the factors."""

    def edit(values):
        values[f"{layer}_weight"] *= factors.reshape([-1 if k == axis else 1 for k in range(4)]).astype(np.float32)
        if f"{layer}_bias" in values:
            values[f"{layer}_bias"] *= factors.astype(np.float32)

    return edited(model, edit)


def amplified(ratio: float, kind: str = "full", shared: str = "") -> onnx.ModelProto:
    """Return a Conv of which some channels are `ratio` times as great, a SiLU, and a Conv whose weights make up for it.

    The last one, "reader", is of the kind "full" or "depthwise". Another Conv reads the SiLU too if `shared`
    is "conv", and a Concat if it is "concat".
    """
    net, factors = Net(size=64), np.ones(64)
    factors[:4] = ratio
    x = net.block("images", 64, 3, stride=2)
    weight = net.normal(64, 64, 3, 3, scale=0.05) * factors[:, None, None, None]
    x = net.add("Conv", x, net.const(weight, name="maker_weight"), name="maker", pads=[1] * 4)
    net.channels[x] = 64
    x = net.silu(x)
    if kind == "depthwise":
        weight = net.normal(64, 1, 3, 3, scale=0.3) / factors[:, None, None, None]
    else:
        weight = net.normal(64, 64, 3, 3, scale=0.05) / factors[:, None, None]
    y = net.add(
        "Conv", x, net.const(weight, name="reader_weight"), name="reader", pads=[1] * 4, group=64 // weight.shape[1]
    )
    net.channels[y] = 64
    head = net.conv(net.block(y, 64, 3), 16)
    if not shared:
        return net.model(head)
    other = net.concat(x, net.block(y, 64, 3)) if shared == "concat" else x
    return net.model(head, net.conv(net.block(other, 64, 3), 16))


def shifted(offset: float, channels: int) -> onnx.ModelProto:
    """Return a Conv of which the last of 64 channels lie around an offset, a Relu, and a Conv that takes it away again.

    Of a single channel the weights are 0, so it is the offset.
    """
    net, offsets = Net(size=64), np.zeros(64)
    offsets[-channels:] = offset
    x = net.block("images", 64, 3, stride=2)
    weight = net.normal(64, 64, 3, 3, scale=0.05)
    if channels == 1:
        weight[-1] = 0
    x = net.add("Conv", x, net.const(weight, name="maker_weight"), net.const(offsets), name="maker", pads=[1] * 4)
    net.channels[x] = 64
    x = net.add("Relu", x)
    net.channels[x] = 64
    weight = net.normal(64, 64, 1, 1, scale=0.2)
    y = net.add(
        "Conv", x, net.const(weight, name="reader_weight"), net.const(-weight[:, :, 0, 0] @ offsets), name="reader"
    )
    net.channels[y] = 64
    return net.model(net.conv(net.block(net.silu(y), 64, 3), 16))
