"""The final range, scale and expected error of each quantized tensor, from the facts of a run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np

from onnxq.facts import (
    FittedRange,
    FittedRanges,
    Migration,
    Plan,
    QuantizationParameters,
    QuantizationPoint,
    Reconstruction,
    Statistics,
)
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import clipped_share, expected_sqnr, sqnr_after_silu
from onnxq.numerics.range_methods import METHODS, method_for
from onnxq.numerics.scheme import QParams, Range
from onnxq.pipeline import Facts
from onnxq.qdq.migration import divided_name


@dataclass(frozen=True)
class TensorResult:
    """The result for a tensor that passes through Q and DQ.

    Attributes:
        point: the tensor.
        fit: its final range with its expected cost for the values of its group.
        own: the same range with its expected cost for the values of the tensor alone, which can be far smaller.
        qparams: its scale and zero point.
        values: observed values of its group; None if the range is known without data, or chosen for other scales than
            those of the values.
    """

    point: QuantizationPoint
    fit: FittedRange
    own: FittedRange
    qparams: QParams
    values: Histogram | None

    def alternatives(self) -> dict[str, FittedRange]:
        """Return the range that each method chooses from the same values; empty without values."""
        if self.values is None:
            return {}
        scheme = self.point.scheme
        methods = {name: method_for(name, self.point.silu_output) for name in METHODS}
        return {
            name: expected(self.values, self.point, method(self.values, scheme), name)
            for name, method in methods.items()
        }


def final_qparams(facts: Facts) -> QuantizationParameters:
    """Return the scales and zero points that the file has."""
    reconstruction = facts.get(Reconstruction)
    return (
        facts[QuantizationParameters] if reconstruction is None else reconstruction.over(facts[QuantizationParameters])
    )


def final_migration(facts: Facts) -> Migration:
    """Return the scales by which the channels of tensors are divided in the file: not those of 1."""
    chosen, reconstruction = facts.get(Migration) or Migration({}), facts.get(Reconstruction)
    if reconstruction is None or not reconstruction.scales:
        return chosen
    scales = {**chosen.scales, **reconstruction.scales}
    return replace(chosen, scales={name: each for name, each in scales.items() if np.any(each != 1)})


def tensor_results(facts: Facts) -> Iterator[TensorResult]:
    """Yield the result of every point, in the order of the plan."""
    plan, final, statistics = facts[Plan], final_qparams(facts), facts[Statistics]
    groups = plan.groups()
    # Quotients by other scales than these were observed.
    unseen = {divided_name(tensor) for tensor in (facts.get(Reconstruction) or Reconstruction({}, {}, {})).scales}

    @cache
    def values_of(group: str) -> Histogram | None:
        return statistics.of_points(groups[group]) if any(point.sources for point in groups[group]) else None

    for point in plan.points:
        fit, values, qparams = (
            facts[FittedRanges].groups[point.group],
            None if point.tensor in unseen else values_of(point.group),
            final.activations[point.tensor],
        )
        if qparams is not facts[QuantizationParameters].activations[point.tensor]:
            bounds = Range(qparams.low, qparams.high)
            method = "error of outputs"
            fit = FittedRange(bounds, method=method) if values is None else expected(values, point, bounds, method)
        own = fit
        if values is not None and len(groups[point.group]) > 1:
            own = expected(statistics.of(point.sources), point, fit.bounds, fit.method)
        yield TensorResult(point, fit, own, qparams, values)


def expected(values: Histogram, point: QuantizationPoint, bounds: Range, method: str) -> FittedRange:
    """Return a range with its expected cost.

    Args:
        values: of the point's group.
        point: the tensor, or one of the group.
        bounds: the range.
        method: how it was chosen.
    """
    noise = sqnr_after_silu if point.silu_input else expected_sqnr
    return FittedRange(bounds, noise(values, point.scheme, bounds), clipped_share(values, point.scheme, bounds), method)
