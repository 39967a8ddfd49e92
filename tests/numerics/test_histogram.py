import math
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.histogram import BINS, Histogram


def histogram(*parts, floor=-math.inf):
    made = Histogram(floor)
    for part in parts:
        made.add(np.asarray(part, np.float32))
    return made


def state(h):
    """Everything that a histogram holds, bit for bit."""
    return h.counts.tobytes(), h.exponent, h.start, struct.pack("<dd", h.low, h.high)


def plain(values):
    """float32 numbers, of which none is a negative zero."""
    return [float(np.float32(v)) + 0.0 for v in values]


@st.composite
def values(draw, max_size=40, spread=12):
    """Numbers anywhere from 1e-30 to 1e30, at most `spread` decades from each other, and zeros."""
    top = draw(st.integers(-30 + spread, 30))
    number = st.builds(
        lambda mantissa, down: mantissa * 10.0 ** (top - down),
        st.one_of(st.integers(-(10**6), 10**6).map(lambda n: n / 10**6), st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0])),
        st.one_of(st.just(0), st.integers(0, spread)),
    )
    return plain(draw(st.lists(number, max_size=max_size)))


def in_parts(draw, items):
    cuts = sorted(draw(st.lists(st.integers(0, len(items)), max_size=5)))
    return [items[a:b] for a, b in zip([0, *cuts], [*cuts, len(items)], strict=True)]


@settings(max_examples=80, deadline=None)
@given(st.data(), values())
def test_order_and_batches_do_not_matter(data, items):
    shuffled = data.draw(st.permutations(items))
    assert state(histogram(*in_parts(data.draw, shuffled))) == state(histogram(items))


@given(values())
def test_a_histogram_that_was_sent_is_the_same(items):
    made = histogram(items)
    sent = pickle.loads(pickle.dumps(made))
    assert state(sent) == state(made)
    assert sent.counts.dtype == np.int64
    sent.merge(made)
    assert sent.total == 2 * len(items)


@settings(max_examples=80, deadline=None)
@given(st.data(), values())
def test_merged_is_the_histogram_of_the_union(data, items):
    merged = Histogram()
    for part in in_parts(data.draw, data.draw(st.permutations(items))):
        merged.merge(histogram(part))
    assert state(merged) == state(histogram(items))


@settings(max_examples=60, deadline=None)
@given(values(), st.integers(0, 40))
def test_counting_goes_on_after_a_merge(items, cut):
    first, second = items[:cut], items[cut:]
    merged = histogram(first)
    merged.merge(histogram(second))
    merged.add(np.asarray(first, np.float32))
    assert state(merged) == state(histogram(first, second, first))


@settings(max_examples=80, deadline=None)
@given(values())
def test_counts_are_those_of_numpy_on_the_same_edges(items):
    h = histogram(items)
    expected, _ = np.histogram(np.asarray(items, np.float32).astype(np.float64), h.edges)
    np.testing.assert_array_equal(h.counts, expected)
    assert h.total == len(items)


@settings(max_examples=60, deadline=None)
@given(values().filter(bool))
def test_low_and_high_are_exact(items):
    h = histogram(items)
    assert (h.low, h.high) == (min(items), max(items))


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(values().filter(lambda items: len(set(items)) > 1))
def test_the_width_is_the_least_power_of_two_that_is_wide_enough(items):
    h = histogram(items)
    assert h.width == 2.0**h.exponent

    def fits(exponent):
        first, last = (math.floor(math.ldexp(v, -exponent)) for v in (min(items), max(items)))
        return last - first < BINS and max(map(abs, items)) < math.ldexp(2.0**23, exponent) and exponent >= -60

    assert fits(h.exponent)
    # At a power of two float32 would do for one step more.
    assert not fits(h.exponent - 1) or math.frexp(max(map(abs, items)))[0] == 0.5


def test_many_values_in_several_chunks_are_counted_like_numpy_counts_them():
    x = np.random.default_rng(0).standard_normal((3, 70_000)).astype(np.float32)
    h = histogram(x)
    np.testing.assert_array_equal(h.counts, np.histogram(x.astype(np.float64), h.edges)[0])
    assert h.total == x.size
    # The bins are used: at least half of them lie between the least and the greatest value.
    assert BINS / 2 < (h.high - h.low) / h.width <= BINS


