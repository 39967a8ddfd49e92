"""Small graphs with the structures of exported YOLO detectors and seeded random weights, and how to run them.

Nodes of the decode behind the last layers are named `decode_...`; a layer that a test must find again has a name.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper, shape_inference

from onnxq.calibration.feeds import Sample
from onnxq.calibration.samples import Samples
from onnxq.facts import FittedRanges, Plan, QuantizationParameters, Statistics
from onnxq.ir import Model
from onnxq.passes.compute_qparams import ComputeQparams
from onnxq.passes.find_decode import FindDecode
from onnxq.passes.fit_ranges import FitRanges
from onnxq.passes.fold_batch_norm import FoldBatchNorm
from onnxq.passes.fold_constants import FoldConstants
from onnxq.passes.infer_shapes import InferShapes
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.normalize import Normalize
from onnxq.passes.observe import Observe
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.passes.pointwise_to_matmul import PointwiseToMatmul
from onnxq.passes.remove_unused import RemoveUnused
from onnxq.passes.to_float32 import ToFloat32
from onnxq.pipeline import Facts, Pass, Pipeline, Rewrite
from onnxq.targets import ORT, TENSORRT, Target

NARROW_TENSORRT = replace(TENSORRT, few_channels=None)
"""As TensorRT, and Convs may have the 4 and 8 channels that they have here."""

CLASSES = 3
ULTRALYTICS = {
    "author": "Ultralytics",
    "description": "Ultralytics YOLO model",
    "stride": "32",
    "task": "detect",
    "imgsz": "[32, 32]",
    "names": "{0: 'person', 1: 'bicycle', 2: 'car'}",
}


class Net:
    """A graph being built, from the input `images` on.

    Args:
        seed: of the weights.
        size: of the input, pixels.
        batch: of the input.
        opset: 11 to 17.
        batch_norm: a BatchNormalization stands behind each Conv of a block, which then has no bias.
        dynamic: batch, height and width of the input have names in the place of numbers.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        size: int = 32,
        batch: int = 1,
        opset: int = 13,
        batch_norm: bool = False,
        dynamic: bool = False,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = size
        self.opset = opset
        self.batch_norm = batch_norm
        self.shape: list[int | str] = ["batch", 3, "height", "width"] if dynamic else [batch, 3, size, size]
        self.prefix = ""
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.channels = {"images": 3}
        self._numbers: dict[str, int] = {}

    def _fresh(self, kind: str) -> str:
        kind = self.prefix + kind
        number = self._numbers.get(kind, 0)
        self._numbers[kind] = number + 1
        return f"{kind}{number}"

    def add(self, op: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: object) -> str:
        """Add a node with one output, and return its name: `<node>_out`."""
        name = name or self._fresh(op.lower())
        made = [f"{name}_out"] if outputs == 1 else [f"{name}_out{k}" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, inputs, made, name, **attributes))
        if inputs and inputs[0] in self.channels:
            self.channels.update(dict.fromkeys(made, self.channels[inputs[0]]))
        return made[0]

    def add_many(self, op: str, *inputs: str, outputs: int, **attributes: object) -> list[str]:
        """Add a node with several outputs, and return their names."""
        self.add(op, *inputs, outputs=outputs, **attributes)
        return list(self.nodes[-1].output)

    def const(self, values: object, dtype: type = np.float32, name: str | None = None) -> str:
        """Add an initializer."""
        name = name or self._fresh("const")
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def ints(self, *values: int) -> str:
        """Add an int64 initializer of rank 1."""
        return self.const(values, np.int64)

    def normal(self, *shape: int, scale: float = 1.0) -> np.ndarray:
        """Random float32 values."""
        return (self.rng.normal(size=shape) * scale).astype(np.float32)

    def conv(
        self,
        x: str,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        group: int = 1,
        bias: bool = True,
        name: str | None = None,
    ) -> str:
        """Add a Conv with padding that keeps the size (divided by the stride)."""
        name = name or self._fresh("conv")
        taken = self.channels[x] // group
        weight = self.normal(channels, taken, kernel, kernel, scale=np.sqrt(2.6 / (taken * kernel**2)))
        inputs = [x, self.const(weight, name=f"{name}_weight")]
        if bias:
            inputs.append(self.const(self.normal(channels, scale=0.2), name=f"{name}_bias"))
        pad = (kernel - 1) // 2
        y = self.add(
            "Conv", *inputs, name=name, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=group
        )
        self.channels[y] = channels
        return y

    def norm(self, x: str) -> str:
        """Add a BatchNormalization in inference form."""
        count, name = self.channels[x], self._fresh("norm")
        values = {
            "gamma": self.rng.uniform(0.5, 1.5, count),
            "beta": self.rng.normal(0, 0.2, count),
            "mean": self.rng.normal(0, 0.2, count),
            "variance": self.rng.uniform(0.5, 1.5, count),
        }
        parameters = [self.const(value, name=f"{name}_{key}") for key, value in values.items()]
        return self.add("BatchNormalization", x, *parameters, name=name, epsilon=1e-3)

    def silu(self, x: str) -> str:
        """x * sigmoid(x)."""
        return self.add("Mul", x, self.add("Sigmoid", x))

    def hard_swish(self, x: str) -> str:
        """HardSwish (ONNX, opset 14), before that x * HardSigmoid(x)."""
        if self.opset >= 14:
            return self.add("HardSwish", x)
        return self.add("Mul", x, self.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))

    def act(self, x: str, kind: str = "silu") -> str:
        """An activation: silu, or an operator."""
        if kind == "silu":
            return self.silu(x)
        return self.add(kind, x, **({"alpha": 0.1} if kind == "LeakyRelu" else {}))

    def block(self, x: str, channels: int, kernel: int = 3, stride: int = 1, group: int = 1, act: str = "silu") -> str:
        """Conv, BatchNormalization where the net has them, activation."""
        x = self.conv(x, channels, kernel, stride, group, bias=not self.batch_norm)
        return self.act(self.norm(x) if self.batch_norm else x, act)

    def concat(self, *tensors: str, axis: int = 1) -> str:
        """Concat along the channels, if not told otherwise."""
        y = self.add("Concat", *tensors, axis=axis)
        if axis == 1 and all(t in self.channels for t in tensors):
            self.channels[y] = sum(self.channels[t] for t in tensors)
        return y

    def split(self, x: str, *sizes: int, axis: int = 1) -> list[str]:
        """Split into parts of these sizes."""
        if self.opset < 13:
            parts = self.add_many("Split", x, outputs=len(sizes), axis=axis, split=sizes)
        else:
            parts = self.add_many("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)
        if axis == 1:
            self.channels.update(zip(parts, sizes, strict=True))
        return parts

    def pool(self, x: str, kernel: int = 5, stride: int = 1) -> str:
        """MaxPool with padding that keeps the size."""
        return self.add(
            "MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[(kernel - 1) // 2] * 4
        )  # fmt: skip

    def upsample(self, x: str) -> str:
        """Resize to twice the size, nearest neighbour."""
        scales = self.const([1, 1, 2, 2])
        region = "" if self.opset >= 13 else self.const([])
        return self.add(
            "Resize",
            x,
            region,
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    def slice(self, x: str, axis: int, start: int, step: int = 1, end: int = 2**31 - 1) -> str:
        """x[start:end:step] along an axis."""
        return self.add("Slice", x, *(self.ints(value) for value in (start, end, axis, step)))

    def softmax(self, x: str, axis: int) -> str:
        """Softmax over one axis of four; before opset 13 that must be the last one."""
        if self.opset >= 13:
            return self.add("Softmax", x, axis=axis)
        order = [0, 1, 2, 3]
        order[axis], order[3] = 3, axis
        return self.add("Transpose", self.add("Softmax", self.add("Transpose", x, perm=order), axis=3), perm=order)

    def unsqueeze(self, x: str, axis: int) -> str:
        """Add a dimension."""
        if self.opset < 13:
            return self.add("Unsqueeze", x, axes=[axis])
        return self.add("Unsqueeze", x, self.ints(axis))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape."""
        return self.add("Reshape", x, self.ints(*shape))

    def pyramid(self, act: str = "silu") -> list[str]:
        """Three feature maps, at strides 8, 16 and 32."""
        x = self.block("images", 8, stride=2, act=act)
        x = self.block(x, 8, stride=2, act=act)
        maps = [self.block(x, 16, stride=2, act=act)]
        maps.append(self.block(maps[-1], 16, stride=2, act=act))
        return [*maps, self.block(maps[-1], 16, stride=2, act=act)]

    def cells(self) -> list[int]:
        """Sides of the three feature maps."""
        return [self.size // stride for stride in (8, 16, 32)]

    def model(
        self,
        *outputs: str,
        name: str = "output",
        types: Mapping[str, int] | None = None,
        shape: Sequence[int | str] | None = None,
    ) -> onnx.ModelProto:
        """The finished model; its outputs are called `output`, or `output0`, `output1`, ... where there are more.

        Types other than float are given by output; the shape is for the first one, where it cannot be inferred.
        """
        names = [name] if len(outputs) == 1 else [f"{name}{k}" for k in range(len(outputs))]
        renamed = dict(zip(outputs, names, strict=True))
        for node in self.nodes:
            for tensors in (node.input, node.output):
                tensors[:] = [renamed.get(tensor, tensor) for tensor in tensors]
        image = helper.make_tensor_value_info("images", TensorProto.FLOAT, self.shape)
        types = {renamed[key]: value for key, value in (types or {}).items()}
        shapes = {names[0]: shape}
        results = [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), shapes.get(n)) for n in names]
        graph = helper.make_graph(self.nodes, "net", [image], results, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        inferred = shape_inference.infer_shapes(made, data_prop=True)
        for result, known in zip(made.graph.output, inferred.graph.output, strict=True):
            result.CopyFrom(known)
        onnx.checker.check_model(made, full_check=True)
        return made


# --- backbones and necks ----------------------------------------------------------------------------------------------


def silu_chain(layers: int = 3, act: str = "silu", **options: object) -> onnx.ModelProto:
    """Convs with activations, one after the other, and a last Conv without."""
    net = Net(**options)
    x = "images"
    for _ in range(layers):
        x = net.block(x, 8, act=act)
    return net.model(net.conv(x, 4, name="last"))


def csp(**options: object) -> onnx.ModelProto:
    """A CSP block (C2f): Split, a residual Add, and a Concat of what was split and what came of it."""
    net = Net(**options)
    x = net.block("images", 8, stride=2)
    left, right = net.split(net.block(x, 8, kernel=1), 4, 4)
    inner = net.block(net.block(right, 4), 4)
    added = net.add("Add", right, inner)
    x = net.block(net.concat(left, right, added), 8, kernel=1)
    return net.model(net.conv(x, 4, name="last"))


def sppf(**options: object) -> onnx.ModelProto:
    """Three MaxPools in a row, and a Concat of them all."""
    net = Net(**options)
    x = net.block("images", 8, kernel=1, stride=2)
    pools = [x]
    for _ in range(3):
        pools.append(net.pool(pools[-1]))
    x = net.block(net.concat(*pools), 8, kernel=1)
    return net.model(net.conv(x, 4, name="last"))


def pan(**options: object) -> onnx.ModelProto:
    """A deeper map is resized and joined with a shallower one; both are read by others as well."""
    net = Net(**options)
    shallow = net.block("images", 8, stride=2)
    deep = net.block(shallow, 8, stride=2)
    top = net.block(net.concat(net.upsample(deep), shallow), 8)
    down = net.block(top, 8, stride=2)
    bottom = net.block(net.concat(down, deep), 8)
    return net.model(net.conv(top, 4, name="last0"), net.conv(bottom, 4, name="last1"))


def attention(**options: object) -> onnx.ModelProto:
    """The attention block of v10 and v11: MatMul, Softmax, MatMul between Convs, and a depthwise Conv beside them."""
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
    """As PP-YOLOE: HardSwish, and channels weighted by a Conv over their means (ESE)."""
    net = Net(**options)
    x = net.hard_swish(net.conv("images", 8, 3, stride=2))
    x = net.hard_swish(net.conv(x, 8, 3))
    means = net.add("GlobalAveragePool", x)
    x = net.add("Mul", x, net.add("HardSigmoid", net.conv(means, 8, name="ese"), alpha=1 / 6, beta=0.5))
    return net.model(net.conv(net.block(x, 8), 4, name="last"))


def qarepvgg(**options: object) -> onnx.ModelProto:
    """As YOLO-NAS without its branches merged: 3x3 and 1x1 Convs and the input itself added, normalized, ReLU."""
    net = Net(**options)
    x = net.block("images", 8, stride=2, act="Relu")
    for _ in range(2):
        wide = net.norm(net.conv(x, 8, 3, bias=False))
        branches = net.add("Add", wide, net.conv(x, 8))
        x = net.act(net.norm(net.add("Add", branches, x)), "Relu")
    return net.model(net.conv(x, 4, name="last"))


def products(**options: object) -> onnx.ModelProto:
    """Between Convs a MatMul over the channels of each position, and behind them a Gemm over all means, as cls has."""
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
    """As v6: ReLU everywhere, and a ConvTranspose in the neck."""
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
    """As v7-tiny: LeakyReLU, MaxPool with stride, Concat of maps of several depths."""
    net = Net(**options)
    x = net.block("images", 8, stride=2, act="LeakyRelu")
    first = net.block(x, 4, kernel=1, act="LeakyRelu")
    second = net.block(first, 4, act="LeakyRelu")
    x = net.pool(net.block(net.concat(second, first), 8, kernel=1, act="LeakyRelu"), kernel=3, stride=2)
    return net.model(net.conv(x, 4, name="last"))


def depthwise_net(**options: object) -> onnx.ModelProto:
    """Depthwise and pointwise Convs by turns, as in YOLOX-Nano."""
    net = Net(**options)
    x = net.block("images", 8, stride=2)
    x = net.block(x, 8, group=8)
    x = net.block(x, 8, kernel=1)
    x = net.block(x, 8, group=8)
    return net.model(net.conv(x, 4, name="last"))


def shared_weights(**options: object) -> onnx.ModelProto:
    """Two Convs with one weight and one bias, each with arithmetic of its own behind it."""
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


def saturating() -> onnx.ModelProto:
    """Three Convs and a MatMul whose 8-bit integers are 255 and 127, as every picture is taken for white.

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


def dropout_chain(**options: object) -> onnx.ModelProto:
    """Identity, Dropout and Identity between the layers, and an Identity in front of the output."""
    net = Net(**options)
    x = net.add("Identity", "images")
    x = net.add("Identity", net.add("Dropout", net.add("Identity", net.block(x, 8))))
    x = net.block(x, 8)
    return net.model(net.add("Identity", net.conv(x, 4, name="last")))


def conditional(**options: object) -> onnx.ModelProto:
    """An If whose branches read tensors of the graph around them, which have other readers too."""
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


# --- detectors --------------------------------------------------------------------------------------------------------


def _anchor_convs(net: Net, act: str) -> list[str]:
    return [net.conv(x, 3 * (5 + CLASSES), name=f"detect{k}") for k, x in enumerate(net.pyramid(act))]


def _anchor_decode(net: Net, convs: Sequence[str]) -> str:
    """[1, N, 5 + classes]: xy = (2 s - 0.5 + grid) stride, wh = (2 s)^2 anchor."""
    levels = []
    for x, side, stride in zip(convs, net.cells(), (8, 16, 32), strict=True):
        x = net.add("Transpose", net.reshape(x, 1, 3, 5 + CLASSES, side, side), perm=[0, 1, 3, 4, 2])
        xy, wh, rest = net.split(net.add("Sigmoid", x), 2, 2, 1 + CLASSES, axis=4)
        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1)[None, None] - 0.5
        xy = net.add("Add", net.add("Mul", xy, net.const(2)), net.const(grid))
        xy = net.add("Mul", xy, net.const(stride))
        wh = net.add("Pow", net.add("Mul", wh, net.const(2)), net.const(2))
        anchors = net.const(stride * np.array([[1, 2], [2, 1], [2, 2]]).reshape(1, 3, 1, 1, 2))
        wh = net.add("Mul", wh, anchors)
        levels.append(net.reshape(net.concat(xy, wh, rest, axis=4), 1, -1, 5 + CLASSES))
    return net.concat(*levels, axis=1)


def v5(act: str = "silu", **options: object) -> onnx.ModelProto:
    """Anchors; output [1, N, 5 + classes]."""
    net = Net(**options)
    convs = _anchor_convs(net, act)
    net.prefix = "decode_"
    return net.model(_anchor_decode(net, convs))


def v5_raw(cells: bool = False, activated: bool = False, **options: object) -> onnx.ModelProto:
    """Without decode: the outputs of the three last Convs are outputs of the model.

    With cells they are [1, 3, H, W, 5 + classes], as YOLOv7 gives them; activated, they are behind a Sigmoid.
    """
    net = Net(**options)
    grids = _anchor_convs(net, "silu")
    if cells:
        shaped = [net.reshape(x, 1, 3, 5 + CLASSES, side, side) for x, side in zip(grids, net.cells(), strict=True)]
        grids = [net.add("Transpose", x, perm=[0, 1, 3, 4, 2]) for x in shaped]
    return net.model(*(net.add("Sigmoid", x) if activated else x for x in grids))


def _anchor_nms(net: Net) -> tuple[str, str, str]:
    """Boxes times a constant matrix 4 x 4, scores times objectness, and what NonMaxSuppression picks, [n, 3]."""
    convs = _anchor_convs(net, "LeakyRelu")
    net.prefix = "decode_"
    boxes, objectness, scores = net.split(_anchor_decode(net, convs), 4, 1, CLASSES, axis=2)
    corners = net.const([[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]], name="convert_matrix")
    boxes = net.add("MatMul", boxes, corners)
    scores = net.add("Transpose", net.add("Mul", objectness, scores), perm=[0, 2, 1])
    settings = (net.ints(10), net.const(0.5), net.const(0.2))
    return boxes, scores, net.add("NonMaxSuppression", boxes, scores, *settings)


def v7_end2end(**options: object) -> onnx.ModelProto:
    """As v5, and then NonMaxSuppression, whose indices are the output [n, 3]."""
    net = Net(**options)
    _, _, picked = _anchor_nms(net)
    return net.model(picked, types={picked: TensorProto.INT64})


def v7_rows(score_first: bool = False, **options: object) -> onnx.ModelProto:
    """As above, and then rows of what was picked: output [n, 7], picture, corners, class, score."""
    net = Net(**options)
    boxes, scores, picked = _anchor_nms(net)
    picture, label = (net.slice(picked, 1, start, end=start + 1) for start in (0, 1))
    place = net.concat(picture, net.slice(picked, 1, 2), axis=1)
    boxes = net.add("GatherND", boxes, place)
    score = net.unsqueeze(net.add("GatherND", scores, picked), 1)
    picture, label = (net.add("Cast", x, to=TensorProto.FLOAT) for x in (picture, label))
    return net.model(net.concat(picture, boxes, *((score, label) if score_first else (label, score)), axis=1))


def _point_convs(net: Net, reg_max: int = 16, act: str = "silu", head: str = "") -> list[tuple[str, str]]:
    """Box and class Convs of three scales."""
    convs = []
    for k, x in enumerate(net.pyramid(act)):
        box = net.conv(net.block(x, 8, act=act), 4 * reg_max, name=f"{head}box{k}")
        scores = net.conv(net.block(x, 8, act=act), CLASSES, name=f"{head}cls{k}")
        convs.append((box, scores))
    return convs


def _dfl(net: Net, box: str, reg_max: int) -> str:
    """Expected value of the distributions of the four sides: [1, 4 reg_max, N] -> [1, 4, N]."""
    x = net.add("Transpose", net.reshape(box, 1, 4, reg_max, -1), perm=[0, 2, 1, 3])
    x = net.softmax(x, axis=1)
    weight = net.const(np.arange(reg_max).reshape(1, reg_max, 1, 1), name="dfl_weight")
    return net.reshape(net.add("Conv", x, weight, name="decode_dfl", kernel_shape=[1, 1]), 1, 4, -1)


def _point_decode(net: Net, convs: Sequence[tuple[str, str]], reg_max: int = 16) -> tuple[str, str]:
    """Boxes [1, 4, N] in pixels and scores [1, classes, N]."""
    width = 4 * reg_max + CLASSES
    flat = [net.reshape(net.concat(box, scores), 1, width, -1) for box, scores in convs]
    box, scores = net.split(net.concat(*flat, axis=2), 4 * reg_max, CLASSES)
    sides = _dfl(net, box, reg_max) if reg_max > 1 else box
    centres = [
        np.stack(np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)).reshape(2, -1) for side in net.cells()
    ]
    strides = np.concatenate([np.full(c.shape[1], s) for c, s in zip(centres, (8, 16, 32), strict=True)])
    anchors = net.const(np.concatenate(centres, axis=1)[None])
    low = net.add("Sub", anchors, net.slice(sides, axis=1, start=0, end=2))
    high = net.add("Add", anchors, net.slice(sides, axis=1, start=2, end=4))
    centre = net.add("Div", net.add("Add", low, high), net.const(2))
    boxes = net.add("Mul", net.concat(centre, net.add("Sub", high, low)), net.const(strides[None]))
    return boxes, net.add("Sigmoid", scores)


