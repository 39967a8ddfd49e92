"""Integer schemes, scales and zero points; QuantizeLinear and DequantizeLinear in numpy.

The grid of a tensor is the set of the values that its integers represent.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxq.errors import ConfigError
from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array

MIN_BITS = 2
"""Least width of integers: 2 symmetric bits have the levels -1, 0 and 1."""


@dataclass(frozen=True)
class Container:
    """The integer type that quantized values are stored in.

    Attributes:
        dtype: type in numpy.
        bits: width, the most that a `Scheme` can use.
        opset: first ONNX opset whose QuantizeLinear and DequantizeLinear take the type, also with scales per channel.
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
    """The real interval that the integers must cover; floats, or float64 arrays (channels,) for scales per channel."""

    low: ArrayLike
    high: ArrayLike


@dataclass(frozen=True)
class Scheme:
    """The integers that represent the values of a tensor.

    Attributes:
        bits: width of the integers, 2 to the container's. Narrower integers use a part of the container's levels.
        container: type that stores the integers.
        symmetric: the zero point is in the middle (0 if signed, else 2^(bits-1)).
        axis: one scale per index along this axis, or None for one scale for the whole tensor.
        half: scales are values that float16 can hold.
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
        """Type of the integers in the container."""
        return self.container.dtype

    @property
    def fills_container(self) -> bool:
        """Whether the integers use all levels of the container, so that the container saturates where they do."""
        return self.bits == self.container.bits

    @property
    def qmin(self) -> int:
        """Least integer. Symmetric integers leave out the one without a positive counterpart, as in TensorRT."""
        if self.symmetric:
            return self.middle - self.steps // 2
        return self.middle - (1 << self.bits - 1)

    @property
    def qmax(self) -> int:
        """Greatest integer."""
        return self.middle + (1 << self.bits - 1) - 1

    @property
    def middle(self) -> int:
        """The integer in the middle: the zero point if the scheme is symmetric."""
        return 0 if self.container.is_signed else 1 << self.bits - 1

    @property
    def steps(self) -> int:
        """Number of steps between the least and the greatest integer."""
        return (1 << self.bits) - (2 if self.symmetric else 1)

    def grid(self, low: ArrayLike, high: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Return scales and zero points that cover intervals, float64 in the broadcast shape of `low` and `high`.

        Asymmetric: s = (u - l) / (2^b - 1), z = qmin + round(-l / s); symmetric: s = max(|l|, |u|) / (2^(b-1) - 1),
        z in the middle (Q-YOLO, arXiv 2307.04816, section 3). The interval is widened to include zero, which is always
        exactly representable. The scale is 1 for the interval [0, 0], and where it would be stored as 0. Scales are
        rounded as they are stored.
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

    def stored(self, scale: ArrayLike) -> Float64Array:
        """Return scales as a model stores them, float64: rounded to float32 or float16, and 1 instead of 0."""
        kind = np.float16 if self.half else np.float32
        rounded = np.minimum(scale, np.finfo(kind).max).astype(kind).astype(np.float64)
        return np.where(rounded > 0, rounded, 1.0)

    def reach(self, low: ArrayLike, high: ArrayLike) -> tuple[Float64Array, Float64Array, Float64Array]:
        """Return the least and the greatest value and the step of the grids that cover intervals, float64."""
        scale, zero_point = self.grid(low, high)
        return (self.qmin - zero_point) * scale, (self.qmax - zero_point) * scale, scale

    def qparams(self, bounds: Range) -> "QParams":
        """Return the scale and zero point that cover `bounds`, as a model stores them."""
        scale, zero_point = self.grid(bounds.low, bounds.high)
        return QParams(np.asarray(scale, np.float32), np.asarray(zero_point).astype(self.dtype), self)


@dataclass(frozen=True)
class QParams:
    """Scale and zero point of a tensor: x = scale * (q - zero_point), q in [scheme.qmin, scheme.qmax].

    Attributes:
        scale: float32, () or (channels,).
        zero_point: of the scheme's container, same shape.
    """

    scale: Float32Array
    zero_point: AnyArray
    scheme: Scheme

    def __post_init__(self) -> None:
        self.scale.setflags(write=False)
        self.zero_point.setflags(write=False)

    def rescaled(self, scale: NDArray[np.floating]) -> "QParams":
        """Return the parameters with other scales, rounded as they are stored, and the same zero points."""
        return QParams(self.scheme.stored(scale).astype(np.float32), self.zero_point, self.scheme)

    def quantize(self, x: Float32Array) -> AnyArray:
        """Return the integers for `x`: round half to even, then saturate (ONNX QuantizeLinear, opset 13)."""
        return self._whole(x).astype(self.scheme.dtype)

    def rounded(self, x: Float32Array) -> Float32Array:
        """Return the values of the integers for `x`: the same as `dequantize` of `quantize`, in less time."""
        scale, zero_point = self._spread(x.ndim)
        values = self._whole(x)
        values -= zero_point
        values *= scale
        return values

    def _whole(self, x: Float32Array) -> Float32Array:
        """Return the integers for `x` as float32."""
        scale, zero_point = self._spread(x.ndim)
        q = np.asarray(x / scale)
        np.rint(q, out=q)
        q += zero_point
        return np.clip(q, self.scheme.qmin, self.scheme.qmax, out=q)

    def dequantize(self, q: AnyArray) -> Float32Array:
        """Return the values of the integers `q` (ONNX DequantizeLinear, opset 13)."""
        scale, zero_point = self._spread(q.ndim)
        return (q.astype(np.float32) - zero_point) * scale

    def _spread(self, rank: int) -> tuple[Float32Array, Float32Array]:
        if self.scheme.axis is None:
            return self.scale, self.zero_point.astype(np.float32)
        shape = [1] * rank
        shape[self.scheme.axis] = -1
        return self.scale.reshape(shape), self.zero_point.astype(np.float32).reshape(shape)

    @cached_property
    def low(self) -> float:
        """Least representable value of any channel."""
        return float(np.min((self.scheme.qmin - self.zero_point.astype(np.float64)) * self.scale))

    @cached_property
    def high(self) -> float:
        """Greatest representable value of any channel."""
        return float(np.max((self.scheme.qmax - self.zero_point.astype(np.float64)) * self.scale))
