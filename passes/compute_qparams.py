"""compute-qparams: computes scales and zero points of weights and activations."""

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from onnxq.facts import FittedRanges, Plan, QuantizationParameters, QuantizedWeight, Statistics
from onnxq.ir import CONVS, Model, Node, constant, has_plain_bias, image_convs
from onnxq.numerics.arrays import AnyArray, Float64Array
from onnxq.numerics.input_covariance import InputCovariance
from onnxq.numerics.scheme import QParams, Scheme
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import channel_statistics
from onnxq.qdq.pair_limit import PairLimits
from onnxq.qdq.weight_qparams import minimum_scale, weight_qparams
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.limited_weight import limit_weight
from onnxq.reconstruction.rounded_weight import RoundedWeight, round_weight
from onnxq.runtime.session import cores

_MOST_THREADS = 4
"""Most weights that are rounded at a time: each takes some ten times its size."""


class ComputeQparams(Analysis[QuantizationParameters]):
    """Computes scales and zero points of weights (per output channel) and of activations (from the fitted ranges).

    x86 CPUs without VNNI saturate sums of two 8-bit products at 16 bits. Output channels whose sums would exceed that,
    on the values of the calibration data, get wider scales and so smaller integers; images can have any value. Then
    the result is the same on every CPU.

    Args:
        method: "minmax" covers every weight (as in Q-YOLO), "mse" takes the bounds with the least squared error.
        limited: no sum of two products exceeds 16 bits.
        feedback: round weights of Convs with error feedback, see `round_weight`, by the covariance of their inputs. It
            shifts the mean outputs, so biases must be corrected. Other weights are rounded to nearest.
    """

    name = "compute-qparams"
    gives = QuantizationParameters
    needs = (Plan, FittedRanges)
    uses = (Statistics,)

    def __init__(self, method: str = "minmax", *, limited: bool = True, feedback: bool = False) -> None:
        self._method = method
        self._limited = limited
        self._feedback = feedback

    def run(self, model: Model, facts: Facts) -> QuantizationParameters:
        """Return the scales and zero points, and the integers of weights that are not rounded to nearest.

        Each matrix product takes one thread, because its sums depend on the number of threads; several weights are
        rounded at a time instead.
        """
        with threadpool_limits(1, "blas"):
            return self._parameters(model, facts)

    def _parameters(self, model: Model, facts: Facts) -> QuantizationParameters:
        plan, ranges = facts[Plan], facts[FittedRanges]
        activations = {point.tensor: point.scheme.qparams(ranges.groups[point.group].bounds) for point in plan.points}
        tensors, nodes = model.graph.tensors(), model.nodes
        statistics = facts.get(Statistics) or Statistics({})
        limits = PairLimits(model, statistics.channels) if self._limited else None
        reading = image_convs(model.graph.nodes)

        def of_weight(weight: QuantizedWeight) -> tuple[QParams, RoundedWeight | None]:
            values = np.asarray(constant(tensors[weight.tensor]), np.float32)
            layers = [nodes[name] for name in weight.users]
            qparams = weight_qparams(
                weight.scheme,
                values,
                least_scale=minimum_scale(layers, activations),
                shrink=self._method == "mse",
            )
            limit = limits.of(layers, weight.scheme, activations) if limits else None
            found: RoundedWeight | None = None
            if limit is not None:
                found = limit_weight(values, qparams, limit, **_inputs(layers, statistics, reading))
            covariance = _covariance(layers, weight.scheme, statistics) if self._feedback else None
            im2col = Im2col.of(layers[0])
            if covariance is not None and im2col is not None:
                start = found or RoundedWeight(qparams, qparams.quantize(values))
                found = round_weight(values, start, im2col, covariance, limit)
            return qparams, found

        weights: dict[str, QParams] = {}
        integers: dict[str, AnyArray] = {}
        limited: dict[str, int] = {}
        with ThreadPoolExecutor(min(cores(), _MOST_THREADS)) as pool:
            for weight, (qparams, found) in zip(plan.weights, pool.map(of_weight, plan.weights), strict=True):
                weights[weight.tensor] = qparams
                if found is not None:
                    weights[weight.tensor], integers[weight.tensor] = found.qparams, found.integers
                    wider = int((found.qparams.scale > qparams.scale).sum())
                    if wider:
                        limited[weight.tensor] = wider
        return QuantizationParameters(activations, weights, integers, limited)


def _covariance(layers: Sequence[Node], scheme: Scheme, statistics: Statistics) -> InputCovariance | None:
    """Return the covariance of the inputs of a weight's layers, if the mean of their outputs can be corrected.

    Layers with other groups have covariances of other inputs, which have no mean.
    """
    fits = scheme.symmetric and scheme.container.is_signed
    known = [statistics.inputs[node.name] for node in layers if node.name in statistics.inputs and has_plain_bias(node)]
    alike = len({node.attrs.get("group", 1) for node in layers}) == 1
    return InputCovariance.mean(known) if fits and alike and len(known) == len(layers) else None


def _inputs(layers: Sequence[Node], statistics: Statistics, reading: Collection[str]) -> dict[str, Float64Array | None]:
    """Return what is known of the inputs of a weight's layers, as `limit_weight` takes it.

    Args:
        layers: that share the weight.
        statistics: of their inputs.
        reading: names of the Convs that read images, whose neighboring pixels are alike.
    """
    first = layers[0]
    is_plain = first.op in CONVS and first.attrs.get("group", 1) == 1
    channels = channel_statistics(first.inputs[0], statistics.channels) if is_plain else None
    inputs = statistics.inputs.get(first.name) if is_plain and first.name in reading else None
    return {
        "variances": channels.variances if channels else None,
        "covariance": inputs.channels[0].astype(np.float64) if inputs is not None and inputs.is_whole else None,
    }
