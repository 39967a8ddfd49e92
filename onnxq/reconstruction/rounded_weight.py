"""Rounding of the weights of a Conv with error feedback, within the limit of CPUs that saturate."""

from dataclasses import dataclass

import numpy as np

from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array
from onnxq.numerics.input_covariance import InputCovariance
from onnxq.numerics.scheme import QParams
from onnxq.qdq.pair_limit import PairLimit
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.least_squares import FeedbackRounding

_DAMPING = (0.1, 0.03)
"""Shares of the mean energy that are added to that of each channel and of each tap."""

_WIDENINGS = 4
"""How often scales of channels beyond the limit are widened."""

_MARGIN = 1.002
"""Factor of the scale with which the greatest sum of a channel would just reach the limit."""


@dataclass(frozen=True)
class RoundedWeight:
    """Scales and integers of a weight.

    Attributes:
        qparams: its scales.
        integers: of its shape.
    """

    qparams: QParams
    integers: AnyArray


def round_weight(
    weight: Float32Array,
    start: RoundedWeight,
    im2col: Im2col,
    covariance: InputCovariance,
    limit: PairLimit | None = None,
) -> RoundedWeight:
    """Round a weight so that the outputs of its layer err least, for inputs of this covariance.

    The error of each rounded value is compensated in the values not yet rounded. The bias must take up the shift of
    the mean. Output channels whose integers exceed the limit get wider scales. Those that err less as they were stay as
    they were, so no channel gets worse. Scales are at least as wide as before.

    Args:
        weight: of a Conv.
        start: its scales, of a symmetric scheme of signed integers, and integers within the limit.
        im2col: of the Conv.
        covariance: of its inputs.
        limit: of the integers.
    """
    exact, qmax = im2col.matrix(weight), start.qparams.scheme.qmax
    groups, outputs, inputs = exact.shape
    shape = covariance.shape(groups, inputs)
    feedback = FeedbackRounding.of_product(covariance.channels, covariance.taps.astype(np.float32), _DAMPING)
    blocks, rounded = shape.split(exact), np.empty(exact.shape)
    before = np.asarray(start.qparams.scale, np.float64)
    scale, rows = before.copy(), np.arange(outputs)
    for _ in range(_WIDENINGS + 1):
        of_blocks = np.repeat(scale.reshape(groups, outputs), shape.blocks, axis=0)
        found = feedback.round(blocks[:, rows], of_blocks[:, rows], qmax)
        rounded[:, rows] = shape.join(found, inputs)
        shares = np.zeros(1) if limit is None else limit.shares_of(im2col.weight(rounded), 0)
        rows = np.unique(np.flatnonzero(shares > 1) % outputs)
        if not rows.size:
            break
        scale = np.where(shares > 1, start.qparams.scheme.stored(scale * shares * _MARGIN), scale)

    def error(integers: Float64Array, scale: Float64Array) -> Float64Array:
        return covariance.error(integers * scale.reshape(groups, outputs, 1) - exact).reshape(-1)

    kept = error(im2col.matrix(start.integers), before) <= error(rounded, scale)
    kept |= np.broadcast_to(shares > 1, kept.shape)
    by_output = (-1, *[1] * (weight.ndim - 1))
    integers = np.where(kept.reshape(by_output), start.integers, im2col.weight(rounded).astype(start.integers.dtype))
    return RoundedWeight(start.qparams.rescaled(np.where(kept, before, scale)), integers)
