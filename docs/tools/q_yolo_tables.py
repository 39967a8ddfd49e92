"""The tables of Q-YOLO as Markdown."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from docs.tools.q_yolo_settings import ACTIVATIONS, ENDS, METHODS, Setting
from onnxq.evaluation.scoring.averages import METRICS


class Measured(Protocol):
    """A model with its results."""

    path: Path

    def result(self, setting: Setting | None) -> dict[str, Any] | None:
        """Return the result of a setting, or of the float model if it is None; None if there is none."""


def markdown(subjects: Sequence[Measured], rows: Sequence[Setting]) -> str:
    """Return the cached results of these rows as tables: AP alone first, then all numbers of each row."""
    lines: list[str] = []
    for subject in subjects:
        results = {row: found for row in rows if (found := subject.result(row)) is not None}
        plain = subject.result(None)
        if plain is not None:
            lines += ["", f"## {subject.path.stem}", "", *_overview(results, plain)]
        for ends, title in ENDS.items():
            of_ends = {row: found for row, found in results.items() if row.ends == ends}
            if plain is not None and of_ends:
                lines += ["", f"### {subject.path.stem}, {title}", "", *_table(of_ends, plain)]
    return "\n".join(lines).strip() + "\n"


def _overview(results: Mapping[Setting, dict[str, Any]], plain: dict[str, Any]) -> Iterator[str]:
    columns = sorted({(row.bits, row.activations) for row in results}, key=_bits_first)
    yield f"AP; float {plain['ap']:.2f}. W-A: bits of weights and activations, s: symmetric activations.\n"
    yield _line("first and last", "method", *(f"{bits}{' s' * ACTIVATIONS[kind]}" for bits, kind in columns))
    yield _line(*["---"] * (2 + len(columns)))
    for ends, method in itertools.product(ENDS, METHODS):
        cells = [results.get(Setting(ends, kind, bits, method)) for bits, kind in columns]
        if any(cells):
            yield _line(ends, method, *("" if cell is None else score(cell["ap"]) for cell in cells))


def _table(results: Mapping[Setting, dict[str, Any]], plain: dict[str, Any]) -> Iterator[str]:
    headings = ["MB", "MB packed", "OPs G", "BOPs G", "seconds"]
    yield _line("W-A", "activations", "method", *METRICS.values(), *headings)
    yield _line(*["---"] * (3 + len(METRICS) + len(headings)))
    yield _line("32-32", "", "float", *_numbers(plain))
    order = list(METHODS)
    for row in sorted(results, key=lambda r: (_bits_first((r.bits, r.activations)), order.index(r.method))):
        yield _line(row.bits, row.activations, row.method, *_numbers(results[row]))
    found = next(iter(results.values()))
    kept = sum(found["float_convs"].values())
    reasons = "; ".join(f"{count} float: {reason}" for reason, count in found["float_convs"].items())
    yield f"\n{found['convs'] - kept} of {found['convs']} Convs quantized{'; ' + reasons if reasons else ''}."


def _bits_first(column: tuple[str, str]) -> tuple[int, int, str]:
    weight, activation = map(int, column[0].split("-"))
    return -activation, -weight, column[1]


def _numbers(found: dict[str, Any]) -> list[str]:
    return [
        *(score(found[metric]) for metric in METRICS),
        f"{found['bytes'] / 1e6:.2f}",
        f"{found['packed_bytes'] / 1e6:.2f}",
        f"{found['ops'] / 1e9:.3f}",
        f"{found['bops'] / 1e9:.1f}",
        f"{found['seconds_quantizing']:.0f} + {found['seconds_evaluating']:.0f}",
    ]


def score(value: float | None) -> str:
    """Return a number of the tables as text."""
    return "-" if value is None else f"{value:.2f}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
