"""fit-weights: the grids of the weights, and so of everything."""

import numpy as np

from onnxq.facts import Grid, Plan, Ranges
from onnxq.graph import Model, constant
from onnxq.pipeline import Analysis, Facts
from onnxq.weights import fit_weight, least_scale


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
        weights = {
            weight.tensor: fit_weight(
                weight.scheme,
                np.asarray(constant(tensors[weight.tensor]), np.float32),
                least_scale=least_scale((nodes[name] for name in weight.users), activations),
                shrink=self._method == "mse",
            )
            for weight in plan.weights
        }
        return Grid(activations, weights)
