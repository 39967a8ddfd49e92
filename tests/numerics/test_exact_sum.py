import math
import pickle
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.exact_sum import ExactSum

terms = st.lists(st.floats(-1e12, 1e12, allow_nan=False), min_size=1, max_size=30)


def total(values, shape=()):
    found = ExactSum(shape)
    for value in values:
        found.add(value)
    return found.total()


@given(terms, st.randoms(use_true_random=False))
def test_the_order_makes_no_difference(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    assert total(values).tobytes() == total(shuffled).tobytes()


@given(st.lists(terms, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_merged_it_is_the_sum_of_all_terms_in_any_order(parts, random):
    sums = []
    for part in parts:
        sums.append(ExactSum(()))
        for value in part:
            sums[-1].add(value)
    random.shuffle(sums)
    merged = ExactSum(())
    for each in sums:
        merged.merge(each)
    whole = [value for part in parts for value in part]
    assert merged.total().tobytes() == total(whole).tobytes()


@given(st.lists(terms, min_size=1, max_size=5))
def test_parts_that_were_sent_add_up_to_the_same(parts):
    merged = ExactSum((2,))
    for part in parts:
        sent = ExactSum((2,))
        for value in part:
            sent.add([value, -value])
        merged.merge(pickle.loads(pickle.dumps(sent)))
    whole = [value for part in parts for value in part]
    assert merged.total().tobytes() == total([[value, -value] for value in whole], (2,)).tobytes()
    assert not merged.clamped


def test_what_is_sent_is_narrow():
    found = ExactSum((1000,))
    for value in np.random.default_rng(0).normal(size=(30, 1000)):
        found.add(value)
    assert len(pickle.dumps(found)) < 6 * 1000 + 500
    assert np.array_equal(pickle.loads(pickle.dumps(found)).total(), found.total())


def test_of_many_terms_each_counts():
    # The fractions add up to more than floats hold exactly.
    merged, odd, part = ExactSum(()), 1 - 2.0**-40, ExactSum(())
    for _ in range(3000):
        part.add(odd)
    for _ in range(5):
        merged.merge(part)
    merged.add(odd)
    merged.add(-15001.0)
    assert float(merged.total()) == -15001 * 2.0**-40


@given(st.permutations([2.0**41, 1.0, -3.0]))
def test_merged_it_knows_of_a_clamped_term(values):
    merged = ExactSum(())
    for value in values:
        part = ExactSum(())
        part.add(value)
        merged.merge(part)
    assert merged.clamped
    assert float(merged.total()) == 2.0**40 - 2


@given(terms)
def test_it_is_the_sum_to_the_last_bits(values):
    assert float(total(values)) == pytest.approx(math.fsum(values), rel=1e-15, abs=len(values) * 2.0**-40)


def test_plain_sums_of_floats_depend_on_the_order():
    # Otherwise there were nothing to test.
    values = [1e12, 1e-4, -1e12, 1e-4]
    # `sum` of Python 3.12 and later makes up for lost digits; `accumulate` adds as numpy and runtimes do.
    in_order, by_size = ([*accumulate(each)][-1] for each in (values, sorted(values)))
    assert in_order != by_size
    assert float(total(values)) == pytest.approx(2e-4, abs=4 * 2.0**-40)


def test_elements_are_summed_by_themselves():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(50, 3, 4)) * 10.0 ** rng.integers(-6, 6, (3, 4))
    found = total(values, (3, 4))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, values.sum(axis=0), rtol=1e-9, atol=1e-10)


def test_float32_terms_count_exactly():
    values = np.float32([0.1, 0.2, -0.3])
    assert float(total(values)) == pytest.approx(math.fsum(map(float, values)), abs=3 * 2.0**-40)


@pytest.mark.parametrize("sign", [1, -1])
def test_large_terms_are_clamped(sign):
    assert total([sign * 1e30, sign * 2.0**40, 1.5]) == sign * 2.0**41 + 1.5


def test_small_terms_are_rounded_to_the_step():
    assert total([2.0**-42] * 8) == 0
    assert total([2.0**-40] * 8) == 2.0**-37


def test_without_terms_it_is_zero():
    assert np.array_equal(ExactSum((2, 3)).total(), np.zeros((2, 3)))
