"""Pooling and resizing at the edges of an image, where runtimes differ from ONNX."""

import math

import numpy as np
import pytest
from cases import fast_first
from graphs import Net, feed
from hypothesis import given
from hypothesis import strategies as st

from onnxq import Config, quantize
from onnxq.facts import Plan, Verification
from onnxq.ir import Model
from onnxq.runtime import RUNTIMES
from onnxq.runtime.session import open_session, run_named
from onnxq.targets import TARGETS
from onnxq.targets.edges import has_partial_windows, misread_by_qnn, misread_by_rknn, moved_by_qnn


def node_of(op, size=13, dynamic=False, inputs=(), **attributes):
    """A node alone, reading a feature map of this size."""
    net = Net(size=size, dynamic=dynamic)
    made = net.add(op, "images", *inputs, **attributes)
    return next(node for node in Model(net.model(made)).graph.nodes if node.op == op)


def pool(size=13, dynamic=False, **attributes):
    return node_of("AveragePool", size, dynamic, **attributes)


# --- windows ----------------------------------------------------------------------------------------------------------


@given(
    size=st.integers(8, 20),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 4),
    pad=st.integers(0, 1),
    ceil=st.booleans(),
)
def test_windows_are_partial_if_rounding_up_makes_one_more(size, kernel, stride, pad, ceil):
    pad = min(pad, kernel // 2)
    node = pool(size, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, ceil_mode=int(ceil))
    steps = (size + 2 * pad - kernel) / stride
    assert has_partial_windows(node) == (ceil and math.ceil(steps) > math.floor(steps))


def test_windows_may_be_partial_if_the_size_is_not_known():
    attributes = {"kernel_shape": [2, 2], "strides": [2, 2]}
    assert has_partial_windows(pool(dynamic=True, ceil_mode=1, **attributes))
    assert not has_partial_windows(pool(dynamic=True, **attributes))


# --- what runtimes compute wrongly on integers ------------------------------------------------------------------------

PADDED = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1] * 4, "count_include_pad": 1}

DILATED = {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [2] * 4}

PARTIAL = {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1, "count_include_pad": 1}


def pooled(behind_max_pool=False, opset=13, **attributes):
    """A feature map of 25 x 25 that a Conv and an AveragePool read, and a Conv behind the AveragePool."""
    net = Net(size=50, opset=opset)
    x = net.block("images", 32, 3, stride=2)
    y = net.add("MaxPool", x, kernel_shape=[3, 3], pads=[1] * 4) if behind_max_pool else x
    y = net.add("AveragePool", y, name="pool", **attributes)
    net.channels[y] = 32
    head = net.conv(net.block(net.block(y, 32, 3), 32, 3), 16)
    return net.model(head, net.conv(net.block(x, 32, 3), 16))


def compared(model, target):
    found = quantize(model, [feed(model, seed) for seed in range(3)], Config(target=target))
    return found, found.facts[Verification]


@pytest.mark.parametrize("attributes", [PADDED, PARTIAL], ids=["padded", "partial"])
@pytest.mark.parametrize("behind_max_pool", fast_first([True, False]), ids=["behind a MaxPool", "read alone"])
@pytest.mark.parametrize("target", ["ort", "generic", "openvino"])
def test_runtimes_compute_a_pooling_as_the_file_has_it(target, behind_max_pool, attributes):
    if target == "openvino" and not RUNTIMES["openvino"].is_installed():
        pytest.skip("openvino is not installed")
    model = pooled(behind_max_pool, **attributes)
    _, verified = compared(model, target)
    if target == "openvino" and not openvino_computes(model):
        assert "computes the file wrongly" in verified.warnings[0]
        return
    assert verified.warnings == ()
    assert min(verified.sqnr.values()) > 30


def openvino_computes(model):
    """Whether OpenVINO computes a float model as ONNX defines it: 2025.0 does not know partial windows."""
    found = RUNTIMES["openvino"](model).run(feed(model))
    expected = run_named(open_session(model, optimized=False), feed(model))
    return all(np.allclose(found[name], values, atol=1e-3) for name, values in expected.items())


@pytest.mark.parametrize(
    ("target", "attributes", "how"),
    [
        ("ort", PARTIAL, "onnxruntime divides windows that reach beyond the padding by the whole kernel"),
        ("qnn", {**PADDED, "strides": [3, 3]}, "QNN moves the windows of a padded pooling with strides"),
    ],
    ids=["ort", "qnn"],
)
def test_a_pooling_that_integers_get_wrong_stays_float(target, attributes, how):
    found, _ = compared(pooled(**attributes), target)
    assert found.facts[Plan].skipped["pool"].text == f"miscomputed: {how}"


@pytest.mark.parametrize("target", ["ort", "generic"])
def test_a_pooling_with_dilations_stays_float(target):
    found, verified = compared(pooled(opset=19, **DILATED), target)
    assert found.facts[Plan].skipped["pool"].text.endswith("onnxruntime has no AveragePool with dilations on integers")
    assert min(verified.sqnr.values()) > 30


