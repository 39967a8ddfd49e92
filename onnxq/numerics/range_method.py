"""RangeMethod: a method that chooses ranges, with its name and summary."""

from collections.abc import Callable
from dataclasses import dataclass

from onnxq.numerics.histogram import Histogram
from onnxq.numerics.scheme import Range, Scheme

FitRange = Callable[[Histogram, Scheme], Range]
"""Chooses the interval that the integers of a tensor cover, from the histogram of its values."""


@dataclass(frozen=True)
class RangeMethod:
    """A method that chooses the ranges of activations.

    Attributes:
        name: in `Config.method`, on the command line and in reports.
        summary: half a sentence for the command line's help.
        fit: chooses the range.
        fit_silu_output: chooses the range of x * sigmoid(x), whose least value is known; None: `fit` does.
    """

    name: str
    summary: str
    fit: FitRange
    fit_silu_output: FitRange | None = None

    def fit_for(self, silu_output: bool) -> FitRange:
        """Return the function for tensors that are, or are not, x * sigmoid(x)."""
        return self.fit_silu_output if silu_output and self.fit_silu_output is not None else self.fit
