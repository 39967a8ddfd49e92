import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.numerics.scheme import INT8, Range, Scheme
from onnxq.qdq.pair_limit import PairLimit, by_output
from onnxq.reconstruction.limited_weight import limit_weight


def every_integer(channels, outputs=1, most=255.0):
    """The limit of inputs that reach every integer."""
    return PairLimit(np.full((outputs, channels), most), np.full((outputs, channels // 2), 2 * most))


def grid_of(weight, axis=0, half=False):
    bound = np.abs(np.moveaxis(weight, axis, 0)).reshape(weight.shape[axis], -1).max(axis=1)
    return Scheme(8, INT8, symmetric=True, axis=axis, half=half).qparams(Range(-bound, bound))


def random_weight(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def limited(weight, limit=None, axis=0, **known):
    qparams = grid_of(weight, axis)
    limit = limit or every_integer(by_output(weight, axis).shape[1])
    return qparams, limit, limit_weight(weight, qparams, limit, **known)


def rows_of(found, axis=0):
    return by_output(found.qparams.dequantize(found.integers), axis).astype(np.float64)


def covariance_of(seed, inputs, correlation=0.95):
    """The covariance of inputs of which neighbors are alike."""
    distance = np.abs(np.subtract.outer(np.arange(inputs), np.arange(inputs)))
    scale = np.random.default_rng(seed).uniform(0.5, 2, inputs)
    return correlation**distance * np.outer(scale, scale)


def feedback_error(found, weight, covariance):
    error = (rows_of(found) - by_output(weight, 0)).reshape(len(weight), -1)
    return ((error @ covariance) * error).sum(axis=1)


# --- the limit --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    outputs=st.integers(1, 6),
    channels=st.integers(1, 8),
    kernel=st.integers(1, 3),
    known=st.sampled_from(["nothing", "variances", "covariance"]),
    apart=st.booleans(),
)
def test_the_result_is_within_the_limit(seed, outputs, channels, kernel, known, apart):
    rng = np.random.default_rng(seed)
    weight = random_weight(seed, outputs, channels, kernel, kernel)
    peaks = rng.integers(1, 256, (outputs if apart else 1, channels)).astype(float)
    limit = PairLimit(peaks, np.ceil((peaks[:, 0:-1:2] + peaks[:, 1::2])[:, : channels // 2] * rng.uniform(0.5, 1)))
    given_ones = {
        "nothing": {},
        "variances": {"variances": rng.gamma(1, size=channels)},
        "covariance": {"covariance": covariance_of(seed, channels * kernel**2)},
    }[known]
    qparams, _, found = limited(weight, limit, **given_ones)
    before = limit.shares_of(qparams.quantize(weight), 0)
    if found is None:
        assert (before <= 1).all()
        return
    assert found.channels == (before > 1).sum() > 0
    assert (limit.shares_of(found.integers, 0) <= 1).all()
    assert found.integers.dtype == np.int8
    assert np.abs(found.integers.astype(int)).max() <= 127
    assert (found.qparams.scale[before > 1] > qparams.scale[before > 1]).all()


def test_channels_within_the_limit_stay_as_they_are():
    weight = random_weight(0, 16, 8, 3, 3)
    weight[::2, 0, 1, 1] = weight[::2, 1, 1, 1] = 5
    weight[1::2, 2, 1, 1], weight[1::2, 3, 1, 1] = 50, 0
    qparams, limit, found = limited(weight)
    nearest = qparams.quantize(weight)
    fine = limit.shares_of(nearest, 0) <= 1
    assert found.channels == 8
    assert fine.tolist() == [False, True] * 8
    assert found.integers[fine].tobytes() == nearest[fine].tobytes()
    assert found.qparams.scale[fine].tobytes() == qparams.scale[fine].tobytes()
    assert (found.integers[~fine] != nearest[~fine]).any(axis=(1, 2, 3)).all()


def test_nothing_is_done_if_nothing_saturates():
    weight = random_weight(0, 4, 2, 1, 1)
    assert limited(weight, every_integer(2, most=100.0))[2] is None


def test_the_axis_of_outputs_may_be_the_last():
    weight = random_weight(1, 6, 10)
    weight[:2, 3] = 9
    _, _, turned = limited(np.ascontiguousarray(weight.T))
    _, limit, found = limited(weight, axis=1)
    assert (limit.shares_of(found.integers, 1) <= 1).all()
    assert found.integers.flags.c_contiguous
    assert np.array_equal(found.integers.T, turned.integers)
    assert np.array_equal(found.qparams.scale, turned.qparams.scale)


def test_output_channels_of_groups_have_limits_of_their_own():
    weight = random_weight(3, 64, 4, 3, 3)
    peaks = np.repeat(np.linspace(255, 60, 32), 2)[::-1, None] * np.ones((1, 4))
    limit = PairLimit(np.rint(peaks), np.rint(peaks[:, :2] * 2))
    qparams, _, found = limited(weight, limit)
    at_fault = limit.shares_of(qparams.quantize(weight), 0) > 1
    assert found.channels == at_fault.sum() > 10
    assert not at_fault[: found.channels].all()
    shares = limit.shares_of(found.integers, 0)
    assert shares.max() <= 1
    assert shares[at_fault].min() > 0.75  # no wider than it must be


def test_the_result_does_not_depend_on_the_other_channels():
    # Large weights are searched in blocks of rows.
    weight = random_weight(2, 80, 512, 3, 3)
    weight[:, :2, 0, 0] = 6
    variances = np.random.default_rng(0).gamma(1, size=512)
    _, _, whole = limited(weight, variances=variances)
    assert whole.channels == 80
    for row in (0, 27, 28, 79):
        _, _, alone = limited(weight[row : row + 1], variances=variances)
        assert np.array_equal(alone.integers[0], whole.integers[row])
        assert alone.qparams.scale[0] == whole.qparams.scale[row]


# --- the error --------------------------------------------------------------------------------------------------------


def seven_bits(weight):
    """The weight with half as many levels: the plain way to stay within the limit."""
    bound = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    grid = Scheme(7, INT8, symmetric=True, axis=0).qparams(Range(-bound, bound))
    return grid.dequantize(grid.quantize(weight))


@pytest.mark.parametrize("seed", range(4))
def test_error_feedback_errs_less_than_nearest_on_inputs_that_are_alike(seed):
    weight = random_weight(seed, 16, 3, 3, 3)
    covariance = covariance_of(seed, 27)
    _, _, feedback = limited(weight, covariance=covariance)
    _, _, nearest = limited(weight)
    assert feedback.channels == nearest.channels > 4
    errors = [feedback_error(found, weight, covariance).sum() for found in (feedback, nearest)]
    assert errors[0] < 0.5 * errors[1]
    plain = (seven_bits(weight) - weight).reshape(16, -1).astype(float)
    assert errors[0] < 0.5 * ((plain @ covariance) * plain).sum()


def test_the_variances_of_the_inputs_decide():
    weight = random_weight(3, 32, 8, 1, 1)
    variances = np.array([100.0, 1, 1, 1, 1, 1, 1, 1])
    _, limit, known = limited(weight, variances=variances)
    _, _, unknown = limited(weight)
    qparams = grid_of(weight)
    shares = limit.shares_of(qparams.quantize(weight), 0)
    least = qparams.rescaled(np.where(shares > 1, qparams.scale * shares, qparams.scale).astype(np.float64))

    def error(values):
        return (np.square(values - by_output(weight, 0)).sum(axis=2) @ variances)[shares > 1].sum()

    of_least = by_output(least.dequantize(least.quantize(weight)), 0).astype(np.float64)
    assert error(rows_of(known)) < 0.7 * error(of_least)
    assert error(rows_of(known)) < error(rows_of(unknown))


def test_few_channels_at_fault_cost_little():
    weight = random_weight(4, 64, 16, 3, 3)
    limit = every_integer(16, most=200.0)
    _, _, found = limited(weight, limit)
    error = np.square(rows_of(found) - by_output(weight, 0)).sum()
    assert 0 < found.channels < 64
    assert error < 0.6 * np.square(seven_bits(weight) - weight, dtype=np.float64).sum()


# --- degenerate weights and inputs ------------------------------------------------------------------------------------


def test_zeros_have_no_fault():
    assert limited(np.zeros((3, 4, 1, 1), np.float32))[2] is None


def test_one_channel_and_one_tap_have_no_pair():
    assert limited(random_weight(0, 5, 1, 1, 1))[2] is None


def test_one_channel_has_pairs_across_taps():
    weight = np.ones((1, 1, 1, 2), np.float32)
    assert limited(weight)[2].channels == 1


@pytest.mark.parametrize(
    "covariance",
    [
        np.zeros((27, 27)),
        np.ones((27, 27)),
        np.full((27, 27), 1e12),
        1e-30 * np.eye(27),
        np.diag([1.0] * 5 + [0.0] * 22),
        covariance_of(0, 27) * 2.0**80,
        covariance_of(0, 26),
    ],
    ids=["zero", "singular", "huge and singular", "tiny", "mostly dead", "huge", "of another layer"],
)
def test_any_covariance_gives_weights_near_the_exact_ones(covariance):
    weight = random_weight(5, 8, 3, 3, 3)
    _, limit, found = limited(weight, covariance=covariance)
    assert (limit.shares_of(found.integers, 0) <= 1).all()
    error = np.square(rows_of(found) - by_output(weight, 0)).sum()
    assert error < 0.02 * np.square(weight).sum()


@pytest.mark.parametrize("variances", [np.zeros(8), np.full(8, 1e20), np.array([1.0] + [0.0] * 7)], ids=str)
def test_any_variances_give_weights_near_the_exact_ones(variances):
    weight = random_weight(6, 8, 8, 1, 1)
    _, limit, found = limited(weight, variances=variances)
    assert (limit.shares_of(found.integers, 0) <= 1).all()
    steps = np.abs(rows_of(found) - by_output(weight, 0)) / found.qparams.scale[:, None, None]
    assert steps.max() < 0.51


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("everywhere", [False, True])
def test_moments_that_are_not_finite_count_as_unknown(value, everywhere):
    weight = random_weight(0, 4, 8, 3, 3)
    _, limit, expected = limited(weight)
    for name, size in (("variances", (8,)), ("covariance", (72, 72))):
        moments = np.full(size, value) if everywhere else np.where(np.arange(size[-1]) == 0, value, np.ones(size))
        _, _, found = limited(weight, limit, **{name: moments})
        assert np.array_equal(found.integers, expected.integers)


@pytest.mark.parametrize("known", [{"variances": np.ones(3)}, {"covariance": np.ones((72, 3))}], ids=["v", "c"])
def test_moments_of_another_shape_count_as_unknown(known):
    weight = random_weight(0, 4, 8, 3, 3)
    _, limit, expected = limited(weight)
    assert np.array_equal(limited(weight, limit, **known)[2].integers, expected.integers)


@pytest.mark.parametrize("known", [{"variances": np.arange(1.0, 9.0)}, {"covariance": covariance_of(0, 72)}], ids="vc")
@pytest.mark.parametrize("factor", [2.0**1000, 2.0**-900])
def test_the_unit_of_the_moments_does_not_matter(known, factor):
    weight = random_weight(0, 4, 8, 3, 3) * 1e30
    expected = limited(weight, **known)[2]
    found = limited(weight, **{name: moments * factor for name, moments in known.items()})[2]
    assert np.array_equal(found.integers, expected.integers)


def test_scales_are_as_float16_stores_them():
    weight = random_weight(7, 8, 4, 1, 1)
    found = limit_weight(weight, grid_of(weight, half=True), every_integer(4))
    assert np.array_equal(found.qparams.scale, found.qparams.scale.astype(np.float16))
    assert (every_integer(4).shares_of(found.integers, 0) <= 1).all()


def test_two_runs_are_equal():
    weight, covariance = random_weight(8, 8, 3, 3, 3), covariance_of(0, 27)
    first, second = (limited(weight, covariance=covariance)[2] for _ in range(2))
    assert first.integers.tobytes() == second.integers.tobytes()
    assert first.qparams.scale.tobytes() == second.qparams.scale.tobytes()
