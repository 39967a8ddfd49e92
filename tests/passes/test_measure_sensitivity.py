import math
from collections import Counter
from functools import partial

import numpy as np
import pytest
from cases import fast_first
from cut_pool import Cut, Threaded
from graphs import copy, csp, feed, quantizing, run, samples, saturating, silu_chain, sqnr, v8, with_metadata

from onnxq.errors import DataError
from onnxq.facts import Plan, Sensitivities
from onnxq.ir import MOVES_VALUES, Model
from onnxq.passes.correct_bias import CorrectBias
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.measure_sensitivity import MeasureSensitivity
from onnxq.pipeline import Pipeline
from onnxq.runtime.pool import IN_PROCESS
from onnxq.runtime.streaming import open_worker_session
from onnxq.targets import GENERIC, OPENVINO, ORT, TARGETS
from onnxq.yolo.detector import detect


def measured(model, target=OPENVINO, data=None, detector=None, corrected=False, pool=IN_PROCESS, **options):
    """The sensitivities of a model's pieces, and the plan."""
    steps = quantizing(model, target, **options)
    at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
    data = data or samples([feed(model, seed) for seed in range(3)])
    extra = [*([CorrectBias()] if corrected else []), MeasureSensitivity(data, target, detector, pool=pool)]
    facts = Pipeline([*steps[:at], *extra]).run(Model(copy(model)))
    return facts[Sensitivities], facts[Plan]


def by_layer(found):
    return {piece.nodes[0]: piece for piece in found.pieces}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
@pytest.mark.parametrize("build", [silu_chain, csp, v8])
def test_every_node_that_computes_on_integers_is_in_one_piece(build, target):
    found, plan = measured(build(), target)
    counts = Counter(name for piece in found.pieces for name in piece.nodes)
    carriers = {name for name in plan.integer if plan.ops[name] in MOVES_VALUES | {"Resize", "MaxPool"}}
    assert set(counts) == plan.integer - carriers
    assert set(counts.values()) == {1}
    assert [piece.nodes[0] for piece in found.pieces if piece.nodes[0] in plan.layers] == list(plan.layers)


def test_a_layer_and_its_activation_are_one_piece():
    found, plan = measured(silu_chain(), GENERIC)
    pieces = [piece.nodes for piece in found.pieces]
    assert len(pieces) == len(plan.layers)
    assert {tuple(sorted(plan.ops[name] for name in piece)) for piece in pieces[:-1]} == {("Conv", "Mul", "Sigmoid")}


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("seed", fast_first([0, 1]))
def test_how_pieces_are_cut_and_where_they_run_makes_no_difference(corrected, seed):
    pytest.importorskip("cloudpickle", reason="comes with the extra cluster; a detector holds functions")
    model = with_metadata(v8())
    data = [None, *(feed(model, number) for number in range(3))]
    options = {"detector": detect(model), "corrected": corrected}
    whole, _ = measured(model, data=samples(data), **options)
    pool = Cut([1, 4, 9], seed)
    assert measured(model, data=samples(data), pool=pool, **options)[0] == whole
    assert pool.tasks == 4
    assert whole.samples == 3


@pytest.mark.parametrize("each", [1, 3])
def test_threads_of_one_worker_make_no_difference(each):
    pytest.importorskip("cloudpickle", reason="comes with the extra cluster; the work holds functions")
    model = silu_chain(layers=16)
    data = [feed(model, number) for number in range(8)]
    whole, _ = measured(model, data=samples(data))
    assert measured(model, data=samples(data), pool=Threaded(range(each, 17, each)))[0] == whole


@pytest.mark.parametrize("build", [csp, v8])
def test_what_stands_before_a_piece_makes_no_difference(build, monkeypatch):
    model = with_metadata(build())
    behind, _ = measured(model, detector=detect(model))
    monkeypatch.setattr("onnxq.passes.measure_sensitivity._MOST_BYTES", 0)
    whole, _ = measured(model, detector=detect(model))
    for one, other in zip(behind.pieces, whole.pieces, strict=True):
        assert one.nodes == other.nodes
        assert one.sqnr == pytest.approx(other.sqnr, abs=0.01)
        assert one.moved == pytest.approx(other.moved, abs=1e-4, nan_ok=True)


