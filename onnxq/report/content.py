"""Content of the report: what each section says, in the blocks of `onnxq.report.blocks`."""

import math
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median

from onnxq._text import plural
from onnxq.evaluation.average_precision import ModelPrecision
from onnxq.evaluation.scoring.averages import METRICS
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
    Section,
    Table,
    Text,
)
from onnxq.report.schema import ActivationEntry, Report, ValuesEntry

_FEW_IMAGES = 500
"""With fewer images the report warns that AP varies by chance."""


def overview(report: Report) -> Overview:
    """Return the part of the report before the first section."""
    detector = report.detector
    height, width = detector.size
    texts = [
        Text(
            f"Quantized for {report.target}: {report.weight_bits}-bit weights, {report.act_bits}-bit activations, "
            f"range method {report.method}. Recognized as {detector.family} ({detector.task}), {height} x {width}, "
            f"{detector.preprocess}: {detector.why}. Calibrated with {report.calibration}."
        )
    ]
    if report.options:
        texts.append(Text(f"Options: `{shlex.join(report.options)}`."))
    return Overview(report.model, tuple(texts), tuple(_facts(report)), (*report.data_warnings, *report.warnings))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    layers, sizes = report.layers, report.bytes
    yield "layers on integers", f"{len(layers.integer)}"
    if layers.fused is not None:
        yield f"on integers in {report.runtime}", f"{layers.fused}"
    yield "float nodes", f"{len(report.float_)}"
    yield "calibration samples", f"{report.samples}"
    if report.evaluation is not None:
        quantized = report.evaluation.models[-1]
        yield f"AP, {Number(quantized.change, '+z.2f')} against float", f"{Number(quantized.AP, '.2f')}"
    if report.agreement is not None:
        images = f"{report.agreement.images} image{plural(report.agreement.images)}"
        yield f"expected AP against float, {images}", f"{Number(0.0 - report.agreement.loss, '+.2f')}"
    if report.checked_in:
        yield "checked in", f"{report.checked_in}, {report.checked_on}"
    for name, value in report.sqnr_against_exact.items():
        yield f"run against exact, {name}, dB", "equal" if value is None else f"{Number(value, '.1f')}"
    for name, value in report.sqnr.items():
        yield f"SQNR of {name}, dB", f"{Number(value, '.1f')}"
    if report.speed is not None:
        where = f"{report.speed.runtime} on the CPU at hand"
        yield f"speed against the float model, in {where}", f"{report.speed.ratio:.2f}x"
    yield "size before", f"{sizes.before / 1e6:.2f} MB"
    yield "size after", f"{sizes.after / 1e6:.2f} MB"
    yield "all passes", f"{sum(report.seconds.values()):.1f} s"


def sections(report: Report) -> Iterator[Section]:
    """Yield the sections that have content, in order."""
    for title, content in _SECTIONS.items():
        if blocks := tuple(content(report)):
            yield Section(title, blocks)


def _precision(report: Report) -> Iterator[Block]:
    measured = report.evaluation
    if measured is None:
        return
    count = measured.images
    images = f"{count} image{plural(count)} of `{measured.annotations}`"
    yield Text(f"COCO AP of boxes in percent, on {images}, in {measured.runtimes}.")
    if count < _FEW_IMAGES:
        yield Text(
            "With so few images AP varies by chance: on 158 images of COCO, calibrations that differed in nothing gave "
            "AP up to 0.25 apart. Use more images to measure smaller changes.",
            aside=True,
        )
    whole, *parts = METRICS.values()
    reference = measured.models[0]
    rows = (_precision_row(model, None if model is reference else model.change) for model in measured.models)
    yield _table(("model", whole, "change", *parts), rows)


def _precision_row(model: ModelPrecision, change: float | None) -> tuple[Cell, ...]:
    ap, *others = (Number(value, ".2f") for value in model.metrics)
    return Path(model.model).name, ap, Number(change, "+z.2f"), *others


