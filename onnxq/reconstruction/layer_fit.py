"""Fits layers: the weight, the biases and the input range that reproduce their float outputs best."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from onnxq.numerics.arrays import AnyArray, Float32Array, Float64Array
from onnxq.numerics.scheme import QParams, Range, Scheme
from onnxq.qdq.pair_limit import PairLimit
from onnxq.qdq.weight_qparams import weight_qparams
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.least_squares import (
    FeedbackRounding,
    Means,
    Moments,
    best_scale,
    coordinate_descent,
    refit,
    regularized,
)

_REGULARIZATION = 1.0
"""Weight of the distance to the float weights, as a share of the inputs' mean energy. A fit without this penalty has
the least squared error, but its outputs are too small where inputs are rare and large, as on objects: a hundredth of
this value loses more AP."""

_ROUNDS = 2
"""How often scales are fitted to the integers."""

_SWEEPS = 3
"""Sweeps of coordinate descent over the integers before the scales are fitted to them."""

_MOST_WIDENINGS = 8
"""Fits of a layer whose output channels exceed the limit."""

_WIDENING = 1.02
"""Factor of the scale with which the greatest sum of an output channel would just reach the limit."""

_HIGH_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 1.15, 1.3)
"""Shares of the fitted upper bound that are tried."""

_LOW_SHARES = (0.5, 0.0)
"""Shares of the fitted lower bound that are tried besides it."""


@dataclass(frozen=True)
class WeightFit:
    """A fitted weight.

    Attributes:
        qparams: per output channel.
        integers: of the weight's shape.
    """

    qparams: QParams
    integers: AnyArray

    def bias(self, im2col: Im2col, means: Means) -> Float32Array:
        """Return the bias with which a layer keeps its mean outputs, float32 (output channels,).

        Args:
            im2col: of the layer.
            means: of its inputs and outputs.
        """
        matrix = im2col.matrix(self.qparams.dequantize(self.integers))
        return np.asarray(im2col.per_channel(means.t - (matrix @ means.a[:, :, None])[:, :, 0]), np.float32)


def fit_weight(
    weight: Float32Array,
    scheme: Scheme,
    im2col: Im2col,
    moments: Moments,
    rounded: tuple[QParams, AnyArray],
    least_scale: Float64Array,
    limit: PairLimit | None = None,
) -> WeightFit:
    """Fit a weight to the moments of its layer's quantized inputs and float outputs; several layers can share it.

    Least squares with a penalty on the distance to the float weight give the target; it is rounded with error feedback;
    coordinate descent over the integers and a fit of the scales then alternate. While output channels exceed the limit,
    they are fitted again with wider scales. The rounded float weight is taken instead if it errs less.

    Args:
        weight: the float weight.
        scheme: of the integers.
        im2col: of the layer.
        moments: of its inputs and outputs; centered if the layer has a bias. Those of all layers are joined.
        rounded: scales and integers of the float weight without a fit, within the limit.
        least_scale: lower bounds of the new scales, float64 (channels,) or (1,).
        limit: of the integers.
    """
    penalized = regularized(moments, im2col.matrix(weight), _REGULARIZATION)
    target = refit(penalized)
    candidates = [rounded]
    for _ in range(_MOST_WIDENINGS):
        qparams, integers = _fit_integers(target, scheme, im2col, moments, penalized, least_scale)
        shares = np.zeros(1) if limit is None else limit.shares_of(integers, scheme.axis or 0)
        if shares.max() <= 1:
            candidates.insert(0, (qparams, integers))
            break
        least_scale = np.where(shares > 1, qparams.scale * shares * _WIDENING, least_scale)
    matrices = [im2col.matrix(parameters.dequantize(stored)) for parameters, stored in candidates]
    best = int(np.argmin([moments.error(matrix).sum() for matrix in matrices]))
    return WeightFit(*candidates[best])


def fit_once(weight: Float64Array, scheme: Scheme, im2col: Im2col, moments: Moments) -> Float64Array:
    """Return a weight on a grid that is fitted and rounded as in `fit_weight`, without what refines it there.

    Args:
        weight: the float weight, float64 (groups, outputs of a group, inputs), as what is returned.
        scheme: of the integers.
        im2col: of the layer.
        moments: as in `fit_weight`.
    """
    target = refit(regularized(moments, weight, _REGULARIZATION))
    qparams, integers = _round(target, scheme, im2col, moments, np.zeros(1), shrink=False)
    scale = np.asarray(im2col.per_output(qparams.scale), np.float64)
    return np.asarray(integers * scale[:, :, None])


def _round(
    target: Float64Array,
    scheme: Scheme,
    im2col: Im2col,
    moments: Moments,
    least_scale: Float64Array,
    *,
    shrink: bool = True,
) -> tuple[QParams, Float64Array]:
    """Return scales, and integers of the target weight, (groups, outputs of a group, inputs), with error feedback."""
    importance = None
    if shrink:
        energy = np.diagonal(moments.hessian, axis1=1, axis2=2)[:, None, :]
        importance = np.asarray(im2col.weight(np.broadcast_to(energy, target.shape)), np.float64)
    values = im2col.weight(target).astype(np.float32)
    qparams = weight_qparams(scheme, values, least_scale=least_scale, shrink=shrink, importance=importance)
    scale = np.asarray(im2col.per_output(qparams.scale), np.float64)
    rounding = FeedbackRounding.of(moments.hessian, _REGULARIZATION)
    return qparams, np.asarray(rounding.round(target, scale, scheme.qmax), np.float64)


def _fit_integers(
    target: Float64Array,
    scheme: Scheme,
    im2col: Im2col,
    moments: Moments,
    penalized: Moments,
    least_scale: Float64Array,
) -> tuple[QParams, AnyArray]:
    """Return scales and integers that reproduce the target weight, (groups, outputs of a group, inputs)."""
    qparams, integers = _round(target, scheme, im2col, moments, least_scale)
    scale = np.asarray(im2col.per_output(qparams.scale), np.float64)
    for _ in range(_ROUNDS):
        integers = coordinate_descent(integers, scale, penalized, scheme.qmax, _SWEEPS)
        if im2col.transposed:  # several outputs share a scale
            break
        fitted_scale = im2col.per_channel(best_scale(integers, penalized, scale))
        qparams = qparams.rescaled(np.maximum(fitted_scale, least_scale))
        scale = np.asarray(im2col.per_output(qparams.scale), np.float64)
    return qparams, im2col.weight(integers).astype(scheme.dtype)


def fit_range(
    fitted: QParams,
    inputs: Float32Array,
    outputs: Float32Array,
    weight: Float64Array,
    has_bias: bool,
    roots: Float32Array,
    pool: Executor | None = None,
) -> QParams:
    """Choose the scale and zero point of a layer's input for which its outputs err least.

    Args:
        fitted: of the layer's input, from a range method.
        inputs: before quantization, float32 (groups, inputs, n).
        outputs: of the float layer, float32 (groups, outputs, n).
        weight: the float weight, float64 (groups, outputs, inputs).
        has_bias: a bias absorbs the mean error.
        roots: square roots of how often each position counts, float32 (n,).
        pool: tries several ranges at a time; None: one after the other. The result is the same.
    """
    single, of_all = weight.astype(np.float32), np.square(roots) / np.square(roots).sum()

    def cost(qparams: QParams) -> float:
        off = single @ qparams.rounded(inputs)
        off -= outputs
        if has_bias:
            off -= (off @ of_all)[:, :, None]
        off *= roots
        return float(np.vecdot(off, off).sum(dtype=np.float64))

    return least_range(fitted, cost, pool)


def least_range(fitted: QParams, cost: Callable[[QParams], float], pool: Executor | None = None) -> QParams:
    """Return the scale and zero point of least cost, among those of ranges around the fitted one.

    First upper bounds are tried, then lower bounds with the best of these.

    Args:
        fitted: to start from.
        cost: of a scale and zero point; called by several threads.
        pool: tries several ranges at a time; None: one after the other. The result is the same.
    """
    in_parallel = map if pool is None else pool.map

    def qparams_of(shares: tuple[float, float]) -> QParams:
        low, high = shares
        return fitted.scheme.qparams(Range(fitted.low * low, fitted.high * high))

    tried = [(1.0, high) for high in _HIGH_SHARES]
    costs = list(in_parallel(cost, map(qparams_of, tried)))
    least = int(np.argmin(costs))
    best, lowest = tried[least], costs[least]
    if fitted.low < 0 and not fitted.scheme.symmetric:
        lower = [(low, best[1]) for low in _LOW_SHARES]
        costs = list(in_parallel(cost, map(qparams_of, lower)))
        if min(costs) < lowest:
            best = lower[int(np.argmin(costs))]
    return qparams_of(best)
