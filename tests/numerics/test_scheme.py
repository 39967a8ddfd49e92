import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from onnxq.errors import ConfigError
from onnxq.numerics.scheme import INT8, INT16, UINT8, UINT16, QParams, Range, Scheme
from onnxq.runtime.session import open_session, run

SLACK = 1e-4
"""Error, in steps, that float32 arithmetic may add to the half step of rounding."""

containers = st.sampled_from([UINT8, INT8])
schemes = st.builds(Scheme, bits=st.integers(2, 8), container=containers, symmetric=st.booleans())
numbers = st.one_of(
    st.floats(-(2.0**100), 2.0**100, width=32),
    st.builds(lambda m, e: float(np.float32(m * 10.0**e)), st.floats(-1, 1, width=32), st.integers(-44, 30)),
)
ranges = st.builds(lambda a, b: Range(min(a, b), max(a, b)), numbers, numbers)
between = st.lists(st.floats(0, 1), min_size=1, max_size=20)


def on_line(shares, low, high):
    """Values at the given shares of the way from `low` to `high`, float32."""
    t = np.asarray(shares, np.float64)
    return (low + t * (high - low)).astype(np.float32)


@pytest.mark.parametrize(
    ("scheme", "qmin", "qmax", "middle"),
    [
        (Scheme(8), 0, 255, 128),
        (Scheme(8, INT8), -128, 127, 0),
        (Scheme(8, INT8, symmetric=True), -127, 127, 0),
        (Scheme(8, symmetric=True), 1, 255, 128),
        (Scheme(4), 0, 15, 8),
        (Scheme(4, INT8), -8, 7, 0),
        (Scheme(4, INT8, symmetric=True), -7, 7, 0),
        (Scheme(2), 0, 3, 2),
        (Scheme(2, INT8, symmetric=True), -1, 1, 0),
    ],
)
def test_integers_of_a_scheme(scheme, qmin, qmax, middle):
    assert (scheme.qmin, scheme.qmax, scheme.middle) == (qmin, qmax, middle)
    assert scheme.steps == qmax - qmin
    assert scheme.dtype == (np.int8 if scheme.container is INT8 else np.uint8)


@pytest.mark.parametrize("bits", [-1, 0, 1, 9, 16, 17])
def test_other_widths_are_refused(bits):
    with pytest.raises(ConfigError, match=rf"^{bits} bits: uint8 holds 2 to 8$"):
        Scheme(bits)
    if bits < 2 or bits > 16:
        with pytest.raises(ConfigError, match=rf"^{bits} bits: int16 holds 2 to 16$"):
            Scheme(bits, INT16)


@pytest.mark.parametrize(
    ("scheme", "low", "high", "scale", "zero_point"),
    [
        (Scheme(8), -1, 3, 4 / 255, 64),
        (Scheme(8), -0.5, 2.05, 0.01, 50),
        (Scheme(8, INT8), -0.5, 2.05, 0.01, -78),
        (Scheme(4), -1, 2, 0.2, 5),
        (Scheme(8, INT8, symmetric=True), -1.27, 0.5, 0.01, 0),
        (Scheme(8, symmetric=True), -0.5, 1.27, 0.01, 128),
        (Scheme(8), 1, 2.55, 0.01, 0),  # widened down to zero
        (Scheme(8), -2.55, -1, 0.01, 255),  # and up to zero
        (Scheme(8), 0, 0, 1, 0),
        (Scheme(8, INT8, symmetric=True), 0, 0, 1, 0),
    ],
)
def test_known_grids(scheme, low, high, scale, zero_point):
    qparams = scheme.qparams(Range(low, high))
    assert qparams.scale == pytest.approx(scale, rel=1e-6)
    assert qparams.scale.dtype == np.float32
    assert qparams.zero_point == zero_point
    assert qparams.zero_point.dtype == scheme.dtype


