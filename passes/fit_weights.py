"""fit-weights: the grids of the weights, and so of everything."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.facts import Grid, Plan, Ranges
from onnxq.graph import Model, Node, bias_of, constant
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
        tensors, nodes = model.graph.tensors(), model.nodes
        weights = {}
        for weight in plan.weights:
            values = np.asarray(constant(tensors[weight.tensor]), np.float32)
            layers = [nodes[name] for name in weight.users]
            # Runtimes hold the bias in int32 steps of input scale * weight scale: a channel whose weights are almost
            # zero must not get a scale so small that its bias overflows.
            bias_steps = [_bias(node) / float(activations[node.inputs[0].name].scale) for node in layers]
            least = np.max([np.broadcast_to(steps, bias_steps[0].shape) for steps in bias_steps], axis=0)
            weights[weight.tensor] = self._fit(weight.scheme, values, least / _MOST_BIAS_STEPS)
        return Grid(activations, weights)

    def _fit(self, scheme: Scheme, values: Array, least_scale: NDArray[np.float64]) -> QParams:
        assert scheme.axis is not None
        channels = np.moveaxis(values, scheme.axis, 0).reshape(values.shape[scheme.axis], -1)
        bound = np.abs(channels).max(axis=1, initial=0.0).astype(np.float64)
        if self._method == "mse":
            bound *= _best_shrink(channels, bound, scheme)
        bound = np.maximum(bound, least_scale * (scheme.steps / 2))
        return scheme.qparams(Range(-bound, bound))


def _bias(layer: Node) -> NDArray[np.float64]:
    """Magnitudes of a layer's bias, float64 (output channels,); zero where it has none or one that is computed."""
    tensor = bias_of(layer)
    bias = None if tensor is None else constant(tensor)
    return np.zeros(1) if bias is None else np.abs(np.asarray(bias, np.float64))


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
