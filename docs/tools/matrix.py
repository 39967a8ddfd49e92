"""Quantize exports for every target and print a table of the results as Markdown.

    python models/exports.py exports
    python -m docs.tools.matrix exports/*.onnx --calib coco/train2017 --document docs/matrix.md

With random weights only the structure counts: which layers run on integers, whether the file loads and how fast it is.
The SQNR can be compared with that of another version; it says nothing about accuracy.
"""

import argparse
import platform
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from docs.tools import compilers
from docs.tools.cpu_kinds import this_cpu
from onnxq.api import Quantized, quantize
from onnxq.config import Config
from onnxq.console.terminal import guarded
from onnxq.errors import OnnxqError
from onnxq.evaluation.latency import latencies
from onnxq.facts import DecodeBoundary, Plan, Verification
from onnxq.ir import opset_of
from onnxq.ir.files import atomic_write
from onnxq.ir.load import load
from onnxq.qdq.reasons import summary_of
from onnxq.runtime import RUNTIMES
from onnxq.targets import TARGETS

_RUNS_IN = {"ort": "ort", "openvino": "openvino", "generic": "ort"}
"""Target -> the runtime that times its files. No runtime here tells the speed of those for TensorRT and QNN."""


@dataclass(frozen=True)
class Cell:
    """An export quantized for a target.

    Attributes:
        convs: number of Convs on integers before the decode.
        unfused: names of planned layers that the runtime computes in float.
        floats: reasons of the Convs that stay float, with their counts.
        decode: number of decode nodes on integers; 0 is right unless the target quantizes the decode.
        sqnr: the lowest SQNR of an output, dB; None if outputs cannot be compared.
        speed: speedup over the float model, by minimum time; None if the target does not run here.
        refused: the error message if the model was refused.
    """

    convs: int = 0
    unfused: tuple[str, ...] = ()
    floats: Counter[str] = field(default_factory=Counter)
    decode: int = 0
    sqnr: float | None = None
    speed: float | None = None
    refused: str = ""


@dataclass(frozen=True)
class Row:
    """An export.

    Attributes:
        name: file name without its suffix.
        made_by: exporter and opset.
        family: recognized head family.
        convs: number of Convs before the decode.
        decode: number of nodes of the decode.
        cells: by target.
    """

    name: str
    made_by: str
    family: str
    convs: int
    decode: int
    cells: dict[str, Cell]


@dataclass(frozen=True)
class Settings:
    """Options of all exports; see the command line options of the same names."""

    calib: Path | None
    count: int
    rounds: int
    targets: Sequence[str]


def measure(path: Path, settings: Settings) -> Row:
    """Quantize one export for every target.

    Raises:
        ModelError: the model cannot be read.
    """
    model = load(path)
    opset = opset_of(model)
    made_by = f"{model.producer_name} {model.producer_version}".strip() or "unknown"
    family, convs, decode = "", 0, 0
    cells: dict[str, Cell] = {}
    for target in settings.targets:
        calib = str(settings.calib) if settings.calib else None
        try:
            result = quantize(path, calib, Config(target=target, count=settings.count))
        except OnnxqError as error:
            cells[target] = Cell(refused=str(error))
            continue
        head, plan = result.facts[DecodeBoundary], result.facts[Plan]
        family, decode = result.detector.family, len(head.tail)
        convs = sum(_is_conv(plan, name) for name in head.body)
        cells[target] = _cell(result, _speed(path, result, target, settings.rounds))
    return Row(path.stem, f"{made_by}, opset {opset}", family, convs, decode, cells)


def _is_conv(plan: Plan, name: str) -> bool:
    return plan.ops.get(name) in ("Conv", "ConvTranspose")


def _cell(result: Quantized, speed: float | None) -> Cell:
    head, plan, checked = result.facts[DecodeBoundary], result.facts[Plan], result.facts[Verification]
    return Cell(
        convs=sum(_is_conv(plan, name) for name in plan.layers if name in head.body),
        unfused=checked.unfused,
        floats=Counter(
            summary_of(plan.skipped[name]) for name in head.body if _is_conv(plan, name) and name in plan.skipped
        ),
        decode=len(plan.integer & head.tail),
        sqnr=min(checked.sqnr.values(), default=None),
        speed=speed,
    )


def _speed(path: Path, result: Quantized, target: str, rounds: int) -> float | None:
    runtime = RUNTIMES[_RUNS_IN[target]] if target in _RUNS_IN else None
    if runtime is None or not rounds or not runtime.is_installed():
        return None
    with tempfile.TemporaryDirectory() as folder:
        quantized = Path(folder) / "quantized.onnx"
        result.save(quantized)
        times = latencies([path, quantized], runtime, threads=2, rounds=rounds).min(axis=1)
    return float(times[0] / times[1])


# The document