def v8(
    masks: bool = False, reg_max: int = 16, keypoints: int = 0, angle: bool = False, **options: object
) -> onnx.ModelProto:
    """Boxes as distributions (none with reg_max 1, as in v26); output [1, 4 + classes, N].

    With masks, as v8-seg: coefficients of three more Convs below, and the prototypes as a second output. With so many
    keypoints, as v8-pose: x, y and visibility of each below. With an angle, as v8-obb: one more row below.
    """
    net = Net(**options)
    convs = _point_convs(net, reg_max)
    width = 2 if masks else 3 * keypoints or int(angle)
    name = "mask" if masks else "keypoints" if keypoints else "angle"
    extras = [net.conv(x, width, name=f"{name}{k}") for k, (_, x) in enumerate(_inputs_of(net, convs)) if width]
    prototypes = net.conv(net.upsample("mul2_out"), 2, name="proto") if masks else ""
    net.prefix = "decode_"
    parts = list(_point_decode(net, convs, reg_max))
    if extras:
        parts.append(net.concat(*(net.reshape(x, 1, width, -1) for x in extras), axis=2))
    if keypoints:
        parts[2] = net.add("Mul", net.add("Sigmoid", parts[2]), net.const(np.resize([32, 32, 1], (1, width, 1))))
    return net.model(net.concat(*parts), *([net.silu(prototypes)] if masks else []))