def _findings(report: Report) -> Iterator[Block]:
    if report.findings:
        yield BulletList(tuple(f"{finding.what} Try: {finding.try_}." for finding in report.findings))


def _tensors(report: Report) -> Iterator[Block]:
    yield Text(
        "Each passes through QuantizeLinear and DequantizeLinear. SQNR is the signal-to-quantization-noise ratio "
        "expected from the histogram; if a SiLU reads the tensor, that of the SiLU's output. Clipped is the share of "
        "values outside the range. Both are of the tensor alone, also if others share its scale.",
        aside=True,
    )
    plots = _plot_numbers(report)
    yield _table(
        ("tensor", "method", "SQNR dB", "clipped %", "low", "high", "bits", "scale", "zero point"),
        (
            (
                Name(activation.tensor, plots.get(activation.group)),
                activation.method,
                Number(activation.own.sqnr, ".1f"),
                Number(100 * activation.own.clipped, ".3f"),
                Number(activation.low, ".4g"),
                Number(activation.high, ".4g"),
                Number(activation.bits, "d"),
                Number(activation.scale[0], ".4g"),
                Number(activation.zero_point[0], "d"),
            )
            for activation in _worst_first(report)
        ),
        sortable=True,
    )


def _values(report: Report) -> Iterator[Block]:
    plots = tuple(_plots(report))
    if plots:
        yield Text(
            "The range of each tensor beside those that the range methods choose, and the SQNR in dB of each on the "
            "observed values. Tensors that share a scale stand together, the worst first with its own SQNR; the table "
            "has the SQNR of the values of all of them.",
            aside=True,
        )
        yield Plots(plots, _sqnr_table(plots))


def _plots(report: Report) -> Iterator[Plot]:
    by_group: dict[str, list[ActivationEntry]] = defaultdict(list)
    for activation in _worst_first(report):
        by_group[activation.group].append(activation)
    numbers = _plot_numbers(report)
    for group, activations in by_group.items():
        if group in numbers:
            yield _plot(activations, report.values[group], numbers[group])


def _plot_numbers(report: Report) -> dict[str, int]:
    """Return the number of the plot of each group that has one."""
    return {group: number for number, group in enumerate(report.values)}


def _plot(activations: list[ActivationEntry], values: ValuesEntry, number: int) -> Plot:
    first = activations[0]
    ranges = {f"chosen: {first.method}": values.chosen, **values.methods}
    comparison = _table(
        ("method", "low", "high", "clipped %", "SQNR dB"),
        (
            (
                name,
                Number(each.low, ".4g"),
                Number(each.high, ".4g"),
                Number(100 * each.clipped, ".3f"),
                Number(each.sqnr, ".1f"),
            )
            for name, each in ranges.items()
        ),
    )
    return Plot(
        number=number,
        tensors=tuple(activation.tensor for activation in activations),
        sqnr=Number(first.own.sqnr, ".1f"),
        counts=values.counts,
        observed=(values.low, values.high),
        grid=first.grid,
        bounds={name: (each.low, each.high) for name, each in values.methods.items()},
        comparison=comparison,
    )


def _sqnr_table(plots: tuple[Plot, ...]) -> Table:
    """Return a table with a row for each plot: the SQNR of the chosen range and of each range method."""
    methods = [str(row[0]) for row in plots[0].comparison.rows[1:]]
    rows = (
        (Name(plot.tensors[0]), ", ".join(plot.tensors[1:]), *(row[-1] for row in plot.comparison.rows))
        for plot in plots
    )
    return _table(("tensor", "same scale", "chosen", *methods), rows)


