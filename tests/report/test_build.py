import json
import math
import os
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from graphs import depthwise_net, feed, initializers, ops, silu_chain, v8, yolox
from unbalanced import uneven

from onnxq import Config, quantize
from onnxq.errors import ConfigError
from onnxq.evaluation.average_precision import PrecisionSummary
from onnxq.evaluation.mixed_precision import HigherPrecision, SearchResult
from onnxq.evaluation.predictor import Settings
from onnxq.facts import FittedRanges, Migration, Plan, QuantizationParameters, Statistics, Verification
from onnxq.numerics.range_methods import METHODS
from onnxq.numerics.scheme import INT8, QParams, Scheme
from onnxq.pipeline import Facts
from onnxq.qdq.tensor_result import tensor_results
from onnxq.report.build import _some, build, check_name, to_json, write
from onnxq.report.findings import findings
from onnxq.report.html import to_html
from onnxq.report.markdown import to_markdown
from onnxq.report.schema import (
    DetectorEntry,
    FileSizes,
    FloatNode,
    HigherPrecisionEntry,
    RangeEntry,
    SearchEntry,
    TrialEntry,
    as_dict,
)
from onnxq.version import VERSION

CONFIG = Config(method="mse", weight_bits=4, act_bits=6, exclude=("conv3", "re:^conv4$"), target="generic")


@pytest.fixture(scope="module")
def result():
    model = v8()
    return quantize(model, [feed(model, seed) for seed in range(3)], CONFIG)


@pytest.fixture
def report(result):
    return build(result, CONFIG, source="net.onnx", before=1000, after=300)


def with_checked(result, **changes):
    """The result, had the check found something else."""
    facts = [replace(fact, **changes) if isinstance(fact, Verification) else fact for fact in result.facts]
    return replace(result, facts=Facts(facts))


def qparams_of(scales):
    """A grid of a weight with these scales."""
    scheme = Scheme(container=INT8, symmetric=True, axis=0)
    return QParams(scales.astype(np.float32), np.zeros(scales.size, np.int8), scheme)