_INTRODUCTION = """\
# Exports and targets

`docs/tools/matrix.py` writes this page. The exports come from `models/exports.py`, and from official releases whose
weights were replaced by random ones. [exports.md](exports.md) says what stays float in each family, and why.

{tested}, two threads. A cell has the number of Convs on
integers, the SQNR of the worst output against the float model, and the speedup over the float model (`ort` and
`generic` in onnxruntime, `openvino` in OpenVINO). **With random weights the SQNR says nothing about accuracy; compare
it with that of another version.** If the graph contains NMS, the SQNR is low: it compares lists in different orders.
"""


def markdown(rows: Sequence[Row], settings: Settings) -> str:
    """Return the whole document."""
    tools = ("onnx", "onnxruntime", *(["openvino"] if RUNTIMES["openvino"].is_installed() else []))
    versions = ", ".join(f"{name} {version(name)}" for name in tools)
    tested = f"Python {platform.python_version()}, {versions}, {this_cpu()}"
    return "\n".join([
        _INTRODUCTION.format(tested=tested),
        _line("export", "made by", "family", "Convs", "decode", *settings.targets),
        _line(*["---"] * (5 + len(settings.targets))),
        *(_row(row, settings.targets) for row in rows),
        "",
        "*Convs*: Convs before the decode. *decode*: nodes after the last layers, float for all targets but `qnn`.",
        "",
        "## Why Convs stay float",
        "",
        _line("target", "reason", "Convs of all exports"),
        _line("---", "---", "---"),
        *_reasons(rows, settings.targets),
        "",
        *_notes(rows),
    ])  # fmt: skip


def _row(row: Row, targets: Sequence[str]) -> str:
    cells = (_text(row.cells[target]) for target in targets)
    return _line(row.name, row.made_by, row.family, str(row.convs), str(row.decode), *cells)


def _text(cell: Cell) -> str:
    if cell.refused:
        return "refused"
    parts = [str(cell.convs)]
    if cell.sqnr is not None:
        parts.append(f"{cell.sqnr:.1f} dB")
    if cell.speed is not None:
        parts.append(f"{cell.speed:.2f}x")
    return ", ".join(parts)


def _reasons(rows: Sequence[Row], targets: Sequence[str]) -> Iterator[str]:
    for target in targets:
        total = sum((row.cells[target].floats for row in rows), Counter[str]())
        for reason, count in sorted(total.items(), key=lambda item: (-item[1], item[0])):
            yield _line(target, reason, str(count))


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """Yield refusals and defects, for which a cell has no room."""
    for row in rows:
        refusals = Counter(cell.refused for cell in row.cells.values() if cell.refused)
        for refusal, count in refusals.items():
            where = "every target" if count == len(row.cells) else ", ".join(_refusing(row, refusal))
            yield f"- {row.name}, {where}: {refusal}"
        for target, cell in row.cells.items():
            if cell.unfused:
                yield f"- {row.name}, {target}: these layers run in float: {', '.join(cell.unfused)}"
            if cell.decode and not TARGETS[target].quantizes_decode:
                yield f"- {row.name}, {target}: {cell.decode} nodes of the decode are on integers"


def _refusing(row: Row, refusal: str) -> Iterator[str]:
    return (target for target, cell in row.cells.items() if cell.refused == refusal)


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _other_part(document: Path | None) -> str:
    """Return the part of the page that `docs/tools/compilers.py` writes, if the page has it."""
    text = document.read_text(encoding="utf-8") if document is not None and document.exists() else ""
    _, heading, rest = text.partition(compilers.HEADING)
    return f"{heading}{rest}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path)
    parser.add_argument("--calib", metavar="DIR", type=Path, help="images; default: synthetic scenes")
    parser.add_argument("--count", metavar="N", type=int, default=4, help="number of images (4)")
    parser.add_argument("--rounds", metavar="N", type=int, default=10, help="timed runs of each model (10; 0: none)")
    parser.add_argument("--targets", metavar="TARGET", nargs="+", choices=tuple(TARGETS), default=tuple(TARGETS))
    parser.add_argument("--document", metavar="FILE", type=Path, help="write the page to this file; default: print it")
    args = parser.parse_args(argv)
    return guarded(lambda: _run(args), debug=False)


def _run(args: argparse.Namespace) -> None:
    settings = Settings(args.calib, args.count, args.rounds, args.targets)
    rows: list[Row] = []
    kept = _other_part(args.document)
    for done, path in enumerate(args.models, start=1):
        rows.append(measure(path, settings))
        print(f"{done}/{len(args.models)} {_row(rows[-1], settings.targets)}", file=sys.stderr)
        text = f"{markdown(rows, settings)}\n{kept}"
        if args.document is not None:
            with atomic_write(args.document) as temporary:
                temporary.write_text(text, encoding="utf-8")
    if args.document is None:
        print(text, end="")


if __name__ == "__main__":
    sys.exit(main())
