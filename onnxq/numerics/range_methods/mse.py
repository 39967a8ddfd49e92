"""Both bounds with the least squared error."""

import numpy as np

from onnxq.numerics.bounds import CANDIDATES, alternate_bounds, best_high, observed
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.quantization_error import squared_error
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range, Scheme


def mse(histogram: Histogram, scheme: Scheme) -> Range:
    """Return the range with the least squared error |x - x'|^2.

    The bounds are searched alternately, from the observed ones, until neither moves. With outliers on both sides
    neither bound gains by moving alone; therefore both are also shrunk together, and the search starts once more from
    the best of these ranges if it is better. A symmetric scheme has only one bound to search.
    """
    low, high = observed(histogram)
    if scheme.symmetric:
        return best_high(histogram, scheme, low)
    found = alternate_bounds(histogram, scheme, low, high)
    shares = np.linspace(1, 0, CANDIDATES, endpoint=False)
    costs = squared_error(histogram, scheme, low * shares, high * shares)
    best = int(np.argmin(costs))
    if costs[best] < squared_error(histogram, scheme, np.asarray(found.low), np.asarray(found.high))[0]:
        return alternate_bounds(histogram, scheme, low * shares[best], high * shares[best])
    return found


METHOD = RangeMethod("mse", "searches both bounds with the least squared error", mse)
