"""The integer grid: width, container, symmetry, and QuantizeLinear and DequantizeLinear in numpy."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import ConfigError

MIN_BITS = 2
"""The fewest bits that integers can have: a symmetric grid of them has the levels -1, 0 and 1."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Container:
    """The integer type that quantized values are stored in.

    Attributes:
        dtype: its type in numpy.
        bits: its width, the most that a `Scheme` can use.
        opset: first version of ONNX whose QuantizeLinear and DequantizeLinear take it, with a scale per channel too.
    """

    dtype: np.dtype[np.generic]
    bits: int
    opset: int

    @property
    def is_signed(self) -> bool:
        """Whether it holds negative integers."""
        return self.dtype.kind == "i"

    def __str__(self) -> str:
        return str(self.dtype)


UINT8 = Container(np.dtype(np.uint8), bits=8, opset=13)
INT8 = Container(np.dtype(np.int8), bits=8, opset=13)
UINT16 = Container(np.dtype(np.uint16), bits=16, opset=21)
INT16 = Container(np.dtype(np.int16), bits=16, opset=21)


@dataclass(frozen=True)
class Range:
    """The real interval that a grid must cover; floats, or float64 arrays (channels,) for one grid per channel."""

    low: ArrayLike
    high: ArrayLike


@dataclass(frozen=True)
class Scheme:
    """Which integers stand for a tensor's values.

    Attributes:
        bits: width that is used, 2 to the container's. A narrower grid uses only a part of the container's levels.
        container: type that the integers are stored in.
        symmetric: the zero point stands in the middle (0 if signed, else 2^(bits-1)).
        axis: one scale per index along this axis, or None for one scale for the whole tensor.
        half: scales are numbers that float16 holds too, rather than any of float32.
    """

    bits: int = 8
    container: Container = UINT8
    symmetric: bool = False
    axis: int | None = None
    half: bool = False

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= self.container.bits:
            raise ConfigError(f"{self.bits} bits: {self.container} holds {MIN_BITS} to {self.container.bits}")

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Type of the integers, of the container."""
        return self.container.dtype

    @property
    def fills_container(self) -> bool:
        """Whether the grid has all the levels of its container, so that storing saturates as the grid does."""
        return self.bits == self.container.bits

    @property
    def qmin(self) -> int:
        """Least integer. A symmetric grid leaves out the one without a mirror image, as TensorRT does."""
        if self.symmetric:
            return self.middle - self.steps // 2
        return self.middle - (1 << self.bits - 1)

    @property
    def qmax(self) -> int:
        """Greatest integer."""
        return self.middle + (1 << self.bits - 1) - 1

    @property
    def middle(self) -> int:
        """The integer in the middle of the grid: the zero point where the scheme is symmetric."""
        return 0 if self.container.is_signed else 1 << self.bits - 1

    @property
    def steps(self) -> int:
        """Number of steps between the least and the greatest integer."""
        return (1 << self.bits) - (2 if self.symmetric else 1)

    def grid(self, low: ArrayLike, high: ArrayLike) -> tuple[Array, Array]:
        """Scales and zero points (float64, broadcast shape of `low` and `high`) of the grids that cover the intervals.

        Asymmetric: s = (u - l) / (2^b - 1), z = qmin + round(-l / s); symmetric: s = max(|l|, |u|) / (2^(b-1) - 1),
        z in the middle (Q-YOLO, arXiv 2307.04816, section 3). The interval is widened to hold zero, which is always
        exactly on the grid. The interval [0, 0] gets the scale 1, and so does one whose scale would be stored as 0.
        Scales are rounded as they are stored.
        """
        low = np.minimum(np.asarray(low, np.float64), 0.0)
        high = np.maximum(np.asarray(high, np.float64), 0.0)
        span = 2 * np.maximum(-low, high) if self.symmetric else high - low
        scale = self.stored(span / self.steps)
        if self.symmetric:
            zero_point = np.full(scale.shape, float(self.middle))
        else:
            zero_point = np.clip(self.qmin + np.rint(-low / scale), self.qmin, self.qmax)
        return scale, zero_point

    def stored(self, scale: ArrayLike) -> Array:
        """Scales as a model holds them, float64: rounded; 1 where that would be 0."""
        kind = np.float16 if self.half else np.float32
        rounded = np.minimum(scale, np.finfo(kind).max).astype(kind).astype(np.float64)
        return np.where(rounded > 0, rounded, 1.0)

    def reach(self, low: ArrayLike, high: ArrayLike) -> tuple[Array, Array, Array]:
        """The grids' least value, greatest value and step, once zero has been put on the grid (float64)."""
        scale, zero_point = self.grid(low, high)
        return (self.qmin - zero_point) * scale, (self.qmax - zero_point) * scale, scale

    def qparams(self, bounds: Range) -> "QParams":
        """The grid that covers `bounds`, as it is stored in a model."""
        scale, zero_point = self.grid(bounds.low, bounds.high)
        return QParams(np.asarray(scale, np.float32), np.asarray(zero_point).astype(self.dtype), self)


@dataclass(frozen=True)
class QParams:
    """A grid: x = scale * (q - zero_point), q in [scheme.qmin, scheme.qmax].

    Attributes:
        scale: float32, () or (channels,).
        zero_point: of the scheme's container, same shape.
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.generic]
    scheme: Scheme

    def __post_init__(self) -> None:
        self.scale.setflags(write=False)
        self.zero_point.setflags(write=False)

    def rescaled(self, scale: NDArray[np.floating]) -> "QParams":
        """The same integers with other scales, rounded as they are stored."""
        return QParams(self.scheme.stored(scale).astype(np.float32), self.zero_point, self.scheme)

    def quantize(self, x: NDArray[np.float32]) -> NDArray[np.generic]:
        """Integers for `x`: round half to even, then saturate (ONNX QuantizeLinear, opset 13)."""
        scale, zero_point = self._spread(x.ndim)
        q = np.rint(x / scale) + zero_point
        return np.asarray(np.clip(q, self.scheme.qmin, self.scheme.qmax), self.scheme.dtype)

    def dequantize(self, q: NDArray[np.generic]) -> NDArray[np.float32]:
        """Values of the integers `q` (ONNX DequantizeLinear, opset 13)."""
        scale, zero_point = self._spread(q.ndim)
        return (q.astype(np.float32) - zero_point) * scale

    def _spread(self, rank: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if self.scheme.axis is None:
            return self.scale, self.zero_point.astype(np.float32)
        shape = [1] * rank
        shape[self.scheme.axis] = -1
        return self.scale.reshape(shape), self.zero_point.astype(np.float32).reshape(shape)

    @cached_property
    def low(self) -> float:
        """Least value on the grid (of any channel)."""
        return float(np.min((self.scheme.qmin - self.zero_point.astype(np.float64)) * self.scale))

    @cached_property
    def high(self) -> float:
        """Greatest value on the grid (of any channel)."""
        return float(np.max((self.scheme.qmax - self.zero_point.astype(np.float64)) * self.scale))