def _inputs_of(net: Net, convs: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """What these Convs read."""
    made_by = {node.output[0]: node for node in net.nodes}
    return [tuple(made_by[x].input[0] for x in row) for row in convs]


def _best(net: Net, top: int) -> tuple[str, str, str]:
    """The best boxes without NMS: boxes [1, top, 4] (centre, size), scores and places [1, top]."""
    convs = _point_convs(net, head="one2one_")
    net.prefix = "decode_"
    both = net.add("Transpose", net.concat(*_point_decode(net, convs)), perm=[0, 2, 1])
    boxes, scores = net.split(both, 4, CLASSES, axis=2)
    best = net.add("ReduceMax", scores, axes=[-1], keepdims=0)
    index = net.unsqueeze(net.add_many("TopK", best, net.ints(top), outputs=2, axis=-1)[1], 2)
    boxes = net.add("GatherElements", boxes, net.add("Tile", index, net.ints(1, 1, 4)), axis=1)
    scores = net.add("GatherElements", scores, net.add("Tile", index, net.ints(1, 1, CLASSES)), axis=1)
    score, place = net.add_many("TopK", net.add("Flatten", scores), net.ints(top), outputs=2, axis=-1)
    row = net.unsqueeze(net.add("Div", place, net.ints(CLASSES)), 2)
    boxes = net.add("GatherElements", boxes, net.add("Tile", row, net.ints(1, 1, 4)), axis=1)
    return boxes, score, net.add("Mod", place, net.ints(CLASSES))


def v10(top: int = 5, angle: bool = False, **options: object) -> onnx.ModelProto:
    """As v8, and then the best boxes without NMS; output [1, top, 6]: corners, score, class, and perhaps an angle."""
    net = Net(**options)
    boxes, score, label = _best(net, top)
    columns = [boxes, net.unsqueeze(score, 2), net.unsqueeze(net.add("Cast", label, to=TensorProto.FLOAT), 2)]
    if angle:
        columns.append(net.add("Sub", columns[1], net.const(0.25)))
    return net.model(net.concat(*columns, axis=2))


def nms_tables(top: int = 5, **options: object) -> onnx.ModelProto:
    """As TensorRT's EfficientNMS lays it out: how many [1, 1], boxes [1, top, 4], scores and classes [1, top]."""
    net = Net(**options)
    boxes, score, label = _best(net, top)
    zero = net.add("Cast", net.add("ReduceMin", score, axes=[1], keepdims=1), to=TensorProto.INT32)
    count = net.add("Add", zero, net.const([[top - 1]], np.int32))
    label = net.add("Cast", label, to=TensorProto.INT32)
    return net.model(count, boxes, score, label, types={count: TensorProto.INT32, label: TensorProto.INT32})


def separate(
    scores_first: bool = False, classes_first: bool = False, logits: bool = False, **options: object
) -> onnx.ModelProto:
    """As YOLO-NAS and PP-YOLOE: boxes [1, N, 4] and scores [1, N, classes], or [1, classes, N], are two outputs.

    As logits the scores come straight from the last Convs.
    """
    net = Net(**options)
    convs = _point_convs(net)
    net.prefix = "decode_"
    boxes, scores = _point_decode(net, convs)
    centre, sides = net.split(boxes, 2, 2)
    half = net.add("Mul", sides, net.const(0.5))
    corners = net.concat(net.add("Sub", centre, half), net.add("Add", centre, half))
    if logits:
        scores = net.concat(*(net.reshape(x, 1, CLASSES, -1) for _, x in convs), axis=2)
    tables = [net.add("Transpose", corners, perm=[0, 2, 1])]
    tables.append(net.add("Identity", scores) if classes_first else net.add("Transpose", scores, perm=[0, 2, 1]))
    return net.model(*(reversed(tables) if scores_first else tables))


def classifier(classes: int = CLASSES, **options: object) -> onnx.ModelProto:
    """As v8-cls: the mean of the last feature map, a product and a Softmax; output [1, classes]."""
    net = Net(**options)
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.pyramid()[-1]))
    weight = net.const(net.normal(16, classes), name="linear_weight")
    logits = net.add("Gemm", pooled, weight, net.const(net.normal(classes), name="linear_bias"), name="linear")
    return net.model(net.add("Softmax", logits, axis=1))


