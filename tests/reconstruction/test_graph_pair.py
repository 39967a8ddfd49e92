from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from graphs import copy, feed, planned, prepared, quantizing, rewrite, run, silu_chain
from unbalanced import uneven

from onnxq.calibration.feeds import Sample
from onnxq.facts import Migration, Plan, QuantizationParameters
from onnxq.ir import Model, constant
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.migrate_scales import MigrateScales
from onnxq.pipeline import Facts, Pipeline
from onnxq.qdq.migration import divided_inputs, migratable
from onnxq.reconstruction.float_targets import Places, collect_targets
from onnxq.reconstruction.graph_pair import GraphPair
from onnxq.reconstruction.im2col import Im2col
from onnxq.reconstruction.layer_fit import WeightFit
from onnxq.targets import OPENVINO

COUNT = 4


class Pair:
    """A model, the facts of its quantization, and both graphs side by side."""

    def __init__(self, model, adjusted=(), divides=None, **options):
        steps = [step for step in quantizing(model, OPENVINO, **options) if not isinstance(step, InsertQdq)]
        facts = Pipeline(steps).run(Model(copy(model)))
        self.model, self.plan, self.qparams = prepared(model), facts[Plan], facts[QuantizationParameters]
        self.feeds = [feed(model, seed) for seed in range(COUNT)]
        loads = [partial(dict, values) for values in self.feeds]
        self.divided = divided_inputs(self.model, self.plan, divides or {})
        self.graphs = GraphPair(self.model, self.plan, self.qparams, adjusted, loads, divided=self.divided)
        layers = [self.model.nodes[name] for name in self.plan.layers]
        loaders = [partial(Sample, values, 1) for values in self.feeds]
        self.targets = collect_targets(
            self.model.to_proto(), [(layer, Im2col.of(layer)) for layer in layers], loaders, None
        ).of_layer

    def weight(self, name):
        return np.asarray(constant(self.model.nodes[name].inputs[1]), np.float32)

    def floats(self, name):
        """Inputs and outputs of a layer of the float graph, (COUNT, channels, height, width) each."""
        node, proto = self.model.nodes[name], self.model.to_proto()
        names = [node.inputs[0].name, node.outputs[0].name]
        runs = [run(proto, values, outputs=[t for t in names if t not in values]) | values for values in self.feeds]
        return [np.concatenate([each[t] for each in runs]) for t in names]


def at(images, places):
    """The values of images at places on each, (channels, all of them)."""
    return np.concatenate([y[:, *each.positions] for y, [each] in zip(images, places, strict=True)], axis=1)


def test_moments_are_those_of_the_quantized_inputs_and_the_float_outputs():
    pair = Pair(silu_chain())
    name = pair.plan.layers[0]
    targets = pair.targets[name]
    moments, adjusted = pair.graphs.moments(targets, pair.weight(name))
    assert adjusted is None
    inputs, outputs = pair.floats(name)
    grid = pair.qparams.activations[pair.model.nodes[name].inputs[0].name]
    rounded = grid.dequantize(grid.quantize(inputs))
    columns = [targets.im2col.columns(x, each.positions) for x, [each] in zip(rounded, targets.places, strict=True)]
    a, t = np.concatenate(columns, axis=2)[0].astype(np.float64), at(outputs, targets.places).astype(np.float64)
    assert moments.count == a.shape[1]
    np.testing.assert_allclose(moments.a[0], a.mean(axis=1), atol=1e-3)
    np.testing.assert_allclose(moments.t[0], t.mean(axis=1), atol=1e-2)
    a, t = a - a.mean(axis=1, keepdims=True), t - t.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(moments.hessian[0], a @ a.T, atol=5e-3 * np.abs(a @ a.T).max())
    np.testing.assert_allclose(moments.ta[0], t @ a.T, atol=5e-3 * np.abs(t @ a.T).max())


def test_later_layers_read_what_a_replaced_layer_gives():
    pairs = [Pair(silu_chain()) for _ in range(2)]
    found = []
    for pair, factor in zip(pairs, (1, 0), strict=True):
        first, second = pair.plan.layers[:2]
        pair.graphs.moments(pair.targets[first], pair.weight(first))
        qparams = pair.qparams.weights[pair.model.nodes[first].inputs[1].name]
        integers = factor * qparams.quantize(pair.weight(first))
        bias = np.zeros(len(integers), np.float32)
        pair.graphs.replace(first, WeightFit(qparams, integers.astype(np.int8)), bias)
        found.append(pair.graphs.moments(pair.targets[second], pair.weight(second))[0])
    assert np.abs(found[0].hessian).max() > 0
    assert np.abs(found[1].hessian).max() < 1e-6 * np.abs(found[0].hessian).max()  # silu(0) everywhere
    np.testing.assert_allclose(found[0].t, found[1].t)


