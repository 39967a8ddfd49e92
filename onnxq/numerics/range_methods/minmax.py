"""The observed least and greatest value."""

from onnxq.numerics.bounds import observed
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range, Scheme


def minmax(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the observed least and greatest value: nothing is clipped."""
    return Range(*observed(histogram))


METHOD = RangeMethod("minmax", "clips nothing", minmax)