def yolox(**options: object) -> onnx.ModelProto:
    """Focus slices, depthwise Convs, raw outputs [1, N, 5 + classes]."""
    net = Net(**options)
    rows = [net.slice("images", 2, start, 2) for start in (0, 1)]
    x = net.concat(*(net.slice(row, 3, start, 2) for start in (0, 1) for row in rows))
    x = net.block(x, 8)
    maps = []
    for _ in range(4):
        x = net.block(net.block(x, 8, stride=2, group=8), 8, kernel=1)
        maps.append(x)
    convs = []
    for k, x in enumerate(maps[1:]):
        scores, boxes = net.block(x, 8, group=8), net.block(x, 8, group=8)
        convs.append(
            (
                net.conv(boxes, 4, name=f"reg{k}"),
                net.conv(boxes, 1, name=f"obj{k}"),
                net.conv(scores, CLASSES, name=f"cls{k}"),
            )
        )
    net.prefix = "decode_"
    levels = []
    for reg, obj, cls in convs:
        joined = net.concat(reg, net.add("Sigmoid", obj), net.add("Sigmoid", cls))
        levels.append(net.reshape(joined, 1, 5 + CLASSES, -1))
    return net.model(net.add("Transpose", net.concat(*levels, axis=2), perm=[0, 2, 1]))


