"""A report as one HTML file: nothing is loaded from elsewhere, and without JavaScript only sorting is missing."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onnxq.markup import Markup, escaped, tag, together
from onnxq.plots import curve, histogram

Report = dict[str, Any]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""With this a browser loads nothing, whatever is in the page."""

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0; --back: #ffffff; --fill: #f6f8fa;
  --blue: #2f74c0; --orange: #b35900; --band: #2f74c01f; --warn: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d; --back: #0d1117;
  --fill: #161b22; --blue: #58a6ff; --orange: #e3913b; --band: #58a6ff26; --warn: #d29922; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: var(--back); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); }
p { margin: .5rem 0; }
.soft { color: var(--soft); }
.warn { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--fill); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.25rem; overflow-wrap: anywhere; }
.tiles span { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; max-height: 36rem; overflow-y: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
th { background: var(--fill); position: sticky; top: 0; white-space: nowrap; font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.id { font-family: ui-monospace, monospace; font-size: .8rem; min-width: 11rem; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--blue); }
a { color: var(--blue); text-decoration: none; }
code { font-family: ui-monospace, monospace; font-size: .88em; background: var(--fill); padding: .1em .3em;
  border-radius: 4px; overflow-wrap: anywhere; }
li { margin: .4rem 0; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: .35rem .7rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.plot { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; padding: .5rem 0; }
.plot svg { flex: 1 1 20rem; min-width: 0; max-width: 34rem; }
.plot .scroll { flex: 1 1 16rem; }
svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; fill: var(--soft); }
svg.small { width: 10rem; height: 3rem; }
.bars { fill: var(--blue); } .band { fill: var(--band); } .curve { fill: none; stroke: var(--blue); stroke-width: 1.5; }
.bound { stroke: var(--orange); stroke-width: 1.5; } .other { fill: none; stroke: var(--orange); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
input { font: inherit; width: 100%; max-width: 24rem; padding: .3rem .6rem; margin: .3rem 0 .6rem; color: inherit;
  background: var(--back); border: 1px solid var(--line); border-radius: 6px; }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.textContent = cell.textContent;
    cell.replaceChildren(button);
    let up = false;
    button.onclick = () => {
      up = !up;
      const order = (a, b) => key(a, column).localeCompare(key(b, column), "en", { numeric: false });
      const number = (row) => parseFloat(key(row, column));
      const numeric = cell.classList.contains("n");
      const sorted = [...body.rows].sort((a, b) => (up ? 1 : -1) * (numeric ? number(a) - number(b) : order(a, b)));
      body.replaceChildren(...sorted);
    };
  });
  const field = document.createElement("input");
  field.placeholder = "only names with ...";
  field.setAttribute("aria-label", "only names with");
  field.oninput = () => {
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.includes(field.value);
  };
  table.parentElement.before(field);
}
"""


def to_html(report: Report) -> str:
    """The report as a page."""
    title = f"{report['model']}, quantized"
    head = together(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(_STYLE)),
    )
    body = tag(
        "main",
        tag("h1", report["model"]),
        *_header(report),
        *_findings(report),
        *_tensors(report),
        *_values(report),
        *_weights(report),
        *_float(report),
        *_sensitivity(report),
        *_search(report),
        *_operators(report),
        *_run(report),
    )
    page = tag("html", tag("head", head), tag("body", body, tag("script", Markup(_SCRIPT))), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


_Parts = Iterable[Markup]


def _header(report: Report) -> _Parts:
    detector, layers, sizes = report["detector"], report["layers"], report["bytes"]
    yield tag(
        "p",
        f"Quantized for {report['target']}: weights of {report['weight_bits']} and activations of "
        f"{report['act_bits']} bits, ranges by {report['method']}. Taken for {detector['family']} "
        f"({detector['task']}), {detector['size'][0]} x {detector['size'][1]}, {detector['preprocess']}: "
        f"{detector['why']}. Calibrated with {report['calibration']}.",
    )
    fused = layers["fused"]
    tiles = [
        (f"{len(layers['integer'])}", "layers on integers"),
        *([(f"{fused}", f"of these run so by {report['runtime']}")] if fused is not None else []),
        (f"{len(report['float'])}", "nodes float"),
        *((_decibels(value), f"SQNR of {name}, dB") for name, value in report["sqnr"].items()),
        (f"{sizes['before'] / 1e6:.2f} MB", "size before"),
        (f"{sizes['after'] / 1e6:.2f} MB", "size after"),
        (f"{sum(report['seconds'].values()):.1f} s", "in all passes"),
    ]
    yield tag("div", *(tag("div", tag("b", value), tag("span", what)) for value, what in tiles), class_="tiles")
    for warning in (*report["doubts"], *report["warnings"]):
        yield tag("p", tag("b", "Warning: "), warning, class_="warn")


def _findings(report: Report) -> _Parts:
    if report["findings"]:
        yield tag("h2", "What stands out, and what to try")
        yield tag(
            "ul", *(tag("li", each["what"], " Try: ", *_with_code(each["try"]), ".") for each in report["findings"])
        )


def _with_code(text: str) -> _Parts:
    for number, part in enumerate(text.split("`")):
        yield tag("code", part) if number % 2 else escaped(part)


def _tensors(report: Report) -> _Parts:
    yield tag("h2", "Quantized tensors, worst first")
    yield tag(
        "p",
        "Each passes through a QuantizeLinear and a DequantizeLinear. SQNR is signal to quantization noise as its "
        "histogram lets one expect; where a SiLU reads the tensor, that behind it. Clipped is the share of the values "
        "outside the range.",
        class_="soft",
    )
    numbers = _numbered(report)
    columns = ["tensor", "method", "SQNR dB", "clipped %", "low", "high", "bits", "scale", "zero point"]
    yield _table(
        columns,
        (
            [
                _Id(activation["tensor"], numbers.get(activation["group"])),
                activation["method"],
                _Number(activation["sqnr"], ".1f"),
                _Number(100 * activation["clipped"], ".3f"),
                _Number(activation["low"], ".4g"),
                _Number(activation["high"], ".4g"),
                _Number(activation["bits"], "d"),
                _Number(activation["scale"][0], ".4g"),
                _Number(activation["zero_point"][0], "d"),
            ]
            for activation in sorted(report["activations"], key=_sqnr)
        ),
        sortable=True,
    )


def _values(report: Report) -> _Parts:
    yield tag("h2", "Values and ranges, worst first")
    yield tag(
        "p",
        "How often values were seen, on a logarithmic scale. The band is what the integers reach; the lines below are "
        "the ranges that each method would have chosen. Tensors that share one scale share a plot.",
        class_="soft",
    )
    sharing: dict[str, list[Report]] = defaultdict(list)
    for activation in sorted(report["activations"], key=_sqnr):
        sharing[activation["group"]].append(activation)
    numbers = _numbered(report)
    for group, activations in sharing.items():
        if group in numbers:
            yield _plot(activations, report["values"][group], numbers[group])


def _numbered(report: Report) -> dict[str, int]:
    """The groups that have a plot, and its number."""
    return {group: number for number, group in enumerate(report["values"])}


def _plot(activations: Sequence[Report], seen: Report, number: int) -> Markup:
    first = activations[0]
    more = f" and {len(activations) - 1} more" if len(activations) > 1 else ""
    methods: Mapping[str, Report] = seen["methods"]
    others = {name: (fit["low"], fit["high"]) for name, fit in methods.items()}
    compared = _table(
        ["method", "low", "high", "clipped %", "SQNR dB"],
        (
            [
                name,
                _Number(fit["low"], ".4g"),
                _Number(fit["high"], ".4g"),
                _Number(100 * fit["clipped"], ".3f"),
                _Number(fit["sqnr"], ".1f"),
            ]
            for name, fit in {f"chosen: {first['method']}": first, **methods}.items()
        ),
    )
    together_with = ", ".join(activation["tensor"] for activation in activations[1:])
    return tag(
        "details",
        tag("summary", tag("span", first["tensor"], class_="id"), f"{more}, {_decibels(first['sqnr'])} dB"),
        tag(
            "div",
            histogram(seen["counts"], (seen["low"], seen["high"]), tuple(first["grid"]), others),
            compared,
            class_="plot",
            id=f"v{number}",
        ),
        *([tag("p", "Shares its scale with: ", tag("span", together_with, class_="id"))] if together_with else []),
    )


def _weights(report: Report) -> _Parts:
    if not report["weights"]:
        return
    yield tag("h2", "Weights")
    yield tag(
        "p",
        "Integers with a scale for each output channel. Drawn are the scales, the greatest first, on a logarithmic "
        "scale; spread is the greatest by the least.",
        class_="soft",
    )
    yield _table(
        ["layer", "kind", "bits", "channels", "scales", "least", "greatest", "spread"],
        (
            [
                _Id(", ".join(weight["layers"])),
                weight["kind"],
                _Number(weight["bits"], "d"),
                _Number(weight["channels"], "d"),
                curve(weight["scales"]),
                _Number(weight["scale"][0], ".3g"),
                _Number(weight["scale"][1], ".3g"),
                _Number(weight["scale"][1] / weight["scale"][0], ".3g"),
            ]
            for weight in report["weights"]
        ),
        sortable=True,
    )


def _float(report: Report) -> _Parts:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in report["float"].items():
        by_reason[reason].append(name)
    if not by_reason:
        return
    yield tag("h2", "Float, and why")
    for reason, names in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        listed = tag("ul", *(tag("li", name, class_="id") for name in names))
        yield tag("details", tag("summary", f"{len(names)}: {reason}"), listed)


def _sensitivity(report: Report) -> _Parts:
    if not report["sensitivity"]:
        return
    yield tag("h2", "Sensitivity, worst first")
    yield tag("p", "What each piece of the network costs when it alone is on integers.", class_="soft")
    yield _table(
        ["alone on integers", "SQNR dB", "boxes moved %"],
        (
            [_Id(piece["nodes"][0]), _Number(piece["sqnr"], ".1f"), _Number(piece["moved"], ".2f")]
            for piece in report["sensitivity"]
        ),
        sortable=True,
    )


def _search(report: Report) -> _Parts:
    search = report["search"]
    if search is None:
        return
    yield tag("h2", "Layers kept at a higher precision")
    yield tag(
        "p", f"Measured on {search['pictures']} pictures, after {len(search['trials'])} trials: {search['said']}."
    )
    kept = ([_Id(", ".join(piece["nodes"])), piece["bits"] or "float"] for piece in search["kept"])
    yield _table(["kept", "bits"], kept)
    yield _table(
        ["pieces kept", "measured"], ([_Number(trial["kept"], "d"), trial["said"]] for trial in search["trials"])
    )


def _operators(report: Report) -> _Parts:
    before, after = report["operators"]["float"], report["operators"]["quantized"]
    yield tag("h2", "Operators")
    yield tag("p", "Of the float model once it is in order, and of the file that was written.", class_="soft")
    yield _table(
        ["operator", "float", "quantized"],
        (
            [name, _Number(before.get(name, 0), "d"), _Number(after.get(name, 0), "d")]
            for name in sorted({*before, *after})
        ),
    )


def _run(report: Report) -> _Parts:
    yield tag("h2", "Run")
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield tag("p", f"onnxq {report['onnxq']}; {versions}.")
    yield _table(["pass", "seconds"], ([name, _Number(s, ".2f")] for name, s in report["seconds"].items()))


class _Number:
    """A number of a table: as it is shown, and as it is sorted by."""

    def __init__(self, value: float | None, form: str) -> None:
        self.value = math.inf if value is None else value
        self.text = "-" if value is None else format(value, form)


class _Id:
    """A name from the graph, and the number of the plot that it leads to."""

    def __init__(self, name: str, plot: int | None = None) -> None:
        self.name = name
        self.plot = plot


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]], sortable: bool = False) -> Markup:
    """A table that scrolls within the page; columns of numbers stand right."""
    listed = list(rows)
    numeric = [bool(listed) and isinstance(cell, _Number) for cell in (listed[0] if listed else columns)]
    head = tag("tr", *(tag("th", name, class_="n" if is_number else None) for name, is_number in zip(columns, numeric)))
    body = (tag("tr", *map(_cell, row)) for row in listed)
    made = tag("table", tag("thead", head), tag("tbody", *body), class_="sortable" if sortable else None)
    return tag("div", made, class_="scroll")


def _cell(value: object) -> Markup:
    if isinstance(value, _Number):
        return tag("td", value.text, class_="n", data_value=f"{value.value:g}".replace("inf", "Infinity"))
    if isinstance(value, _Id):
        name = escaped(value.name) if value.plot is None else tag("a", value.name, href=f"#v{value.plot}")
        return tag("td", name, class_="id")
    return tag("td", value)


def _sqnr(activation: Report) -> float:
    return math.inf if activation["sqnr"] is None else float(activation["sqnr"])


def _decibels(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
