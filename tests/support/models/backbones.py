"""Builders of small graphs with the structures of backbones and necks, and of some that test one feature."""

from collections.abc import Callable

import numpy as np
import onnx
from net import Net
from onnx import TensorProto, helper


def silu_chain(layers: int = 3, act: str = "silu", **options: object) -> onnx.ModelProto:
    """Convs with activations in a chain, and a last Conv without one."""
    net = Net(**options)
    x = "images"
    for _ in range(layers):
        x = net.block(x, 8, act=act)
    return net.model(net.conv(x, 4, name="last"))


def csp(**options: object) -> onnx.ModelProto:
    """A CSP block (C2f): Split, a residual Add, and a Concat of both halves and the sum."""
    net = Net(**options)
    x = net.block("images", 8, stride=2)
    left, right = net.split(net.block(x, 8, kernel=1), 4, 4)
    inner = net.block(net.block(right, 4), 4)
    added = net.add("Add", right, inner)
    x = net.block(net.concat(left, right, added), 8, kernel=1)
    return net.model(net.conv(x, 4, name="last"))


def sppf(**options: object) -> onnx.ModelProto:
    """Three MaxPools in a chain, and a Concat of their input and outputs."""
    net = Net(**options)
    x = net.block("images", 8, kernel=1, stride=2)
    pools = [x]
    for _ in range(3):
        pools.append(net.pool(pools[-1]))
    x = net.block(net.concat(*pools), 8, kernel=1)
    return net.model(net.conv(x, 4, name="last"))


def pan(**options: object) -> onnx.ModelProto:
    """A path aggregation network: a deeper map is resized and joined with a shallower one; both have other readers."""
    net = Net(**options)
    shallow = net.block("images", 8, stride=2)
    deep = net.block(shallow, 8, stride=2)
    top = net.block(net.concat(net.upsample(deep), shallow), 8)
    down = net.block(top, 8, stride=2)
    bottom = net.block(net.concat(down, deep), 8)
    return net.model(net.conv(top, 4, name="last0"), net.conv(bottom, 4, name="last1"))