def v6(**options: object) -> onnx.ModelProto:
    """ReLU, and a projection Conv per scale behind the Softmax; output [1, N, 4 + classes]."""
    net = Net(**options)
    convs = _point_convs(net, act="Relu")
    net.prefix = "decode_"
    weight = net.const(np.arange(16).reshape(1, 16, 1, 1))
    levels = []
    for k, (box, scores) in enumerate(convs):
        x = net.add("Transpose", net.reshape(box, 1, 4, 16, -1), perm=[0, 2, 1, 3])
        x = net.add("Conv", net.softmax(x, axis=1), weight, name=f"decode_projection{k}")
        scores = net.reshape(net.add("Sigmoid", scores), 1, CLASSES, -1)
        levels.append(net.concat(net.reshape(x, 1, 4, -1), scores))
    return net.model(net.add("Transpose", net.concat(*levels, axis=2), perm=[0, 2, 1]))


def _corner_boxes(net: Net, sides: str) -> str:
    """Distances [1, N, 4] of the sides, in cells, to corners [1, N, 4] in pixels."""
    centres = [np.stack(np.meshgrid(np.arange(n) + 0.5, np.arange(n) + 0.5), -1).reshape(-1, 2) for n in net.cells()]
    strides = np.concatenate([np.full((len(c), 1), s) for c, s in zip(centres, (8, 16, 32), strict=True)])
    points = net.const(np.concatenate(centres)[None])
    near, far = net.split(sides, 2, 2, axis=2)
    corners = net.concat(net.add("Sub", points, near), net.add("Add", points, far), axis=2)
    return net.add("Mul", corners, net.const(strides[None]))


