"""fit-ranges: the interval that each group of tensors is to cover, from its histogram."""

from collections.abc import Iterable
from functools import partial

from onnxq.errors import DataError
from onnxq.facts import Fit, Plan, Point, Ranges, Statistics
from onnxq.graph import Model
from onnxq.histogram import Histogram
from onnxq.pipeline import Analysis, Facts
from onnxq.ranges import METHODS, SILU_MINIMUM, Method, before_silu, clipped_share, minmax, sqnr, uh


class FitRanges(Analysis[Ranges]):
    """Chooses one range per group of points.

    - a range that is known without data is taken as it is
    - the model's inputs take the observed minimum and maximum: pictures have no outliers
    - the input of a SiLU is judged by the error behind it, whatever the method
    - everything else by the method, over the histogram of all the group's values

    Args:
        method: a key of `ranges.METHODS`.

    Raises:
        DataError: the statistics were given and are of another model, or lack a tensor.
    """

    name = "fit-ranges"
    gives = Ranges
    needs = (Plan, Statistics)

    def __init__(self, method: str = "uh") -> None:
        self._method = method

    def run(self, model: Model, facts: Facts) -> Ranges:
        """Find the fact; the graph is not touched."""
        statistics = facts[Statistics]
        if facts.is_pinned(Statistics) and statistics.digest != model.digest():
            raise DataError(
                "the calibration was made with another model, or with another choice of --equalise; "
                "calibrate this one with --calib"
            )
        inputs = {t.name for t in model.graph.inputs}
        return Ranges({
            group: self._fit(points, statistics, inputs) for group, points in facts[Plan].groups().items()
        })  # fmt: skip

    def _fit(self, points: list[Point], statistics: Statistics, inputs: set[str]) -> Fit:
        point = points[0]
        if point.known is not None:
            return Fit(point.known)
        histogram = _merged(statistics, dict.fromkeys(s for p in points for s in p.sources))
        name, method = self._method_for(point, inputs)
        bounds = method(histogram, point.scheme)
        return Fit(bounds, sqnr(histogram, point.scheme, bounds), clipped_share(histogram, point.scheme, bounds), name)

    def _method_for(self, point: Point, inputs: set[str]) -> tuple[str, Method]:
        if point.tensor in inputs:
            return "minmax", minmax
        if point.silu_input:
            return "error behind SiLU", before_silu
        if self._method == "uh" and point.silu_output:
            return "uh", partial(uh, lower=SILU_MINIMUM)
        return self._method, METHODS[self._method]


def _merged(statistics: Statistics, tensors: Iterable[str]) -> Histogram:
    """The histogram of the values of several tensors; of one, its own."""
    first, *others = (_of_tensor(statistics, name) for name in tensors)
    if not others:
        return first
    merged = Histogram(first.floor)
    for histogram in (first, *others):
        merged.merge(histogram)
    return merged


def _of_tensor(statistics: Statistics, tensor: str) -> Histogram:
    if tensor not in statistics.histograms:
        raise DataError(
            f"the calibration holds nothing of tensor {tensor!r}: it was made for another target or with other "
            "options; calibrate again"
        )
    return statistics.histograms[tensor]
