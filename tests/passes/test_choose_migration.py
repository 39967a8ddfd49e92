from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import Net, csp, feed, ops, planned, relu_net, run, samples, silu_chain, sqnr
from unbalanced import uneven

from onnxq import quantize
from onnxq.config import Config
from onnxq.errors import ConfigError, DataError
from onnxq.facts import Migration, Plan, Statistics
from onnxq.numerics.channel_scales import channel_scales
from onnxq.passes.choose_migration import ChooseMigration
from onnxq.pipeline import Facts
from onnxq.qdq.migration import migratable
from onnxq.targets import OPENVINO, ORT
from onnxq.targets.sizes import declared_sizes


def migration(model, data, *, required=True):
    working, plan = planned(model, OPENVINO)
    return ChooseMigration(data, 1, required=required).run(working, Facts([plan, declared_sizes(working)]))


def chosen(model, data):
    return migration(model, data).scales


def test_scales_follow_the_greatest_values_of_all_samples():
    model = uneven()
    feeds = [feed(model, seed) for seed in range(3)]
    [(tensor, scales)] = chosen(model, samples(feeds)).items()
    seen = np.concatenate([run(model, each, outputs=[tensor])[tensor] for each in feeds])
    assert scales == pytest.approx(channel_scales(seen.max(axis=(0, 2, 3))), rel=1e-4)


def test_each_tensor_is_one_that_can_be_migrated():
    model = csp()
    working, plan = planned(model, OPENVINO)
    scales = chosen(model, samples([feed(model)]))
    assert scales
    assert set(scales) <= set(migratable(working, plan))


def test_the_order_of_samples_makes_no_difference():
    model = csp()
    feeds = [feed(model, seed) for seed in range(4)]
    first, second = chosen(model, samples(feeds)), chosen(model, samples(feeds[::-1]))
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_samples_that_cannot_be_read_are_left_out():
    model = csp()
    readable = feed(model)
    first, second = chosen(model, samples([readable])), chosen(model, samples([None, readable]))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_samples_none_of_which_can_be_read_choose_nothing():
    assert chosen(csp(), samples([None])) == {}


UNSUITABLE = [
    (lambda: None, "there are no real images"),
    (lambda: replace(samples([feed(csp())] * 60), synthetic=True), "there are no real images"),
    (lambda: (feed(csp(), seed) for seed in range(60)), "the data can be read only once, and migration reads it again"),
]


@pytest.mark.parametrize(("data", "why"), UNSUITABLE, ids=["none", "synthetic", "once"])
def test_data_that_does_not_suffice_is_refused(data, why):
    with pytest.raises(DataError, match=f"scales cannot migrate: {why}; give a folder .+ or leave --migrate out"):
        quantize(csp(), data(), Config(target="openvino", migrate=True))


@pytest.mark.slow
@pytest.mark.parametrize(("data", "why"), UNSUITABLE, ids=["none", "synthetic", "once"])
def test_by_default_no_scales_migrate_by_data_that_does_not_suffice(data, why):
    result = quantize(csp(), data(), Config(target="openvino"))
    assert result.facts[Migration] == Migration({}, why)
    plain = quantize(csp(), data(), Config(target="openvino", migrate=False))
    assert result.model.SerializeToString(deterministic=True) == plain.model.SerializeToString(deterministic=True)


def test_few_samples_are_warned_of(caplog):
    feeds = [feed(csp())] * 50
    chosen(csp(), samples(feeds))
    assert not caplog.text
    chosen(csp(), samples(feeds[:49]))
    assert "scales migrate, but with 49 samples, fewer than 50, greater values would be cut off; give" in caplog.text


def test_by_default_no_scales_migrate_by_few_samples(caplog):
    feeds = [feed(csp())] * 50
    assert migration(csp(), samples(feeds), required=False).scales
    few = migration(csp(), samples(feeds[:49]), required=False)
    assert few == Migration({}, "with 49 samples, fewer than 50, greater values would be cut off")
    assert not caplog.text


@pytest.mark.parametrize("kind", ["array", "file"])
def test_samples_are_few_by_their_number_not_by_that_of_their_batches(tmp_path, caplog, kind):
    rows = np.concatenate([feed(csp())["images"]] * 50)
    np.save(tmp_path / "rows.npy", rows)
    data = rows if kind == "array" else tmp_path / "rows.npy"
    quantize(csp(batch=4), data, Config(target="openvino", migrate=True))
    assert "fewer than" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "number", "migrates"),
    [
        ({}, 50, True),
        ({}, 10, False),
        ({"migrate": True}, 10, True),
        ({"migrate": False}, 50, False),
        ({"weight_bits": 4}, 50, True),
        ({"weight_bits": 4, "reconstruct": False}, 50, False),
        ({"weight_bits": 4, "act_bits": 4}, 50, True),
        ({"weight_bits": 4, "migrate": True}, 50, True),
        ({"reconstruct": True}, 50, True),
        ({"target": "ort"}, 50, False),
        ({"target": "tensorrt"}, 50, False),
        ({"target": "generic"}, 50, False),
        ({"target": "qnn"}, 50, False),
    ],
    ids=str,
)
def test_scales_migrate_by_default_or_as_asked_for(options, number, migrates):
    model = csp()
    result = quantize(model, [feed(model)] * number, Config(**{"target": "openvino", **options}))
    assert bool((result.facts.get(Migration) or Migration({})).scales) == migrates
    assert any("_migrated" in node.output[0] for node in result.model.graph.node) == migrates


