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
    exact, nearest = im2col.arranged(weight), im2col.arranged(start.integers)
    groups, outputs, inputs = exact.shape
    shape = covariance.shape(groups, inputs)
    feedback = FeedbackRounding.of_product(covariance.channels, covariance.taps.astype(np.float32), _DAMPING)
    before = np.asarray(start.qparams.scale, np.float64)
    scale, rows, rounded = before.copy(), np.arange(outputs), np.empty(exact.shape, nearest.dtype)
    for _ in range(_WIDENINGS + 1):
        for part in shape.parts(groups, outputs):
            of_part = scale.reshape(groups, outputs)[part.groups, rows]
            found = feedback(part.blocks).round(shape.take(exact, part, rows), of_part, start.qparams.scheme.qmax)
            width = rounded[:1, :1, part.inputs].shape[2]
            rounded[part.groups, rows, part.inputs] = found[:, :, :width]
        shares = np.zeros(1) if limit is None else limit.shares_of(im2col.weight(rounded), 0)
        rows = np.unique(np.flatnonzero(shares > 1) % outputs)
        if not rows.size:
            break
        scale = np.where(shares > 1, start.qparams.scheme.stored(scale * shares * _MARGIN), scale)

    def error(integers: AnyArray, scale: Float64Array) -> Float64Array:
        of_blocks = np.empty((len(covariance.channels), outputs))
        for part in shape.parts(groups, outputs):
            steps = scale.reshape(groups, outputs, 1)[part.groups]
            off = shape.take(integers, part) * steps.astype(exact.dtype) - shape.take(exact, part)
            of_blocks[part.blocks] = covariance.error_of_part(off, part)
        return np.asarray(of_blocks.reshape(groups, shape.blocks, outputs).sum(axis=1).reshape(-1))

    kept = error(nearest, before) <= error(rounded, scale)
    kept |= np.broadcast_to(shares > 1, kept.shape)
    by_output = (-1, *[1] * (weight.ndim - 1))
    integers = np.where(kept.reshape(by_output), start.integers, im2col.weight(rounded))
    return RoundedWeight(start.qparams.rescaled(np.where(kept, before, scale)), integers)
