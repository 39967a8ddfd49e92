"""Scales that bring the channels of a tensor closer to each other's size."""

import numpy as np

from onnxq.numerics.arrays import Float32Array

_EXPONENT = 0.5
"""How far channels are brought to one size: 0 not at all, 1 wholly. What activations gain by a greater one, weights
lose, whose columns become unequal, and ranges, which then follow the rare peaks of every channel."""

_LEAST_SHARE = 0.05
"""Channels with a smaller share of the greatest peak count as if they had this share."""

_LEAST_WHOLE_SHARE = 0.01
"""The same where weights lose nothing."""

_LEAST_SPREAD = 0.1
"""Least standard deviation of the natural logarithms of peaks that is worth an edit."""


def channel_scales(peaks: Float32Array, *, whole: bool = False) -> Float32Array:
    """Return the scales to divide channels by; their geometric mean is 1.

    s_c = max|x_c|^0.5, as in SmoothQuant (Xiao et al., arXiv 2211.10438, equation 4) but without the weights, which
    have a scale for each output channel.

    Args:
        peaks: greatest value of each channel, float32 (channels,).
        whole: the exponent is 1, because weights lose nothing: each has a scale of its own for each channel, as that of
            a depthwise Conv has.

    Returns:
        float32 (channels,), all positive; all 1 if the channels are alike, if none is positive, or if a peak is not
        finite.
    """
    greatest = float(peaks.max())
    if not np.isfinite(peaks).all() or greatest <= 0:
        return np.ones(len(peaks), np.float32)
    exponent, least = (1.0, _LEAST_WHOLE_SHARE) if whole else (_EXPONENT, _LEAST_SHARE)
    logs = np.log(np.maximum(peaks.astype(np.float64), least * greatest))
    share = exponent if logs.std() >= _LEAST_SPREAD else 0.0
    return np.asarray(np.exp(share * (logs - logs.mean())), np.float32)