def test_rounding_is_half_to_even():
    qparams = QParams(np.float32(1)[...], np.uint8(10)[...], Scheme(8))
    x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 2.51], np.float32)
    np.testing.assert_array_equal(qparams.quantize(x), [8, 10, 10, 12, 12, 13])


@settings(max_examples=100, deadline=None)
@given(schemes, ranges)
def test_zero_is_exact_on_every_grid(scheme, bounds):
    qparams = scheme.qparams(bounds)
    q = qparams.quantize(np.zeros(1, np.float32))
    assert q[0] == qparams.zero_point
    assert qparams.dequantize(q)[0] == 0
    assert qparams.low <= 0 <= qparams.high


@settings(max_examples=100, deadline=None)
@given(schemes, ranges)
def test_the_scale_is_positive_and_finite(scheme, bounds):
    scale = scheme.qparams(bounds).scale
    assert scale > 0
    assert np.isfinite(scale)


@settings(max_examples=100, deadline=None)
@given(schemes, ranges, between)
def test_inside_the_grid_the_error_is_at_most_half_a_step(scheme, bounds, shares):
    qparams = scheme.qparams(bounds)
    x = np.clip(on_line(shares, qparams.low, qparams.high), qparams.low, qparams.high).astype(np.float32)
    error = np.abs(x.astype(np.float64) - qparams.dequantize(qparams.quantize(x)))
    assert np.all(error <= float(qparams.scale) * (0.5 + SLACK))


@settings(max_examples=100, deadline=None)
@given(schemes, ranges, st.lists(st.floats(-2, 3), min_size=1, max_size=20))
def test_rounded_values_are_those_of_the_integers(scheme, bounds, shares):
    qparams = scheme.qparams(bounds)
    x = on_line(shares, qparams.low, qparams.high)
    assert qparams.rounded(x).tobytes() == qparams.dequantize(qparams.quantize(x)).tobytes()


@settings(max_examples=100, deadline=None)
@given(schemes, ranges, st.lists(st.floats(-2, 3), min_size=1, max_size=20))
def test_integers_stay_within_qmin_and_qmax_and_saturate(scheme, bounds, shares):
    qparams = scheme.qparams(bounds)
    x = on_line(shares, qparams.low, qparams.high)
    q = qparams.quantize(x)
    assert q.dtype == scheme.dtype
    assert q.min() >= scheme.qmin
    assert q.max() <= scheme.qmax
    step = float(qparams.scale)
    assert np.all(q[x > qparams.high + step] == scheme.qmax)
    assert np.all(q[x < qparams.low - step] == scheme.qmin)


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), containers, ranges)
def test_symmetric_grids_have_the_zero_point_in_the_middle_and_cover_the_range(bits, container, bounds):
    scheme = Scheme(bits, container, symmetric=True)
    qparams = scheme.qparams(bounds)
    assert qparams.zero_point == scheme.middle
    assert qparams.low == -qparams.high
    assert scheme.qmax - scheme.middle == scheme.middle - scheme.qmin
    reach = max(abs(bounds.low), abs(bounds.high))
    assert qparams.high >= reach * (1 - 1e-6) - 1e-42


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 8), containers, ranges)
def test_asymmetric_grids_cover_the_range_but_for_half_a_step(bits, container, bounds):
    qparams = Scheme(bits, container).qparams(bounds)
    tolerance = float(qparams.scale) * (0.5 + SLACK) + 1e-42
    assert qparams.low <= min(bounds.low, 0) + tolerance
    assert qparams.high >= max(bounds.high, 0) - tolerance
    span = max(bounds.high, 0) - min(bounds.low, 0)
    if span > 1e-30:  # below, a float32 scale loses its precision
        assert qparams.high - qparams.low <= span * (1 + 1e-6)


@settings(max_examples=100, deadline=None)
@given(schemes, ranges)
def test_reach_agrees_with_the_stored_grid(scheme, bounds):
    low, high, step = scheme.reach(bounds.low, bounds.high)
    qparams = scheme.qparams(bounds)
    assert (float(low), float(high), float(step)) == (qparams.low, qparams.high, float(qparams.scale))


