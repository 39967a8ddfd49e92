import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from browser import dom, needs_browser
from graphs import csp, feed

from onnxq import Config, quantize
from onnxq.evaluation.average_precision import ModelPrecision, PrecisionSummary
from onnxq.evaluation.predictor import Settings
from onnxq.numerics.range_methods import METHODS
from onnxq.report.build import build
from onnxq.report.html import to_html
from onnxq.report.schema import Finding, FloatNode, HigherPrecisionEntry, OperatorCounts, SearchEntry, TrialEntry
from onnxq.report.xml import tag
from onnxq.runtime import OnnxRuntime

HOSTILE = "<b>&\"'</script>"


@pytest.fixture(scope="module")
def report():
    config = Config(target="generic", exclude=("conv1",))
    quantized = quantize(csp(), [feed(csp(), seed) for seed in range(2)], config, sensitivity=True)
    return build(quantized, config, source="net.onnx", before=2_000_000, after=510_000)


@pytest.fixture
def searched(report):
    kept = (HigherPrecisionEntry(("conv9", "mul9"), None),)
    trials = (TrialEntry(0, "-0.90 AP"), TrialEntry(1, "-0.10 AP"))
    return replace(report, search=SearchEntry("-0.10 AP", 7, kept, trials))


def evaluated():
    """The precision of two models with equal detections."""
    first = ModelPrecision(
        model="net.onnx", family="v8", task="detect", preprocess="rgb01", image_size=(32, 32),
        runtime="ort", runtime_version="1.2.3", AP=40.0, AP50=60.0, AP75=45.0, APs=20.0, APm=42.0, APl=None, change=0.0,
    )  # fmt: skip
    return PrecisionSummary("labels.json", 9, Settings(), (first, replace(first, model="net.int8.onnx")))


def read(report):
    return ET.fromstring(to_html(report))


def words(element):
    return " ".join("".join(element.itertext()).split())


def tables(page):
    """Tables by the heading that they stand under: rows of cells as text."""
    found, title = {}, None
    for element in page.iter():
        if element.tag == "h2":
            title = words(element)
        elif element.tag == "table":
            found.setdefault(title, [[words(cell) for cell in row] for row in element.iter("tr")])
    return found


