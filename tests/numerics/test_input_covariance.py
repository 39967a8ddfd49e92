import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.numerics.input_covariance import BlockShape, CovarianceSums, InputCovariance


def drawn(groups=1, channels=6, taps=9, images=4, count=50, seed=0):
    """Inputs of images, float32 (groups, channels * taps, count): channels alike, and taps alike."""
    rng = np.random.default_rng(seed)
    mixed = np.einsum(
        "gij,ab,ngjbp->ngiap",
        rng.normal(size=(groups, channels, channels)),
        rng.normal(size=(taps, taps)) + taps * np.eye(taps),
        rng.normal(size=(images, groups, channels, taps, count)) + 1,
        optimize=True,
    )
    return mixed.reshape(images, groups, channels * taps, count).astype(np.float32)


def summed(columns, channels, taps):
    sums = CovarianceSums(columns.shape[1], channels, taps)
    for each in columns:
        sums.add(each)
    return sums.covariance()


def whole(covariance, groups, inputs):
    """The covariance as a matrix, (groups, inputs, inputs)."""
    shape = covariance.shape(groups, inputs)
    found = np.zeros((groups, *[shape.blocks * shape.channels * shape.taps] * 2))
    size = shape.channels * shape.taps
    for k, channels in enumerate(covariance.channels):
        group, block = divmod(k, shape.blocks)
        places = slice(block * size, (block + 1) * size)
        found[group, places, places] = np.kron(channels.astype(np.float64), covariance.taps)
    return found[:, :inputs, :inputs]


@given(st.permutations(range(4)), st.integers(0, 4), st.sampled_from([(6, 9), (40, 9), (300, 1)]))
def test_merged_sums_are_those_of_all_images_to_the_bit(order, cut, shape):
    channels, taps = shape
    columns = drawn(2, channels, taps, count=3)
    merged = CovarianceSums(2, channels, taps)
    for part in (order[:cut], order[cut:]):
        sums = CovarianceSums(2, channels, taps)
        for k in part:
            sums.add(columns[k])
        merged.merge(sums)
    assert merged.images == 4
    found, whole = merged.covariance(), summed(columns, channels, taps)
    assert found.channels.tobytes() == whole.channels.tobytes()
    assert found.taps.tobytes() == whole.taps.tobytes()


def split_whole(shape, values):
    """Return (groups, rows, inputs of a group) as (groups * blocks, rows, inputs of a block)."""
    groups, rows, inputs = values.shape
    filled = np.zeros((groups, rows, shape.blocks * shape.channels * shape.taps))
    filled[:, :, :inputs] = values
    return filled.reshape(groups, rows, shape.blocks, -1).swapaxes(1, 2).reshape(groups * shape.blocks, rows, -1)


@given(st.integers(1, 4), st.integers(1, 700), st.integers(1, 9), st.integers(1, 3))
def test_blocks_are_small_and_joined_again(groups, channels, taps, rows):
    shape = BlockShape.of(channels, taps)
    assert shape.channels <= 256
    assert shape.blocks * shape.channels * shape.taps >= channels * taps
    values = np.arange(groups * rows * channels * taps, dtype=np.float64).reshape(groups, rows, -1) + 1
    split = split_whole(shape, values)
    assert split.shape == (groups * shape.blocks, rows, shape.channels * shape.taps)
    assert split.sum() == values.sum()
    parts = list(shape.parts(groups, rows))
    assert np.array_equal(np.concatenate([shape.take(values, part) for part in parts]), split)
    assert [number for part in parts for number in range(len(split))[part.blocks]] == list(range(len(split)))
    last = rows - 1
    assert np.array_equal(np.concatenate([shape.take(values, part, [last]) for part in parts]), split[:, [last]])
    covariance = InputCovariance(np.zeros((len(split), *[shape.channels] * 2), np.float32), np.eye(shape.taps))
    assert covariance.shape(groups, channels * taps) == shape


@pytest.mark.parametrize(("groups", "inputs"), [(1, 6), (1, 9), (2, 3), (2, 8), (3, 8)])
def test_the_blocks_of_other_layers_are_told(groups, inputs):
    covariance = InputCovariance(np.zeros((2, 4, 4), np.float32), np.eye(1))
    assert covariance.shape(1, 7) == covariance.shape(1, 8) == BlockShape(2, 4, 1)
    with pytest.raises(ValueError, match="2 blocks of 4 channels and 1 taps"):
        covariance.shape(groups, inputs)


@pytest.mark.parametrize(("groups", "channels", "taps"), [(1, 27, 1), (1, 3, 9), (4, 1, 9), (2, 5, 4)])
def test_of_few_inputs_it_is_exact(groups, channels, taps):
    columns = drawn(groups, channels, taps)
    found = summed(columns, channels, taps)
    values = columns.transpose(1, 2, 0, 3).reshape(groups, channels * taps, -1).astype(np.float64)
    for k in range(groups):
        expected = np.cov(values[k], bias=True)
        np.testing.assert_allclose(found.channels[k], expected, atol=1e-5 * expected.max())


def test_of_many_inputs_it_is_near_where_channels_and_taps_are_independent():
    columns = drawn(channels=40, taps=9, images=8, count=2000)
    found = whole(summed(columns, 40, 9), 1, 360)[0]
    expected = np.cov(columns.transpose(1, 2, 0, 3).reshape(360, -1).astype(np.float64), bias=True)
    assert np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)


@pytest.mark.parametrize(("groups", "channels", "taps"), [(1, 20, 9), (1, 300, 1), (2, 300, 4), (3, 1, 9), (1, 513, 2)])
def test_the_error_is_the_variance_of_the_outputs(groups, channels, taps):
    columns = drawn(groups, channels, taps, count=20)
    covariance = summed(columns, channels, taps)
    weight = np.random.default_rng(1).normal(size=(groups, 5, channels * taps))
    expected = np.einsum("goi,gij,goj->go", weight, whole(covariance, groups, channels * taps), weight, optimize=True)
    np.testing.assert_allclose(covariance.error(weight), expected, rtol=1e-4)


def test_the_order_of_images_makes_no_difference():
    columns = drawn(channels=60, taps=9, images=12)
    first, second = (summed(each, 60, 9) for each in (columns, columns[::-1]))
    assert np.array_equal(first.channels, second.channels)
    assert np.array_equal(first.taps, second.taps)


@pytest.mark.parametrize("value", [0.0, 3.0, 1e6])
def test_inputs_that_never_change_have_no_variance(value):
    found = summed(np.full((3, 1, 2700, 10), value, np.float32), 300, 9)
    assert np.abs(found.channels).max() <= 1e-9 * max(value, 1) ** 2
    assert np.isfinite(found.taps).all()


@pytest.mark.parametrize("taps", [1, 9])
def test_of_inputs_beyond_what_sums_hold_nothing_is_known(taps):
    columns = drawn(channels=300, taps=taps)
    known, unknown = summed(columns, 300, taps), summed(columns * np.float32(1e7), 300, taps)
    assert known.channels.any()
    assert not unknown.channels.any()
    assert unknown.channels.shape == known.channels.shape
    assert np.array_equal(unknown.taps, np.eye(taps))


def test_layers_that_share_a_weight_have_the_mean():
    first, second = (InputCovariance(np.full((1, 2, 2), v, np.float32), np.eye(1)) for v in (1, 3))
    assert np.array_equal(InputCovariance.mean([first, second]).channels, np.full((1, 2, 2), 2))
    assert InputCovariance.mean([first]) is first
