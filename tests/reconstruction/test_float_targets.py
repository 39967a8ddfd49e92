from functools import partial

import numpy as np
import pytest
from graphs import Net, feed, prepared, run, silu_chain, v8, with_metadata

from onnxq.calibration.feeds import Sample
from onnxq.reconstruction.float_targets import collect_targets, draw_places
from onnxq.reconstruction.im2col import Im2col
from onnxq.yolo.detected_objects import DetectedObjects, read_objects
from onnxq.yolo.detector import detect

COUNT = 4


def convs(model):
    return [(node, Im2col.of(node)) for node in model.nodes.values() if node.op == "Conv"]


def collected(model, detector=None, loaders=None, count=COUNT):
    working = prepared(model)
    given = loaders or [partial(Sample, feed(model, seed), 1) for seed in range(count)]
    return working, collect_targets(working.to_proto(), convs(working), given, detector)


def test_they_are_the_outputs_of_each_layer_at_the_places():
    model = silu_chain()
    working, found = collected(model)
    assert found.samples == tuple(range(COUNT))
    assert len(found.of_layer) > 2
    for name, targets in found.of_layer.items():
        tensor = working.nodes[name].outputs[0].name
        for sample, [places] in enumerate(targets.places):
            expected = run(working.to_proto(), feed(model, sample), outputs=[tensor])[tensor][0][:, *places.positions]
            off = np.abs(targets.floats(sample)[0] - expected)
            assert (off <= np.abs(expected).max(axis=1, keepdims=True) / 250).all()
            assert targets.outputs[sample].dtype == np.int8


def test_layers_of_one_size_share_their_places():
    net = Net(size=8)
    x = net.block("images", 32)
    many = [net.conv(net.block(x, 32), 4, kernel=3, name=name) for name in "ab"]
    _, found = collected(net.model(net.concat(*many)))
    first, second = (found.of_layer[name].places for name in "ab")
    for sample in range(COUNT):
        assert np.array_equal(first[sample][0].positions, second[sample][0].positions)
    assert len({places[0].positions.tobytes() for places in found.of_layer["a"].places}) == 1  # all of few


def test_samples_that_cannot_be_read_are_left_out():
    model = silu_chain()
    loaders = [partial(Sample, feed(model, seed), 1) for seed in range(3)]
    found = collected(model, loaders=[loaders[0], lambda: None, loaders[2]])[1]
    whole = collected(model, loaders=loaders)[1]
    assert found.samples == (0, 2)
    for name, targets in found.of_layer.items():
        assert np.array_equal(targets.outputs[1], whole.of_layer[name].outputs[2])
    assert collected(model, loaders=[lambda: None])[1].samples == ()


@pytest.mark.parametrize("factor", [0.0, 1e-30, 1e6])
def test_outputs_of_any_size_are_kept(factor):
    net = Net(size=4)
    scaled = net.add("Mul", net.block("images", 4), net.const(np.float32(factor)))
    net.channels[scaled] = 4
    targets = collected(net.model(net.conv(scaled, 4, name="last", bias=False)))[1].of_layer["last"]
    for sample in range(COUNT):
        greatest = np.abs(targets.floats(sample)).max()
        assert 1e-3 * factor <= greatest <= 1e3 * factor


def test_half_of_the_draws_are_on_what_the_model_detects():
    model = with_metadata(v8())
    detector = detect(model)
    objects = [read_objects(run(model, feed(model, seed), optimized=True), detector)[0] for seed in range(COUNT)]
    assert any(len(each.scores) for each in objects)
    _, seeing = collected(model, detector)
    _, blind = collected(model)
    name = max(seeing.of_layer, key=lambda name: seeing.of_layer[name].places[0][0].positions.max())
    for sample, each in enumerate(objects):
        [seen], [anywhere] = (of.of_layer[name].places[sample] for of in (seeing, blind))
        assert (seen.roots.tobytes() != anywhere.roots.tobytes()) == bool(len(each.scores))


@pytest.mark.parametrize(("size", "count"), [((64, 64), 300), ((13, 13), 169)])
def test_half_of_the_positions_are_on_objects(size, count):
    objects = DetectedObjects(
        np.array([[0.0, 0.0, 0.25, 0.25]], np.float32), np.ones(1, np.float32), np.zeros(1, np.intp)
    )
    (rows, columns), roots = draw_places(np.random.default_rng(0), size, objects)
    times = np.square(roots)
    assert times.sum() == pytest.approx(count)
    on_object = (rows < 0.25 * size[0]) & (columns < 0.25 * size[1])
    assert (times * on_object).sum() / count == pytest.approx(0.5 + 0.5 / 16, abs=0.05)


def test_without_objects_each_position_comes_once():
    nothing = DetectedObjects(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp))
    for objects in (None, nothing):
        (rows, columns), roots = draw_places(np.random.default_rng(0), (64, 64), objects)
        assert np.array_equal(roots, np.ones(300))
        assert len(set(zip(rows.tolist(), columns.tolist(), strict=True))) == 300
