"""A report as headings, sentences and tables, which `page` and `markdown` only have to write down."""

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxq._text import plural
from onnxq.evaluation.average_precision import METRICS

Report = dict[str, Any]

_FEW = 500
"""Pictures below which it is told that AP is moved by chance."""


@dataclass(frozen=True)
class Number:
    """A number of a table, which may be unknown, and the format that it is shown in."""

    value: float | None
    form: str

    def __str__(self) -> str:
        return "-" if self.value is None else format(self.value, self.form)


@dataclass(frozen=True)
class Name:
    """A name from the graph, and the number of the plot that it leads to."""

    text: str
    plot: int | None = None


@dataclass(frozen=True)
class Curve:
    """Positive values to be drawn, the greatest first."""

    values: tuple[float, ...]


Cell = str | Number | Name | Curve


@dataclass(frozen=True)
class Table:
    """Rows of cells; a column has cells of one kind.

    Attributes:
        columns: their headings.
        rows: the cells.
        sortable: long enough for a reader to want another order.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    sortable: bool = False

    def has(self, kind: type) -> list[bool]:
        """Of each column whether its cells are of a kind."""
        return [isinstance(cell, kind) for cell in (self.rows[0] if self.rows else self.columns)]


@dataclass(frozen=True)
class Text:
    """A paragraph, with options and file names between backticks; `aside` where it only explains what follows."""

    text: str
    aside: bool = False


@dataclass(frozen=True)
class Points:
    """Sentences, each a point of a list, with options between backticks."""

    texts: tuple[str, ...]


@dataclass(frozen=True)
class Groups:
    """Names by what they have in common."""

    names: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class Plot:
    """The values of tensors that share a scale.

    Attributes:
        number: of the plot, for `Name`s that lead to it.
        tensors: their names, the worst first.
        sqnr: signal to quantization noise, dB.
        counts: of values in columns of one width.
        seen: where the first column begins and the last one ends.
        grid: the least and the greatest value that the integers reach.
        bounds: by method those that it would have chosen.
        compared: the chosen range and those of the methods.
    """

    number: int
    tensors: tuple[str, ...]
    sqnr: Number
    counts: tuple[int, ...]
    seen: tuple[float, float]
    grid: tuple[float, float]
    bounds: Mapping[str, tuple[float, float]]
    compared: Table


@dataclass(frozen=True)
class Plots:
    """Plots, and what they say of noise as a table."""

    plots: tuple[Plot, ...]
    noise: Table


Block = Text | Points | Table | Groups | Plots


@dataclass(frozen=True)
class Section:
    """What stands under a heading."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Header:
    """What stands above all sections.

    Attributes:
        title: the model.
        texts: what was made of it, and how.
        facts: numbers in a word or two: what each is, and itself.
        warnings: a sentence each.
    """

    title: str
    texts: tuple[Text, ...]
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]


def spans(text: str) -> Iterator[tuple[bool, str]]:
    """The parts of a text, each with whether it stands between backticks."""
    for number, part in enumerate(text.split("`")):
        yield bool(number % 2), part


def head_of(report: Report) -> Header:
    """What stands above all sections."""
    detector = report["detector"]
    texts = [
        Text(
            f"Quantized for {report['target']}: weights of {report['weight_bits']} and activations of "
            f"{report['act_bits']} bits, ranges by {report['method']}. Taken for {detector['family']} "
            f"({detector['task']}), {detector['size'][0]} x {detector['size'][1]}, {detector['preprocess']}: "
            f"{detector['why']}. Calibrated with {report['calibration']}."
        )
    ]
    if report["options"]:
        texts.append(Text(f"Options: `{shlex.join(report['options'])}`."))
    return Header(report["model"], tuple(texts), tuple(_facts(report)), (*report["doubts"], *report["warnings"]))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    layers, sizes = report["layers"], report["bytes"]
    yield "layers on integers", f"{len(layers['integer'])}"
    if layers["fused"] is not None:
        yield f"of these run so by {report['runtime']}", f"{layers['fused']}"
    yield "nodes float", f"{len(report['float'])}"
    yield "samples calibrated with", f"{report['samples']}"
    if report["evaluation"] is not None:
        made = report["evaluation"]["models"][-1]
        yield f"AP, {Number(made['change'], '+.2f')} against float", f"{Number(made['AP'], '.2f')}"
    for name, value in report["sqnr"].items():
        yield f"SQNR of {name}, dB", f"{Number(value, '.1f')}"
    yield "size before", f"{sizes['before'] / 1e6:.2f} MB"
    yield "size after", f"{sizes['after'] / 1e6:.2f} MB"
    yield "in all passes", f"{sum(report['seconds'].values()):.1f} s"


