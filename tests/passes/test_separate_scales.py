import pytest
from cases import fast_first
from graphs import feed, pan, sppf
from unbalanced import joining

from onnxq import Config, quantize
from onnxq.errors import DataError
from onnxq.facts import Plan, Statistics, Verification
from onnxq.ir import Model
from onnxq.passes.separate_scales import SeparateScales
from onnxq.pipeline import Facts
from onnxq.targets import TARGETS


def run(model, target, **options):
    return quantize(model, [feed(model, seed) for seed in range(2)], Config(target=target, equalize=False, **options))


def group(quantized, tensor):
    points = quantized.facts[Plan].points
    name = next(p.group for p in points if p.tensor == tensor)
    return {p.tensor for p in points if p.group == name}


def without(monkeypatch):
    """Let inputs share a scale whatever their size."""
    monkeypatch.setattr(SeparateScales, "run", lambda self, model, facts: facts[Plan])


# TensorRT binds an input that others read. Elsewhere its scale reaches the input through the Resize.
cases = pytest.mark.parametrize(
    ("target", "kind", "ratio"),
    fast_first(
        [
            ("tensorrt", "read", 1000),
            ("qnn", "enlarged", 100_000),
            ("ort", "enlarged", 1000),
            ("generic", "enlarged", 1000),
        ],
        2,
    ),
)


@cases
def test_a_small_input_that_others_compute_with_gets_a_scale_of_its_own(target, kind, ratio, monkeypatch):
    model = joining(ratio, kind)
    after = run(model, target, include=("reader",))
    without(monkeypatch)
    before = run(model, target, include=("reader",))
    assert "concat0_out" in group(before, "mul1_out")
    assert "concat0_out" not in group(after, "mul1_out")
    assert "mul1_out" in group(after, "mul1_out")
    first = after.model.graph.output[0].name
    was, now = (quantized.facts[Verification].simulated[first] for quantized in (before, after))
    assert was < 10
    assert now > 28


@cases
def test_inputs_of_like_size_share_a_scale(target, kind, ratio, monkeypatch):
    model = joining(3, kind)
    after = run(model, target)
    without(monkeypatch)
    assert after.facts[Plan] == run(model, target).facts[Plan]


@pytest.mark.parametrize("target", ["tensorrt", "generic"])
def test_an_input_that_only_the_concat_reads_shares_its_scale(target, monkeypatch):
    model = joining(1000)
    after = run(model, target)
    without(monkeypatch)
    assert after.facts[Plan] == run(model, target).facts[Plan]


@pytest.mark.parametrize("build", [pan, sppf])
@pytest.mark.parametrize("target", ["tensorrt", "generic"])
def test_usual_necks_are_planned_as_before(build, target, monkeypatch):
    after = run(build(), target)
    without(monkeypatch)
    assert after.facts[Plan] == run(build(), target).facts[Plan]


def test_statistics_of_another_model_are_refused():
    statistics = Statistics({}, 1, "of another")
    model, plan = Model(joining(1)), Plan((), (), frozenset(), (), {})
    with pytest.raises(DataError, match="made with another model"):
        SeparateScales(TARGETS["ort"]).run(model, Facts([statistics, plan]))
