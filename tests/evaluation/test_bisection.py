import math

from hypothesis import given
from hypothesis import strategies as st

from onnxq.evaluation.bisection import asked_next, least

LIMIT = 5.0


def asked_by(losses, most):
    """Return what bisection finds, and the counts that it asks for, in order; the last is that of the result."""
    asked = []

    def loss(count):
        if count not in asked:
            asked.append(count)
        return losses[count]

    found = least(loss, LIMIT, most)
    loss(found)
    return found, asked


any_losses = st.lists(st.sampled_from([0.0, LIMIT, 5.1, 9.0, math.inf]), min_size=2, max_size=40)


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_least_count_of_losses_that_fall(most, first):
    losses = [9.0 if count < first else 1.0 for count in range(most + 1)]
    found, asked = asked_by(losses, most)
    assert found == min(first, most)
    assert len(asked) <= 2 * math.log2(most) + 2


@given(any_losses)
def test_the_first_is_what_bisection_asks_for(losses):
    most, known = len(losses) - 1, {}
    for count in asked_by(losses, most)[1]:
        assert asked_next(known, LIMIT, most, 1) == [count]
        known[count] = losses[count]
    assert asked_next(known, LIMIT, most, 1) == []


@given(any_losses, st.integers(1, 9))
def test_several_at_once_find_the_same_with_fewer_rounds(losses, number):
    most, known, rounds = len(losses) - 1, {}, 0
    found, asked = asked_by(losses, most)
    while counts := asked_next(known, LIMIT, most, number):
        assert len(counts) == len(set(counts)) <= number
        assert not set(counts) & set(known)
        assert all(1 <= count <= most for count in counts)
        known |= {count: losses[count] for count in counts}
        rounds += 1
    assert least(known.__getitem__, LIMIT, most) == found
    assert set(asked) <= set(known)
    assert rounds <= len(asked)
    if number >= 3:  # all that the next two answers may lead to
        assert rounds <= math.ceil(len(asked) / 2)


def test_what_is_asked_for_after_each_answer():
    assert asked_next({}, LIMIT, 40, 5) == [1, 2, 4, 3, 8]
    assert asked_next({1: 9.0, 2: 9.0, 4: 9.0, 8: 9.0, 16: 1.0}, LIMIT, 40, 3) == [12, 10, 14]
    assert asked_next({1: 1.0}, LIMIT, 40, 9) == []