def pp_yoloe(**options: object) -> onnx.ModelProto:
    """Features weighted by their means in the head, a projection per scale; boxes [1, N, 4], scores [1, classes, N]."""
    net = Net(**options)
    convs = []
    for k, x in enumerate(net.pyramid()):
        means = net.add("GlobalAveragePool", x)
        stems = [net.block(net.add("Mul", x, net.add("Sigmoid", net.conv(means, 16))), 16, kernel=1) for _ in range(2)]
        scores = net.conv(net.add("Add", stems[0], x), CLASSES, 3, name=f"cls{k}")
        convs.append((net.conv(stems[1], 4 * 17, 3, name=f"box{k}"), scores))
    net.prefix = "decode_"
    weight = net.const(np.arange(17).reshape(1, 17, 1, 1))
    sides, scores = [], []
    for box, score in convs:
        x = net.add("Transpose", net.reshape(box, 1, 4, 17, -1), perm=[0, 2, 3, 1])
        x = net.add("Conv", net.softmax(x, axis=1), weight)
        sides.append(net.reshape(x, 1, -1, 4))
        scores.append(net.reshape(net.add("Sigmoid", score), 1, CLASSES, -1))
    return net.model(_corner_boxes(net, net.concat(*sides, axis=1)), net.concat(*scores, axis=2))


def yolo_nas(**options: object) -> onnx.ModelProto:
    """Distributions weighted by a matrix; boxes [1, N, 4] and scores [1, N, classes]."""
    net = Net(**options)
    convs = _point_convs(net, act="Relu")
    net.prefix = "decode_"
    bins = net.const(np.arange(16).reshape(16, 1))
    sides, scores = [], []
    for box, score in convs:
        x = net.add("Transpose", net.reshape(box, 1, 4, 16, -1), perm=[0, 3, 1, 2])
        sides.append(net.reshape(net.add("MatMul", net.add("Softmax", x, axis=3), bins), 1, -1, 4))
        scores.append(net.add("Transpose", net.reshape(score, 1, CLASSES, -1), perm=[0, 2, 1]))
    scores = net.add("Sigmoid", net.concat(*scores, axis=1))
    return net.model(_corner_boxes(net, net.concat(*sides, axis=1)), scores)


BACKBONES: dict[str, Callable[..., onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        silu_chain, csp, sppf, pan, attention, area_attention, relu_net, leaky_net, ese_net, qarepvgg, depthwise_net,
        products, shared_weights, dropout_chain,
    )
}  # fmt: skip
DETECTORS: dict[str, Callable[..., onnx.ModelProto]] = {
    f.__name__: f for f in (v5, v5_raw, v6, v7_end2end, v8, v10, yolox, pp_yoloe, yolo_nas)
}


# --- real exports -----------------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("ONNXQ_DATA", Path(__file__).parents[3] / "shared"))


def exported(name: str) -> onnx.ModelProto:
    """A real exporter's graph; weights that were emptied are zero. Skips the test where there are none."""
    path = DATA / "models" / "skeletons" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is absent; set ONNXQ_DATA to the folder that holds models/skeletons")
    model = onnx.load(path)
    for w in model.graph.initializer:
        if w.doc_string.startswith("emptied"):
            w.raw_data = bytes(4 * math.prod(w.dims))
    return model


# --- other ways to write the same -------------------------------------------------------------------------------------


