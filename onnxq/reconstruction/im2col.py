"""im2col: Conv, ConvTranspose, Gemm and MatMul as matrix products."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxq.ir import Node, constant, output_axis
from onnxq.numerics.arrays import AnyArray, Float64Array, Int64Array

Positions = Int64Array
"""Rows and columns of output positions, (2, n)."""


@dataclass(frozen=True)
class Im2col:
    """A layer as the matrix product y[g, :, p] = W[g] x[g, :, p] (+ bias) at each output position p of each group g.

    It is a Conv, a ConvTranspose whose windows do not overlap, a Gemm or a MatMul.

    Attributes:
        shape: of the weight.
        group: number of groups.
        strides, dilations: vertical, horizontal.
        pads: top, left, bottom, right.
        transposed: the layer is a ConvTranspose. Each input pixel gives a block of outputs of its own; the pixel is the
            position, and the outputs of the block count as channels.
        rows: the layer is a Gemm or MatMul. Each row of its input is a position; those of a whole batch are one field.
        outputs_last: the weight of a Gemm or MatMul is (inputs, outputs).
    """

    shape: tuple[int, ...]
    group: int
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    transposed: bool = False
    rows: bool = False
    outputs_last: bool = False

    @classmethod
    def of(cls, node: Node) -> "Im2col | None":
        """Return the product that a layer computes; None if its weight is not constant or its windows overlap."""
        weight = constant(node.inputs[1])
        attrs = node.attrs
        if weight is not None and weight.ndim == 2:
            return cls(weight.shape, 1, (1, 1), (1, 1), (0, 0, 0, 0), rows=True, outputs_last=output_axis(node) == 1)
        if weight is None or weight.ndim != 4 or attrs.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
            return None
        strides, dilations = tuple(attrs.get("strides", (1, 1))), tuple(attrs.get("dilations", (1, 1)))
        pads, group = tuple(attrs.get("pads", (0, 0, 0, 0))), attrs.get("group", 1)
        if node.op == "Conv":
            return cls(weight.shape, group, strides, dilations, pads)
        is_plain = strides == weight.shape[2:] and dilations == (1, 1) and not any(pads) and group == 1
        if node.op == "ConvTranspose" and is_plain and not any(attrs.get("output_padding", (0, 0))):
            return cls(weight.shape, 1, (1, 1), (1, 1), (0, 0, 0, 0), transposed=True)
        return None

    @cached_property
    def inputs(self) -> int:
        """Number of inputs of a group at one position."""
        if self.rows:
            return self.shape[0 if self.outputs_last else 1]
        return self.shape[0] if self.transposed else int(np.prod(self.shape[1:]))

    @property
    def arrangement(self) -> tuple[object, ...]:
        """What `matrix` depends on: layers of equal ones make the same W of a weight."""
        return self.shape, self.group, self.transposed, self.outputs_last

    def window(self) -> "Im2col":
        """Return what `columns` depends on: the layer with one output for each group. Only for a Conv."""
        return replace(self, shape=(self.group, *self.shape[1:]))

    def matrix(self, weight: AnyArray) -> Float64Array:
        """Return a weight as W, float64 (groups, outputs of a group, inputs)."""
        return np.asarray(self.arranged(weight), np.float64)

    def arranged(self, weight: AnyArray) -> AnyArray:
        """Return W, (groups, outputs of a group, inputs), as a view of a weight in memory."""
        if self.transposed or self.outputs_last:
            return weight.reshape(1, self.shape[0], -1).swapaxes(1, 2)
        return weight.reshape(self.group, self.shape[0] // self.group, -1)

    def weight(self, matrix: AnyArray) -> AnyArray:
        """Return W, (groups, outputs of a group, inputs), as a weight of the layer's shape; the inverse of `matrix`."""
        flipped = self.transposed or self.outputs_last
        return np.ascontiguousarray(matrix.swapaxes(1, 2) if flipped else matrix).reshape(self.shape)

    def per_output(self, channels: AnyArray) -> AnyArray:
        """Return values of the layer's output channels as values of the outputs of W, (groups, outputs of a group)."""
        if self.transposed:
            return np.repeat(channels, int(np.prod(self.shape[2:])))[None]
        return channels.reshape(self.group, -1)

    def per_channel(self, outputs: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return the means of (groups, outputs of a group) over the outputs of each output channel, (channels,)."""
        return outputs.reshape(self.shape[1], -1).mean(axis=1) if self.transposed else outputs.reshape(-1)

    def columns(self, x: AnyArray, positions: Positions, zero: float = 0) -> AnyArray:
        """Return the inputs at output positions, (groups, inputs, n), of the dtype of x.

        Args:
            x: one image, (channels, height, width); for a Gemm or MatMul (..., inputs).
            positions: rows and columns, int64 (2, n), of the output; for a ConvTranspose of the input.
            zero: what stands for zero, in the padding.
        """
        if self.rows:
            return np.asarray(x.reshape(-1, x.shape[-1])[positions[1]].T[None])
        channels, height, width = x.shape
        if self.transposed or (self.shape[2:] == (1, 1) and not any(self.pads)):
            rows, columns = positions * np.array(self.strides)[:, None]
            taken = np.take(x.reshape(channels, -1), rows * width + columns, axis=1)
            return np.asarray(taken.reshape(self.group, channels // self.group, -1))
        taps = [np.arange(size) * step for size, step in zip(self.shape[2:], self.dilations, strict=True)]
        starts = positions * np.array(self.strides)[:, None] - np.array(self.pads[:2])[:, None]
        rows, columns = (start[None, :] + tap[:, None] for start, tap in zip(starts, taps, strict=True))
        inside = ((rows >= 0) & (rows < height))[:, None, :] & ((columns >= 0) & (columns < width))[None, :, :]
        flat = np.clip(rows, 0, height - 1)[:, None, :] * width + np.clip(columns, 0, width - 1)[None, :, :]
        taken = np.take(x.reshape(channels, -1), flat.reshape(-1), axis=1)
        taken[:, np.flatnonzero(~inside)] = zero
        return np.asarray(taken.reshape(self.group, -1, positions.shape[1]))

    def outputs(self, y: AnyArray, positions: Positions) -> AnyArray:
        """Return the outputs at these positions, (groups, outputs of a group, n).

        Args:
            y: one image, (channels, height, width); for a Gemm or MatMul (..., outputs).
            positions: as for `columns`.
        """
        if self.rows:
            return self.columns(y, positions)
        if not self.transposed:
            return y[:, positions[0], positions[1]].reshape(self.group, -1, positions.shape[1])
        high, wide = self.shape[2:]
        rows = positions[0][None, None] * high + np.arange(high)[:, None, None]
        columns = positions[1][None, None] * wide + np.arange(wide)[None, :, None]
        return y[:, rows, columns].reshape(1, -1, positions.shape[1])

    def output_size(self, x: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width of the output of a Conv, for an input of this height and width (ONNX Conv)."""
        taps = [step * (size - 1) + 1 for size, step in zip(self.shape[2:], self.dilations, strict=True)]
        top, left, bottom, right = self.pads
        height, width = ((side + pad - tap) // stride + 1 for side, pad, tap, stride in
                         zip(x, (top + bottom, left + right), taps, self.strides, strict=True))  # fmt: skip
        return height, width

    def fields(self, x: AnyArray) -> AnyArray:
        """Return an input or output with its batch as fields of positions, one after the other.

        They are the images; the first dimension of a Gemm or MatMul may be any other, so all of it is one field.
        """
        return x[None] if self.rows else x

    def size(self, y: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width of a field of positions, for an output of this shape with batch and channels."""
        if self.rows:
            return 1, int(np.prod(y[:-1]))
        high, wide = self.shape[2:] if self.transposed else (1, 1)
        return y[-2] // high, y[-1] // wide
