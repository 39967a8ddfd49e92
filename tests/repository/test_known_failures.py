"""Failures known from quantizing detectors do not occur; docs/known-failures.md lists them and the test of each."""

import ast
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import paired
from graphs import csp, feed, pp_yoloe, run, sqnr, v5, v6, v7_end2end, v8, v10, yolo_nas, yolox

import onnxq
from onnxq.facts import FittedRanges, Plan, Statistics
from onnxq.targets import TARGETS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "known-failures.md"

SCORES = {
    "v5": (v5, lambda outputs: outputs["output"][:, :, 4:]),
    "v6": (v6, lambda outputs: outputs["output"][:, :, 4:]),
    "v8": (v8, lambda outputs: outputs["output"][:, 4:]),
    "yolox": (yolox, lambda outputs: outputs["output"][:, :, 4:]),
    "pp_yoloe": (pp_yoloe, lambda outputs: outputs["output1"]),
    "yolo_nas": (yolo_nas, lambda outputs: outputs["output1"]),
}
"""Family -> its graph, and its class scores (and objectness) among the outputs, 0 to 1."""


def quantized(model: onnx.ModelProto, feeds=None, **options) -> onnxq.Quantized:
    return onnxq.quantize(model, feeds or [feed(model, seed) for seed in range(4)], onnxq.Config(**options))


@pytest.mark.slow
@pytest.mark.parametrize(("family", "target"), paired(SCORES, TARGETS))
def test_scores_are_not_rounded_on_the_scale_of_boxes(family, target):
    build, scores = SCORES[family]
    model = build()
    found = quantized(model, target=target).model
    for seed in (7, 8):
        values = feed(model, seed)
        expected, actual = scores(run(model, values)), scores(run(found, values))
        # A scale that reaches 32 px has steps of 0.125, which leaves eight scores at most.
        assert len(np.unique(actual)) > 40
        # 40.6 to 69.5 dB.
        assert sqnr(expected, actual) > 39


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("build", [v10, v7_end2end])
def test_what_picks_the_best_boxes_is_never_quantized(build, target):
    found = quantized(build(), target=target)
    made_by = {name: node for node in found.model.graph.node for name in node.output}
    quantizing = [node for node in found.model.graph.node if node.op_type == "QuantizeLinear"]
    sources = [made_by[node.input[0]].name for node in quantizing if node.input[0] in made_by]
    assert len(sources) > 2
    plan = found.facts[Plan]
    picks = {
        name for name, op in plan.ops.items() if op in ("TopK", "NonMaxSuppression", "ReduceMax", "GatherElements")
    }
    assert picks
    assert not picks & plan.integer
    if not TARGETS[target].quantizes_decode:
        assert not [name for name in [*sources, *plan.integer] if name.startswith("decode_")]


@pytest.mark.slow
def test_no_detection_is_no_hindrance():
    model = v7_end2end()
    dark = [{"images": np.zeros((1, 3, 32, 32), np.float32)}, feed(model)]
    found = quantized(model, dark)
    picked = run(found.model, {"images": np.full((1, 3, 32, 32), -9, np.float32)})["output"]
    assert picked.shape[1] == 3


def with_outlier(model: onnx.ModelProto, at: int) -> list[dict[str, np.ndarray]]:
    """Return eight samples, one of them fifty times as bright."""
    feeds = [feed(model, seed) for seed in range(8)]
    feeds[at] = {"images": 50 * feeds[at]["images"]}
    return feeds


def highest(found: onnxq.Quantized) -> float:
    """Return the greatest upper bound of all activations."""
    return max(fit.bounds.high for fit in found.facts[FittedRanges].groups.values())


@pytest.mark.slow
@pytest.mark.parametrize("at", [0, 3, 7])
def test_an_outlier_counts_wherever_it_stands(at):
    model = v8()
    feeds = with_outlier(model, at)
    plain = quantized(model, feeds[:at] + feeds[at + 1 :], method="minmax")
    assert highest(quantized(model, feeds, method="minmax")) > 5 * highest(plain)


@pytest.mark.slow
def test_a_dark_image_first_costs_no_memory_and_changes_nothing():
    model = v8()
    dark = {"images": np.full((1, 3, 32, 32), 1e-4, np.float32)}
    bright = {"images": np.full((1, 3, 32, 32), 1e4, np.float32) * feed(model)["images"]}
    one, other = (quantized(model, feeds) for feeds in ([dark, bright], [bright, dark]))
    assert one.model.SerializeToString(deterministic=True) == other.model.SerializeToString(deterministic=True)
    assert max(h.counts.size for h in one.facts[Statistics].histograms.values()) <= 4096


@pytest.mark.slow
@pytest.mark.parametrize("method", ["entropy", "mse", "uh"])
def test_no_method_is_minmax_by_another_name(method):
    model = v8()
    feeds = [feed(model, seed) for seed in range(8)]
    feeds[2]["images"][0, :, 16, 16] = 30
    few = {"act_bits": 4, "reconstruct": False}
    wide, narrow = (
        quantized(model, feeds, method=name, **few).facts[FittedRanges].groups for name in ("minmax", method)
    )
    assert any(narrow[group].bounds.high < 0.9 * wide[group].bounds.high for group in wide)


@pytest.mark.slow
def test_percentile_keeps_both_sides():
    groups = quantized(v8(), method="percentile").facts[FittedRanges].groups.values()
    assert min(fit.bounds.low for fit in groups) < 0
    assert any(abs(fit.bounds.low) < 0.5 * fit.bounds.high for fit in groups)


def test_samples_may_differ_in_size():
    model = csp(dynamic=True)
    feeds = [feed(model, seed, {"batch": 1, "height": 32 * (seed + 1), "width": 32}) for seed in range(3)]
    found = onnxq.quantize(model, feeds, onnxq.Config(image_size=(32, 32)))
    assert found.facts[Statistics].samples == 3


# The document


def _named_tests() -> list[tuple[Path, str]]:
    return [(ROOT / path, name) for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOCUMENT.read_text())]


def test_every_test_that_the_document_names_exists():
    named = _named_tests()
    assert len(named) > 20
    for path, name in named:
        names = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
        assert name in names, f"{path.name} has no {name}"