def test_a_layer_that_has_run_keeps_what_it_ran_with():
    pair = Pair(silu_chain())
    first, second = pair.plan.layers[:2]
    qparams = pair.qparams.weights[pair.model.nodes[first].inputs[1].name]
    zero = WeightFit(qparams, np.zeros_like(qparams.quantize(pair.weight(first))))
    pair.graphs.moments(pair.targets[second], pair.weight(second))
    pair.graphs.replace(first, zero, np.zeros(8, np.float32))
    assert np.abs(pair.graphs.moments(pair.targets[pair.plan.layers[2]], pair.weight(second))[0].hessian).max() > 0


@pytest.mark.parametrize("adjusts", [False, True])
def test_the_range_of_an_input_is_adjusted_before_its_moments_are_collected(adjusts):
    model = silu_chain()
    layers = Pair(model).plan.layers
    name = layers[1]
    pair = Pair(model, [name] if adjusts else [], act_bits=3)
    for layer in layers[:2]:
        moments, adjusted = pair.graphs.moments(pair.targets[layer], pair.weight(layer))
    x = pair.model.nodes[name].inputs[0].name
    fitted = pair.qparams.activations[x]
    assert (adjusted is not None) == adjusts
    grid = adjusted or fitted
    assert (grid.scale == fitted.scale) != adjusts
    # With 3 bits, what is read are multiples of the scale.
    means = moments.a[0] * moments.count / float(grid.scale)
    np.testing.assert_allclose(means, np.rint(means), atol=0.05)


def test_places_that_were_drawn_more_often_count_more():
    pair = Pair(silu_chain())
    name = pair.plan.layers[0]
    targets = pair.targets[name]
    doubled = [Places(each.positions, np.full_like(each.roots, np.sqrt(2))) for [each] in targets.places]
    once, twice = (
        pair.graphs.moments(replace(targets, places=tuple([each] for each in places)), pair.weight(name))[0]
        for places, pair in (([p for [p] in targets.places], pair), (doubled, Pair(silu_chain())))
    )
    assert twice.count == 2 * once.count
    np.testing.assert_allclose(twice.a, once.a, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(twice.hessian, 2 * once.hessian, rtol=1e-3, atol=1e-3 * np.abs(once.hessian).max())


def test_images_that_only_fill_a_batch_are_left_out():
    model = silu_chain(batch=2)
    facts = Pipeline([s for s in quantizing(model, OPENVINO) if not isinstance(s, InsertQdq)]).run(Model(copy(model)))
    working, plan = prepared(model), facts[Plan]
    feeds = [feed(model, seed) for seed in range(3)]
    layer = working.nodes[plan.layers[0]]
    loaders = [partial(Sample, values, 1 + k % 2) for k, values in enumerate(feeds)]
    targets = collect_targets(working.to_proto(), [(layer, Im2col.of(layer))], loaders, None).of_layer[layer.name]
    assert [len(places) for places in targets.places] == [1, 2, 1]
    loads = [partial(dict, values) for values in feeds]
    graphs = GraphPair(working, plan, facts[QuantizationParameters], [], loads)
    whole = graphs.moments(targets, np.asarray(constant(layer.inputs[1]), np.float32))[0]
    assert whole.count == sum(outputs.shape[2] for outputs in targets.outputs)


def test_chosen_scales_divide_what_the_readers_get():
    model = uneven()
    working, plan = planned(model, OPENVINO)
    [(tensor, each)] = migratable(working, plan).items()
    scales = np.geomspace(0.5, 2, each.channels).astype(np.float32)
    migrated, _ = rewrite(MigrateScales(), working.to_proto(), Facts([plan, Migration({tensor: scales})]))
    pair = Pair(migrated, act_bits=8, weight_bits=8, divides={tensor: scales})
    [divided] = pair.divided
    [name] = divided.layers
    targets, weight = pair.targets[name], pair.weight(name)
    scheme = pair.qparams.weights[pair.model.nodes[name].inputs[1].name].scheme
    for layer in pair.plan.layers[: pair.plan.layers.index(name)]:
        pair.graphs.moments(pair.targets[layer], pair.weight(layer))
    peaks = pair.floats(name)[0].max(axis=(0, 2, 3)).astype(np.float64)
    found = pair.graphs.choose_scales(divided, [(targets, scheme, weight)], peaks, ranges=True)
    assert not np.allclose(found.scales, scales)
    moments, adjusted = pair.graphs.moments(targets, weight)
    assert adjusted is None
    quotients = pair.floats(name)[0] * (scales / found.scales)[:, None, None]
    rounded = found.qparams.rounded(quotients)
    columns = [targets.im2col.columns(x, places.positions) for x, [places] in zip(rounded, targets.places, strict=True)]
    np.testing.assert_allclose(moments.a[0], np.concatenate(columns, axis=2)[0].mean(axis=1), rtol=0.02, atol=0.01)