def strided(size):
    """A 1x1 Conv at stride 8 whose SiLU stays float in onnxruntime, before the last layer."""
    net = Net(size=size)
    x = net.block(net.block(net.block("images", 8, stride=2), 8, stride=2), 8, stride=2)
    return net.model(net.conv(net.silu(net.conv(x, 8, name="before")), 32, name="last"))


@pytest.mark.parametrize(("stride", "divided"), [(None, 0), (1, 2), (8, 1), (9, 0)])
def test_a_mul_divides_tensors_of_the_least_stride(stride, divided):
    model = strided(64)
    working, plan = planned(model, ORT)
    scales = ChooseMigration(samples([feed(model)]), stride).run(working, Facts([plan, declared_sizes(working)])).scales
    assert len(scales) == divided


@pytest.mark.parametrize("at_sources", [True, False])
def test_tensors_that_are_divided_at_their_source_can_be_left_out(at_sources):
    net = Net()
    x = net.add("Relu", net.conv("images", 8))
    net.channels[x] = 8
    model = net.model(net.conv(net.silu(net.conv(x, 8, 3)), 8, 3))
    working, plan = planned(model, OPENVINO)
    found = migratable(working, plan)
    facts = Facts([plan, declared_sizes(working)])
    scales = ChooseMigration(samples([feed(model)]), 1, at_sources=at_sources).run(working, facts).scales
    assert sorted(bool(each.sources) for each in found.values()) == [False, True]
    assert scales.keys() == {name for name, each in found.items() if at_sources or not each.sources}


def test_the_image_need_not_be_the_first_input():
    model = strided(64)
    model.graph.input.insert(0, onnx.helper.make_tensor_value_info("im_shape", onnx.TensorProto.FLOAT, [1, 2]))
    working, plan = planned(model, ORT)
    values = {"im_shape": np.zeros((1, 2), np.float32), "images": feed(strided(64))["images"]}
    assert len(ChooseMigration(samples([values]), 8).run(working, Facts([plan, declared_sizes(working)])).scales) == 1


def test_onnxruntime_divides_behind_float_nodes_and_computes_the_same_nodes_on_integers():
    model = strided(64)
    data = [feed(model, seed) for seed in range(50)]
    plain, made = (quantize(model, data, Config(target="ort", migrate=each)) for each in (False, None))
    assert len(made.facts[Migration].scales) == 1
    assert plain.facts[Plan].integer == made.facts[Plan].integer
    assert Counter(ops(made.model)) - Counter(ops(plain.model)) == Counter(["Mul"])
    values = feed(model, 77)
    [expected], [one], [other] = (list(run(each, values).values()) for each in (model, plain.model, made.model))
    assert sqnr(expected, other) > sqnr(expected, one) - 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "qnn"}, "spends time on the division; --migrate is for --target ort, openvino, tensorrt"),
        ({"target": "generic"}, "--migrate is for --target ort, openvino, tensorrt"),
    ],
)
def test_where_scales_cannot_migrate(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(migrate=True, **options)


@pytest.mark.parametrize("migrate", [True, None, False])
def test_a_saved_calibration_gives_the_same_bytes(migrate):
    model = uneven()
    config = Config(target="openvino", migrate=migrate)
    first = quantize(model, [feed(model, seed) for seed in range(50)], config)
    assert bool(first.facts[Statistics].migration) == (migrate is not False)
    second = quantize(model, None, config, facts=[first.facts[Statistics]])
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)


def test_a_calibration_of_few_samples_migrates_no_scales_by_default():
    model = uneven()
    first = quantize(model, [feed(model, seed) for seed in range(10)], Config(target="openvino"))
    second = quantize(model, None, Config(target="openvino"), facts=[first.facts[Statistics]])
    assert second.facts[Migration] == Migration({}, "the calibration has no scales")
    assert first.model.SerializeToString(deterministic=True) == second.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("build", [uneven, silu_chain, csp, relu_net])
def test_the_plan_is_that_of_the_model_before(build):
    model = build()
    data = [feed(model, seed) for seed in range(10)]
    configs = [Config(target="openvino", migrate=migrate) for migrate in (False, True)]
    plans = [quantize(model, data, config).facts[Plan] for config in configs]
    assert plans[0].layers == plans[1].layers
    assert plans[0].weights == plans[1].weights
    assert [point.scheme for point in plans[0].points] == [point.scheme for point in plans[1].points]
