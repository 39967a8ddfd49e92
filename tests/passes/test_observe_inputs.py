"""The covariance of the inputs of Convs that observe collects."""

import numpy as np
import pytest
from graphs import Net, feed, planned, samples

from onnxq.calibration.samples import open_samples
from onnxq.facts import Plan, Statistics
from onnxq.passes.observe import Observe
from onnxq.pipeline import Pipeline
from onnxq.targets import OPENVINO
from onnxq.yolo.preprocess import YOLO


def covariance_of(images, kernel, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)):
    """The covariance of the windows of a Conv, in the order of its weight."""
    taken = []
    for image in images:
        padded = np.pad(image.astype(np.float64), ((0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
        reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations)]
        view = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=(1, 2))
        view = view[:, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
        taken.append(view.transpose(1, 2, 0, 3, 4).reshape(-1, len(image) * kernel[0] * kernel[1]))
    return np.cov(np.concatenate(taken).T, bias=True)


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": (1, 1, 1, 1)},
        {"strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"strides": (2, 1), "pads": (0, 2, 1, 0)},
        {"dilations": (2, 3)},
        {"strides": (3, 2), "pads": (2, 1, 0, 3), "dilations": (2, 1)},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_the_covariance_of_the_inputs_of_a_conv(attributes, batch):
    net = Net(size=8, batch=batch)  # all positions are counted
    weight = net.const(net.normal(8, 3, 3, 2))
    x = net.silu(net.add("Conv", "images", weight, name="stem", **attributes))
    net.channels[x] = 8
    model = net.model(net.conv(net.block(x, 8), 4))
    feeds = [feed(model, seed) for seed in range(3)]
    working, plan = planned(model, OPENVINO)
    statistics = Pipeline([Observe(samples(feeds))], pinned=[plan]).run(working)[Statistics]
    images = np.concatenate([each["images"] for each in feeds])
    found = statistics.inputs["stem"]
    whole = covariance_of(images, (3, 2), **attributes)
    np.testing.assert_allclose(found.channels[0], whole, atol=1e-6)
    assert np.array_equal(found.taps, [[1]])


def inputs_of(net, layers, seeds=range(3), every_conv=True):
    """The covariances of the inputs of Convs that are all on integers, over the feeds of these seeds."""
    model = net.model(net.concat(*layers.values()))
    working, plan = planned(model, OPENVINO)
    chosen = Plan(plan.points, plan.weights, plan.integer, tuple(layers), {})
    data = samples([feed(model, seed) for seed in seeds])
    return Pipeline([Observe(data, every_conv=every_conv)], pinned=[chosen]).run(working)[Statistics].inputs


def test_many_inputs_are_held_by_channels_and_taps_and_groups_apart():
    net = Net()
    wide = net.block("images", 300)
    layers = {
        "small": net.conv("images", 8, 3, name="small"),
        "groups": net.conv("images", 3, 3, group=3, name="groups"),
        "taps": net.conv("images", 8, 11, name="taps"),
        "wide": net.conv(wide, 8, name="wide"),
        "both": net.conv(wide, 8, 3, name="both"),
    }
    found = inputs_of(net, layers)
    assert {name: (found[name].channels.shape, len(found[name].taps)) for name in layers} == {
        "small": ((1, 27, 27), 1),
        "groups": ((3, 9, 9), 1),
        "taps": ((1, 3, 3), 121),
        "wide": ((2, 150, 150), 1),
        "both": ((2, 150, 150), 9),
    }
    for each in found.values():
        assert np.array_equal(each.channels, each.channels.swapaxes(1, 2))
        assert np.diagonal(each.taps).mean() == pytest.approx(1)


def test_by_default_it_is_that_of_convs_that_read_images():
    net = Net()
    first = net.conv("images", 8, name="first")
    layers = {
        "first": first,
        "second": net.conv("images", 8, 3, name="second"),
        "relu": net.conv(net.add("Relu", "images"), 8, name="relu"),
        "behind": net.conv(first, 8, name="behind"),
    }
    net.channels[first] = 8
    found = inputs_of(net, layers, every_conv=False)
    assert found.keys() == {"first", "second", "relu"}


def test_convs_that_read_the_same_inputs_share_their_covariance():
    net = Net()
    x = net.block("images", 8)
    layers = {name: net.conv(x, 8, kernel, name=name) for name, kernel in (("a", 1), ("b", 1), ("c", 3))}
    found = inputs_of(net, layers)
    assert found["a"] is found["b"]
    assert found["c"] is not found["a"]


def test_of_many_samples_the_covariance_is_taken_on_some():
    def found(seeds):
        net = Net()
        return inputs_of(net, {"a": net.conv(net.block("images", 8), 8, name="a")}, seeds)["a"].channels

    assert np.array_equal(found(range(70)), found(range(0, 70, 2)))
    assert not np.array_equal(found(range(32)), found(range(0, 32, 2)))


def test_of_images_it_is_taken_on_all_samples():
    def found(seeds):
        net = Net()
        return inputs_of(net, {"a": net.conv("images", 8, name="a")}, seeds)["a"].channels

    assert not np.array_equal(found(range(70)), found(range(0, 70, 2)))


def test_a_list_and_a_file_of_the_same_samples_give_the_same(tmp_path):
    net = Net(size=4)
    model = net.model(net.conv(net.block("images", 8), 4))
    feeds = [feed(model, seed) for seed in range(70)]
    np.save(tmp_path / "data.npy", np.concatenate([each["images"] for each in feeds]))
    working, plan = planned(model, OPENVINO)
    inputs = {"images": ([1, 3, 4, 4], np.dtype(np.float32))}

    def covariances(source):
        data = open_samples(source, inputs=inputs, image_input="images", size=(4, 4), preprocess=YOLO)
        found = Pipeline([Observe(data, every_conv=True)], pinned=[plan]).run(working)[Statistics].inputs
        assert found
        return {layer: each.channels.tolist() for layer, each in found.items()}

    assert covariances(feeds) == covariances(str(tmp_path / "data.npy"))
    assert covariances(feeds) != covariances(iter(feeds))  # of unknown length: each is taken
