import re
from dataclasses import replace

import pytest
from graphs import csp, feed

from onnxq import Config, quantize
from onnxq.evaluation.mixed_precision import HigherPrecision, SearchResult
from onnxq.numerics.range_methods import METHODS
from onnxq.report.blocks import Curve, Plots, Table
from onnxq.report.build import build
from onnxq.report.content import sections
from onnxq.report.markdown import to_markdown
from onnxq.report.schema import Finding, FloatNode

CONFIG = Config(method="mse", weight_bits=4, act_bits=6, exclude=("conv3", "re:^conv4$"), target="generic")


@pytest.fixture(scope="module")
def report():
    model = csp()
    quantized = quantize(model, [feed(model, seed) for seed in range(3)], CONFIG, sensitivity=True)
    kept = (HigherPrecision(("conv9", "mul9"), 8),)
    search = SearchResult(quantized, CONFIG, kept, 0.1, "-0.10 AP", 7, {1: "-0.10 AP"})
    return build(quantized, CONFIG, source="net.onnx", before=1_000_000, after=300_000, search=search)


def tables(text):
    """Markdown as heading -> rows of its first table, the head first, as cells with nothing in front of them."""
    found = {}
    for part in re.split("^#+ ", text, flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        rows = re.findall(r"^\| (.*) \|$", body.split("\n\n## ")[0], flags=re.MULTILINE)
        cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
        found[title] = [row for row in cells if not all(re.fullmatch("---:?", cell) for cell in row)]
    return found


def shown(cell):
    return getattr(cell, "text", str(cell))


class TestContents:
    def test_overview(self, report):
        report = replace(report, data_warnings=("It is *late*.",))
        head = to_markdown(report).split("\n## ")[0].split("\n\n")
        assert head[0] == "# net.onnx"
        assert head[1].startswith("Quantized for generic: 4-bit weights, 6-bit activations, range method mse.")
        options = "--target generic --method mse --weight-bits 4 --act-bits 6 --exclude conv3 're:^conv4$'"
        assert head[2] == f"Options: `{options}`."
        assert head[3] == r"**Warning:** It is \*late\*."
        facts = dict(tables(to_markdown(report))["net.onnx"][1:])
        assert facts["layers on integers"] == str(len(report.layers.integer))
        assert facts["calibration samples"] == "3"
        assert (facts["size before"], facts["size after"]) == ("1.00 MB", "0.30 MB")
        assert facts["SQNR of output, dB"] == f"{report.sqnr['output']:.1f}"
        assert facts["all passes"] == f"{sum(report.seconds.values()):.1f} s"

    def test_has_every_section_and_cell_but_curves(self, report):
        text = to_markdown(report)
        expected = list(sections(report))
        assert re.findall("^## (.*)$", text, re.MULTILINE) == [section.title for section in expected]
        for section in expected:
            for table in (block for block in section.blocks if isinstance(block, Table)):
                drawn = table.has(Curve)
                for row in (table.columns, *table.rows):
                    cells = [shown(cell) for cell, is_drawn in zip(row, drawn, strict=True) if not is_drawn]
                    assert f"| {' | '.join(cells)} |" in text.replace("`", "")

    def test_numbers_are_aligned_right(self, report):
        assert "| operator | float | quantized |\n| --- | ---: | ---: |\n" in to_markdown(report)

    def test_sqnr_of_each_method(self, report):
        head, *rows = tables(to_markdown(report))["Values and ranges, worst first"]
        assert head == ["tensor", "same scale", "chosen", *METHODS]
        [plots] = [block for section in sections(report) for block in section.blocks if isinstance(block, Plots)]
        assert len(rows) == len(plots.plots) == len(report.values)
        group = {a.tensor: a.group for a in report.activations}
        for tensor, others, chosen, *methods in rows:
            name = tensor.strip("`")
            assert chosen == f"{report.values[group[name]].chosen.sqnr:.1f}"
            assert methods == [f"{fit.sqnr:.1f}" for fit in report.values[group[name]].methods.values()]
            assert {group[other] for other in others.split(", ") if other} <= {group[name]}
        assert any(others for _, others, *_ in rows)

    def test_curves_are_left_out(self, report):
        head, *rows = tables(to_markdown(report))["Weights"]
        assert head == ["layer", "kind", "bits", "channels", "least", "greatest", "spread"]
        assert len(rows) == len(report.weights)

    def test_float_nodes_by_reason(self, report):
        section = to_markdown(report).split("## Float nodes by reason\n\n")[1].split("\n\n")[0]
        found = re.findall("^- ([0-9]+): (.*): (`.*`)$", section, re.MULTILINE)
        assert {name for _, _, names in found for name in re.findall("`(.*?)`", names)} == set(report.float_)
        assert [int(count) for count, _, names in found] == [len(names.split(", ")) for _, _, names in found]
        assert ("1", "excluded: matches conv3", "`conv3`") in found


class TestMarkup:
    @pytest.mark.parametrize(
        ("name", "code"),
        [
            ("a|b", r"`a\|b`"),
            ("a`b", "`` a`b ``"),
            ("``", "``` `` ```"),
            ("a\nb", r"`a\nb`"),
            ("\x1b[2J\u202eb", r"`\x1b[2J\u202eb`"),
            ("_a_*b*", "`_a_*b*`"),
        ],
    )
    def test_names_stay_in_their_cells(self, report, name, code):
        first, *others = report.activations
        report = replace(report, activations=(replace(first, tensor=name), *others))
        found = tables(to_markdown(report))["Quantized tensors, worst first"]
        assert code in [row[0] for row in found]
        assert {len(row) for row in found} == {9}

    def test_texts_are_not_taken_for_markup(self, report):
        model = "_a_b_ *c* <b> [d] `e` \\f\n# g"
        text = to_markdown(
            replace(report, model=model, float_={"x": FloatNode("excluded", "excluded: matches re:a|b*")})
        )
        assert text.startswith("# \\_a_b\\_ \\*c\\* \\<b> \\[d] \\`e\\` \\\\f\\\\n# g\n")
        assert "- 1: excluded: matches re:a|b\\*: `x`\n" in text

    def test_options_are_set_as_code(self, report):
        report = replace(report, findings=(Finding("It is *late*.", "`--early a*b` or sleep"),))
        assert "- It is \\*late\\*. Try: `--early a*b` or sleep.\n" in to_markdown(report)