@settings(max_examples=100, deadline=None)
@given(schemes, st.lists(ranges, min_size=1, max_size=4), st.integers(0, 2), between)
def test_each_channel_has_the_grid_that_it_would_have_alone(scheme, bounds, axis, shares):
    per_channel = Scheme(scheme.bits, scheme.container, scheme.symmetric, axis)
    low, high = (np.array([getattr(b, side) for b in bounds]) for side in ("low", "high"))
    qparams = per_channel.qparams(Range(low, high))
    alone = [scheme.qparams(b) for b in bounds]
    assert qparams.scale.shape == qparams.zero_point.shape == (len(bounds),)
    channels = [np.clip(on_line(shares, q.low, q.high), q.low, q.high).astype(np.float32) for q in alone]
    x = np.moveaxis(np.stack([[c, c] for c in channels]), 0, axis)
    q = qparams.quantize(x)
    assert q.shape == x.shape
    back = qparams.dequantize(q)
    for index, (one, values) in enumerate(zip(alone, channels, strict=True)):
        expected = one.quantize(values)
        for row in range(2):
            np.testing.assert_array_equal(np.take(q, index, axis)[row], expected)
            np.testing.assert_array_equal(np.take(back, index, axis)[row], one.dequantize(expected))
    assert qparams.low == min(one.low for one in alone)
    assert qparams.high == max(one.high for one in alone)


@pytest.mark.parametrize("symmetric", [False, True])
def test_scale_and_zero_point_are_arrays(symmetric):
    qparams = Scheme(8, symmetric=symmetric).qparams(Range(-1.0, 1.0))
    for array in (qparams.scale, qparams.zero_point):
        assert isinstance(array, np.ndarray)
        assert array.shape == ()


def test_a_grid_cannot_be_changed():
    qparams = Scheme(axis=0).qparams(Range(np.array([-1.0, -2.0]), np.array([1.0, 2.0])))
    with pytest.raises(ValueError, match="read-only"):
        qparams.scale[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        qparams.zero_point[0] = 1


def _quantize_dequantize(container, axis):
    """A session that takes x, scale and zero point and gives the integers and what they stand for."""
    integers = helper.np_dtype_to_tensor_dtype(container.dtype)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **attributes),
    ]
    shape, channels = ([None], []) if axis is None else ([None, None, None], [None])
    graph = helper.make_graph(
        nodes,
        "reference",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, shape),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, channels),
            helper.make_tensor_value_info("zero_point", integers, channels),
        ],
        [
            helper.make_tensor_value_info("q", integers, shape),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, shape),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", container.opset)], ir_version=10)
    onnx.checker.check_model(model)
    return open_session(model, threads=1, optimized=False)


@pytest.fixture(scope="module")
def reference():
    """onnxruntime's QuantizeLinear and DequantizeLinear: (qparams, x) -> (integers, values)."""
    sessions = {}

    def call(qparams, x):
        key = (qparams.scheme.container, qparams.scheme.axis)
        if key not in sessions:
            sessions[key] = _quantize_dequantize(*key)
        feed = {"x": x, "scale": qparams.scale, "zero_point": np.asarray(qparams.zero_point)}
        return run(sessions[key], feed, ["q", "y"])

    return call