def copy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Another model, equal to this one."""
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def with_constant_nodes(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer is made by a Constant node."""
    model = copy(model)
    made = [helper.make_node("Constant", [], [w.name], f"{w.name}_node", value=w) for w in model.graph.initializer]
    nodes = [*made, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def with_initializers_as_inputs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer is listed as an input, as before IR version 4."""
    model = copy(model)
    model.ir_version = 3
    for w in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(w.name, w.data_type, w.dims))
    return model


def with_node_names(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """The nodes have these names, as long as there are any, and then none."""
    model = copy(model)
    for node, name in zip(model.graph.node, itertools.chain(names, itertools.repeat("")), strict=False):
        node.name = name
    return model


def with_random_names(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Nodes and tensors have meaningless names; inputs and outputs of the model keep theirs."""
    model, rng = copy(model), np.random.default_rng(seed)
    kept = {t.name for t in (*model.graph.input, *model.graph.output)} | {""}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if name in kept else names.setdefault(name, f"n{rng.integers(2**60):x}")

    def rename(graph: onnx.GraphProto) -> None:
        for w in (*graph.initializer, *graph.input, *graph.output):
            w.name = new(w.name)
        for node in graph.node:
            node.name = f"m{rng.integers(2**60):x}"
            node.input[:] = [new(name) for name in node.input]
            node.output[:] = [new(name) for name in node.output]
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    rename(attribute.g)

    rename(model.graph)
    return model


def with_float16(model: onnx.ModelProto, ends: bool = True) -> onnx.ModelProto:
    """Weights and activations are float16: inputs and outputs too, or only what lies between a Cast behind each input
    and one in front of each output."""
    model = copy(model)
    graph = model.graph
    # The scales of Resize are always float32 (ONNX, opset 13).
    scales = {name for node in graph.node if node.op_type == "Resize" for name in node.input[1:]}
    for w in graph.initializer:
        if w.data_type == TensorProto.FLOAT and w.name not in scales:
            w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w).astype(np.float16), w.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    floats = [t for t in (*graph.input, *graph.output) if t.type.tensor_type.elem_type == TensorProto.FLOAT]
    if ends:
        for t in floats:
            t.type.tensor_type.elem_type = TensorProto.FLOAT16
        return model
    names = {t.name: f"{t.name}_half" for t in floats}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    inputs = {t.name for t in graph.input}
    for name, half in names.items():
        if name in inputs:
            graph.node.insert(0, helper.make_node("Cast", [name], [half], to=TensorProto.FLOAT16))
        else:
            graph.node.append(helper.make_node("Cast", [half], [name], to=TensorProto.FLOAT))
    return model


def with_levels(model: onnx.ModelProto, channels_last: bool = False, kind: int = TensorProto.UINT8) -> onnx.ModelProto:
    """The model takes levels of 0 to 255, which it scales to 0 to 1 itself; of another type, or with channels last."""
    model = copy(model)
    graph = model.graph
    [image] = graph.input
    for node in graph.node:
        node.input[:] = ["scaled" if name == image.name else name for name in node.input]
    steps = [("Cast", [], {"to": TensorProto.FLOAT}), ("Div", ["levels"], {})]
    if channels_last:
        dims = image.type.tensor_type.shape.dim
        planes = [dims[k].SerializeToString() for k in range(4)]
        for dim, k in zip(dims, (0, 2, 3, 1), strict=True):
            dim.ParseFromString(planes[k])
        steps.append(("Transpose", [], {"perm": [0, 3, 1, 2]}))
    image.type.tensor_type.elem_type = kind
    names = [image.name, *(f"level{k}" for k in range(len(steps) - 1)), "scaled"]
    for k, (op, more, attributes) in enumerate(steps):
        graph.node.insert(k, helper.make_node(op, [names[k], *more], [names[k + 1]], f"of_image{k}", **attributes))
    graph.initializer.append(numpy_helper.from_array(np.float32(255), "levels"))
    return model


def with_opaque_nms(model: onnx.ModelProto, domain: str = "TRT") -> onnx.ModelProto:
    """The model's output goes into TensorRT's NMS, which nothing here can run; what that gives is output."""
    model = copy(model)
    graph = model.graph
    limit = helper.make_node("Constant", [], ["limit"], "limit_node", value_float=0.25)
    nms = helper.make_node("EfficientNMS_TRT", ["output", "limit"], ["count", "boxes"], "nms", domain=domain)
    shift = helper.make_node("Add", ["boxes", "offset"], ["shifted"], "shift")
    graph.node.extend([limit, nms, shift])
    graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "offset"))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT32, [1, 1]))
    graph.output.append(helper.make_tensor_value_info("shifted", TensorProto.FLOAT, [1, 100, 4]))
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def with_metadata(model: onnx.ModelProto, metadata: Mapping[str, str] = ULTRALYTICS) -> onnx.ModelProto:
    """The model's metadata is this."""
    model = copy(model)
    helper.set_model_props(model, dict(metadata))
    return model


# --- running ----------------------------------------------------------------------------------------------------------

SIZES = {"batch": 2, "height": 32, "width": 64}


def feed(model: onnx.ModelProto, seed: int = 0, sizes: Mapping[str, int] = SIZES) -> dict[str, np.ndarray]:
    """Random values in [0, 1) for the inputs of a model; `sizes` are those of named dimensions."""
    rng = np.random.default_rng(seed)
    stored = {w.name for w in model.graph.initializer}
    inputs = [t for t in model.graph.input if t.name not in stored]
    values = {
        t.name: rng.random([d.dim_value or sizes[d.dim_param] for d in t.type.tensor_type.shape.dim], np.float32)
        for t in inputs
    }
    kinds = {t.name: helper.tensor_dtype_to_np_dtype(t.type.tensor_type.elem_type) for t in inputs}
    return {name: array.astype(kinds[name], copy=False) for name, array in values.items()}


