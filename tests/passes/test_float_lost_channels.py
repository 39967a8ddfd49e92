import dataclasses
import logging

import pytest
from cases import fast_first
from graphs import csp, feed, pan, sppf
from unbalanced import amplified, joining, shifted

from onnxq import Config, quantize
from onnxq.errors import DataError
from onnxq.facts import Plan, Statistics, Verification
from onnxq.ir import Model
from onnxq.passes.float_lost_channels import FloatLostChannels
from onnxq.passes.plan_quantization import PlanQuantization
from onnxq.pipeline import Facts
from onnxq.targets import TARGETS

ONE_FAST = fast_first(["generic", "ort", "openvino", "tensorrt"])
"""Targets with 8-bit activations; all but one are slow."""

MAKER_TOO = ("ort", "generic")
"""Targets that quantize the output of the Conv before the SiLU."""


def run(model, target, **options):
    return quantize(model, [feed(model, seed) for seed in range(2)], Config(target=target, equalize=False, **options))


def without(monkeypatch):
    """Plan without the values."""
    monkeypatch.setattr(FloatLostChannels, "run", lambda self, model, facts: facts[Plan])


def sqnr(quantized):
    return quantized.facts[Verification].simulated[quantized.model.graph.output[0].name]


def lost(quantized):
    return {name for name, reason in quantized.facts[Plan].skipped.items() if reason.code == "lost-channels"}


@pytest.mark.parametrize("ratio", [30, 1000])
@pytest.mark.parametrize(
    ("target", "kind"),
    fast_first(
        [
            ("generic", "depthwise"),
            ("openvino", "full"),
            ("ort", "depthwise"),
            *((target, "full") for target in ("ort", "tensorrt", "generic")),
        ],
        2,
    ),
)
def test_layers_that_amplify_lost_channels_stay_float(target, kind, ratio, monkeypatch):
    model = amplified(ratio, kind)
    after = run(model, target)
    without(monkeypatch)
    assert sqnr(run(model, target)) < 20
    assert sqnr(after) > 30
    assert lost(after) == ({"maker", "reader"} if target in MAKER_TOO else {"reader"})


@pytest.mark.parametrize("channels", [1, 64])
@pytest.mark.parametrize("target", ONE_FAST)
def test_layers_behind_channels_that_differ_little_from_a_great_mean_stay_float(target, channels, monkeypatch):
    model = shifted(100, channels)
    after = run(model, target)
    without(monkeypatch)
    assert sqnr(run(model, target)) < 17
    assert sqnr(after) > 28
    assert "reader" in lost(after)


@pytest.mark.parametrize("target", ONE_FAST)
def test_a_small_offset_is_no_reason(target):
    assert not lost(run(shifted(1, 64), target))


def test_a_layer_of_which_the_weights_of_great_channels_round_away_stays_float(monkeypatch):
    model = amplified(1000)
    after = run(model, "qnn")
    without(monkeypatch)
    assert sqnr(run(model, "qnn")) < 17
    assert sqnr(after) > 35
    assert lost(after) == {"reader"}  # 16 bits hold its input
    reason = after.facts[Plan].skipped["reader"]
    assert "one scale for all weights that read" in reason.text


@pytest.mark.parametrize("kind", ["full", "depthwise"])
@pytest.mark.parametrize("target", fast_first(["ort", "openvino", "tensorrt", "generic", "qnn"]))
def test_layers_of_like_channels_are_planned_as_before(target, kind, monkeypatch):
    model = amplified(2, kind)
    after = run(model, target)
    without(monkeypatch)
    assert after.facts[Plan] == run(model, target).facts[Plan]


@pytest.mark.parametrize("build", fast_first([csp, pan, sppf]))
@pytest.mark.parametrize("bits", [4, 8])
def test_usual_blocks_are_planned_as_before_at_any_width(build, bits, monkeypatch):
    after = run(build(), "generic", weight_bits=bits, act_bits=bits, reconstruct=False)
    without(monkeypatch)
    assert after.facts[Plan] == run(build(), "generic", weight_bits=bits, act_bits=bits, reconstruct=False).facts[Plan]


@pytest.mark.parametrize("target", ONE_FAST)
def test_the_reader_of_a_concat_that_loses_an_input_stays_float(target, monkeypatch):
    model = joining(1000)
    after = run(model, target)
    without(monkeypatch)
    assert sqnr(run(model, target)) < 10
    assert sqnr(after) > 25
    assert "reader" in lost(after)


def test_an_included_layer_stays_on_integers_and_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        quantized = run(amplified(1000), "openvino", include=("reader",))
    assert "reader" in quantized.facts[Plan].layers
    assert "Conv 'reader' stays on integers although one scale for the channels of" in caplog.text


@pytest.mark.parametrize("shared", ["conv", "concat"])
@pytest.mark.parametrize("target", ONE_FAST)
def test_the_reader_takes_the_float_tensor_though_others_take_integers(target, shared, monkeypatch):
    model = amplified(1000, shared=shared)
    after = run(model, target)
    assert "reader" in lost(after)
    assert sqnr(after) > 30
    without(monkeypatch)
    assert sqnr(run(model, target)) < 20


def test_a_layer_is_warned_of_if_its_plan_needs_values_that_were_not_observed(caplog, monkeypatch):
    planned = PlanQuantization.plan

    def of_more_values(self, model, boundary, sizes, lost):
        plan = planned(self, model, boundary, sizes, lost)
        other = dataclasses.replace(plan.points[0], tensor="other", sources=("other",))
        return dataclasses.replace(plan, points=(*plan.points, other)) if lost else plan

    monkeypatch.setattr(PlanQuantization, "plan", of_more_values)
    with caplog.at_level(logging.WARNING):
        quantized = run(amplified(1000), "openvino")
    assert not lost(quantized)
    assert "Conv 'reader' stays on integers although one scale for the channels of" in caplog.text


def test_a_network_of_which_all_layers_are_lost_stays_on_integers_and_is_warned_of(caplog):
    model = amplified(1000)
    others = tuple(n.name for n in model.graph.node if n.op_type == "Conv" and n.name not in ("maker", "reader"))
    with caplog.at_level(logging.WARNING):
        quantized = run(model, "generic", exclude=others)
    assert set(quantized.facts[Plan].layers) == {"maker", "reader"}
    assert "Conv 'maker' stays on integers" in caplog.text


def test_a_few_are_named_and_the_others_counted(caplog, monkeypatch):
    monkeypatch.setattr("onnxq.passes.float_lost_channels._MOST_NAMED", 1)
    with caplog.at_level(logging.WARNING):
        run(amplified(1000), "generic", include=("maker", "reader"))
    assert sum("stays on integers although" in text for text in caplog.messages) == 1
    assert "1 more such layer on integers" in caplog.messages


def test_statistics_of_another_model_are_refused():
    statistics = Statistics({}, 1, "of another")
    model, plan = Model(amplified(1)), Plan((), (), frozenset(), (), {})
    step = FloatLostChannels(PlanQuantization(TARGETS["ort"]), TARGETS["ort"])
    with pytest.raises(DataError, match="made with another model"):
        step.run(model, Facts([statistics, plan]))