class TestContents:
    def test_the_head_says_what_was_made_of_what(self, report):
        page = read(report)
        said = words(page.find("body/main/p"))
        assert words(page.find("body/main/h1")) == "net.onnx"
        assert "Quantized for generic: 8-bit weights, 8-bit activations, range method uh." in said
        assert said.endswith("Calibrated with samples of a Python list.")
        tiles = {words(tile[1]): words(tile[0]) for tile in page.findall("body/main/div[@class='tiles']/div")}
        assert tiles["layers on integers"] == str(len(report.layers.integer))
        assert (tiles["size before"], tiles["size after"]) == ("2.00 MB", "0.51 MB")
        assert tiles["SQNR of output, dB"] == f"{report.sqnr['output']:.1f}"

    def test_tensors_stand_worst_first_and_lead_to_their_plots(self, report):
        page = read(report)
        head, *rows = tables(page)["Quantized tensors, worst first"]
        assert head[:4] == ["tensor", "method", "SQNR dB", "clipped %"]
        assert sorted(row[0] for row in rows) == sorted(a.tensor for a in report.activations)
        known = [float(row[2]) for row in rows if row[2] != "-"]
        assert known == sorted(known)
        plots = {element.get("id") for element in page.iter("div") if element.get("id")}
        links = [element.get("href") for element in page.iter("a")]
        assert {link.removeprefix("#") for link in links} == plots
        assert len(plots) == len(report.values)

    def test_each_group_has_a_plot_and_the_other_methods_beside_it(self, report):
        page = read(report)
        plots = [details for details in page.iter("details") if details.find("div/svg") is not None]
        assert len(plots) == len(report.values)
        for plot in plots:
            rows = [words(row[0]) for row in plot.iter("tr")]
            assert rows[1].startswith("chosen: ")
            assert rows[2:] == list(METHODS)

    def test_weights_with_a_curve_of_their_scales(self, report):
        page = read(report)
        head, *rows = tables(page)["Weights"]
        assert [row[0] for row in rows] == [", ".join(weight.layers) for weight in report.weights]
        assert all(row[head.index("kind")].endswith("Conv") for row in rows)
        assert len(list(page.iter("polyline"))) == len(rows)

    def test_reasons_by_how_many_nodes_have_them(self, report):
        page = read(report)
        listed = {
            words(d[0]): [words(li) for li in d.iter("li")] for d in page.iter("details") if d.find("ul") is not None
        }
        assert listed["1: excluded: matches conv1"] == ["conv1"]
        assert sum(map(len, listed.values())) == len(report.float_)

    def test_sensitivity_and_operators_and_passes(self, report):
        found = tables(read(report))
        assert [row[0] for row in found["Sensitivity, worst first"][1:]] == [p.nodes[0] for p in report.sensitivity]
        operators = {row[0]: row[1:] for row in found["Operators"][1:]}
        assert operators["QuantizeLinear"] == ["0", str(report.operators.quantized["QuantizeLinear"])]
        assert [row[0] for row in found["Run"][1:]] == list(report.seconds)

    def test_what_was_not_done_has_no_heading(self, report):
        page = read(replace(report, sensitivity=(), findings=()))
        titles = {words(title) for title in page.iter("h2")}
        assert not titles & {"Sensitivity, worst first", "Layers kept at a higher precision"}
        assert "What stands out, and what to try" not in titles

    def test_a_search(self, searched):
        page = read(searched)
        assert "Measured on 7 images, after 2 trials: -0.10 AP." in words(page)
        assert tables(page)["Layers kept at a higher precision"][1] == ["conv9, mul9", "float"]
        assert ["0", "-0.90 AP"] in [[words(cell) for cell in row] for row in page.iter("tr")]

    def test_options_that_may_help_are_set_as_code(self, report):
        report = replace(report, findings=(Finding("It is late.", "`--early` or sleep"),))
        [item] = [li for li in read(report).findall("body/main/ul/li")]
        assert words(item) == "It is late. Try: --early or sleep."
        assert [words(code) for code in item.iter("code")] == ["--early"]

    def test_average_precision_of_both_models(self, report):
        page = read(replace(report, evaluation=evaluated()))
        assert tables(page)["Average precision"][2] == [
            "net.int8.onnx", "40.00", "+0.00", "60.00", "45.00", "20.00", "42.00", "-",
        ]  # fmt: skip
        assert f"on 9 images of labels.json, in {OnnxRuntime.described()}." in words(page)
        assert "AP, +0.00 against float" in words(page)

    def test_options_that_are_not_the_default(self, report):
        said = [words(p) for p in read(report).findall("body/main/p")]
        assert "Options: --target generic --exclude conv1." in said

    def test_lines_end_behind_the_slashes_of_names(self, report):
        report = replace(report, float_={"/model.0/conv": FloatNode("stem", "for a reason")})
        [item] = [li for li in read(report).iter("li") if li.get("class") == "id"]
        assert (item.text, [(e.tag, e.tail) for e in item]) == ("/model.0/", [("wbr", "conv")])

    def test_no_line_breaks_within_an_option(self, report):
        page = read(replace(report, warnings=("try --keep-bias, or --exclude a--b",)))
        [warning] = [p for p in page.iter("p") if p.get("class") == "warn" and "try" in words(p)]
        assert [span.text for span in warning.iter("span")] == ["--keep-bias", "--exclude"]
        assert words(warning) == "Warning: try --keep-bias, or --exclude a--b"

    def test_warnings_of_data_and_model(self, report):
        report = replace(report, data_warnings=("one & two",), warnings=("three",))
        said = [words(p) for p in read(report).iter("p") if p.get("class") == "warn"]
        assert said == ["Warning: one & two", "Warning: three"]


def hostile(report, text):
    """The report with a text wherever a name or a sentence can be."""
    names = {"tensor": text, "users": (text,), "method": text}
    return replace(
        report,
        **dict.fromkeys(("model", "target", "method", "calibration", "runtime", "checked_in", "checked_on"), text),
        data_warnings=(text,),
        warnings=(text,),
        float_={text: FloatNode(text, text)},
        sqnr={text: 1.0},
        sqnr_against_exact={text: 1.0},
        detector=replace(report.detector, family=text, task=text, preprocess=text, why=text),
        findings=(Finding(text, f"`{text}` {text}"),),
        operators=OperatorCounts({text: 1}, {}),
        seconds={text: 1.0},
        versions={text: text},
        activations=tuple(replace(entry, **names) for entry in report.activations),
        weights=tuple(replace(entry, tensor=text, layers=(text,), kind=text) for entry in report.weights),
        sensitivity=tuple(replace(entry, nodes=(text,)) for entry in report.sensitivity),
        options=("--exclude", text),
        evaluation=replace(evaluated(), annotations=text),
        search=SearchEntry(text, 1, (HigherPrecisionEntry((text,), None),), (TrialEntry(1, text),)),
        values={group: replace(v, methods={text: v.methods["mse"]}) for group, v in report.values.items()},
    )


