"""The report as one HTML file that loads nothing; without JavaScript only sorting and filtering are missing."""

import math
import re
from collections.abc import Iterable, Iterator

from onnxq.report.blocks import (
    Block,
    BulletList,
    Cell,
    Curve,
    Groups,
    Name,
    Number,
    Overview,
    Plot,
    Plots,
    Table,
    Text,
    spans,
)
from onnxq.report.content import overview, sections
from onnxq.report.schema import Report
from onnxq.report.svg import curve, histogram
from onnxq.report.xml import Markup, escaped, tag, together

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content-Security-Policy: the browser loads nothing, whatever the page contains."""

_LONG = 14
"""Most characters of a tile's value in large type."""

_LEGEND = (
    "Bars count the observed values on a logarithmic scale, the band is the range that the integers represent, and the "
    "lines below are the ranges that each method chooses."
)
"""Legend of the plots."""

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
.option { white-space: nowrap; }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: .6rem; margin: 1rem 0; }
.tiles div { background: var(--fill); border: 1px solid var(--line); border-radius: 6px; padding: .5rem .7rem; }
.tiles b { display: block; font-size: 1.25rem; overflow-wrap: anywhere; }
.tiles b.long { font-size: .85rem; line-height: 1.9; }
.tiles span { color: var(--soft); font-size: .85rem; }
.scroll { overflow: auto; border: 1px solid var(--line); border-radius: 6px; }
.long { max-height: 36rem; }
table { border-spacing: 0; width: 100%; font-size: .85rem; }
th, td { padding: .25rem .6rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: middle; }
tr:last-child td { border-bottom: 0; }
th { background: var(--fill); position: sticky; top: 0; z-index: 1; font-weight: 600; vertical-align: bottom; }
td:first-child, th:first-child { position: sticky; left: 0; }
td:first-child { background: var(--back); }
th:first-child { z-index: 2; }
td.n { white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.id { font-family: ui-monospace, monospace; font-size: .8rem; min-width: 11rem; overflow-wrap: anywhere; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--blue); }
a { color: var(--blue); text-decoration: none; }
code { font-family: ui-monospace, monospace; font-size: .88em; background: var(--fill); padding: .1em .3em;
  border-radius: 4px; overflow-wrap: anywhere; display: inline-block; max-width: 100%; }
ul { padding-left: 1.4rem; }
li { margin: .4rem 0; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; padding: .35rem .7rem; }
summary { cursor: pointer; overflow-wrap: anywhere; }
.plot { display: flex; flex-wrap: wrap; gap: 1rem; align-items: center; padding: .5rem 0; }
.plot svg { flex: 1 1 20rem; min-width: 0; max-width: 34rem; }
.plot .scroll { flex: 1 1 16rem; }
svg { width: 100%; height: auto; font: 10px system-ui, sans-serif; fill: var(--soft); }
svg.small { width: 10rem; height: 3rem; }
.bars { fill: var(--blue); } .band { fill: var(--band); } .curve { fill: none; stroke: var(--blue); stroke-width: 1.5; }
.curve.before { stroke: var(--orange); }
.bound { stroke: var(--orange); stroke-width: 1.5; } .other { fill: none; stroke: var(--orange); }
.grid { stroke: var(--line); } .axis { stroke: var(--soft); }
input { font: inherit; width: 100%; max-width: 24rem; padding: .3rem .6rem; margin: .3rem 0 .6rem; color: inherit;
  background: var(--back); border: 1px solid var(--line); border-radius: 6px; }