def sections_of(report: Report) -> Iterator[Section]:
    """The sections that have anything to say, in their order."""
    for title, blocks in _SECTIONS.items():
        if found := tuple(blocks(report)):
            yield Section(title, found)


def _precision(report: Report) -> Iterator[Block]:
    measured = report["evaluation"]
    if measured is None:
        return
    count = measured["images"]
    yield Text(f"COCO AP of boxes in percent, on {count} picture{plural(count)} of `{measured['annotations']}`.")
    if count < _FEW:
        yield Text(
            "Chance alone moves the AP of so few pictures: on 158 of COCO, calibrations that differed in nothing gave "
            "AP up to 0.25 apart. More pictures tell smaller changes.",
            aside=True,
        )
    first, *others = measured["models"]
    rows = [{**first, "change": None}, *others]
    whole, *parts = METRICS.values()
    yield _table(("model", whole, "change", *parts), (_precisions(each, whole, parts) for each in rows))


def _precisions(measured: Report, whole: str, parts: Iterable[str]) -> tuple[Cell, ...]:
    ap, *others = (Number(measured[title], ".2f") for title in (whole, *parts))
    return Path(measured["model"]).name, ap, Number(measured["change"], "+.2f"), *others


def _findings(report: Report) -> Iterator[Block]:
    if report["findings"]:
        yield Points(tuple(f"{found['what']} Try: {found['try']}." for found in report["findings"]))


def _tensors(report: Report) -> Iterator[Block]:
    yield Text(
        "Each passes through a QuantizeLinear and a DequantizeLinear. SQNR is signal to quantization noise as its "
        "histogram lets one expect; where a SiLU reads the tensor, that behind it. Clipped is the share of the values "
        "outside the range.",
        aside=True,
    )
    numbers = _numbered(report)
    yield _table(
        ("tensor", "method", "SQNR dB", "clipped %", "low", "high", "bits", "scale", "zero point"),
        (
            (
                Name(activation["tensor"], numbers.get(activation["group"])),
                activation["method"],
                Number(activation["sqnr"], ".1f"),
                Number(100 * activation["clipped"], ".3f"),
                Number(activation["low"], ".4g"),
                Number(activation["high"], ".4g"),
                Number(activation["bits"], "d"),
                Number(activation["scale"][0], ".4g"),
                Number(activation["zero_point"][0], "d"),
            )
            for activation in _worst_first(report)
        ),
        sortable=True,
    )


def _values(report: Report) -> Iterator[Block]:
    plots = tuple(_plots(report))
    if plots:
        yield Text(
            "The range of each tensor beside those that the methods would have chosen, and the SQNR in dB that each "
            "makes of the values that were seen. Tensors that share one scale stand together.",
            aside=True,
        )
        yield Plots(plots, _noise(plots))


def _plots(report: Report) -> Iterator[Plot]:
    sharing: dict[str, list[Report]] = defaultdict(list)
    for activation in _worst_first(report):
        sharing[activation["group"]].append(activation)
    numbers = _numbered(report)
    for group, activations in sharing.items():
        if group in numbers:
            yield _plot(activations, report["values"][group], numbers[group])


def _numbered(report: Report) -> dict[str, int]:
    """The groups that have a plot, and its number."""
    return {group: number for number, group in enumerate(report["values"])}


def _plot(activations: list[Report], seen: Report, number: int) -> Plot:
    first = activations[0]
    methods: Mapping[str, Report] = seen["methods"]
    compared = _table(
        ("method", "low", "high", "clipped %", "SQNR dB"),
        (
            (
                name,
                Number(fit["low"], ".4g"),
                Number(fit["high"], ".4g"),
                Number(100 * fit["clipped"], ".3f"),
                Number(fit["sqnr"], ".1f"),
            )
            for name, fit in {f"chosen: {first['method']}": first, **methods}.items()
        ),
    )
    return Plot(
        number,
        tuple(activation["tensor"] for activation in activations),
        Number(first["sqnr"], ".1f"),
        tuple(seen["counts"]),
        (seen["low"], seen["high"]),
        (first["grid"][0], first["grid"][1]),
        {name: (fit["low"], fit["high"]) for name, fit in methods.items()},
        compared,
    )


