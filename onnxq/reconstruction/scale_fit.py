"""Chooses the scales that divide the channels of an input, and its range, by the outputs of the layers that read it."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxq.numerics.arrays import Float32Array, Float64Array
from onnxq.numerics.scheme import QParams, Range, Scheme
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.layer_fit import fit_once, least_range
from onnxq.reconstruction.least_squares import Moments, Products

_TRIED = ((1.0, 0.0), (0.5, 0.0), (0.0, 0.0), (1.5, 0.0), (2.0, 0.0), (0.0, 0.4), (0.5, 0.4), (1.0, 0.4), (0.0, 0.8))
"""What is tried: powers of the scales before, which are square roots of peaks, over powers of the sizes of weights, as
in SmoothQuant (Xiao et al., arXiv 2211.10438, equation 4)."""

_LEAST_SIZE = 0.03
"""Channels whose weights have a smaller share of the greatest size count as if they had this share."""


@dataclass(frozen=True)
class Reader:
    """A Conv that reads the input, at some positions; g groups, c outputs and k inputs of a group.

    Attributes:
        im2col: of the Conv.
        scheme: of its weight.
        weight: for inputs that are not divided, float64 (g, c, k).
        has_bias: a bias absorbs the mean error.
        inputs: neither divided nor quantized, float32 (g, k, n).
        outputs: of the float layer, float32 (g, c, n).
        roots: square roots of how often each position counts, float32 (n,).
    """

    im2col: Im2col
    scheme: Scheme
    weight: Float64Array
    has_bias: bool
    inputs: Float32Array
    outputs: Float32Array
    roots: Float32Array

    def spread(self, channels: Float32Array) -> Float32Array:
        """Return values of the input's channels as values of the inputs of groups, (g, k)."""
        return np.repeat(channels.reshape(len(self.weight), -1), self.taps, axis=1)

    @property
    def taps(self) -> int:
        """Number of kernel positions."""
        return int(np.prod(self.im2col.shape[2:]))

    def moments(self, inputs: Float32Array) -> Moments:
        """Return the moments of inputs, (g, k, n), and the outputs; centered if the Conv has a bias."""
        moments = Moments.zeros(*self.weight.shape)
        moments.add_products(Products.of(inputs, self.outputs, self.roots))
        return moments.centered() if self.has_bias else moments

    @cached_property
    def energy(self) -> float:
        """The sum of the squared outputs, or of their deviations from the mean if the Conv has a bias; positive."""
        t = self.outputs * self.roots
        energy = np.vecdot(t, t).astype(np.float64)
        if self.has_bias:
            energy -= (t @ self.roots).astype(np.float64) ** 2 / np.square(self.roots, dtype=np.float64).sum()
        return max(float(energy.sum()), float(np.finfo(np.float32).tiny))


@dataclass(frozen=True)
class FittedScales:
    """What the channels of an input are divided by, and the integers of the quotients.

    Attributes:
        scales: float32 (channels,), positive.
        qparams: of the quotients.
    """

    scales: Float32Array
    qparams: QParams


def fit_scales(
    scales: Float32Array,
    fitted: QParams,
    peaks: Float64Array,
    readers: Sequence[Reader],
    *,
    ranges: bool,
    pool: Executor | None = None,
) -> FittedScales:
    """Choose the scales, and the range that goes with them, for which the outputs of all readers err least.

    For each choice of scales ranges are compared with float weights, and then the choices with fitted and rounded
    weights: what the input gains, weights may lose. The error of each reader counts as a share of its outputs.

    Args:
        scales: that the channels are divided by before, float32 (channels,), with a geometric mean of 1.
        fitted: of the quotients by these.
        peaks: greatest value of each channel of these quotients, float64 (channels,).
        readers: all layers that read the quotients.
        ranges: also choose the range; else it follows the greatest quotient.
        pool: tries several at a time; None: one after the other. The result is the same.
    """
    exact, sizes = scales.astype(np.float64), _sizes(readers)
    tried = [np.asarray(exact**power / sizes**share, np.float32) for power, share in _TRIED]

    def best_of(divisors: Float32Array) -> tuple[float, QParams]:
        candidate = _Candidate(divisors, readers)
        greatest = float((peaks * (scales / divisors)).max() / peaks.max()) if peaks.max() > 0 else 1.0
        bounds = Range(fitted.low * float(scales.min() / divisors.min()), fitted.high * greatest)
        start = fitted.scheme.qparams(bounds)
        qparams = least_range(start, candidate.error_of_input) if ranges else start
        return candidate.error(qparams), qparams

    found = list((map if pool is None else pool.map)(best_of, tried))
    least = int(np.argmin([error for error, _ in found]))
    return FittedScales(tried[least], found[least][1])


def _sizes(readers: Sequence[Reader]) -> Float64Array:
    """Return the sizes of the weights of each channel, float64 (channels,), with a geometric mean of 1.

    They are root mean squares over the outputs and the kernel; each reader counts alike.
    """
    squares = []
    for reader in readers:
        of_inputs = np.square(reader.weight).mean(axis=1)
        of_channels = of_inputs.reshape(-1, reader.taps).mean(axis=1)
        squares.append(of_channels / max(float(of_channels.mean()), float(np.finfo(np.float32).tiny)))
    sizes = np.sqrt(np.mean(squares, axis=0))
    if not sizes.max() > 0:
        return np.ones(len(sizes))
    logs = np.log(np.maximum(sizes, _LEAST_SIZE * sizes.max()))
    return np.asarray(np.exp(logs - logs.mean()))


class _Candidate:
    """Scales that divide an input.

    Args:
        divisors: the scales, float32 (channels,).
        readers: of the quotients.
    """

    def __init__(self, divisors: Float32Array, readers: Sequence[Reader]) -> None:
        self._of_readers = []
        for reader in readers:
            spread = reader.spread(divisors)
            self._of_readers.append((reader, reader.inputs / spread[:, :, None], reader.weight * spread[:, None]))

    def error_of_input(self, qparams: QParams) -> float:
        """Return the squared error of the outputs, with rounded quotients and float weights."""
        total = 0.0
        for reader, quotients, weight in self._of_readers:
            off = weight.astype(np.float32) @ qparams.rounded(quotients)
            off -= reader.outputs
            if reader.has_bias:
                off -= (off @ (np.square(reader.roots) / np.square(reader.roots).sum()))[:, :, None]
            off *= reader.roots
            total += float(np.vecdot(off, off).sum(dtype=np.float64)) / reader.energy
        return total

    def error(self, qparams: QParams) -> float:
        """Return the squared error of the outputs, with rounded quotients, and weights fitted to them and rounded."""
        total = 0.0
        for reader, quotients, weight in self._of_readers:
            moments = reader.moments(qparams.rounded(quotients))
            rounded = fit_once(weight, reader.scheme, reader.im2col, moments)
            total += float(moments.error(rounded).sum()) / reader.energy
        return total
