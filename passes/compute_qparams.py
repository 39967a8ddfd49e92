"""compute-qparams: computes scales and zero points of weights and activations."""

import numpy as np

from onnxq.facts import FittedRanges, Plan, QuantizationParameters
from onnxq.ir import Model, constant
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.weight_qparams import minimum_scale, weight_qparams


class ComputeQparams(Analysis[QuantizationParameters]):
    """Computes scales and zero points of weights (per output channel) and of activations (from the fitted ranges).

    Args:
        method: "minmax" covers every weight (as in Q-YOLO), "mse" takes the bounds with the least squared error.
    """

    name = "compute-qparams"
    gives = QuantizationParameters
    needs = (Plan, FittedRanges)

    def __init__(self, method: str = "minmax") -> None:
        self._method = method

    def run(self, model: Model, facts: Facts) -> QuantizationParameters:
        """Return the scales and zero points."""
        plan, ranges = facts[Plan], facts[FittedRanges]
        activations = {point.tensor: point.scheme.qparams(ranges.groups[point.group].bounds) for point in plan.points}
        tensors, nodes = model.graph.tensors(), model.nodes
        weights = {
            weight.tensor: weight_qparams(
                weight.scheme,
                np.asarray(constant(tensors[weight.tensor]), np.float32),
                least_scale=minimum_scale((nodes[name] for name in weight.users), activations),
                shrink=self._method == "mse",
            )
            for weight in plan.weights
        }
        return QuantizationParameters(activations, weights)
