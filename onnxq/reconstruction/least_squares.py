"""Least squares for the weights of a layer, and rounding of weights with error feedback.

Inputs A are quantized, outputs T those of the float layer; W is fitted so that W A is close to T. Everything is
batched over the groups of a layer: g groups, c outputs of a group, k inputs of a group.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from onnxq.numerics.arrays import Float32Array, Float64Array, FloatArray, Int64Array

_BLOCK = 128
"""Columns per block: errors propagate at once to all later blocks."""

_STEP = 16
"""Columns of a block within which errors propagate column by column."""

_DAMPINGS = 4
"""How often a Hessian is damped, each time ten times as much, until it is positive definite."""


class Means(NamedTuple):
    """Means of the inputs, float64 (g, k), and of the outputs, (g, c)."""

    a: Float64Array
    t: Float64Array


@dataclass
class Moments:
    """Sums over positions of inputs a and outputs t, and of their products, float64.

    Attributes:
        hessian: sum of a a^T, (g, k, k); up to a factor the Hessian of the squared error.
        ta: sum of t a^T, (g, c, k).
        tt: sum of t^2, (g, c).
        a, t: sums of a, (g, k), and of t, (g, c); their means if centered.
        count: number of positions.

    Each position counts as often as it was drawn.
    """

    hessian: Float64Array
    ta: Float64Array
    tt: Float64Array
    a: Float64Array
    t: Float64Array
    count: float = 0.0

    @classmethod
    def zeros(cls, groups: int, outputs: int, inputs: int) -> "Moments":
        """Return the moments of no positions."""
        return cls(
            hessian=np.zeros((groups, inputs, inputs)),
            ta=np.zeros((groups, outputs, inputs)),
            tt=np.zeros((groups, outputs)),
            a=np.zeros((groups, inputs)),
            t=np.zeros((groups, outputs)),
        )

    def add(self, a: Float32Array, t: Float32Array) -> None:
        """Add n positions: a (g, k, n), t (g, c, n)."""
        self.add_products(Products.of(a, t, np.ones(a.shape[2], np.float32)))

    def add_products(self, products: "Products") -> None:
        """Add the products of positions."""
        self.hessian += products.aa
        self.ta += products.ta
        self.tt += products.tt
        self.a += products.a
        self.t += products.t
        self.count += products.count

    def centered(self) -> "Moments":
        """Return the moments of the deviations from the means; `a` and `t` become the means."""
        a, t = self.a / self.count, self.t / self.count
        return Moments(
            self.hessian - self.count * a[:, :, None] * a[:, None, :],
            self.ta - self.count * t[:, :, None] * a[:, None, :],
            self.tt - self.count * t * t,
            a,
            t,
            self.count,
        )

    def error(self, weight: Float64Array) -> Float64Array:
        """Return the squared error of W a against t, summed over positions, (g, c); with the best bias if centered.

        Args:
            weight: (g, c, k).
        """
        return np.asarray(((weight @ self.hessian - 2 * self.ta) * weight).sum(axis=2) + self.tt)


@dataclass
class JoinedMoments:
    """Moments of several layers that share a weight, so that `Moments.error` is that of all of them.

    Attributes:
        moments: the sums. `a`, `t` and `count` are those of the first layer alone.
        means: layer -> its own.
    """

    moments: Moments
    means: dict[str, Means]

    @classmethod
    def of(cls, layer: str, moments: Moments) -> "JoinedMoments":
        """Return the moments of the first layer; further ones change them in place. Arguments as in `add`."""
        return cls(moments, {layer: Means(moments.a, moments.t)})

    def add(self, layer: str, moments: Moments) -> None:
        """Add the moments of a further layer.

        Args:
            layer: its name.
            moments: of the layer alone, around its own means if it has a bias.
        """
        self.moments.hessian += moments.hessian
        self.moments.ta += moments.ta
        self.moments.tt += moments.tt
        self.means[layer] = Means(moments.a, moments.t)


@dataclass(frozen=True)
class Products:
    """Sums over some positions, as `Moments` adds them; the matrix products are float32.

    Several threads compute them, and `Moments` adds them in order, so that the sums do not depend on the threads.
    """

    aa: Float32Array
    ta: Float32Array
    tt: Float32Array
    a: Float32Array
    t: Float32Array
    count: float

    @classmethod
    def of(cls, a: Float32Array, t: Float32Array, roots: Float32Array) -> "Products":
        """Return the products of n positions.

        Args:
            a: (g, k, n).
            t: (g, c, n).
            roots: square roots of how often each position counts, (n,).
        """
        a, t = a * roots, t * roots
        return cls(
            aa=a @ a.swapaxes(1, 2),
            ta=t @ a.swapaxes(1, 2),
            tt=np.vecdot(t, t),
            a=a @ roots,
            t=t @ roots,
            count=float(np.square(roots, dtype=np.float64).sum().round()),
        )


def damped(hessian: FloatArray, share: float) -> FloatArray:
    """Return the Hessian with a share of the mean of its diagonal added to the diagonal.

    Inputs that are always zero get the mean itself on top, so that they count like any other.

    Args:
        hessian: (g, k, k).
        share: of the mean.
    """
    diagonal = np.diagonal(hessian, axis1=1, axis2=2)
    mean = np.maximum(np.abs(diagonal).mean(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    added = share * mean + np.where(diagonal <= 0, mean, 0.0)
    return np.asarray(hessian + added[:, :, None] * np.eye(hessian.shape[1], dtype=hessian.dtype))


def regularized(moments: Moments, weight: Float64Array, share: float) -> Moments:
    """Return moments whose squared error includes d ||W - weight||^2: hessian + d I, ta + d weight.

    Args:
        moments: centered.
        weight: (g, c, k).
        share: d as a share of the mean of the Hessian's diagonal, as in `damped`.
    """
    hessian = np.asarray(damped(moments.hessian, share), np.float64)
    return replace(moments, hessian=hessian, ta=moments.ta + weight @ (hessian - moments.hessian))


def refit(moments: Moments) -> Float64Array:
    """Return the weight with the least squared error, ta hessian^-1, (g, c, k).

    Args:
        moments: centered and regularized.
    """
    return np.asarray(np.linalg.solve(moments.hessian, moments.ta.swapaxes(1, 2)).swapaxes(1, 2))


@dataclass(frozen=True)
class FeedbackRounding:
    """Rounds weights column by column, and compensates each error in the columns not yet rounded.

    The columns are taken in falling order of the inputs' energy; the errors are passed on through the upper triangular
    factor U of hessian^-1 = U^T U (GPTQ: Frantar et al., arXiv 2210.17323, section 3).

    Attributes:
        order: the columns in the order in which they are rounded, (g, k).
        factor: U of the columns in this order, (g, k, k), float32 or float64, in which all is computed.
    """

    order: Int64Array
    factor: FloatArray

    @classmethod
    def of(cls, hessian: FloatArray, share: float) -> "FeedbackRounding":
        """Return the rounding for inputs of these second moments, (g, k, k), damped by a share as in `damped`.

        Moments that rounding errors have made indefinite are damped more, or count for nothing: each value is then
        rounded to nearest.
        """
        order = np.argsort(-np.diagonal(hessian, axis1=1, axis2=2), axis=1, kind="stable")
        places = np.arange(len(order))[:, None, None], order[:, :, None], order[:, None, :]
        for _ in range(_DAMPINGS):
            try:
                return cls(order, _inverse_factor(damped(hessian, share)[places]))
            except np.linalg.LinAlgError:
                share *= 10
        return cls(order, np.broadcast_to(np.eye(hessian.shape[1], dtype=hessian.dtype), hessian.shape))

    @classmethod
    def of_product(
        cls, outer: FloatArray, inner: FloatArray, shares: tuple[float, float]
    ) -> Callable[[slice], "FeedbackRounding"]:
        """Return a function that returns the rounding of some groups.

        It is that for the Kronecker product of two Hessians, each damped by its share; the factors of all groups
        together would take more memory than the weight.

        Args:
            outer: (g, m, m).
            inner: (n, n); column i of the outer and j of the inner Hessian give column n i + j of the weight.
            shares: of the outer and of the inner Hessian.
        """
        first, second = cls.of(outer, shares[0]), cls.of(inner[None], shares[1])

        def of_groups(groups: slice) -> FeedbackRounding:
            order = (first.order[groups, :, None] * len(inner) + second.order[:, None, :]).reshape(
                len(first.order[groups]), -1
            )
            factor = first.factor[groups, :, None, :, None] * second.factor[:, None, :, None, :]
            return cls(order, factor.reshape(*order.shape, -1))

        return of_groups

    def round(self, weight: FloatArray, scale: FloatArray, limit: int) -> FloatArray:
        """Return the integers of a weight, (g, c, k) of whole numbers in the type of the factor.

        Args:
            weight: (g, c, k).
            scale: (g, c).
            limit: greatest magnitude of the integers.
        """
        factor, order = self.factor, self.order[:, :, None]
        # By columns, as the columns of a weight are far apart in memory.
        left = np.take_along_axis(np.ascontiguousarray(weight.swapaxes(1, 2), factor.dtype), order, axis=1)
        integers, errors = np.empty_like(left), np.empty_like(left)
        for start in range(0, left.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            left[:, block] -= factor[:, :start, block].swapaxes(1, 2) @ errors[:, :start]
            _round_block(
                left[:, block], scale.astype(factor.dtype), factor[:, block, block], limit,
                integers[:, block], errors[:, block],
            )  # fmt: skip
        np.put_along_axis(left, order, integers, axis=1)
        return left.swapaxes(1, 2)


def _round_block(
    left: FloatArray, scale: FloatArray, factor: FloatArray, limit: int, integers: FloatArray, errors: FloatArray
) -> None:
    """Round the columns of a block, and write the integers and the errors that later blocks compensate.

    Args:
        left: what is left of the columns, (g, b, c); overwritten.
        scale: (g, c).
        factor: of the block, (g, b, b).
        limit: as in `FeedbackRounding.round`.
        integers, errors: (g, b, c), written.
    """
    passed_on = np.empty_like(left[:, :_STEP])
    for start in range(0, left.shape[1], _STEP):
        end = min(start + _STEP, left.shape[1])
        left[:, start:end] -= factor[:, :start, start:end].swapaxes(1, 2) @ errors[:, :start]
        for column in range(start, end):
            steps = factor[:, column, column:end, None]
            whole, error, later = integers[:, column], errors[:, column], passed_on[:, : end - column - 1]
            np.rint(np.divide(left[:, column], scale, out=whole), out=whole)
            np.minimum(np.maximum(whole, -limit, out=whole), limit, out=whole)
            np.subtract(left[:, column], whole * scale, out=error)
            error /= steps[:, 0]
            left[:, column + 1 : end] -= np.multiply(error[:, None], steps[:, 1:], out=later)


def _inverse_factor(matrix: FloatArray) -> FloatArray:
    """Return the upper triangular U with matrix^-1 = U^T U, (g, k, k), for symmetric positive definite matrices.

    With the rows and columns in reverse, the Cholesky factor L gives matrix = R R^T with R upper triangular, and U is
    its inverse: less than a third of the operations of an inverse and its Cholesky factor.
    """
    reverse = np.linalg.cholesky(matrix[:, ::-1, ::-1])[:, ::-1, ::-1]
    return _upper_inverse(reverse)


def _upper_inverse(matrix: FloatArray) -> FloatArray:
    """Return the inverse of upper triangular matrices, (g, k, k), by halves."""
    k = matrix.shape[1]
    if k <= _BLOCK:
        return np.triu(np.linalg.inv(matrix))
    half = k // 2
    inverse = np.zeros_like(matrix)
    inverse[:, :half, :half] = left = _upper_inverse(matrix[:, :half, :half])
    inverse[:, half:, half:] = right = _upper_inverse(matrix[:, half:, half:])
    inverse[:, :half, half:] = -left @ matrix[:, :half, half:] @ right
    return inverse


def coordinate_descent(
    integers: Float64Array, scale: Float64Array, moments: Moments, limit: int, sweeps: int
) -> Float64Array:
    """Reduce the squared error of integers one column at a time, with the others held.

    Each column takes the integers next to its least squares solution, so no step increases the error (cyclic coordinate
    descent as in QuantEase: Behdin et al., arXiv 2309.01885, algorithm 1).

    Args:
        integers: to start from, (g, c, k) of whole numbers.
        scale: (g, c).
        moments: centered, and regularized if the data determines the weight badly.
        limit: greatest magnitude of the integers.
        sweeps: greatest number of sweeps over all columns; the descent ends after a sweep without a change.

    Returns:
        float64 (g, c, k) of whole numbers.
    """
    found = integers.copy()
    energy = np.diagonal(moments.hessian, axis1=1, axis2=2)
    order = np.argsort(-energy.sum(axis=0), kind="stable")
    slope = moments.ta - (found * scale[:, :, None]) @ moments.hessian
    for _ in range(sweeps):
        changed = False
        for column in order:
            current = found[:, :, column]
            best = current + slope[:, :, column] / (scale * energy[:, None, column])
            best = np.clip(np.rint(best), -limit, limit)
            group, output = np.nonzero(best != current)
            if group.size:
                changed = True
                step = (best - current)[group, output] * scale[group, output]
                slope[group, output] -= step[:, None] * moments.hessian[group, column]
                found[group, output, column] = best[group, output]
        if not changed:
            break
    return found


def best_scale(integers: Float64Array, moments: Moments, scale: Float64Array) -> Float64Array:
    """Return the scales with which the integers q err least, (g, c): ta q / (q hessian q), if that is positive.

    Args:
        integers: (g, c, k) of whole numbers.
        moments: centered.
        scale: (g, c), taken if it is not positive.
    """
    along = (moments.ta * integers).sum(axis=2)
    energy = ((integers @ moments.hessian) * integers).sum(axis=2)
    return np.where((along > 0) & (energy > 0), along / np.maximum(energy, np.finfo(np.float64).tiny), scale)
