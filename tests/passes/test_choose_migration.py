from dataclasses import replace

import numpy as np
import pytest
from graphs import csp, feed, planned, relu_net, run, samples, silu_chain
from unbalanced import uneven

from onnxq import quantize
from onnxq.config import Config
from onnxq.errors import ConfigError, DataError
from onnxq.facts import Migration, Plan, Statistics
from onnxq.numerics.channel_scales import channel_scales
from onnxq.passes.choose_migration import ChooseMigration
from onnxq.pipeline import Facts
from onnxq.qdq.migration import migratable
from onnxq.targets import OPENVINO


def chosen(model, data, target=OPENVINO):
    working, plan = planned(model, target)
    return ChooseMigration(data).run(working, Facts([plan])).scales


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


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "scales migrate by the values of real images: give --calib, or leave --migrate out"),
        (replace(samples([]), synthetic=True), "scales migrate by the values of real images"),
        ((feed(csp(), seed) for seed in range(2)), "can be read only once, migration reads it again"),
    ],
    ids=["none", "synthetic", "once"],
)
def test_data_that_does_not_suffice_is_refused(data, message):
    with pytest.raises(DataError, match=message):
        quantize(csp(), data, Config(target="openvino", migrate=True))


def test_few_samples_are_warned_of(caplog):
    feeds = [feed(csp())] * 50
    chosen(csp(), samples(feeds))
    assert "with so few" not in caplog.text
    chosen(csp(), samples(feeds[:49]))
    assert "by the values of 49 samples: with so few, greater values are cut off" in caplog.text


@pytest.mark.parametrize("kind", ["array", "file"])
def test_samples_are_few_by_their_number_not_by_that_of_their_batches(tmp_path, caplog, kind):
    rows = np.concatenate([feed(csp())["images"]] * 50)
    np.save(tmp_path / "rows.npy", rows)
    data = rows if kind == "array" else tmp_path / "rows.npy"
    quantize(csp(batch=4), data, Config(target="openvino", migrate=True))
    assert "with so few" not in caplog.text


def test_scales_migrate_only_if_asked_for():
    model = csp()
    data = [feed(model, seed) for seed in range(10)]
    for migrate in (False, True):
        result = quantize(model, data, Config(target="openvino", migrate=migrate))
        assert (Migration in result.facts) == migrate
        assert any("_migrated" in node.output[0] for node in result.model.graph.node) == migrate


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "ort"}, "does not fuse the division .+; --migrate is for --target openvino"),
        ({"target": "tensorrt"}, "--migrate is for --target openvino"),
        ({"target": "openvino", "reconstruct": True}, "leave --migrate out"),
        ({"target": "openvino", "act_bits": 6}, "leave --migrate out"),
    ],
)
def test_where_scales_cannot_migrate(options, message):
    with pytest.raises(ConfigError, match=message):
        Config(migrate=True, **options)


def test_a_saved_calibration_gives_the_same_bytes():
    model = uneven()
    first = quantize(model, [feed(model, seed) for seed in range(10)], Config(target="openvino", migrate=True))
    assert first.facts[Statistics].migration
    second = quantize(model, None, Config(target="openvino", migrate=True), facts=[first.facts[Statistics]])
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