def attention(**options: object) -> onnx.ModelProto:
    """The attention block of v10 and v11: MatMul, Softmax, MatMul between Convs, and a depthwise Conv in parallel."""
    net = Net(**options)
    x = net.block("images", 8, stride=4)
    tokens = (net.size // 4) ** 2
    qkv = net.reshape(net.conv(x, 24), 1, 2, 12, tokens)
    query, key, value = net.split(qkv, 4, 4, 4, axis=2)
    scores = net.add("MatMul", net.add("Transpose", query, perm=[0, 1, 3, 2], name="transpose_query"), key)
    shares = net.add("Softmax", net.add("Mul", scores, net.const(0.5)), axis=-1)
    mixed = net.add("MatMul", value, net.add("Transpose", shares, perm=[0, 1, 3, 2], name="transpose_shares"))
    side = net.size // 4
    image = net.reshape(mixed, 1, 8, side, side)
    positions = net.reshape(value, 1, 8, side, side)
    net.channels.update({image: 8, positions: 8})
    summed = net.add("Add", image, net.conv(positions, 8, 3, group=8, name="positions"))
    x = net.add("Add", x, net.conv(summed, 8, name="projection"))
    return net.model(net.conv(net.block(x, 8, kernel=1), 4, name="last"))


def area_attention(**options: object) -> onnx.ModelProto:
    """The attention of v12: the image is cut into areas, each of which attends to itself alone."""
    net = Net(**options)
    x = net.block("images", 8, stride=4)
    side, areas, heads, width = net.size // 4, 4, 2, 4
    tokens = side * side // areas
    flat = net.add("Transpose", net.reshape(net.conv(x, 24), 1, 24, -1), perm=[0, 2, 1], name="transpose_tokens")
    split_by_head = net.reshape(flat, areas, tokens, heads, 3 * width)
    qkv = net.add("Transpose", split_by_head, perm=[0, 2, 3, 1], name="transpose_heads")
    query, key, value = net.split(qkv, width, width, width, axis=2)
    scores = net.add("MatMul", net.add("Transpose", query, perm=[0, 1, 3, 2], name="transpose_query"), key)
    shares = net.add("Softmax", net.add("Mul", scores, net.const(0.5)), axis=-1)
    mixed = net.add("MatMul", value, net.add("Transpose", shares, perm=[0, 1, 3, 2], name="transpose_shares"))

    def image(tensor: str, name: str) -> str:
        rows = net.reshape(net.add("Transpose", tensor, perm=[0, 3, 1, 2], name=f"transpose_{name}"), 1, side, side, 8)
        y = net.add("Transpose", rows, perm=[0, 3, 1, 2], name=f"transpose_{name}_image")
        net.channels[y] = 8
        return y

    summed = net.add("Add", image(mixed, "mixed"), net.conv(image(value, "value"), 8, 7, group=8, name="positions"))
    net.channels[summed] = 8
    x = net.add("Add", x, net.conv(summed, 8, name="projection"))
    x = net.add("Add", x, net.conv(net.block(x, 16, kernel=1), 8))
    return net.model(net.conv(x, 4, name="last"))


def ese_net(**options: object) -> onnx.ModelProto:
    """HardSwish, and channels weighted by a Conv over their means (effective squeeze-excitation), as in PP-YOLOE."""
    net = Net(**options)
    x = net.hard_swish(net.conv("images", 8, 3, stride=2))
    x = net.hard_swish(net.conv(x, 8, 3))
    means = net.add("GlobalAveragePool", x)
    x = net.add("Mul", x, net.add("HardSigmoid", net.conv(means, 8, name="ese"), alpha=1 / 6, beta=0.5))
    return net.model(net.conv(net.block(x, 8), 4, name="last"))


def qarepvgg(**options: object) -> onnx.ModelProto:
    """Unmerged QARepVGG blocks, as in YOLO-NAS: 3x3 Conv, 1x1 Conv and the input added, then normalization and ReLU."""
    net = Net(**options)
    x = net.block("images", 8, stride=2, act="Relu")
    for _ in range(2):
        wide = net.norm(net.conv(x, 8, 3, bias=False))
        branches = net.add("Add", wide, net.conv(x, 8))
        x = net.act(net.norm(net.add("Add", branches, x)), "Relu")
    return net.model(net.conv(x, 4, name="last"))


def products(**options: object) -> onnx.ModelProto:
    """A MatMul over the channels of each position between Convs, and Gemms over the global means, as in classifiers."""
    net = Net(**options)
    x = net.block("images", 8, stride=2)
    side = net.size // 2
    rows = net.add("Transpose", net.reshape(x, 1, 8, side * side), perm=[0, 2, 1], name="transpose_rows")
    rows = net.add("MatMul", rows, net.const(net.normal(8, 12, scale=0.4), name="mix_weight"), name="mix")
    image = net.reshape(net.add("Transpose", rows, perm=[0, 2, 1], name="transpose_back"), 1, 12, side, side)
    net.channels[image] = 12
    means = net.add("Flatten", net.add("GlobalAveragePool", net.block(image, 16)))
    weight, bias = net.const(net.normal(10, 16, scale=0.4), name="hidden_weight"), net.const(net.normal(10, scale=0.2))
    hidden = net.silu(net.add("Gemm", means, weight, bias, transB=1, name="hidden"))
    weight, bias = net.const(net.normal(10, 8, scale=0.4), name="classes_weight"), net.const(net.normal(8, scale=0.2))
    return net.model(net.add("Softmax", net.add("Gemm", hidden, weight, bias, name="classes"), axis=1))


def relu_net(**options: object) -> onnx.ModelProto:
    """ReLU everywhere and a ConvTranspose in the neck, as in v6."""
    net = Net(**options)
    shallow = net.block("images", 8, stride=2, act="Relu")
    deep = net.block(shallow, 8, stride=2, act="Relu")
    weight = net.const(net.normal(8, 8, 2, 2, scale=0.4), name="upsample_weight")
    bias = net.const(net.normal(8, scale=0.2), name="upsample_bias")
    up = net.add("ConvTranspose", deep, weight, bias, name="upsample", kernel_shape=[2, 2], strides=[2, 2])
    net.channels[up] = 8
    x = net.block(net.concat(up, shallow), 8, act="Relu")
    return net.model(net.conv(x, 4, name="last"))


def leaky_net(**options: object) -> onnx.ModelProto:
    """LeakyReLU, MaxPool with stride, and a Concat of maps of several depths, as in v7-tiny."""
    net = Net(**options)
    x = net.block("images", 8, stride=2, act="LeakyRelu")
    first = net.block(x, 4, kernel=1, act="LeakyRelu")
    second = net.block(first, 4, act="LeakyRelu")
    x = net.pool(net.block(net.concat(second, first), 8, kernel=1, act="LeakyRelu"), kernel=3, stride=2)
    return net.model(net.conv(x, 4, name="last"))


def depthwise_net(**options: object) -> onnx.ModelProto:
    """Alternating depthwise and pointwise Convs, as in YOLOX-Nano."""
    net = Net(**options)
    x = net.block("images", 8, stride=2)
    x = net.block(x, 8, group=8)
    x = net.block(x, 8, kernel=1)
    x = net.block(x, 8, group=8)
    return net.model(net.conv(x, 4, name="last"))


def shared_weights(**options: object) -> onnx.ModelProto:
    """Two Convs that share weight and bias, each followed by different arithmetic."""
    net = Net(**options)
    x = net.block("images", 8)
    weight = net.const(net.normal(8, 8, 3, 3, scale=0.2), name="weight")
    bias = net.const(net.normal(8, scale=0.2), name="bias")
    ends = []
    for side in ("left", "right"):
        y = net.add("Conv", x, weight, bias, name=side, pads=[1] * 4)
        scaled = net.add("Mul", y, net.const(net.rng.uniform(0.5, 1.5, (8, 1, 1)), name=f"{side}_factor"))
        ends.append(net.silu(scaled))
    return net.model(net.conv(net.add("Add", *ends), 4, name="last"))


def shared_head(**options: object) -> onnx.ModelProto:
    """One weight and bias for Convs on two levels, as in RTMDet and RetinaNet."""
    net = Net(**options)
    fine = net.block("images", 8, kernel=3)
    coarse = net.block(fine, 8, kernel=3, stride=2)
    weight, bias = net.const(net.normal(8, 8, 3, 3, scale=0.2), name="weight"), net.const(net.normal(8), name="bias")
    outputs = []
    for name, x in (("fine", fine), ("coarse", coarse)):
        y = net.add("Conv", x, weight, bias, name=name, pads=[1] * 4)
        net.channels[y] = 8
        outputs.append(net.conv(net.silu(y), 4, name=f"last_{name}"))
    return net.model(*outputs)


def shared_towers(*, is_shared: bool = True, **options: object) -> onnx.ModelProto:
    """Towers of three levels that share the weights of two Convs and a bias, level by level as in RetinaNet.

    Args:
        is_shared: or else each level has a copy.
        options: of `Net`.
    """
    net = Net(**options)
    levels = [net.block("images", 8, kernel=3)]
    while len(levels) < 3:
        levels.append(net.block(levels[-1], 8, kernel=3, stride=2))
    tower = [(net.normal(8, 8, 3, 3, scale=0.2), net.normal(8, scale=0.2)) for _ in range(2)]
    of_all = [(net.const(w, name=f"weight{k}"), net.const(b, name=f"bias{k}")) for k, (w, b) in enumerate(tower)]
    outputs = []
    for level, y in enumerate(levels):
        for k in range(2):
            own = None if is_shared else [net.const(values, name=f"tower{k}_{level}_{n}") for n, values in
                                          zip(("weight", "bias"), tower[k], strict=True)]  # fmt: skip
            y = net.silu(net.add("Conv", y, *(own or of_all[k]), name=f"tower{k}_{level}", pads=[1] * 4))
            net.channels[y] = 8
        outputs.append(net.conv(y, 4, name=f"last_{level}"))
    if not is_shared:
        net.weights = [weight for weight in net.weights if weight.name not in {t for each in of_all for t in each}]
    return net.model(*outputs)


def recurrent(**options: object) -> onnx.ModelProto:
    """A Conv that reads its own output twice, by three nodes of one weight."""
    net = Net(**options)
    x = net.block("images", 8, stride=2)
    weight, bias = net.const(net.normal(8, 8, 3, 3, scale=0.2), name="weight"), net.const(net.normal(8), name="bias")
    for step in range(3):
        x = net.silu(net.add("Conv", x, weight, bias, name=f"step{step}", pads=[1] * 4))
        net.channels[x] = 8
    return net.model(net.conv(x, 4, name="last"))


def saturating() -> onnx.ModelProto:
    """Three Convs and a MatMul whose 8-bit integers are 255 and 127: a Ceil makes every picture white.

    A pair of such products is 64,770: twice what fits into 16 bits, in which CPUs without VNNI add them.
    """
    net = Net(size=8)
    x = net.add("Ceil", "images")
    net.channels[x] = 3
    y = net.add("Conv", x, net.const(np.ones((8, 3, 3, 3))), name="wide", pads=[1] * 4)
    net.channels[y] = 8
    rows = net.add("Transpose", net.reshape(net.add("Relu", y), 1, 8, 64), perm=[0, 2, 1])
    rows = net.add("MatMul", rows, net.const(np.full((8, 8), 0.125)), name="product")
    y = net.reshape(net.add("Transpose", rows, perm=[0, 2, 1]), 1, 8, 8, 8)
    y = net.add("Conv", y, net.const(np.full((8, 8, 1, 1), 0.125)), name="middle")
    y = net.add("Conv", net.add("Relu", y), net.const(np.full((8, 8, 1, 1), 0.125)), name="last")
    return net.model(y)


def white_stem() -> onnx.ModelProto:
    """A Conv as those of `saturating`, in front of ordinary ones."""
    net = Net()
    x = net.add("Ceil", "images")
    net.channels[x] = 3
    y = net.add("Conv", x, net.const(np.ones((8, 3, 3, 3))), name="wide", pads=[1] * 4)
    y = net.add("Mul", y, net.const(0.05))
    net.channels[y] = 8
    return net.model(net.conv(net.block(net.block(net.silu(y), 8), 8), 4, name="last"))


def dropout_chain(**options: object) -> onnx.ModelProto:
    """Identity, Dropout and Identity between layers, and an Identity before the output."""
    net = Net(**options)
    x = net.add("Identity", "images")
    x = net.add("Identity", net.add("Dropout", net.add("Identity", net.block(x, 8))))
    x = net.block(x, 8)
    return net.model(net.add("Identity", net.conv(x, 4, name="last")))


def conditional(**options: object) -> onnx.ModelProto:
    """An If whose branches read tensors of the outer graph that have other readers too."""
    net = Net(**options)
    x = net.block("images", 8)
    y = net.conv(x, 8, name="read_inside")
    net.channels[y] = 8
    positive = net.add("Greater", net.add("ReduceMax", "images", keepdims=0), net.const(0.5))

    def branch(op: str, name: str) -> onnx.GraphProto:
        node = helper.make_node(op, [x, y], [f"{name}_out"], f"{name}_node")
        return helper.make_graph(
            [node], name, [], [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)]
        )

    chosen = net.add("If", positive, then_branch=branch("Add", "then"), else_branch=branch("Sub", "otherwise"))
    net.channels[chosen] = 8
    return net.model(net.conv(chosen, 4, name="last"))


BACKBONES: dict[str, Callable[..., onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        silu_chain, csp, sppf, pan, attention, area_attention, relu_net, leaky_net, ese_net, qarepvgg, depthwise_net,
        products, shared_weights, shared_head, dropout_chain,
    )
}  # fmt: skip