def _weights(report: Report) -> Iterator[Block]:
    if not report.weights:
        return
    yield Text(
        "Integers with a scale for each output channel: the least and the greatest scale; spread is their ratio.",
        aside=True,
    )
    yield _table(
        ("layer", "kind", "bits", "channels", "scales by size (log)", "least", "greatest", "spread"),
        (
            (
                Name(", ".join(weight.layers)),
                weight.kind,
                Number(weight.bits, "d"),
                Number(weight.channels, "d"),
                Curve(weight.scales),
                Number(weight.scale[0], ".3g"),
                Number(weight.scale[1], ".3g"),
                Number(weight.scale[1] / weight.scale[0], ".3g"),
            )
            for weight in report.weights
        ),
        sortable=True,
    )


def _migrated(report: Report) -> Iterator[Block]:
    if not report.migrated:
        return
    yield Text(
        "Channels of unequal size are divided in front of the layers that read them, and the weights are multiplied "
        "instead, so that the greatest values of the channels come closer to each other.",
        aside=True,
    )
    yield _table(
        ("tensor", "channels", "by size (log), before: lower", "greatest / median before", "after"),
        (
            (
                Name(entry.tensor),
                Number(entry.channels, "d"),
                Curve(entry.after, entry.before, "greatest values of the channels, before and after"),
                *(Number(each[0] / median(each), ".3g") for each in (entry.before, entry.after)),
            )
            for entry in report.migrated
        ),
        sortable=True,
    )


def _float(report: Report) -> Iterator[Block]:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for name, node in report.float_.items():
        by_reason[node.text].append(name)
    if by_reason:
        most_first = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
        yield Groups({reason: tuple(names) for reason, names in most_first})


def _sensitivity(report: Report) -> Iterator[Block]:
    if report.sensitivity:
        yield Text("The effect of each part of the network on the outputs if it alone runs on integers.", aside=True)
        yield _table(
            ("alone on integers", "SQNR dB", "boxes moved %"),
            ((Name(part.nodes[0]), Number(part.sqnr, ".1f"), Number(part.moved, ".2f")) for part in report.sensitivity),
            sortable=True,
        )


def _search(report: Report) -> Iterator[Block]:
    search = report.search
    if search is not None:
        trials = search.trials
        images = f"{search.images} image{plural(search.images)}"
        yield Text(f"Measured on {images}, after {len(trials)} trial{plural(len(trials))}: {search.loss_text}.")
        kept = ((Name(", ".join(part.nodes)), str(part.bits or "float")) for part in search.kept)
        yield _table(("layer", "bits"), kept)
        measured = ((Number(trial.kept, "d"), trial.loss_text) for trial in trials)
        yield _table(("parts at a higher precision", "measured"), measured)


def _operators(report: Report) -> Iterator[Block]:
    before, after = report.operators.float_, report.operators.quantized
    yield Text("Nodes of the float model after the preparing passes, and of the quantized model.", aside=True)
    yield _table(
        ("operator", "float", "quantized"),
        (
            (name, Number(before.get(name, 0), "d"), Number(after.get(name, 0), "d"))
            for name in sorted({*before, *after})
        ),
    )


def _run(report: Report) -> Iterator[Block]:
    versions = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    yield Text(f"onnxq {report.onnxq}; {versions}.")
    yield _table(("pass", "seconds"), ((name, Number(s, ".2f")) for name, s in report.seconds.items()))


_SECTIONS: Mapping[str, Callable[[Report], Iterator[Block]]] = {
    "Average precision": _precision,
    "What stands out, and what to try": _findings,
    "Quantized tensors, worst first": _tensors,
    "Values and ranges, worst first": _values,
    "Migrated scales": _migrated,
    "Weights": _weights,
    "Float nodes by reason": _float,
    "Sensitivity, worst first": _sensitivity,
    "Layers kept at a higher precision": _search,
    "Operators": _operators,
    "Run": _run,
}


def _table(columns: tuple[str, ...], rows: Iterable[tuple[Cell, ...]], sortable: bool = False) -> Table:
    return Table(columns, tuple(rows), sortable)


def _worst_first(report: Report) -> list[ActivationEntry]:
    return sorted(report.activations, key=lambda each: math.inf if each.own.sqnr is None else each.own.sqnr)
