import numpy as np
import pytest

from onnxq.reconstruction.sample_arrays import Memory, SampleArrays, is_in_file


def drawn(count, shape=(2, 3), dtype=np.float16):
    rng = np.random.default_rng(0)
    return [rng.normal(size=shape).astype(dtype) for _ in range(count)]


@pytest.mark.parametrize("limit", [10**6, 10])
def test_arrays_come_back_whatever_their_order_in_memory_or_in_a_file(limit):
    given, kept = drawn(4), SampleArrays(4, Memory(limit))
    for sample in (2, 0, 3, 1):
        kept.put(sample, given[sample])
    for array, expected in zip(kept.arrays, given, strict=True):
        assert np.array_equal(array, expected)
        assert array.dtype == expected.dtype
        assert is_in_file(array) == (limit == 10)


def test_arrays_of_other_sizes_and_types_are_kept():
    given = [*drawn(1), *drawn(1, (2, 4)), *drawn(1, (1, 1)), *drawn(1, dtype=np.float32), *drawn(1, (0, 3))]
    for room in (0, 8):
        kept = SampleArrays(len(given))
        for sample, array in enumerate(given):
            kept.put(sample, array, room)
        for array, expected in zip(kept.arrays, given, strict=True):
            assert array.shape == expected.shape
            assert array.dtype == expected.dtype
            assert np.array_equal(array, expected)


def test_of_nothing_there_is_nothing():
    kept = SampleArrays(2)
    kept.put(1, np.zeros((0, 3), np.uint8))
    assert [array.size for array in kept.arrays] == [0, 0]


def test_the_budget_is_that_of_all():
    memory = Memory(100)
    assert memory.take(60)
    assert not memory.take(60)
    assert memory.take(40)
    assert not memory.take(1)