class TestMarkup:
    @pytest.mark.parametrize("text", [HOSTILE, "\x00\x1b[0m", "\ufffe", "é 检测", "]]>--><!--"])
    def test_any_name_stays_text(self, report, text):
        plain, strange = (read(hostile(report, word)) for word in ("name", text))
        assert {e.tag for e in strange.iter()} - {"wbr"} == {e.tag for e in plain.iter()}
        assert all(not (e.get("href") or "#").removeprefix("#v").strip("0123456789") for e in strange.iter("a"))

    def test_browsers_read_the_same_elements_as_xml_does(self, searched):
        text, seen = to_html(searched), []
        parser = HTMLParser(convert_charrefs=True)
        parser.handle_starttag = lambda name, attributes: seen.append(name)  # type: ignore[method-assign]
        parser.feed(text)
        assert seen == [element.tag.lower() for element in read(searched).iter()]

    def test_nothing_is_loaded(self, report):
        text = to_html(report)
        assert not re.search(r"https?:|\bsrc=|url\(|@import|<link", text)
        assert "default-src &#x27;none&#x27;" in text

    def test_large_models_stay_small_files(self, report):
        one = len(to_html(report)) / (len(report.values) + len(report.weights))
        assert one * (150 + 100) < 3e6

    def test_the_same_report_gives_the_same_page(self, report):
        assert to_html(report) == to_html(replace(report))


FRAME = """<body>{page}<script>
const frame = document.querySelector("iframe");
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  document.body.dataset.across = [root.clientWidth, root.scrollWidth].join();
}};
</script></body>"""


@pytest.mark.slow
@needs_browser
@pytest.mark.parametrize("width", [390, 1000])
def test_the_page_is_as_wide_as_the_window(searched, tmp_path, width):
    report = replace(
        searched,
        activations=tuple(replace(a, tensor="/model.22/" + 12 * "a_long_name") for a in searched.activations),
        options=("--exclude", *(f"/model.{number}/conv/Conv" for number in range(9))),
        evaluation=evaluated(),
    )
    page = tag("iframe", width=width, height=800, style="border: 0", srcdoc=to_html(report))
    (tmp_path / "page.html").write_text(FRAME.format(page=page), encoding="utf-8")
    text, _ = dom(tmp_path / "page.html", tmp_path / "profile")
    found = re.search('data-across="([0-9]+),([0-9]+)"', text)
    assert found[1] == found[2]
    assert width - 20 <= int(found[1]) <= width


PROBE = """<script>
const sheet = document.querySelector("table.sortable");
const column = () => [...sheet.tBodies[0].rows].map((row) => row.cells[2].dataset.value).join();
const before = column();
const header = sheet.tHead.rows[0].cells[2].firstChild;
header.click();
header.click();
document.body.dataset.turned = column() === before.split(",").reverse().join();
const field = document.querySelector("input");
field.value = "no such name";
field.oninput();
document.body.dataset.left = [...sheet.tBodies[0].rows].filter((row) => !row.hidden).length;
document.body.dataset.loaded = performance.getEntriesByType("resource").length;
</script></body>"""


@pytest.mark.slow
@needs_browser
def test_in_a_browser(searched, tmp_path):
    activations = tuple(
        replace(a, own=replace(a.own, sqnr=float(number))) for number, a in enumerate(searched.activations)
    )
    report = replace(searched, activations=activations, model=HOSTILE)
    (tmp_path / "page.html").write_text(to_html(report).replace("</body>", PROBE), encoding="utf-8")
    text, console = dom(tmp_path / "page.html", tmp_path / "profile")
    assert console == []
    assert 'data-loaded="0"' in text
    assert 'data-turned="true"' in text
    assert 'data-left="0"' in text
    assert "<h1>&lt;b&gt;&amp;\"'&lt;/script&gt;</h1>" in text
    assert text.count("<svg") == len(report.values) + len(report.weights)
