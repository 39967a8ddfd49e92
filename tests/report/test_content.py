from dataclasses import replace

import pytest
from graphs import csp, feed
from net import Net

from onnxq import Config, quantize
from onnxq.evaluation.average_precision import ModelPrecision, PrecisionSummary
from onnxq.evaluation.criteria import AgreementLoss
from onnxq.evaluation.predictor import Settings
from onnxq.report.blocks import Curve, Plots, Table, Text
from onnxq.report.build import build
from onnxq.report.content import overview, sections
from onnxq.report.schema import MigrationEntry, SpeedEntry
from onnxq.runtime import OnnxRuntime


@pytest.fixture(scope="module")
def report():
    return build(quantize(csp(), [feed(csp())]), Config(), source="net.onnx", before=1, after=1)


def evaluation(images, change=-1.5):
    """The precision of two models; there are no large objects."""
    first = ModelPrecision(
        model="folder/net.onnx", family="v8", task="detect", preprocess="rgb01", image_size=(32, 32),
        runtime="ort", runtime_version="1.2.3", AP=40.0, AP50=60.0, AP75=45.0, APs=20.0, APm=42.0, APl=None, change=0.0,
    )  # fmt: skip
    second = replace(first, model="net.int8.onnx", AP=40.0 + (change or 0), change=change)
    return PrecisionSummary("labels.json", images, Settings(), (first, second))


def texts(report, title):
    """The paragraphs of a section, and the tables' cells as text, row by row."""
    [section] = [section for section in sections(report) if section.title == title]
    said = [block.text for block in section.blocks if isinstance(block, Text)]
    rows = [row for block in section.blocks if isinstance(block, Table) for row in (block.columns, *block.rows)]
    return said, [[str(cell) for cell in row] for row in rows]


class TestAveragePrecision:
    def test_is_not_there_unless_it_was_measured(self, report):
        assert "Average precision" not in [section.title for section in sections(report)]
        assert not any(what.startswith("AP") for what, _ in overview(report).facts)

    def test_all_numbers_of_both_models(self, report):
        report = replace(report, evaluation=evaluation(5000))
        said, rows = texts(report, "Average precision")
        runtime = OnnxRuntime.described()
        assert said == [f"COCO AP of boxes in percent, on 5000 images of `labels.json`, in {runtime}."]
        assert rows == [
            ["model", "AP", "change", "AP50", "AP75", "APs", "APm", "APl"],
            ["net.onnx", "40.00", "-", "60.00", "45.00", "20.00", "42.00", "-"],
            ["net.int8.onnx", "38.50", "-1.50", "60.00", "45.00", "20.00", "42.00", "-"],
        ]
        assert ("AP, -1.50 against float", "38.50") in overview(report).facts

    def test_the_agreement_that_was_measured_without_labels(self, report):
        name = "expected AP against float, 1 image"
        assert name not in dict(overview(report).facts)
        assert dict(overview(replace(report, agreement=AgreementLoss(0.25, 1, "R"))).facts)[name] == "-0.25"

    @pytest.mark.parametrize(("images", "is_few"), [(1, True), (499, True), (500, False)])
    def test_few_pictures_tell_little(self, report, images, is_few):
        report = replace(report, evaluation=evaluation(images))
        said, _ = texts(report, "Average precision")
        assert f"on {images} image{'s' if images > 1 else ''} of `labels.json`, in onnxruntime" in said[0]
        assert [text.startswith("With so few images AP varies by chance") for text in said[1:]] == [True] * is_few

    def test_nothing_to_find_is_a_dash(self, report):
        report = replace(report, evaluation=evaluation(5, change=None))
        assert texts(report, "Average precision")[1][2][:3] == ["net.int8.onnx", "40.00", "-"]


def test_options_are_told_where_they_are_not_the_default(report):
    assert [text.text for text in overview(report).texts if "Options" in text.text] == []
    report = replace(report, options=tuple(Config(weight_bits=4, exclude=("a", "b c"), equalize=False).flags))
    assert overview(report).texts[-1].text == "Options: `--weight-bits 4 --no-equalize --exclude a 'b c'`."


class TestMigratedScales:
    def test_are_not_there_unless_scales_migrated(self, report):
        assert "Migrated scales" not in [section.title for section in sections(report)]

    def test_channels_before_and_after(self, report):
        entry = MigrationEntry("silu", ("conv1", "conv2"), 5, (16.0, 4.0, 1.0), (4.0, 2.0, 1.0))
        report = replace(report, migrated=(entry,))
        said, [columns, row] = texts(report, "Migrated scales")
        assert columns == ["tensor", "channels", "by size (log), before: lower", "greatest / median before", "after"]
        assert (row[1], row[3], row[4]) == ("5", "4", "2")
        assert said[0].startswith("Channels of unequal size are divided")
        [section] = [section for section in sections(report) if section.title == "Migrated scales"]
        assert section.blocks[1].rows[0][2] == Curve(
            (4.0, 2.0, 1.0), (16.0, 4.0, 1.0), "greatest values of the channels, before and after"
        )


def test_the_speed_is_a_number_under_which_its_runtime_stands(report):
    facts = dict(overview(replace(report, speed=SpeedEntry("onnxruntime", 1.854, 1.8, 30))).facts)
    assert facts["speed against the float model, in onnxruntime on the CPU at hand"] == "1.85x"
    assert not any("speed" in name for name in dict(overview(report).facts))


class TestTensors:
    def test_are_sorted_by_their_own_noise_and_not_by_that_of_their_group(self):
        net = Net()
        small, great = net.block("images", 16), net.conv("images", 16, gain=50.0)
        model = net.model(net.conv(net.block(net.concat(small, great), 16), 8))
        made = build(quantize(model, [feed(model)], Config(target="generic")), Config(), source="", before=1, after=1)
        [entry] = [each for each in made.activations if each.tensor == small]
        assert entry.own.sqnr < 12 < 30 < entry.sqnr
        _, (head, first, *others) = texts(made, "Quantized tensors, worst first")
        shown = [row[head.index("SQNR dB")] for row in (first, *others)]
        known = [float(each) for each in shown if each != "-"]
        assert known == sorted(known)
        assert first[0].endswith(f"text={small!r}, plot={list(made.values).index(entry.group)})")
        assert first[head.index("SQNR dB")] == f"{entry.own.sqnr:.1f}"
        [plots] = [block for section in sections(made) for block in section.blocks if isinstance(block, Plots)]
        assert plots.plots[0].tensors[0] == small
        assert str(plots.plots[0].sqnr) == f"{entry.own.sqnr:.1f}"
        assert str(plots.plots[0].comparison.rows[0][-1]) == f"{entry.sqnr:.1f}"
