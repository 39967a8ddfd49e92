"""A builder of graphs, node by node, with seeded random weights."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

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
    """A graph under construction, starting from the input `images`.

    Args:
        seed: seed of the weights.
        size: side of the input, pixels.
        batch: batch size of the input.
        opset: 11 to 17.
        batch_norm: a BatchNormalization follows each Conv of a block, which then has no bias.
        dynamic: batch, height and width of the input are named dimensions.
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
        """Return random float32 values."""
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
        gain: float = 1.0,
    ) -> str:
        """Add a Conv with padding that keeps the size (divided by the stride); a gain of 1 is for inputs of 0 to 1."""
        name = name or self._fresh("conv")
        taken = self.channels[x] // group
        weight = self.normal(channels, taken, kernel, kernel, scale=gain * np.sqrt(2.6 / (taken * kernel**2)))
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
        """Add x * sigmoid(x)."""
        return self.add("Mul", x, self.add("Sigmoid", x))

    def hard_swish(self, x: str) -> str:
        """Add HardSwish (ONNX, opset 14), or x * HardSigmoid(x) in older operator sets."""
        if self.opset >= 14:
            return self.add("HardSwish", x)
        return self.add("Mul", x, self.add("HardSigmoid", x, alpha=1 / 6, beta=0.5))

    def act(self, x: str, kind: str = "silu") -> str:
        """Add an activation: `silu`, or an operator by name."""
        if kind == "silu":
            return self.silu(x)
        return self.add(kind, x, **({"alpha": 0.1} if kind == "LeakyRelu" else {}))

    def block(self, x: str, channels: int, kernel: int = 3, stride: int = 1, group: int = 1, act: str = "silu") -> str:
        """Add Conv, BatchNormalization if the net has them, and activation."""
        x = self.conv(x, channels, kernel, stride, group, bias=not self.batch_norm)
        return self.act(self.norm(x) if self.batch_norm else x, act)

    def concat(self, *tensors: str, axis: int = 1) -> str:
        """Add a Concat, by default along the channels."""
        y = self.add("Concat", *tensors, axis=axis)
        if axis == 1 and all(t in self.channels for t in tensors):
            self.channels[y] = sum(self.channels[t] for t in tensors)
        return y

    def split(self, x: str, *sizes: int, axis: int = 1) -> list[str]:
        """Add a Split into parts of these sizes."""
        if self.opset < 13:
            parts = self.add_many("Split", x, outputs=len(sizes), axis=axis, split=sizes)
        else:
            parts = self.add_many("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)
        if axis == 1:
            self.channels.update(zip(parts, sizes, strict=True))
        return parts

    def pool(self, x: str, kernel: int = 5, stride: int = 1) -> str:
        """Add a MaxPool with padding that keeps the size (divided by the stride)."""
        return self.add(
            "MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[(kernel - 1) // 2] * 4
        )  # fmt: skip

    def upsample(self, x: str) -> str:
        """Add a Resize to twice the size, nearest neighbor."""
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
        """Add a Slice: x[start:end:step] along an axis."""
        return self.add("Slice", x, *(self.ints(value) for value in (start, end, axis, step)))

    def softmax(self, x: str, axis: int) -> str:
        """Add a Softmax over one of four axes, between Transposes before opset 13, where it must be the last one."""
        if self.opset >= 13:
            return self.add("Softmax", x, axis=axis)
        order = [0, 1, 2, 3]
        order[axis], order[3] = 3, axis
        return self.add("Transpose", self.add("Softmax", self.add("Transpose", x, perm=order), axis=3), perm=order)

    def unsqueeze(self, x: str, axis: int) -> str:
        """Add an Unsqueeze of one axis."""
        if self.opset < 13:
            return self.add("Unsqueeze", x, axes=[axis])
        return self.add("Unsqueeze", x, self.ints(axis))

    def reshape(self, x: str, *shape: int) -> str:
        """Add a Reshape."""
        return self.add("Reshape", x, self.ints(*shape))

    def pyramid(self, act: str = "silu") -> list[str]:
        """Add three feature maps, at strides 8, 16 and 32."""
        x = self.block("images", 8, stride=2, act=act)
        x = self.block(x, 8, stride=2, act=act)
        maps = [self.block(x, 16, stride=2, act=act)]
        maps.append(self.block(maps[-1], 16, stride=2, act=act))
        return [*maps, self.block(maps[-1], 16, stride=2, act=act)]

    def cells(self) -> list[int]:
        """Return the sides of the three feature maps."""
        return [self.size // stride for stride in (8, 16, 32)]

    def model(
        self,
        *outputs: str,
        name: str = "output",
        types: Mapping[str, int] | None = None,
        shape: Sequence[int | str] | None = None,
    ) -> onnx.ModelProto:
        """Return the finished model; its outputs are `output`, or `output0`, `output1`, ... if there are several.

        `types` gives the outputs that are not float; `shape` is that of the first output, if it cannot be inferred.
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