@settings(max_examples=100, deadline=None)
@given(
    st.booleans(),
    st.booleans(),
    st.floats(-100, 0, width=32),
    st.floats(2.0**-20, 100, width=32),
    st.integers(0, 2**32 - 1),
)
def test_equal_to_onnxruntime_for_8_bits(reference, signed, symmetric, low, high, seed):
    qparams = Scheme(8, INT8 if signed else UINT8, symmetric).qparams(Range(low, high))
    # onnxruntime saturates at the ends of int8, a symmetric grid one step earlier.
    beyond = 0 if symmetric else 1
    x = np.random.default_rng(seed).uniform(qparams.low, qparams.high, 64) * (1 + beyond)
    ties = (np.arange(-130, 130) + 0.5) * float(qparams.scale)
    x = np.concatenate([x, np.clip(ties, *((qparams.low, qparams.high) if symmetric else (-1e9, 1e9)))])
    x = x.astype(np.float32)
    q, y = reference(qparams, x)
    np.testing.assert_array_equal(qparams.quantize(x), q)
    np.testing.assert_array_equal(qparams.dequantize(q), y)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from([UINT16, INT16]), st.floats(-100, 0, width=32), st.floats(2.0**-20, 100, width=32), st.integers(0)
)
def test_equal_to_onnxruntime_for_16_bits(reference, container, low, high, seed):
    qparams = Scheme(16, container).qparams(Range(low, high))
    x = np.random.default_rng(seed).uniform(2 * qparams.low, 2 * qparams.high, 1000).astype(np.float32)
    q, y = reference(qparams, x)
    np.testing.assert_array_equal(qparams.quantize(x), q)
    np.testing.assert_array_equal(qparams.dequantize(q), y)
    inside = (x > qparams.low) & (x < qparams.high)
    # An integer of 16 bits times a float32 scale is exact to a two-hundredth of a step.
    assert np.all(np.abs(x.astype(np.float64) - y)[inside] <= float(qparams.scale) * 0.505)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([UINT16, INT16]), st.booleans(), ranges)
def test_every_integer_of_16_bits_stands_for_a_value_of_its_own(container, symmetric, bounds):
    scheme = Scheme(16, container, symmetric)
    qparams = scheme.qparams(bounds)
    assume(float(qparams.scale) > 1e-37)  # below, float32 has no digits left for multiples of it
    integers = np.arange(scheme.qmin, scheme.qmax + 1).astype(scheme.dtype)
    np.testing.assert_array_equal(qparams.quantize(qparams.dequantize(integers)), integers)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("signed", [False, True])
def test_equal_to_onnxruntime_per_channel(reference, signed, axis):
    rng = np.random.default_rng(axis)
    low, high = -rng.uniform(0, 5, 3), rng.uniform(0.1, 50, 3)
    qparams = Scheme(8, INT8 if signed else UINT8, axis=axis).qparams(Range(low, high))
    x = rng.uniform(-10, 60, (3, 3, 3)).astype(np.float32)
    q, y = reference(qparams, x)
    np.testing.assert_array_equal(qparams.quantize(x), q)
    np.testing.assert_array_equal(qparams.dequantize(q), y)


@given(high=st.floats(1e-3, 1e6), bits=st.integers(2, 8), symmetric=st.booleans())
def test_half_scales_are_numbers_of_float16(high, bits, symmetric):
    whole, half = Scheme(bits, symmetric=symmetric), Scheme(bits, symmetric=symmetric, half=True)
    exact, rounded = (float(scheme.qparams(Range(-high / 3, high)).scale) for scheme in (whole, half))
    assert float(np.float16(rounded)) == rounded
    assert rounded == pytest.approx(min(exact, 65504.0), rel=1e-3, abs=2.0**-25)
    assert half.qparams(Range(-high / 3, high)).scale.dtype == np.float32


def test_a_scale_that_float16_would_store_as_zero_is_one():
    assert float(Scheme(half=True).qparams(Range(0.0, 1e-9)).scale) == 1.0


@pytest.mark.parametrize(("half", "stored"), [(False, np.float32), (True, np.float16)])
def test_a_grid_can_have_other_scales(half, stored):
    grid = Scheme(4, INT8, symmetric=True, axis=0, half=half).qparams(Range(np.full(2, -1.0), np.ones(2)))
    other = grid.rescaled(np.array([0.1, 0.3]))
    assert other.scale.dtype == np.float32
    assert other.scale.tolist() == [float(stored(0.1)), float(stored(0.3))]
    assert np.array_equal(other.zero_point, grid.zero_point)
    assert other.scheme == grid.scheme