@pytest.mark.parametrize("every", [1, 2, 7, 99_991, 10**6])
def test_only_some_values_are_counted_but_all_decide_on_the_range(every):
    x = np.random.default_rng(4).standard_normal((2, 100_000)).astype(np.float32)
    x[1, 5], x[0, 7] = -30, 40
    h = Histogram(-20.0)
    h.add(x, every)
    assert (h.low, h.high) == (-20, 40)
    counted = np.maximum(x.reshape(-1)[::every].astype(np.float64), -20)
    np.testing.assert_array_equal(h.counts, np.histogram(counted, h.edges)[0])


def test_nan_among_values_that_are_not_counted_is_refused():
    h, x = Histogram(), np.zeros(100, np.float32)
    x[50] = math.nan
    with pytest.raises(FloatingPointError):
        h.add(x, 7)
    assert state(h) == state(Histogram())


def test_the_farthest_magnitudes_in_one_tensor():
    parts = [[1e30], [-1e30], [-1e-20], [-1e-45], [1e-30]]
    together = np.float32(np.concatenate(parts))
    h = histogram(together)
    assert state(histogram(*parts)) == state(h)
    assert state(histogram(*parts[::-1])) == state(h)
    np.testing.assert_array_equal(h.counts, np.histogram(together.astype(np.float64), h.edges)[0])


@pytest.mark.parametrize("floor", [-10.0, 0.0, 1e-9])
def test_values_far_below_the_floor(floor):
    h = histogram([-3e38, floor - 1], floor=floor)
    assert (h.low, h.high, h.total) == (floor, floor, 2)


def test_a_negative_zero_is_zero():
    expected = state(histogram([0.0, 0.0]))
    for parts in ([[0.0], [-0.0]], [[-0.0], [0.0]], [[0.0, -0.0]], [[-0.0, 0.0]]):
        assert state(histogram(*parts)) == expected


def test_growth_doubles_the_width_and_adds_neighbours():
    x = np.random.default_rng(1).uniform(-1, 1, 10_000).astype(np.float32)
    h = histogram(x)
    fine, width = h.counts.copy(), h.width
    h.add(np.float32([3.9]))
    assert h.width == 2 * width or h.width == 4 * width
    factor = round(h.width / width)
    at = -h.start
    folded = fine.reshape(-1, factor).sum(axis=1)
    np.testing.assert_array_equal(h.counts[at - len(folded) // 2 : at + len(folded) // 2], folded)
    assert h.total == x.size + 1


def test_a_value_within_the_range_does_not_change_the_bins():
    h = histogram([-1.0, 1.0])
    exponent, start = h.exponent, h.start
    h.add(np.float32([0.3]))
    assert (h.exponent, h.start) == (exponent, start)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, -3e-30, 1e-30, 1e30, -1e30, 3.4e38, -3.4e38, 1e-45])
def test_constant_tensors_take_one_bin(value):
    value = float(np.float32(value))
    h = histogram(np.full((5, 7), value))
    assert np.flatnonzero(h.counts).size == 1
    assert h.total == 35
    assert (h.low, h.high) == (value, value)
    filled = int(np.flatnonzero(h.counts)[0])
    assert h.edges[filled] <= value < h.edges[filled + 1]


def test_zeros_only():
    h = histogram(np.zeros(100))
    assert (h.low, h.high, h.total) == (0, 0, 100)
    assert h.edges[np.flatnonzero(h.counts)[0]] == 0


@pytest.mark.parametrize("magnitude", [1e-30, 1e-10, 1.0, 1e10, 1e30, 3e38])
@pytest.mark.parametrize("sign", [(-1, 1), (-1, -0.5), (0.5, 1)])
def test_all_magnitudes_and_signs(magnitude, sign):
    x = np.linspace(sign[0] * magnitude, sign[1] * magnitude, 1000).astype(np.float32)
    h = histogram(x)
    np.testing.assert_array_equal(h.counts, np.histogram(x.astype(np.float64), h.edges)[0])
    assert h.edges[0] <= h.low
    assert h.high < h.edges[-1]


def test_values_on_an_edge_belong_to_the_bin_above():
    h = histogram([0.0, 2047.0, 5.0, 5.999, 6.0, -0.0])
    assert (h.width, h.start) == (1, 0)
    assert [int(h.counts[i]) for i in (0, 4, 5, 6, 2047)] == [2, 0, 2, 1, 1]