class TestBuild:
    @pytest.mark.slow
    def test_has_model_and_options(self, report):
        expected = {
            "format": 1,
            "onnxq": VERSION,
            "model": "net.onnx",
            "target": "generic",
            "method": "mse",
            "weight_method": "minmax",
            "weight_bits": 4,
            "act_bits": 6,
            "symmetric": False,
            "keep_bias": False,
            "rounding": "feedback",
            "exclude": ("conv3", "re:^conv4$"),
            "options": tuple(CONFIG.flags),
            "samples": 3,
            "bytes": FileSizes(before=1000, after=300),
        }
        assert {key: getattr(report, key) for key in expected} == expected

    @pytest.mark.slow
    def test_has_the_detector(self, report, result):
        assert report.detector == DetectorEntry(
            family="v8",
            task="detect",
            size=(32, 32),
            preprocess="RGB, 0-1, letterbox centred",
            why=result.detector.why,
        )

    @pytest.mark.slow
    def test_gives_each_node_integers_or_a_reason(self, report, result):
        layers, floats = report.layers.integer, report.float_
        assert layers == result.facts[Plan].layers
        assert floats == {
            name: FloatNode(reason.code, reason.text) for name, reason in result.facts[Plan].skipped.items()
        }
        assert floats["conv3"] == FloatNode("excluded", "excluded: matches conv3")
        assert not set(layers) & set(floats)

    @pytest.mark.slow
    def test_has_the_grid_and_range_of_each_activation(self, report, result):
        plan, ranges, grid = (result.facts[kind] for kind in (Plan, FittedRanges, QuantizationParameters))
        assert [entry.tensor for entry in report.activations] == [point.tensor for point in plan.points]
        for entry, point in zip(report.activations, plan.points, strict=True):
            fit, qparams = ranges.groups[point.group], grid.activations[point.tensor]
            assert entry.group == point.group
            assert (entry.low, entry.high) == (fit.bounds.low, fit.bounds.high)
            assert (entry.method, entry.clipped) == (fit.method, fit.clipped)
            assert (entry.own.low, entry.own.high) == (entry.low, entry.high)
            assert entry.bits == point.scheme.bits
            assert entry.scale == (float(qparams.scale),) * 2
            assert entry.zero_point == (int(qparams.zero_point),)
        assert {entry.bits for entry in report.activations} == {6, 8}
        assert {entry.method for entry in report.activations} >= {"mse", "minmax", "known"}

    def test_has_the_noise_of_each_tensor_and_of_its_group(self, report, result):
        outcomes = {outcome.point.tensor: outcome for outcome in tensor_results(result.facts)}
        for entry in report.activations:
            outcome = outcomes[entry.tensor]
            for shown, fit in ((entry.own, outcome.own), (entry, outcome.fit)):
                assert shown.sqnr == (None if math.isnan(fit.sqnr) else pytest.approx(fit.sqnr, abs=0.001))
                assert shown.clipped == fit.clipped
            if entry.group in report.values:
                chosen = report.values[entry.group].chosen
                assert chosen == RangeEntry(entry.low, entry.high, entry.sqnr, entry.clipped)

    @pytest.mark.slow
    def test_has_the_grid_of_each_weight(self, report, result):
        stored = initializers(result.model)
        assert tuple(name for entry in report.weights for name in entry.layers) == report.layers.integer
        for entry in report.weights:
            scales = stored[f"{entry.tensor}_scale"]
            assert entry.scale == (float(scales.min()), float(scales.max()))
            assert entry.zero_point == (0,)
            assert (entry.bits, entry.axis) in ((4, 0), (8, 0))
        assert entry.scale[0] < entry.scale[1]

    @pytest.mark.slow
    def test_has_the_kind_of_layer_and_some_scales_of_each_weight(self, report, result):
        stored = initializers(result.model)
        kinds = {name: entry.kind for entry in report.weights for name in entry.layers}
        assert kinds["conv0"] == "3x3 Conv"
        assert set(kinds.values()) == {"3x3 Conv", "1x1 Conv"}
        for entry in report.weights:
            scales = stored[f"{entry.tensor}_scale"]
            assert entry.channels == scales.size
            assert list(entry.scales) == sorted(map(float, np.ravel(scales)), reverse=True)

    @pytest.mark.slow
    def test_distinguishes_kinds_of_layers(self):
        model = depthwise_net()
        made = build(quantize(model, [feed(model)], Config(target="generic")), Config(), source="n", before=1, after=1)
        assert Counter(entry.kind for entry in made.weights)["depthwise Conv"] == 2
        matrices = v8()
        made = build(quantize(matrices, [feed(matrices)]), Config(), source="n", before=1, after=1)
        assert made.operators.quantized["Gemm"] > 0
        assert {entry.kind for entry in made.weights} == {"3x3 Conv", "1x1 Conv"}

    def test_has_64_scales_of_a_weight_with_many_channels(self):
        scales = _some(qparams_of(np.arange(1.0, 301.0)).scale)
        assert (len(scales), scales[0], scales[-1]) == (64, 300.0, 1.0)
        assert list(scales) == sorted(scales, reverse=True)

    def test_has_the_channels_of_migrated_tensors_before_and_after(self):
        model = uneven()
        config = Config(target="openvino", migrate=True)
        made = quantize(model, [feed(model, seed) for seed in range(3)], config)
        report = build(made, config, source="n", before=1, after=1)
        scales = made.facts[Migration].scales
        assert report.migrate
        assert [entry.tensor for entry in report.migrated] == list(scales)
        for entry in report.migrated:
            [divided] = [node for node in made.model.graph.node if node.op_type == "Mul" and entry.tensor in node.input]
            peaks = made.facts[Statistics].channels[divided.output[0]].peaks
            assert entry.channels == len(peaks)
            assert entry.after == tuple(sorted(peaks, reverse=True))
            assert entry.before == pytest.approx(sorted(peaks * scales[entry.tensor], reverse=True))
            assert entry.before[0] / entry.before[-1] > entry.after[0] / entry.after[-1]
            assert set(entry.layers) <= set(made.facts[Plan].layers)

    def test_has_tensors_that_are_divided_at_their_source(self):
        model = silu_chain(act="Relu")
        config = Config(target="openvino", migrate=True, equalize=False)
        made = quantize(model, [feed(model, seed) for seed in range(3)], config)
        report = build(made, config, source="n", before=1, after=1)
        assert [entry.tensor for entry in report.migrated] == list(made.facts[Migration].scales) != []
        assert "Mul" not in ops(made.model)

    def test_has_no_migrated_tensors_if_no_scales_migrate(self, report):
        assert (report.migrate, report.migrated) == (False, ())

    @pytest.mark.slow
    def test_has_the_values_of_each_group_and_the_ranges_of_all_methods(self, report, result):
        plan, statistics = result.facts[Plan], result.facts[Statistics]
        groups = {point.group: point for point in plan.points if point.sources}
        assert report.values.keys() == groups.keys()
        for group, values in report.values.items():
            histogram = statistics.of({s for p in plan.groups()[group] for s in p.sources})
            assert sum(values.counts) == histogram.total
            assert (values.low, values.high) == (pytest.approx(histogram.low), pytest.approx(histogram.high))
            assert len(values.counts) <= 96
            assert list(values.methods) == list(METHODS)
            assert values.methods["minmax"].clipped == 0
        chosen = {a.group: a for a in report.activations if a.method == "mse"}
        assert chosen
        for group, entry in chosen.items():
            assert report.values[group].methods["mse"].sqnr == entry.sqnr
            assert entry.grid[0] == pytest.approx(min(entry.low, 0), abs=entry.scale[0])
            assert entry.grid[1] == pytest.approx(max(entry.high, 0), abs=entry.scale[0])

    @pytest.mark.slow
    def test_counts_operators_before_and_after(self, report, result):
        before, after = report.operators.float_, report.operators.quantized
        assert before == Counter(result.facts[Plan].ops.values())
        assert after == Counter(ops(result.model))
        assert after["QuantizeLinear"] > 0
        assert "QuantizeLinear" not in before

    @pytest.mark.slow
    def test_has_findings_search_and_evaluation(self, result):
        kept = (HigherPrecision(("conv9", "mul9"), 8), HigherPrecision(("conv1",), None))
        search = SearchResult(result, CONFIG, kept, 0.1, "-0.10 AP", 7, {2: "-0.10 AP", 0: "-0.90 AP"})
        precision = PrecisionSummary("a.json", 2, Settings(), ())
        made = build(result, CONFIG, source="net.onnx", before=1, after=1, search=search, evaluation=precision)
        assert made.search == SearchEntry(
            loss_text="-0.10 AP",
            images=7,
            kept=(HigherPrecisionEntry(("conv9", "mul9"), 8), HigherPrecisionEntry(("conv1",), None)),
            trials=(TrialEntry(0, "-0.90 AP"), TrialEntry(2, "-0.10 AP")),
        )
        assert made.evaluation == precision
        assert made.findings == findings(made)
        assert made.findings

    @pytest.mark.slow
    def test_has_the_seconds_of_each_pass(self, report, result):
        assert list(report.seconds) == list(result.timings)
        for name, seconds in result.timings.items():
            assert report.seconds[name] == pytest.approx(seconds, abs=0.001)

    @pytest.mark.slow
    def test_has_the_sqnr_of_each_output(self, report, result):
        assert report.sqnr == {"output": pytest.approx(result.facts[Verification].sqnr["output"], abs=0.001)}

    @pytest.mark.slow
    def test_describes_the_data(self, report):
        assert report.calibration == "samples of a Python list"

    @pytest.mark.slow
    def test_describes_given_statistics(self, result):
        report = build(replace(result, samples=None), CONFIG, source="net.onnx", before=1, after=1)
        assert report.calibration == "given statistics"

    @pytest.mark.slow
    def test_has_fused_layers_only_if_the_runtime_was_asked(self, report):
        assert report.layers.fused is None
        model = v8()
        result = quantize(model, [feed(model, seed) for seed in range(3)])
        asked = build(result, Config(), source="net.onnx", before=1, after=1)
        assert (asked.layers.fused, asked.layers.unfused) == (11, ())

    @pytest.mark.slow
    def test_is_the_same_for_equal_runs_but_for_the_seconds(self, report, result):
        model = yolox()
        first, second = (
            build(quantize(model, [feed(model)]), Config(), source="net.onnx", before=1, after=1) for _ in range(2)
        )
        assert first.seconds.keys() == second.seconds.keys()
        assert replace(first, seconds={}) == replace(second, seconds={})