@media (max-width: 40rem) { table { font-size: .8rem; } th, td { padding: .25rem .35rem; }
  .id { font-size: .75rem; min-width: 8rem; } details { padding: .35rem .5rem; }
  svg { font-size: 12.5px; overflow: visible; } svg.small { width: 6rem; } }
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
  field.placeholder = "filter by name";
  field.setAttribute("aria-label", "filter by name");
  field.oninput = () => {
    for (const row of body.rows) row.hidden = !row.cells[0].textContent.includes(field.value);
  };
  table.parentElement.before(field);
}
"""


def to_html(report: Report) -> str:
    """Return the report as an HTML page."""
    shown = overview(report)
    head = together(
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"{shown.title}, quantized"),
        tag("style", Markup(_STYLE)),
    )
    body = tag("main", *_overview(shown), *_sections(report))
    page = tag("html", tag("head", head), tag("body", body, tag("script", Markup(_SCRIPT))), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _overview(shown: Overview) -> Iterator[Markup]:
    yield tag("h1", shown.title)
    yield from map(_block, shown.texts)
    yield tag("div", *(_tile(label, value) for label, value in shown.facts), class_="tiles")
    for warning in shown.warnings:
        yield tag("p", tag("b", "Warning: "), *_unbroken(warning), class_="warn")


def _unbroken(text: str) -> Iterable[Markup]:
    """Return a text in which no line breaks within the name of an option."""
    parts = enumerate(re.split(r"((?<![\w-])--[a-z][a-z-]*)", text))
    return (tag("span", part, class_="option") if number % 2 else escaped(part) for number, part in parts)


def _tile(label: str, value: str) -> Markup:
    big = tag("b", value, class_="long" if len(value) > _LONG else None)
    return tag("div", big, tag("span", label))


def _sections(report: Report) -> Iterator[Markup]:
    for section in sections(report):
        yield tag("h2", section.title)
        yield from map(_block, section.blocks)


def _block(block: Block) -> Markup:
    match block:
        case Text():
            return tag("p", *_spans(block.text), class_="soft" if block.aside else None)
        case BulletList():
            return tag("ul", *(tag("li", *_spans(item)) for item in block.items))
        case Table():
            return _table(block)
        case Groups():
            return together(*(_group(reason, names) for reason, names in block.names.items()))
        case Plots():
            return together(tag("p", _LEGEND, class_="soft"), *map(_plot, block.plots))


def _spans(text: str) -> Iterable[Markup]:
    return (tag("code", part) if is_code else escaped(part) for is_code, part in spans(text))


def _group(reason: str, names: tuple[str, ...]) -> Markup:
    listed = tag("ul", *(tag("li", _breakable(name), class_="id") for name in names))
    return tag("details", tag("summary", f"{len(names)}: {reason}"), listed)


def _plot(plot: Plot) -> Markup:
    first, *others = plot.tensors
    more = f" and {len(others)} more" if others else ""
    shared = tag("p", "Shares its scale with: ", _name(", ".join(others))) if others else ""
    return tag(
        "details",
        tag("summary", _name(first), f"{more}, {plot.sqnr}\N{NO-BREAK SPACE}dB"),
        tag(
            "div",
            histogram(plot.counts, plot.observed, plot.grid, plot.bounds),
            _table(plot.comparison),
            class_="plot",
            id=f"v{plot.number}",
        ),
        shared,
    )


def _name(text: str) -> Markup:
    return tag("span", _breakable(text), class_="id")


def _breakable(name: str) -> Markup:
    """Return a name from the graph in which lines break after slashes, except a leading one."""
    return Markup(tag("wbr").join(map(escaped, re.split("(?<=[^/]/)", name))))


def _table(table: Table) -> Markup:
    """Return a table that scrolls within the page; numbers are aligned right."""
    classes = ["n" if is_number else None for is_number in table.has(Number)]
    head = tag("tr", *(tag("th", name, class_=class_) for name, class_ in zip(table.columns, classes)))
    body = (tag("tr", *map(_cell, row)) for row in table.rows)
    element = tag("table", tag("thead", head), tag("tbody", *body), class_="sortable" if table.sortable else None)
    return tag("div", element, class_="scroll long" if table.sortable else "scroll")


def _cell(cell: Cell) -> Markup:
    match cell:
        case Number():
            value = math.inf if cell.value is None else cell.value
            return tag("td", str(cell), class_="n", data_value=f"{value:g}".replace("inf", "Infinity"))
        case Name():
            name = _breakable(cell.text)
            return tag("td", name if cell.plot is None else tag("a", name, href=f"#v{cell.plot}"), class_="id")
        case Curve():
            return tag("td", curve(cell.values, cell.before, cell.label))
        case str():
            return tag("td", cell)