def _noise(plots: tuple[Plot, ...]) -> Table:
    """The last column of each plot's table, as a row."""
    methods = [str(row[0]) for row in plots[0].compared.rows[1:]]
    rows = (
        (Name(plot.tensors[0]), ", ".join(plot.tensors[1:]), *(row[-1] for row in plot.compared.rows)) for plot in plots
    )
    return _table(("tensor", "and with it", "chosen", *methods), rows)


def _weights(report: Report) -> Iterator[Block]:
    if not report["weights"]:
        return
    yield Text(
        "Integers with a scale for each output channel: the least and the greatest of them; spread is the greatest by "
        "the least.",
        aside=True,
    )
    yield _table(
        ("layer", "kind", "bits", "channels", "scales by size (log)", "least", "greatest", "spread"),
        (
            (
                Name(", ".join(weight["layers"])),
                weight["kind"],
                Number(weight["bits"], "d"),
                Number(weight["channels"], "d"),
                Curve(tuple(weight["scales"])),
                Number(weight["scale"][0], ".3g"),
                Number(weight["scale"][1], ".3g"),
                Number(weight["scale"][1] / weight["scale"][0], ".3g"),
            )
            for weight in report["weights"]
        ),
        sortable=True,
    )


def _float(report: Report) -> Iterator[Block]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, reason in report["float"].items():
        by_reason[reason["text"]].append(name)
    if by_reason:
        most_first = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
        yield Groups({reason: tuple(names) for reason, names in most_first})


def _sensitivity(report: Report) -> Iterator[Block]:
    if report["sensitivity"]:
        yield Text("What each piece of the network costs when it alone is on integers.", aside=True)
        yield _table(
            ("alone on integers", "SQNR dB", "boxes moved %"),
            (
                (Name(piece["nodes"][0]), Number(piece["sqnr"], ".1f"), Number(piece["moved"], ".2f"))
                for piece in report["sensitivity"]
            ),
            sortable=True,
        )


def _search(report: Report) -> Iterator[Block]:
    search = report["search"]
    if search is not None:
        trials = search["trials"]
        yield Text(f"Measured on {search['pictures']} pictures, after {len(trials)} trials: {search['said']}.")
        kept = ((Name(", ".join(piece["nodes"])), str(piece["bits"] or "float")) for piece in search["kept"])
        yield _table(("kept", "bits"), kept)
        yield _table(("pieces kept", "measured"), ((Number(trial["kept"], "d"), trial["said"]) for trial in trials))


def _operators(report: Report) -> Iterator[Block]:
    before, after = report["operators"]["float"], report["operators"]["quantized"]
    yield Text("Of the float model once it is in order, and of the file that was written.", aside=True)
    yield _table(
        ("operator", "float", "quantized"),
        (
            (name, Number(before.get(name, 0), "d"), Number(after.get(name, 0), "d"))
            for name in sorted({*before, *after})
        ),
    )


def _run(report: Report) -> Iterator[Block]:
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    yield Text(f"onnxq {report['onnxq']}; {versions}.")
    yield _table(("pass", "seconds"), ((name, Number(s, ".2f")) for name, s in report["seconds"].items()))


_SECTIONS: Mapping[str, Callable[[Report], Iterator[Block]]] = {
    "Average precision": _precision,
    "What stands out, and what to try": _findings,
    "Quantized tensors, worst first": _tensors,
    "Values and ranges, worst first": _values,
    "Weights": _weights,
    "Float, and why": _float,
    "Sensitivity, worst first": _sensitivity,
    "Layers kept at a higher precision": _search,
    "Operators": _operators,
    "Run": _run,
}


def _table(columns: tuple[str, ...], rows: Iterable[tuple[Cell, ...]], sortable: bool = False) -> Table:
    return Table(columns, tuple(rows), sortable)


def _worst_first(report: Report) -> list[Report]:
    return sorted(report["activations"], key=lambda each: math.inf if each["sqnr"] is None else each["sqnr"])
