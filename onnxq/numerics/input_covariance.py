"""Covariance of the inputs of a Conv, in a form that stays small for layers with many of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np

from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array, FloatArray, Int64Array
from onnxq.numerics.exact_sum import ExactSum

_MOST_WHOLE = 256
"""Inputs of a group up to which their covariance is held whole."""

_MOST_CHANNELS = 256
"""Channels of a block. Blocks of half the size take half the memory and leave 0.7 dB more rounding error."""


_PART = 1 << 22
"""Values that are computed with at once."""


class Part(NamedTuple):
    """Some of the blocks of inputs: their places among all blocks, their groups, and the inputs of these."""

    blocks: slice
    groups: slice
    inputs: slice


@dataclass(frozen=True)
class BlockShape:
    """How the inputs of a group, (channels, taps), are cut into equal blocks of channels, the last filled with zeros.

    Attributes:
        blocks: of each group.
        channels: of a block.
        taps: kernel positions, or 1 if each input counts as a channel.
    """

    blocks: int
    channels: int
    taps: int

    @classmethod
    def of(cls, channels: int, taps: int) -> "BlockShape":
        """Return the blocks for a group of this many channels and kernel positions."""
        if channels * taps <= _MOST_WHOLE:
            return cls(1, channels * taps, 1)
        blocks = -(-channels // _MOST_CHANNELS)
        return cls(blocks, -(-channels // blocks), taps)

    def parts(self, groups: int, rows: int) -> Iterator[Part]:
        """Yield all blocks in parts: one block, or several of small groups.

        Args:
            groups: of the layer.
            rows: of each group.
        """
        size = self.channels * self.taps
        if self.blocks > 1:
            for group in range(groups):
                for number in range(self.blocks):
                    block = group * self.blocks + number
                    inputs = slice(number * size, (number + 1) * size)
                    yield Part(slice(block, block + 1), slice(group, group + 1), inputs)
            return
        at_once = max(1, _PART // (size * (rows + size)))
        for start in range(0, groups, at_once):
            some = slice(start, min(start + at_once, groups))
            yield Part(some, some, slice(0, size))

    def take(self, values: AnyArray, part: Part, rows: Int64Array | slice = slice(None)) -> FloatArray:
        """Return a part of (groups, rows, inputs of a group), or some rows, as (blocks, rows, inputs).

        It is float64 if the values are, else float32.
        """
        taken = values[part.groups, rows, part.inputs]
        filled = np.zeros((*taken.shape[:2], self.channels * self.taps), np.result_type(values.dtype, np.float32))
        filled[:, :, : taken.shape[2]] = taken
        return filled


@dataclass(frozen=True, eq=False)
class InputCovariance:
    """Covariance of the inputs of a Conv at one output position.

    Within a block, the covariance of channel i at tap a with channel j at tap b is `channels[block, i, j]` times
    `taps[a, b]`; between blocks it counts as zero. With one tap in `taps` each input is a channel.

    Attributes:
        channels: float32 (groups * blocks, n, n).
        taps: float64 (t, t) with the mean 1 on its diagonal.
    """

    channels: Float32Array
    taps: Float64Array

    @property
    def is_whole(self) -> bool:
        """Whether it is that of all inputs of a Conv without groups, exactly."""
        return len(self.channels) == len(self.taps) == 1

    def shape(self, groups: int, inputs: int) -> BlockShape:
        """Return how the inputs of a group were cut.

        Raises:
            ValueError: a layer with this many groups and inputs of a group has other blocks.
        """
        taps, size = len(self.taps), self.channels.shape[1]
        found = BlockShape(len(self.channels) // groups, size, taps)
        channels, rest = divmod(inputs, taps)
        if rest or len(self.channels) % groups or found.blocks * size - channels not in range(found.blocks):
            raise ValueError(f"{len(self.channels)} blocks of {size} channels and {taps} taps")
        return found

    def error(self, weight: Float64Array) -> Float64Array:
        """Return the variance of the outputs of a weight, (groups, outputs of a group).

        Args:
            weight: (groups, outputs of a group, inputs).
        """
        groups, outputs, inputs = weight.shape
        shape = self.shape(groups, inputs)
        of_blocks = np.empty((len(self.channels), outputs))
        for part in shape.parts(groups, outputs):
            of_blocks[part.blocks] = self.error_of_part(shape.take(weight, part), part)
        return np.asarray(of_blocks.reshape(groups, shape.blocks, outputs).sum(axis=1))

    def error_of_part(self, weight: FloatArray, part: Part) -> FloatArray:
        """Return what a part of a weight, (blocks, outputs, inputs of a block), adds to `error`, (blocks, outputs).

        It is computed in the type of the weight.
        """
        channels = self.channels[part.blocks]
        count, outputs, _ = weight.shape
        by_tap = weight.reshape(count, outputs, channels.shape[1], len(self.taps))
        spread = (by_tap @ self.taps.astype(weight.dtype)).swapaxes(1, 2).reshape(count, channels.shape[1], -1)
        product = (channels @ spread).reshape(count, channels.shape[1], outputs, len(self.taps)).swapaxes(1, 2)
        return np.asarray(np.einsum("boct,boct->bo", by_tap, product))

    @classmethod
    def mean(cls, covariances: Sequence["InputCovariance"]) -> "InputCovariance":
        """Return the mean of covariances of one shape: of the layers that share a weight."""
        if len(covariances) == 1:
            return covariances[0]
        channels, taps = (
            np.mean([getattr(each, name) for each in covariances], axis=0) for name in ("channels", "taps")
        )
        return cls(channels, taps)


class CovarianceSums:
    """Sums from which the covariance of the inputs of a Conv is found; they do not depend on the order of the images.

    Attributes:
        images: number of images that were added.
        taps: kernel positions that are held apart from the channels.

    Args:
        groups: of the Conv.
        channels: of a group.
        taps: kernel positions.
    """

    def __init__(self, groups: int, channels: int, taps: int) -> None:
        self.images = 0
        self._shape = shape = BlockShape.of(channels, taps)
        self.taps = shape.taps
        blocks = groups * shape.blocks
        self._means = ExactSum((blocks, shape.channels, shape.taps))
        self._products = ExactSum((blocks, len(_lower(shape.channels))))
        self._tap_products = ExactSum((shape.taps, shape.taps))

    def add(self, columns: Float32Array) -> None:
        """Add the inputs of an image at n positions, (groups, inputs of a group, n)."""
        shape = self._shape
        groups, inputs, count = columns.shape
        missing = shape.blocks * shape.channels * shape.taps - inputs
        filled = np.pad(columns, ((0, 0), (0, missing), (0, 0))) if missing else columns
        by_tap = filled.astype(np.float64).reshape(groups * shape.blocks, shape.channels, shape.taps, count)
        of_channels = by_tap.reshape(len(by_tap), shape.channels, -1)
        self._means.add(by_tap.mean(axis=3))
        products = (of_channels @ of_channels.swapaxes(1, 2)).reshape(len(by_tap), -1)
        self._products.add(products.take(_lower(shape.channels), axis=1) / of_channels.shape[2])
        if shape.taps > 1:
            of_taps = by_tap.transpose(2, 0, 1, 3).reshape(shape.taps, -1)
            self._tap_products.add(of_taps @ of_taps.T / count)
        self.images += 1

    def merge(self, other: "CovarianceSums") -> None:
        """Add the images of other sums for a Conv of the same shape; the result is that of all images."""
        self._means.merge(other._means)
        self._products.merge(other._products)
        self._tap_products.merge(other._tap_products)
        self.images += other.images

    def covariance(self) -> InputCovariance:
        """Return the covariance over all images; zeros, with which nothing is compensated, if a sum was clamped."""
        products = _symmetric(self._products.total(), self._shape.channels)
        if self._products.clamped or self._tap_products.clamped:
            return InputCovariance(np.zeros_like(products, np.float32), np.asarray(np.eye(self._shape.taps)))
        means = self._means.total() / self.images
        covariance = products / self.images - means @ means.swapaxes(1, 2) / self._shape.taps
        channels = np.asarray(covariance, np.float32)
        if self._shape.taps == 1:
            return InputCovariance(channels, np.ones((1, 1)))
        of_taps = means.transpose(2, 0, 1).reshape(self._shape.taps, -1)
        taps = self._tap_products.total() / self.images - of_taps @ of_taps.T
        energy = float(np.diagonal(taps).mean())
        return InputCovariance(channels, taps / energy if energy > 0 else np.eye(len(taps)))


@cache
def _lower(size: int) -> Int64Array:
    """Return where the lower triangle of a matrix of this size is in its flat form."""
    rows, columns = np.tril_indices(size)
    return np.asarray(rows * size + columns, np.int64)


def _symmetric(lower: Float64Array, size: int) -> Float64Array:
    """Return matrices of this size, (n, size, size), with these lower triangles, (n, size (size + 1) / 2)."""
    rows, columns = np.tril_indices(size)
    found = np.empty((len(lower), size, size))
    found[:, rows, columns] = found[:, columns, rows] = lower
    return found
