"""The sizes on which rules depend: those of the graph, or of the images that a model of dynamic size is used with."""

import logging

import onnx
import pytest
from graphs import Net, exported, prepared, v5_raw
from plans import every_target

from onnxq.api import plan
from onnxq.config import Config
from onnxq.facts import Plan
from onnxq.passes.find_sizes import FindSizes
from onnxq.pipeline import Pipeline
from onnxq.targets import QNN
from onnxq.targets.sizes import ImageSizes, declared_sizes
from onnxq.yolo.detector import detect


def levels(**options: object) -> onnx.ModelProto:
    """Narrow Convs on a large image, wide ones behind them, and a last Conv on each of three levels."""
    net = Net(size=128, **options)
    x = net.block(net.block("images", 16, kernel=3, stride=2), 16, kernel=3, stride=2)
    x = net.block(net.block(x, 16, kernel=3), 16, kernel=3)
    ends = []
    for channels in (48, 64, 96):
        x = net.block(net.block(x, channels, kernel=3, stride=2), channels)
        ends.append(net.conv(x, 18, name=f"last{channels}"))
    return net.model(*ends)


def found(model: onnx.ModelProto, size: tuple[int, int] | None) -> tuple[ImageSizes, ImageSizes]:
    """Return the sizes that the pass finds, and those that the graph declares."""
    working = prepared(model)
    detector = None if size is None else detect(model, image_size=size)
    return Pipeline([FindSizes(detector)]).run(working)[ImageSizes], declared_sizes(working)


def planned(model: onnx.ModelProto, target: str, size: int) -> Plan:
    return plan(model, Config(target=target, image_size=(size, size)))[0]


@every_target
@pytest.mark.parametrize(("build", "size"), [(levels, 128), (v5_raw, 32)])
def test_a_model_of_dynamic_size_gets_the_plan_of_the_same_model_of_fixed_size(build, size, target):
    fixed, dynamic = (planned(build(dynamic=each), target.name, size) for each in (False, True))
    assert (dynamic.layers, dynamic.weights, dynamic.integer) == (fixed.layers, fixed.weights, fixed.integer)
    assert dynamic.skipped == fixed.skipped
    if target is not QNN:  # it computes gates of 16 bits wrongly at some sizes, and the model takes all
        assert dynamic.points == fixed.points


@every_target
def test_a_real_export_of_dynamic_size_gets_the_plan_of_one_of_fixed_size(target):
    fixed, dynamic = (planned(exported(name), target.name, 640) for name in ("yolov8n", "yolov8n-dynamic"))
    assert (dynamic.layers, dynamic.weights) == (fixed.layers, fixed.weights)
    if target is not QNN:
        # Nodes that read only the shape of a tensor are among its users.
        integers = [{p.tensor: (p.scheme, p.group) for p in each.points} for each in (dynamic, fixed)]
        assert integers[0] == integers[1]


@pytest.mark.parametrize("size", [64, 256])
def test_the_plan_is_that_of_the_size_given(size):
    dynamic = plan(levels(dynamic=True), Config(image_size=(size, size)))[0]
    reason = next(reason for reason in dynamic.skipped.values() if reason.code == "stem")
    assert f" at {size // 2} x {size // 2}," in str(reason)


def test_sizes_of_a_graph_of_fixed_size_are_those_that_it_declares():
    sizes, declared = found(levels(), (128, 128))
    assert sizes == declared
    assert sizes.pixels == 128 * 128


def test_sizes_that_nothing_tells_are_unknown():
    sizes, _ = found(levels(dynamic=True), None)
    assert sizes == ImageSizes({}, None)


def test_behind_a_node_that_cannot_be_inferred_sizes_are_unknown():
    net = Net(size=32, dynamic=True)
    x = net.concat(net.conv("images", 8, stride=2, name="before"), net.const(net.normal(1, 8, 20, 20)))
    net.channels[x] = 16
    sizes, _ = found(net.model(net.conv(x, 4, name="behind")), (64, 64))
    assert sizes == ImageSizes({"images": (64, 64), "before_out": (32, 32)}, 64 * 64)


def test_if_inference_refuses_the_graph_sizes_are_those_that_it_declares(caplog):
    model = levels(dynamic=True)
    detector = detect(model, image_size=(64, 64))
    working = prepared(model)
    working.nodes["last48"].domain = "not.imported"
    with caplog.at_level(logging.WARNING):
        sizes = Pipeline([FindSizes(detector)]).run(working)[ImageSizes]
    assert sizes == declared_sizes(working)
    assert "rules that depend on sizes are left out" in caplog.text