@pytest.fixture
def loaded_models(monkeypatch):
    """The models that are run, in their order."""
    models = []

    def noted(model, *args):
        models.append(model)
        return open_worker_session(model, *args)

    monkeypatch.setattr("onnxq.passes.measure_sensitivity.open_worker_session", noted)
    return models


def test_few_runs_compute_the_whole_network(loaded_models):
    found, _ = measured(silu_chain(layers=16))
    sizes = [len(model.graph.node) for model in loaded_models if quantizes(model)]
    assert len(sizes) == len(found.pieces)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < sizes[0] / 3


@pytest.mark.parametrize(
    ("build", "most"), [(csp, 1), (partial(silu_chain, layers=16), 1), (v8, 2)], ids=["csp", "silu_chain", "v8"]
)
def test_what_stands_before_the_pieces_is_computed_once_and_beside_them_twice(build, most, loaded_models):
    model = build()
    measured(model)
    whole, *parts = [[node.name for node in m.graph.node] for m in loaded_models if not quantizes(m)]
    counts = Counter(name for names in parts for name in names)
    assert len(parts) > 1
    assert max(counts.values()) == most
    assert set(counts) < set(whole)


def quantizes(model):
    return any(node.op_type == "QuantizeLinear" for node in model.graph.node)


@pytest.mark.parametrize("corrected", [False, True])
def test_damage_is_that_of_a_model_in_which_the_others_are_float(corrected):
    model = silu_chain(layers=5)
    found, plan = measured(model, corrected=corrected)
    layer = plan.layers[2]
    others = [name for name in plan.layers if name != layer]
    steps = quantizing(model, OPENVINO, exclude=others)
    at = next(k for k, step in enumerate(steps) if isinstance(step, InsertQdq))
    alone = Model(copy(model))
    Pipeline([*steps[:at], *([CorrectBias()] if corrected else []), *steps[at:]]).run(alone)
    feeds = [feed(model, seed) for seed in range(3)]
    name = model.graph.output[0].name
    expected, actual = (np.stack([run(m, f)[name] for f in feeds]) for m in (model, alone.to_proto()))
    assert by_layer(found)[layer].sqnr == pytest.approx(sqnr(expected, actual), abs=0.05)


def test_no_sum_saturates_on_any_cpu():
    found, plan = measured(saturating(), GENERIC, limited=False)
    assert plan.layers == ("wide", "product", "middle")
    assert min(piece.sqnr for piece in found.pieces) > 60


@pytest.mark.parametrize("target", [OPENVINO, ORT], ids=lambda t: t.name)
def test_the_layer_with_the_fewest_bits_is_the_most_sensitive(target):
    model = silu_chain(layers=5)
    _, plan = measured(model, target)
    victim = plan.layers[len(plan.layers) // 2]
    found, _ = measured(model, target, bits=[(victim, (2, 8))])
    assert found.worst_first()[0].nodes[0] == victim


@pytest.mark.slow
def test_boxes_are_compared_where_the_outputs_are_understood():
    model = with_metadata(v8())
    known, _ = measured(model, detector=detect(model), weight_bits=3)
    assert all(0 <= piece.moved <= 1 for piece in known.pieces)
    assert max(piece.moved for piece in known.pieces) > 0.01
    order = [piece.moved for piece in known.worst_first()]
    assert order == sorted(order, reverse=True)
    unknown, _ = measured(model, weight_bits=3)
    assert all(math.isnan(piece.moved) for piece in unknown.pieces)
    levels = [piece.sqnr for piece in unknown.worst_first()]
    assert levels == sorted(levels)


def test_at_most_sixteen_samples_are_run_evenly_spaced():
    model = silu_chain()
    loaded = []
    data = samples([feed(model, seed) for seed in range(40)])

    def noting(number, load):
        def note():
            loaded.append(number)
            return load()

        return note

    loaders = tuple(noting(number, load) for number, load in enumerate(data.loaders))
    found, _ = measured(model, data=type(data)(loaders, 40, "made up"))
    assert found.samples == 16
    assert loaded == [(2 * k + 1) * 40 // 32 for k in range(16)]


@pytest.mark.parametrize("data", [samples([]), samples([None])], ids=["empty", "unreadable"])
def test_without_pictures_it_is_refused(data):
    with pytest.raises(DataError, match="give --calib"):
        measured(silu_chain(), data=data)
