"""Weights that give, from quantized inputs, what the float layer gave: least squares, and rounding with error feedback.

Everything is batched over the groups of a layer: g groups, c outputs of a group, k inputs of a group.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_BLOCK = 128
"""Columns whose errors are passed on one by one; to those behind them they go all at once."""


@dataclass
class Moments:
    """Sums over positions of the products of inputs a and wanted outputs t, and of these.

    Attributes:
        hessian: (g, k, k).
        ta: (g, c, k).
        tt: (g, c).
        a, t: (g, k) and (g, c).
        count: number of positions.
    """

    hessian: Array
    ta: Array
    tt: Array
    a: Array
    t: Array
    count: int = 0

    @classmethod
    def zeros(cls, groups: int, outputs: int, inputs: int) -> "Moments":
        """Of no positions."""
        return cls(
            hessian=np.zeros((groups, inputs, inputs)),
            ta=np.zeros((groups, outputs, inputs)),
            tt=np.zeros((groups, outputs)),
            a=np.zeros((groups, inputs)),
            t=np.zeros((groups, outputs)),
        )

    def add(self, a: NDArray[np.float32], t: NDArray[np.float32]) -> None:
        """Add positions: a float32 (g, k, n), t float32 (g, c, n)."""
        self.hessian += a @ a.swapaxes(1, 2)
        self.ta += t @ a.swapaxes(1, 2)
        self.tt += np.square(t, dtype=np.float64).sum(axis=2)
        self.a += a.sum(axis=2, dtype=np.float64)
        self.t += t.sum(axis=2, dtype=np.float64)
        self.count += a.shape[2]

    def centred(self) -> "Moments":
        """Of the deviations from the means, which are kept: `a` and `t` become them."""
        a, t = self.a / self.count, self.t / self.count
        return Moments(
            self.hessian - self.count * a[:, :, None] * a[:, None, :],
            self.ta - self.count * t[:, :, None] * a[:, None, :],
            self.tt - self.count * t * t,
            a,
            t,
            self.count,
        )

    def error(self, weight: Array) -> Array:
        """Squared error of W a against t, (g, c), summed over all positions; with the best bias if centred.

        Args:
            weight: (g, c, k).
        """
        return np.asarray(((weight @ self.hessian - 2 * self.ta) * weight).sum(axis=2) + self.tt)


def damped(hessian: Array, share: float) -> Array:
    """With a share of the mean of its diagonal added to the diagonal; inputs that are always zero count as any other.

    Args:
        hessian: (g, k, k).
        share: of the mean.
    """
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    mean = np.maximum(diagonal.mean(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    added = share * mean + np.where(diagonal <= 0, mean, 0.0)
    return np.asarray(hessian + added[:, :, None] * np.eye(hessian.shape[1]))


def regularized(moments: Moments, weight: Array, share: float) -> Moments:
    """With some positions more, of all inputs alike, where this weight is right: hessian + d I, ta + d W.

    Args:
        moments: centred.
        weight: (g, c, k).
        share: of the mean of hessian's diagonal that d is, as in `damped`.
    """
    hessian = damped(moments.hessian, share)
    return replace(moments, hessian=hessian, ta=moments.ta + weight @ (hessian - moments.hessian))


def refit(moments: Moments) -> Array:
    """The weight with the least squared error, (g, c, k): ta hessian^-1.

    Args:
        moments: centred, and pulled towards the weight as it was.
    """
    return np.asarray(np.linalg.solve(moments.hessian, moments.ta.swapaxes(1, 2)).swapaxes(1, 2))


def round_with_feedback(weight: Array, hessian: Array, scale: Array, limit: int, share: float) -> Array:
    """Integers for a weight, where the inputs that come later make up for the rounding of those before.

    Column by column, in falling order of the inputs' energy, each error is passed on to the columns not yet rounded,
    through the upper Cholesky factor of hessian^-1 (GPTQ: Frantar et al., arXiv 2210.17323, section 3).

    Args:
        weight: (g, c, k).
        hessian: (g, k, k), second moments of the inputs.
        scale: (g, c), of the grids.
        limit: greatest magnitude of the integers.
        share: of the mean of hessian's diagonal that is added to it.

    Returns:
        float64 (g, c, k) of whole numbers.
    """
    order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
    rows = np.arange(len(order))[:, None]
    ordered = damped(hessian, share)[rows[:, :, None], order[:, :, None], order[:, None, :]]
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).swapaxes(1, 2)
    left = np.take_along_axis(weight, order[:, None, :], axis=2)
    integers = np.empty_like(left)
    k = left.shape[2]
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        errors = np.empty((*left.shape[:2], end - start))
        for column in range(start, end):
            whole = np.clip(np.rint(left[:, :, column] / scale), -limit, limit)
            integers[:, :, column] = whole
            error = (left[:, :, column] - whole * scale) / factor[:, None, column, column]
            errors[:, :, column - start] = error
            left[:, :, column + 1 : end] -= error[:, :, None] * factor[:, None, column, column + 1 : end]
        left[:, :, end:] -= errors @ factor[:, start:end, end:]
    back = np.empty_like(integers)
    np.put_along_axis(back, order[:, None, :], integers, axis=2)
    return back


def coordinate_descent(integers: Array, scale: Array, moments: Moments, limit: int, sweeps: int) -> Array:
    """Better integers for the squared error itself, found one column at a time with the others held.

    Each column takes the whole number next to its least squares solution, so that no step makes the error greater
    (cyclic coordinate descent as in QuantEase: Behdin et al., arXiv 2309.01885, algorithm 1).

    Args:
        integers: (g, c, k) of whole numbers, to start from.
        scale: (g, c), of the grids.
        moments: centred, and damped by the caller where the data says little.
        limit: greatest magnitude of the integers.
        sweeps: at most so many times through all columns; fewer where nothing changes any more.
    """
    found = integers.copy()
    energy = np.diagonal(moments.hessian, axis1=1, axis2=2)
    order = np.argsort(-energy.sum(axis=0), kind="stable")
    slope = moments.ta - (found * scale[:, :, None]) @ moments.hessian
    for _ in range(sweeps):
        changed = False
        for column in order:
            now = found[:, :, column]
            best = now + slope[:, :, column] / (scale * energy[:, None, column])
            best = np.clip(np.rint(best), -limit, limit)
            group, output = np.nonzero(best != now)
            if group.size:
                changed = True
                step = (best - now)[group, output] * scale[group, output]
                slope[group, output] -= step[:, None] * moments.hessian[group, column]
                found[group, output, column] = best[group, output]
        if not changed:
            break
    return found


def best_scale(integers: Array, moments: Moments, scale: Array) -> Array:
    """The scales with which the integers err least, (g, c): of each channel ta q / q hessian q, where that is positive.

    Args:
        integers: (g, c, k) of whole numbers.
        moments: centred.
        scale: (g, c), where the integers say nothing.
    """
    along = (moments.ta * integers).sum(axis=2)
    energy = ((integers @ moments.hessian) * integers).sum(axis=2)
    return np.where((along > 0) & (energy > 0), along / np.maximum(energy, np.finfo(np.float64).tiny), scale)