def test_small_negative_values_are_below_zero():
    h = histogram([-1e-6, -2000.0, 0.0, 1.0])
    assert h.counts[-h.start - 1] == 1
    assert h.counts[-h.start] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_nan_and_infinity_are_refused_and_nothing_is_counted(bad, at):
    h = histogram([-1.0, 2.0])
    before = state(h)
    x = np.full(100_000, 7, np.float32)
    x[at] = bad
    with pytest.raises(FloatingPointError, match=r"^NaN or infinite values$"):
        h.add(x)
    assert state(h) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_with_a_floor_infinity_is_refused_as_well(bad):
    h = Histogram(-1.0)
    with pytest.raises(FloatingPointError):
        h.add(np.float32([1, bad]))
    assert state(h) == state(Histogram(-1.0))


@settings(max_examples=80, deadline=None)
@given(values(), st.one_of(st.sampled_from([-10.0, -0.3, -1 / 3, 0.7]), st.floats(-1e3, -0.1)))
def test_values_below_the_floor_are_counted_as_the_floor(items, floor):
    # The floor's own bin, too, is found exactly, though float32 does not hold the floor itself.
    h = histogram(items, floor=floor)
    clipped = np.maximum(np.asarray(items, np.float64), floor)
    np.testing.assert_array_equal(h.counts, np.histogram(clipped, h.edges)[0])
    if items:
        assert (h.low, h.high) == (clipped.min(), clipped.max())


@settings(max_examples=60, deadline=None)
@given(st.data(), values())
def test_with_a_floor_order_and_batches_do_not_matter(data, items):
    shuffled = data.draw(st.permutations(items))
    assert state(histogram(*in_parts(data.draw, shuffled), floor=-10.0)) == state(histogram(items, floor=-10.0))


def test_floor_keeps_the_bins_fine():
    x = np.random.default_rng(2).standard_normal(1000)
    assert histogram(x, [-1e6], floor=-10.0).width < 0.02 < histogram(x, [-1e6]).width


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_types_and_strides_of_the_array_do_not_matter(dtype):
    x = np.random.default_rng(3).integers(-50, 50, (4, 6, 8)).astype(dtype) / 8
    expected = state(histogram(x.astype(np.float32).reshape(-1)))
    for view in (x, x.T, np.asfortranarray(x)):
        h = Histogram()
        h.add(view)
        assert state(h) == expected
    half = Histogram()
    half.add(x[:, ::2])
    half.add(x[:, 1::2])
    assert state(half) == expected


def test_the_values_are_not_changed():
    x = np.linspace(-20, 20, 100, dtype=np.float32)
    copy = x.copy()
    histogram(x, floor=-10.0).add(x)
    np.testing.assert_array_equal(x, copy)


def test_an_empty_array_counts_nothing():
    h = histogram([1.0, 2.0])
    before = state(h)
    h.add(np.zeros((0, 3), np.float32))
    assert state(h) == before


def test_an_empty_histogram():
    h = Histogram()
    assert h.total == 0
    assert h.low > h.high
    counts, edges = h.occupied()
    assert (counts.tolist(), edges.tolist()) == ([0], [0, 0])


def test_merging_an_empty_histogram_changes_nothing():
    h = histogram([1.0, 2.0])
    before = state(h)
    h.merge(Histogram())
    assert state(h) == before


def test_merging_does_not_change_the_other():
    first, second = histogram([-100.0, 3.0]), histogram([1.0, 2.0])
    before = state(second)
    first.merge(second)
    first.add(np.float32([1.5]))
    assert state(second) == before


@settings(max_examples=60, deadline=None)
@given(values().filter(bool))
def test_occupied_bins_reach_from_the_least_to_the_greatest_value(items):
    h = histogram(items)
    counts, edges = h.occupied()
    assert counts.sum() == len(items)
    assert len(edges) == len(counts) + 1
    assert (edges[0], edges[-1]) == (h.low, h.high)
    assert np.all(np.diff(edges) >= 0)
    assert counts[0] > 0
    assert counts[-1] > 0


def test_occupied_does_not_give_the_edges_away():
    h = histogram([-1.0, 0.3, 5.0])
    h.occupied()[1][:] = 99
    assert h.occupied()[1][0] == -1
