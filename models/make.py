"""Build a small YOLOv8-like graph with seeded random weights, to try the command line on.

    python models/make.py [models/sketch.onnx]

It has the structure of an exported detector: SiLU, split and residual blocks, SPPF, upsampling, a decoupled head with
DFL, and one Concat of boxes and scores. It detects nothing: use it to look at structure and speed, not at accuracy.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, CLASSES, BINS = 256, 8, 16
STRIDES = (8, 16)


class Builder:
    """Collects nodes and weights; each method adds a block after tensor `x` and returns its output."""

    def __init__(self, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._random = np.random.default_rng(seed)

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> Any:
        """Add a node and return its output; a list if `outputs` is above 1."""
        name = f"{op}_{len(self.nodes)}"
        made = [f"{name}_out{k}" if outputs > 1 else f"{name}_out" for k in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), made, name, **attributes))
        return made if outputs > 1 else made[0]

    def constant(self, values: object, dtype: type = np.float32) -> str:
        """Add a constant and return its name."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def conv(self, x: str, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, silu: bool = True) -> str:
        """Add a Conv, and a SiLU as Sigmoid and Mul."""
        spread = np.sqrt(2.6 / (inputs * kernel * kernel))
        weight = self.constant(self._random.normal(0, spread, (outputs, inputs, kernel, kernel)))
        bias = self.constant(self._random.normal(0, 0.1, outputs))
        y = self.node("Conv", x, weight, bias, strides=[stride] * 2, pads=[kernel // 2] * 4, kernel_shape=[kernel] * 2)
        return self.node("Mul", y, self.node("Sigmoid", y)) if silu else y

    def block(self, x: str, inputs: int, outputs: int) -> str:
        """Add a split block: a residual pair of Convs on one half, then a Concat of all parts."""
        half = outputs // 2
        sizes = self.constant([half, half], np.int64)
        left, right = self.node("Split", self.conv(x, inputs, outputs), sizes, outputs=2, axis=1)
        deeper = self.node("Add", right, self.conv(self.conv(right, half, half, 3), half, half, 3))
        return self.conv(self.node("Concat", left, right, deeper, axis=1), 3 * half, outputs)

    def sppf(self, x: str, channels: int) -> str:
        """Add spatial pyramid pooling: three MaxPools in a row, concatenated."""
        parts = [self.conv(x, channels, channels // 2)]
        for _ in range(3):
            parts.append(self.node("MaxPool", parts[-1], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
        return self.conv(self.node("Concat", *parts, axis=1), 2 * channels, channels)

    def upsample(self, x: str) -> str:
        """Add a nearest-neighbour Resize to twice the height and width."""
        scales = self.constant([1, 1, 2, 2])
        grid = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return self.node("Resize", x, "", scales, mode="nearest", **grid)

    def head(self, x: str, channels: int, cells: int) -> tuple[str, str]:
        """Add a head: box distributions (1, 64, cells) and class scores (1, classes, cells) before the decode."""
        made = []
        for outputs in (4 * BINS, CLASSES):
            y = self.conv(self.conv(x, channels, 32, 3), 32, outputs, silu=False)
            made.append(self.node("Reshape", y, self.constant([1, outputs, cells], np.int64)))
        return made[0], made[1]

    def decode(self, boxes: str, scores: str, cells: int) -> str:
        """Add the decode: boxes from the means of their distributions (DFL), scores by Sigmoid, one Concat of both."""
        spread = self.node("Reshape", boxes, self.constant([1, 4, BINS, cells], np.int64))
        spread = self.node("Softmax", self.node("Transpose", spread, perm=[0, 2, 1, 3]), axis=1)
        sides = self.node("Conv", spread, self.constant(np.arange(BINS).reshape(1, BINS, 1, 1)), kernel_shape=[1, 1])
        sides = self.node("Reshape", sides, self.constant([1, 4, cells], np.int64))
        near, far = self.node("Split", sides, self.constant([2, 2], np.int64), outputs=2, axis=1)
        centres, strides = grid()
        first, last = self.node("Sub", self.constant(centres), near), self.node("Add", self.constant(centres), far)
        middle = self.node("Div", self.node("Add", first, last), self.constant(2.0))
        boxes = self.node("Concat", middle, self.node("Sub", last, first), axis=1)
        boxes = self.node("Mul", boxes, self.constant(strides))
        return self.node("Concat", boxes, self.node("Sigmoid", scores), axis=1)


def grid() -> tuple[np.ndarray, np.ndarray]:
    """Return centres (1, 2, cells) in cells and strides (1, 1, cells) in px of all cells."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: SIZE // stride, : SIZE // stride] + 0.5
        centres.append(np.stack([columns.ravel(), rows.ravel()]))
        strides.append(np.full((1, rows.size), stride))
    return np.concatenate(centres, axis=1)[None], np.concatenate(strides, axis=1)[None]


def build() -> onnx.ModelProto:
    """Build the whole model: float32 (1, 3, 256, 256) to (1, 4 + classes, cells)."""
    b = Builder()
    x = b.conv(b.conv("images", 3, 16, 3, 2), 16, 32, 3, 2)
    fine = b.block(b.conv(x, 32, 64, 3, 2), 64, 64)
    coarse = b.sppf(b.block(b.conv(fine, 64, 128, 3, 2), 128, 128), 128)
    merged = b.block(b.node("Concat", b.upsample(coarse), fine, axis=1), 192, 64)
    down = b.block(b.node("Concat", b.conv(merged, 64, 64, 3, 2), coarse, axis=1), 192, 128)
    counts = [(SIZE // stride) ** 2 for stride in STRIDES]
    heads = [b.head(merged, 64, counts[0]), b.head(down, 128, counts[1])]
    boxes = b.node("Concat", *(head[0] for head in heads), axis=2)
    scores = b.node("Concat", *(head[1] for head in heads), axis=2)
    output = b.decode(boxes, scores, sum(counts))
    b.nodes[-1].output[0] = output = "output0"
    graph = helper.make_graph(
        b.nodes,
        "sketch",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 4 + CLASSES, sum(counts)])],
        b.weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="onnxq")
    names = {k: f"class {k}" for k in range(CLASSES)}
    for key, value in {"task": "detect", "stride": "16", "names": str(names), "imgsz": f"[{SIZE}, {SIZE}]"}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "sketch.onnx"
    onnx.save(build(), target)
    print(target)