@pytest.mark.slow
class TestJson:
    def test_is_the_report(self, report):
        assert to_json(report) == json.dumps(as_dict(report), indent=2) + "\n"

    @pytest.mark.slow
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_what_is_not_finite_is_null(self, result, value):
        report = build(with_checked(result, sqnr={"output": value}), CONFIG, source="net.onnx", before=1, after=1)
        text = to_json(report)
        assert not re.search("NaN|Infinity", text)
        assert json.loads(text)["sqnr"] == {"output": None}

    def test_known_ranges_have_no_accuracy(self, report):
        known = [entry for entry in json.loads(to_json(report))["activations"] if entry["method"] == "known"]
        assert known
        assert {entry["sqnr"] for entry in known} == {None}


@pytest.mark.slow
class TestWrite:
    @pytest.mark.parametrize(("name", "text"), [("r.json", to_json), ("r.md", to_markdown), ("r.html", to_html)])
    def test_chooses_by_the_ending(self, tmp_path, report, name, text):
        write(report, tmp_path / name)
        assert (tmp_path / name).read_text(encoding="utf-8") == text(report)

    @pytest.mark.parametrize("name", ["r.txt", "r", "r.json.gz", ".json"])
    def test_refuses_other_endings(self, tmp_path, report, name):
        message = rf"--report .*{re.escape(name)}: the name must end in \.json, \.md, \.html"
        for attempt in (lambda path: write(report, path), check_name):
            with pytest.raises(ConfigError, match=message):
                attempt(tmp_path / name)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("name", ["r.json", "r.md"])
    def test_names_in_any_script_are_written(self, tmp_path, report, name):
        write(replace(report, model="сеть 检测.onnx"), tmp_path / name)
        text = (tmp_path / name).read_bytes().decode("utf-8")
        assert (json.loads(text)["model"] if name == "r.json" else text.splitlines()[0][2:]) == "сеть 检测.onnx"

    def test_leaves_the_old_file_after_an_error(self, tmp_path, report):
        (tmp_path / "r.json").write_text("old")
        with pytest.raises(TypeError):
            write(replace(report, float_={"x": object()}), tmp_path / "r.json")
        assert (tmp_path / "r.json").read_text() == "old"
        assert os.listdir(tmp_path) == ["r.json"]
