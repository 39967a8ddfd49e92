"""compute-qparams: computes scales and zero points of weights and activations."""

from collections.abc import Sequence

import numpy as np

from onnxq.facts import FittedRanges, Plan, QuantizationParameters, Statistics
from onnxq.ir import CONVS, Model, Node, constant
from onnxq.numerics.arrays import AnyArray, Float64Array
from onnxq.numerics.scheme import QParams
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import channel_statistics
from onnxq.qdq.pair_limit import PairLimits
from onnxq.qdq.weight_qparams import minimum_scale, weight_qparams
from onnxq.reconstruction.limited_weight import limit_weight


class ComputeQparams(Analysis[QuantizationParameters]):
    """Computes scales and zero points of weights (per output channel) and of activations (from the fitted ranges).

    x86 CPUs without VNNI saturate sums of two 8-bit products at 16 bits. Output channels whose sums would exceed that,
    on the values of the calibration data, get wider scales and so smaller integers; images can have any value. Then
    the result is the same on every CPU.

    Args:
        method: "minmax" covers every weight (as in Q-YOLO), "mse" takes the bounds with the least squared error.
        limited: no sum of two products exceeds 16 bits.
    """

    name = "compute-qparams"
    gives = QuantizationParameters
    needs = (Plan, FittedRanges)
    uses = (Statistics,)

    def __init__(self, method: str = "minmax", *, limited: bool = True) -> None:
        self._method = method
        self._limited = limited

    def run(self, model: Model, facts: Facts) -> QuantizationParameters:
        """Return the scales and zero points, and the integers of limited weights."""
        plan, ranges = facts[Plan], facts[FittedRanges]
        activations = {point.tensor: point.scheme.qparams(ranges.groups[point.group].bounds) for point in plan.points}
        tensors, nodes = model.graph.tensors(), model.nodes
        statistics = facts.get(Statistics) or Statistics({})
        limits = PairLimits(model, statistics.channels) if self._limited else None
        weights: dict[str, QParams] = {}
        integers: dict[str, AnyArray] = {}
        limited: dict[str, int] = {}
        for weight in plan.weights:
            values = np.asarray(constant(tensors[weight.tensor]), np.float32)
            layers = [nodes[name] for name in weight.users]
            qparams = weight_qparams(
                weight.scheme,
                values,
                least_scale=minimum_scale(layers, activations),
                shrink=self._method == "mse",
            )
            limit = limits.of(layers, weight.scheme, activations) if limits else None
            within = None if limit is None else limit_weight(values, qparams, limit, **_inputs(layers, statistics))
            weights[weight.tensor] = qparams if within is None else within.qparams
            if within is not None:
                integers[weight.tensor] = within.integers
                limited[weight.tensor] = within.channels
        return QuantizationParameters(activations, weights, integers, limited)


def _inputs(layers: Sequence[Node], statistics: Statistics) -> dict[str, Float64Array | None]:
    """Return what is known of the inputs of a weight's layers, as `limit_weight` takes it."""
    first = layers[0]
    is_plain = first.op in CONVS and first.attrs.get("group", 1) == 1
    channels = channel_statistics(first.inputs[0], statistics.channels) if is_plain else None
    return {
        "variances": channels.variances if channels else None,
        "covariance": statistics.patches.get(first.name),
    }
