"""fit-weights: the grids of the weights, and so of everything."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.facts import Grid, Plan, Ranges, Weight
from onnxq.graph import Model, Tensor, constant
from onnxq.pipeline import Analysis, Facts
from onnxq.scheme import QParams, Range, Scheme

Array = NDArray[np.float32]

_SHRINKS = np.linspace(1.0, 0.3, 71)
"""Shares of a channel's greatest weight that are tried as its bound."""

_MOST_BIAS_STEPS = 2.0**30


class FitWeights(Analysis[Grid]):
    """Gives every weight one symmetric scale per output channel, and every group of points the grid of its range.

    Args:
        method: "minmax" covers every weight (as in Q-YOLO), "mse" takes the bound with the least squared error.
    """

    name = "fit-weights"
    gives = Grid
    needs = (Plan, Ranges)

    def __init__(self, method: str = "minmax") -> None:
        self._method = method

    def run(self, model: Model, facts: Facts) -> Grid:
        """Find the fact; the graph is not touched."""
        plan, ranges = facts[Plan], facts[Ranges]
        activations = {point.tensor: point.scheme.qparams(ranges.groups[point.group].bounds) for point in plan.points}
        finest = {point.tensor: float(activations[point.tensor].scale) for point in plan.points}
        tensors = model.graph.tensors()
        weights = {
            weight.tensor: self._fit(
                weight, _values(tensors, weight.tensor), _values(tensors, weight.bias), finest[weight.input]
            )
            for weight in plan.weights
        }
        return Grid(activations, weights)

    def _fit(self, weight: Weight, values: Array, bias: Array, input_scale: float) -> QParams:
        assert weight.scheme.axis is not None
        channels = np.moveaxis(values, weight.scheme.axis, 0).reshape(values.shape[weight.scheme.axis], -1)
        bound = np.abs(channels).max(axis=1, initial=0.0).astype(np.float64)
        if self._method == "mse":
            bound *= _best_shrink(channels, bound, weight.scheme)
        # Runtimes hold the bias in int32 steps of input scale * weight scale: a channel whose weights are almost
        # zero must not get a scale so small that its bias overflows.
        per_bound = weight.scheme.steps / 2
        least = (np.abs(bias) if bias.size == bound.size else 0.0) / (input_scale * _MOST_BIAS_STEPS) * per_bound
        bound = np.maximum(bound, least)
        return weight.scheme.qparams(Range(-bound, bound))


def _values(tensors: Mapping[str, Tensor], name: str | None) -> Array:
    """The values of a constant; none of a tensor that is not there or not constant."""
    values = constant(tensors[name]) if name else None
    return np.zeros(0, np.float32) if values is None else np.asarray(values, np.float32)


def _best_shrink(channels: Array, bound: NDArray[np.float64], scheme: Scheme) -> NDArray[np.float64]:
    """Per channel the share of its bound with the least squared error, float64 (channels,).

    Args:
        channels: float32 (channels, weights of a channel).
        bound: float64 (channels,), the greatest magnitudes.
        scheme: the integers.
    """
    best, least = np.ones(len(bound)), np.full(len(bound), np.inf)
    for share in _SHRINKS:
        grid = replace(scheme, axis=0).qparams(Range(-bound * share, bound * share))
        error = ((grid.dequantize(grid.quantize(channels)) - channels) ** 2).sum(axis=1, dtype=np.float64)
        best = np.where(error < least, share, best)
        least = np.minimum(error, least)
    return best
