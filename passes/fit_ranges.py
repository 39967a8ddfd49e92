"""fit-ranges: chooses the range of each group of tensors from its histogram."""

from onnxq.errors import DataError
from onnxq.facts import FittedRange, FittedRanges, Plan, QuantizationPoint, Statistics
from onnxq.ir import Model, image_convs
from onnxq.numerics.before_silu import before_silu
from onnxq.numerics.range_method import FitRange
from onnxq.numerics.range_methods import method_for
from onnxq.numerics.range_methods.minmax import minmax
from onnxq.pipeline import Analysis, Facts
from onnxq.qdq.channel_statistics import channel_statistics, check_statistics
from onnxq.qdq.tensor_result import expected
from onnxq.qdq.unequal_inputs import warnings
from onnxq.reconstruction.im2col import Im2col

_WIDE = 8
"""Bits beyond which ranges need not be chosen."""


class FitRanges(Analysis[FittedRanges]):
    """Chooses one range per group of points.

    - A range that is known without data stays as it is.
    - The model's inputs get the observed minimum and maximum: images have no outliers.
    - So do tensors of more than 8 bits: a narrower range would gain next to nothing, and cut off what was not counted.
    - The input of a SiLU gets the range with the least error in x * sigmoid(x), with every method.
    - All other groups get the range that the method chooses from the histogram of all values of the group.
    - A Concat with inputs of which its range leaves next to nothing is warned of.

    Args:
        method: a key of `range_methods.METHODS`.
        every_conv: given statistics must have the covariance of the inputs of every Conv.

    Raises:
        DataError: the statistics were given and belong to another model, or lack a tensor or a layer.
    """

    name = "fit-ranges"
    gives = FittedRanges
    needs = (Plan, Statistics)

    def __init__(self, method: str = "uh", *, every_conv: bool = False) -> None:
        self._method = method
        self._every_conv = every_conv

    def run(self, model: Model, facts: Facts) -> FittedRanges:
        """Return the ranges."""
        statistics = facts[Statistics]
        if facts.is_pinned(Statistics):
            check_statistics(statistics, model)
        inputs = {t.name for t in model.graph.inputs}
        ranges = {group: self._fit(points, statistics, inputs) for group, points in facts[Plan].groups().items()}
        if facts.is_pinned(Statistics):
            self._check_layers(statistics, facts[Plan], model)
        return FittedRanges(ranges, warnings(facts[Plan], model, statistics, ranges))

    def _fit(self, points: list[QuantizationPoint], statistics: Statistics, inputs: set[str]) -> FittedRange:
        point = points[0]
        if point.known is not None:
            return FittedRange(point.known)
        histogram = statistics.of_points(points)
        name, method = self._method_for(point, inputs)
        return expected(histogram, point, method(histogram, point.scheme), name)

    def _method_for(self, point: QuantizationPoint, inputs: set[str]) -> tuple[str, FitRange]:
        if point.tensor in inputs or point.scheme.bits > _WIDE:
            return "minmax", minmax
        if point.silu_input:
            return "error behind SiLU", before_silu
        return self._method, method_for(self._method, point.silu_output)

    def _check_layers(self, statistics: Statistics, plan: Plan, model: Model) -> None:
        """Check that statistics from outside tell of all Convs what a run for this plan would tell.

        Other layers may read the same tensors, so tensors alone do not tell.

        Raises:
            DataError: the inputs of a Conv were not observed, or not their covariance.
        """
        reading = image_convs(model.graph.nodes)
        layers = plan.layers if plan.layers and plan.observed() else ()
        for node in map(model.nodes.__getitem__, layers):
            if node.op != "Conv" or Im2col.of(node) is None:
                continue
            has_covariance = node.name in statistics.inputs
            is_known = has_covariance or node.name not in reading
            if not is_known or channel_statistics(node.inputs[0], statistics.channels) is None:
                raise DataError(
                    f"the calibration has no inputs of the layer {node.name!r}: it was made for another target or with "
                    "other options; calibrate again"
                )
            if self._every_conv and not has_covariance:
                raise DataError(
                    f"the calibration has no covariance of the inputs of {node.name!r}: it was made with --rounding "
                    "nearest; calibrate again, or leave --rounding out"
                )
