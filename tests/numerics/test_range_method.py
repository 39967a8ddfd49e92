from onnxq.numerics.histogram import Histogram
from onnxq.numerics.range_method import RangeMethod
from onnxq.numerics.scheme import Range, Scheme


def fixed(low, high):
    """A function that always chooses this range."""
    return lambda histogram, scheme: Range(low, high)


def test_the_output_of_a_silu_may_have_a_function_of_its_own():
    method = RangeMethod("fixed", "always the same", fixed(-1.0, 1.0), fit_silu_output=fixed(-0.25, 1.0))
    chosen = [method.fit_for(silu_output)(Histogram(), Scheme()) for silu_output in (False, True)]
    assert chosen == [Range(-1.0, 1.0), Range(-0.25, 1.0)]


def test_without_one_it_is_fitted_like_any_other():
    method = RangeMethod("fixed", "always the same", fixed(-1.0, 1.0))
    assert method.fit_for(True) is method.fit_for(False) is method.fit