def attended(extreme, *names):
    """A feature map that is multiplied by a gate, which is computed from its greatest values."""
    net = Net(size=50)
    x = net.block("images", 32, 3, stride=2)
    most = net.add(extreme, x) if extreme == "GlobalMaxPool" else net.add(extreme, x, axes=[1], keepdims=1)
    for name in names:
        most = net.concat(most, most) if name == "Concat" else net.add(name, most)
    net.channels[most] = {"GlobalMaxPool": 32}.get(extreme, 1) * (1 + names.count("Concat"))
    gate = net.add("Sigmoid", net.conv(most, 32, 3, name="gate"))
    y = net.add("Mul", x, gate)
    net.channels[y] = 32
    return net.model(net.conv(net.block(net.block(y, 32, 3), 32, 3), 16))


@pytest.mark.parametrize("extreme", ["ReduceMax", "ReduceMin", "GlobalMaxPool"])
@pytest.mark.parametrize("names", fast_first(["Relu Concat", "", "Concat"]))
def test_what_reads_a_maximum_stays_float_for_openvino(extreme, names):
    if not RUNTIMES["openvino"].is_installed():
        pytest.skip("openvino is not installed")
    found, verified = compared(attended(extreme, *names.split()), "openvino")
    assert found.facts[Plan].skipped["gate"].text == (
        f"miscomputed: OpenVINO computes {extreme} with a Q behind it wrongly"
    )
    assert verified.warnings == ()
    assert min(verified.sqnr.values()) > 30


@pytest.mark.parametrize("target", ["ort", "generic", "qnn"])
@pytest.mark.parametrize(
    "attributes",
    [{**PARTIAL, "count_include_pad": 0}, {**PARTIAL, "ceil_mode": 0}, PADDED],
    ids=["mean", "floor", "pads"],
)
def test_other_poolings_run_on_integers(target, attributes):
    found, _ = compared(pooled(**attributes), target)
    assert "pool" in found.facts[Plan].integer


@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "is_moved"), [(3, 1, 1, False), (3, 2, 1, False), (3, 3, 1, True), (5, 2, 2, True)]
)
def test_padded_poolings_that_qnn_moves(kernel, stride, pad, is_moved):
    node = pool(kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
    assert bool(moved_by_qnn(node)) == is_moved


# --- what QNN reads otherwise than ONNX -------------------------------------------------------------------------------


def resize(scale, size=13, dynamic=False, **attributes):
    net = Net(size=size, dynamic=dynamic)
    scales = net.const(np.array([1, 1, scale, scale], np.float32))
    made = net.add("Resize", "images", "", scales, **attributes)
    return next(node for node in Model(net.model(made)).graph.nodes if node.op == "Resize")


def nearest(coordinates, rounding):
    return {"mode": "nearest", "coordinate_transformation_mode": coordinates, "nearest_mode": rounding}


@pytest.mark.parametrize(
    ("scale", "attributes", "is_misread"),
    [
        (2, nearest("asymmetric", "floor"), False),
        (2, nearest("asymmetric", "round_prefer_ceil"), True),
        (2, nearest("half_pixel", "floor"), True),
        (2, nearest("half_pixel", "round_prefer_floor"), False),
        (0.5, nearest("half_pixel", "round_prefer_floor"), True),
        (0.5, nearest("half_pixel", "round_prefer_ceil"), False),
        (2, nearest("align_corners", "ceil"), True),
        (2, {}, False),
        (2, {"mode": "linear"}, False),
        (1.5, {"mode": "linear"}, True),
    ],
)
def test_resizes_that_qnn_misreads(scale, attributes, is_misread):
    assert bool(misread_by_qnn(resize(scale, **attributes))) == is_misread


def test_a_resize_of_unknown_size_may_be_misread():
    assert misread_by_qnn(resize(1.5, dynamic=True, mode="linear"))
    assert misread_by_qnn(resize(0.5, dynamic=True, **nearest("half_pixel", "round_prefer_floor")))


def test_poolings_that_rknn_toolkit2_misreads():
    assert misread_by_rknn(pool(**PARTIAL))
    assert not misread_by_rknn(pool(**{**PARTIAL, "count_include_pad": 0}))
    assert not misread_by_rknn(pool(size=12, **PARTIAL))


def test_nodes_that_qnn_misreads_are_warned_of():
    _, verified = compared(pooled(**{**PARTIAL, "count_include_pad": 0}), "qnn")
    [warning] = verified.warnings
    assert warning.startswith("QNN computes AveragePool 'pool' otherwise than ONNX, in float as well: the last windows")


def test_other_targets_warn_of_none():
    assert {name for name, target in TARGETS.items() if target.misread is not None} == {"qnn"}
