import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.reconstruction.least_squares import (
    FeedbackRounding,
    JoinedMoments,
    Moments,
    best_scale,
    coordinate_descent,
    damped,
    refit,
    regularized,
)


def drawn(groups=1, outputs=4, inputs=12, count=400, seed=0, rank=None):
    """Correlated inputs, a weight, and the moments of the inputs and of their products with the weight."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, inputs, rank or inputs))
    a = (mixing @ rng.normal(size=(groups, rank or inputs, count)) + 1).astype(np.float32)
    weight = rng.normal(size=(groups, outputs, inputs))
    t = (weight @ a + 3).astype(np.float32)
    return a, t, weight, moments_of(a, t)


def moments_of(a, t, parts=1):
    found = Moments.zeros(len(a), t.shape[1], a.shape[1])
    for one, other in zip(np.array_split(a, parts, axis=2), np.array_split(t, parts, axis=2), strict=True):
        found.add(one, other)
    return found


def test_joined_moments_err_as_all_layers_with_the_best_bias_of_each():
    layers = [drawn(groups=2, count=count, seed=seed)[:3] for seed, count in enumerate((300, 40, 700))]
    first, *others = (moments_of(a, t + np.float32(level)).centered() for level, (a, t, _) in enumerate(layers))
    joined = JoinedMoments.of("0", first)
    for level, moments in enumerate(others, 1):
        joined.add(str(level), moments)
    tried, expected = layers[0][2] + 0.1, 0.0
    for level, (a, t, _) in enumerate(layers):
        off = t + level - tried @ a
        best = off.mean(axis=2)
        expected += np.square(off - best[:, :, None]).sum(axis=2)
        means = joined.means[str(level)]
        np.testing.assert_allclose(means.t - (tried @ means.a[:, :, None])[:, :, 0], best, rtol=1e-4)
    np.testing.assert_allclose(joined.moments.error(tried), expected, rtol=1e-3)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_error_is_that_of_the_products_with_the_best_bias(groups):
    a, t, weight, moments = drawn(groups)
    other = weight + 0.1
    residual = other @ a - t
    expected = np.square(residual - residual.mean(axis=2, keepdims=True)).sum(axis=2)
    np.testing.assert_allclose(moments.centered().error(other), expected, rtol=1e-3)


def test_moments_do_not_depend_on_the_parts():
    a, t, _, whole = drawn()
    parts = moments_of(a, t, 7)
    assert parts.count == whole.count == 400
    for name in ("hessian", "ta", "tt", "a", "t"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 3])
def test_a_refit_finds_the_weight_behind_the_outputs(groups):
    _, _, weight, moments = drawn(groups)
    found = refit(regularized(moments.centered(), np.zeros_like(weight), 1e-9))
    np.testing.assert_allclose(found, weight, atol=1e-2)


def test_a_refit_stays_where_the_data_says_nothing():
    _, _, weight, moments = drawn(rank=3)
    start = weight + 1
    found = refit(regularized(moments.centered(), start, 1e-3))
    assert np.abs(found - start).max() < 1.5
    assert moments.centered().error(found).sum() < 0.01 * moments.centered().error(start).sum()


def test_of_silent_inputs_the_weight_stays():
    silent = Moments.zeros(2, 3, 5)
    silent.add(np.zeros((2, 5, 10), np.float32), np.zeros((2, 3, 10), np.float32))
    weight = np.random.default_rng(0).normal(size=(2, 3, 5))
    np.testing.assert_allclose(refit(regularized(silent.centered(), weight, 0.01)), weight)
    rounded = FeedbackRounding.of(silent.centered().hessian, 0.01).round(weight, np.full((2, 3), 0.1), 7)
    assert np.isfinite(rounded).all()


def test_damping_adds_a_share_of_the_mean_and_more_where_nothing_was_seen():
    found = damped(np.diag([2.0, 4.0, 0.0])[None], 0.5)[0]
    assert np.array_equal(found, np.diag([3.0, 5.0, 3.0]))


@settings(max_examples=20, deadline=None)
@given(groups=st.integers(1, 3), inputs=st.integers(1, 150), bits=st.integers(2, 8), seed=st.integers(0, 9))
def test_rounding_gives_whole_numbers_on_the_grid(groups, inputs, bits, seed):
    _, _, weight, moments = drawn(groups, inputs=inputs, count=200, seed=seed)
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=2) / limit
    integers = FeedbackRounding.of(moments.hessian, 0.01).round(weight, scale, limit)
    assert integers.shape == weight.shape
    assert np.array_equal(integers, np.rint(integers))
    assert np.abs(integers).max() <= limit


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("inputs", [12, 300])
def test_feedback_errs_less_than_rounding_to_the_nearest(bits, inputs):
    _, _, weight, moments = drawn(inputs=inputs, count=1000, rank=inputs // 2)
    limit = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=2) / limit
    whole = scale[:, :, None]
    nearest = np.rint(weight / whole) * whole
    fed_back = FeedbackRounding.of(moments.centered().hessian, 0.01).round(weight, scale, limit) * whole
    assert moments.centered().error(fed_back).sum() < 0.5 * moments.centered().error(nearest).sum()


def test_independent_inputs_are_rounded_to_the_nearest():
    weight = np.random.default_rng(0).normal(size=(1, 4, 20))
    scale = np.full((1, 4), 0.1)
    integers = FeedbackRounding.of(np.eye(20)[None], 1e-9).round(weight, scale, 127)
    assert np.array_equal(integers, np.rint(weight / 0.1))


@pytest.mark.parametrize("inputs", [5, 128, 129, 300])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_factor_is_that_of_the_inverse(inputs, dtype):
    _, _, _, moments = drawn(2, inputs=inputs, count=1000)
    hessian = moments.hessian.astype(dtype)
    feedback = FeedbackRounding.of(hessian, 0.1)
    assert feedback.factor.dtype == dtype
    assert np.array_equal(feedback.factor, np.triu(feedback.factor))
    for k in range(2):
        ordered = damped(hessian, 0.1)[k][np.ix_(feedback.order[k], feedback.order[k])].astype(np.float64)
        whole = feedback.factor[k].T.astype(np.float64) @ feedback.factor[k]
        np.testing.assert_allclose(whole @ ordered, np.eye(inputs), atol=1e-8 if dtype == np.float64 else 0.02)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 12), st.integers(1, 5), st.integers(0, 9))
def test_the_factor_of_a_product_is_that_of_its_inverse(groups, outer_size, inner_size, seed):
    rng = np.random.default_rng(seed)
    outer = rng.normal(size=(groups, outer_size, 20))
    inner = rng.normal(size=(inner_size, 20))
    outer, inner = outer @ outer.swapaxes(1, 2), inner @ inner.T
    found = FeedbackRounding.of_product(outer, inner, (0.1, 0.05))(slice(groups))
    whole = np.einsum("gij,ab->giajb", damped(outer, 0.1), damped(inner[None], 0.05)[0])
    whole = whole.reshape(groups, *[outer_size * inner_size] * 2)
    places = np.arange(groups)[:, None, None], found.order[:, :, None], found.order[:, None, :]
    product = found.factor.swapaxes(1, 2) @ found.factor
    np.testing.assert_allclose(product @ whole[places], np.broadcast_to(np.eye(whole.shape[1]), whole.shape), atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1, 1e12])
def test_moments_that_are_not_definite_do_no_harm(size):
    rng = np.random.default_rng(0)
    skewed = rng.normal(size=(1, 30, 30)).astype(np.float32) * np.float32(size)
    skewed = skewed + skewed.swapaxes(1, 2)
    weight, scale = rng.normal(size=(1, 4, 30)), np.full((1, 4), 0.05)
    for hessian in (skewed, np.zeros_like(skewed), -np.abs(skewed)):
        integers = FeedbackRounding.of(hessian, 0.1).round(weight, scale, 127)
        assert np.abs(integers * 0.05 - weight).max() < 0.5


@pytest.mark.parametrize("groups", [1, 3])
def test_descending_errs_less_with_every_sweep(groups):
    _, _, weight, moments = drawn(groups, inputs=40, count=1000, rank=15)
    centered = moments.centered()
    scale = np.abs(weight).max(axis=2) / 7
    integers = np.rint(weight / scale[:, :, None])
    errors = [centered.error(integers * scale[:, :, None]).sum()]
    for _ in range(4):
        integers = coordinate_descent(integers, scale, centered, 7, 1)
        assert np.array_equal(integers, np.rint(integers))
        assert np.abs(integers).max() <= 7
        errors.append(centered.error(integers * scale[:, :, None]).sum())
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in itertools.pairwise(errors))
    assert errors[-1] < 0.5 * errors[0]


def test_sweeps_end_where_nothing_changes():
    _, _, weight, moments = drawn(inputs=10)
    scale = np.abs(weight).max(axis=2) / 7
    settled = coordinate_descent(np.rint(weight / scale[:, :, None]), scale, moments.centered(), 7, 50)
    assert np.array_equal(coordinate_descent(settled, scale, moments.centered(), 7, 1), settled)


def test_no_single_integer_could_be_better():
    _, _, weight, moments = drawn(inputs=6)
    centered = moments.centered()
    scale = np.abs(weight).max(axis=2) / 3
    settled = coordinate_descent(np.zeros_like(weight), scale, centered, 3, 50)
    least = centered.error(settled * scale[:, :, None])
    for column in range(6):
        for step in (-1, 1):
            other = settled.copy()
            other[:, :, column] = np.clip(other[:, :, column] + step, -3, 3)
            assert (centered.error(other * scale[:, :, None]) >= least - 1e-6 * moments.tt).all()


def test_the_best_scale_is_where_the_error_is_least():
    _, _, weight, moments = drawn()
    centered = moments.centered()
    start = np.abs(weight).max(axis=2) / 3
    integers = np.rint(weight / start[:, :, None])
    found = best_scale(integers, centered, start)
    least = centered.error(integers * found[:, :, None])
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert (centered.error(integers * (factor * found)[:, :, None]) > least).all()
    assert np.array_equal(best_scale(np.zeros_like(integers), centered, start), start)


def test_parts_of_a_product_are_rounded_as_the_whole_product():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 5, 20)), rng.normal(size=(4, 30))
    outer, inner = roots[0] @ roots[0].swapaxes(1, 2), roots[1] @ roots[1].T
    weight, scale = rng.normal(size=(3, 6, 20)), np.full((3, 6), 0.1)
    of_groups = FeedbackRounding.of_product(outer, inner, (0.01, 0.01))
    whole = of_groups(slice(0, 3)).round(weight, scale, 127)
    for group in range(3):
        part = slice(group, group + 1)
        assert np.array_equal(of_groups(part).round(weight[part], scale[part], 127), whole[part])
