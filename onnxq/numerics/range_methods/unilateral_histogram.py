"""Q-YOLO's unilateral histogram: only the upper bound is searched."""

from functools import partial

from onnxq.numerics.bounds import best_high, observed
from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range, Scheme
from onnxq.numerics.silu import SILU_MINIMUM


def unilateral_histogram(histogram: Histogram, scheme: Scheme, lower: float | None = None) -> Range:
    """Return the range with a fixed lower bound whose upper bound has the least squared error.

    Activations of YOLO come out of SiLU: their mass crowds the lower bound and thins out above zero, so that only the
    upper bound is worth a search (Q-YOLO, arXiv 2307.04816, section 3.2). The error includes clipping and rounding; the
    candidates are the edges of the bins.

    Args:
        histogram: of the values.
        scheme: the integers.
        lower: the lower bound if it is known (`SILU_MINIMUM` for the output of a SiLU); else the observed minimum.
    """
    return best_high(histogram, scheme, observed(histogram)[0] if lower is None else lower)


METHOD = RangeMethod(
    "uh",
    "keeps the minimum and searches the maximum with the least squared error (Q-YOLO)",
    unilateral_histogram,
    fit_silu_output=partial(unilateral_histogram, lower=SILU_MINIMUM),
)