def session(model: onnx.ModelProto, optimized: bool = False) -> ort.InferenceSession:
    """onnxruntime, with no graph optimizations if not told otherwise."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(
    model: onnx.ModelProto,
    values: Mapping[str, np.ndarray] | None = None,
    outputs: Sequence[str] | None = None,
    optimized: bool = False,
) -> dict[str, np.ndarray]:
    """Outputs of a model by name; `outputs` may name any tensors within it."""
    if outputs is not None:
        model = copy(model)
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    names = [t.name for t in model.graph.output]
    results = session(model, optimized).run(names, dict(feed(model) if values is None else values))
    return dict(zip(names, results, strict=True))


def assert_same_numbers(before: onnx.ModelProto, after: onnx.ModelProto, seeds: Sequence[int] = (0, 1)) -> None:
    """Assert that two models have the same inputs and outputs and compute the same."""
    assert {t.name: t.type for t in before.graph.output} == {t.name: t.type for t in after.graph.output}
    for seed in seeds:
        values = feed(before, seed)
        assert values.keys() == feed(after, seed).keys()
        one, other = run(before, values), run(after, values)
        for name, expected in one.items():
            assert other[name].shape == expected.shape
            assert other[name].dtype == expected.dtype
            if expected.size:
                within = 1e-4 * float(np.abs(expected).max())
                assert np.abs(other[name].astype(np.float64) - expected).max() <= within, name


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    noise = np.square(expected - actual, dtype=np.float64).sum()
    return 10 * float(np.log10(np.square(expected, dtype=np.float64).sum() / noise))


# --- passes -----------------------------------------------------------------------------------------------------------


def rewrite(step: Rewrite, model: onnx.ModelProto, facts: Facts | None = None) -> tuple[onnx.ModelProto, int]:
    """What a rewrite makes of a model, and its number of edits."""
    working = Model(copy(model))
    edits = step.run(working, facts or Facts())
    return working.to_proto(), edits


def assert_untouched(step: Rewrite, model: onnx.ModelProto) -> None:
    """Assert that a rewrite makes no edit: what comes out is what comes out without it, byte for byte."""
    after, edits = rewrite(step, model)
    assert edits == 0
    assert after.SerializeToString(deterministic=True) == Model(model).to_proto().SerializeToString(deterministic=True)
    assert [node.name for node in after.graph.node] == [node.name for node in model.graph.node]


def rewrite_checked(step: Rewrite, model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """As `rewrite`, and assert what holds of all rewrites: the same numbers, a valid model, and no second edit."""
    after, edits = rewrite(step, model)
    onnx.checker.check_model(after, full_check=True)
    assert_same_numbers(model, after)
    assert_untouched(step, after)
    return after, edits


def ops(model: onnx.ModelProto) -> list[str]:
    """The operators of a model's nodes, in order."""
    return [node.op_type for node in model.graph.node]


def nodes(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes of a model by name."""
    return {node.name: node for node in model.graph.node}


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Values of the initializers by name."""
    return {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}


def preparing() -> list[Pass]:
    """The rewrites in front of all analyses."""
    return [Normalize(), InferShapes(), ToFloat32(), FoldConstants(), FoldBatchNorm()]


def prepared(model: onnx.ModelProto) -> Model:
    """A model after the rewrites in front of all analyses."""
    working = Model(copy(model))
    Pipeline(preparing()).run(working)
    return working


def planned(model: onnx.ModelProto, target: Target = ORT, **options: object) -> tuple[Model, Plan]:
    """A prepared model and its plan; the options are those of Choose."""
    working = Model(copy(model))
    facts = Pipeline([*preparing(), FindDecode(), PlanQuantization(target, **options)]).run(working)
    return working, facts[Plan]


def samples(feeds: Iterable[Mapping[str, np.ndarray] | None]) -> Samples:
    """Calibration data of these feeds; None is a sample that cannot be read."""
    unreadable: dict[str, str] = {}

    def load(number: int, values: Mapping[str, np.ndarray] | None) -> Sample | None:
        if values is None:
            unreadable[f"{number}.jpg"] = f"{number}.jpg is cut short"
            return None
        return Sample(dict(values), next(iter(values.values())).shape[0])

    loaders = tuple(lambda n=n, v=v: load(n, v) for n, v in enumerate(feeds))
    return Samples(loaders, len(loaders), "made up", unreadable=unreadable)


def quantizing(
    model: onnx.ModelProto,
    target: Target = ORT,
    method: str = "minmax",
    weight_method: str = "minmax",
    matmul: bool = True,
    **options: object,
) -> list[Pass]:
    """All passes but correct-bias and verify, calibrated on the feeds with seeds 0 to 3.

    Without `matmul` 1x1 Convs stay Convs for every target; further options are those of Choose.
    """
    data = samples([feed(model, seed) for seed in range(4)])
    return [
        *preparing(),
        FindDecode(),
        PlanQuantization(target, **options),
        Observe(data),
        FitRanges(method),
        ComputeQparams(weight_method),
        InsertQdq(),
        *([PointwiseToMatmul()] if matmul and target.lowers_pointwise else []),
        RemoveUnused(),
    ]


def quantized(
    model: onnx.ModelProto, target: Target = ORT, facts: Iterable[object] = (), **options: object
) -> tuple[onnx.ModelProto, Facts]:
    """A quantized model and the facts found on the way; for the options see `quantizing`."""
    working = Model(copy(model))
    found = Pipeline(quantizing(model, target, **options), pinned=facts).run(working)
    assert all(kind in found for kind in (Plan, Statistics, FittedRanges, QuantizationParameters))
    return working.to_proto(), found
