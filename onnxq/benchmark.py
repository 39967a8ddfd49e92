"""Latency of models side by side: `python -m onnxq.benchmark FLOAT QUANTIZED ... [--runtime ort|openvino]`.

The models run in turn within one process, round after round, so that other load on the machine affects all of them
alike: trust the ratios, not the milliseconds.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.text import Text

from onnxq._text import plural
from onnxq.console.guards import add_guards
from onnxq.console.terminal import ERR, OUT, NumberTable, Parser, ProgressBar, guarded, image_size, model_file, say
from onnxq.console.used_files import UsedFiles
from onnxq.evaluation.latency import Latency, measure_latency
from onnxq.evaluation.runtime_choice import installed
from onnxq.ir.files import write_json
from onnxq.runtime import RUNTIMES, OperatorTime
from onnxq.runtime.paired_times import WARM_UP

__all__ = ["Latency", "main", "measure_latency"]

_SMALL_SHARE = 0.01
"""Operators with a smaller share of the time of every model have no row of their own."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = Parser("python -m onnxq.benchmark", description="Latency of ONNX models, side by side.")
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        type=model_file,
        help="model files, or demo for the demo model; the others are compared with the first",
    )
    parser.add_argument("--runtime", choices=tuple(RUNTIMES), default="ort", help="runtime, on the CPU (ort)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads of the runtime (2)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="measured runs of each model (30)")
    parser.add_argument(
        "--image-size", type=image_size, metavar="N|HxW", help="input size, for models with a dynamic one"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    parser.add_argument("-q", "--quiet", action="store_true", help="print only the tables")
    add_guards(parser)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads: expected 1 or more")
    return guarded(lambda: _benchmark(args), args.debug, max_memory=args.max_memory)


def _benchmark(args: argparse.Namespace) -> None:
    runtime = installed(args.runtime)
    files = UsedFiles()
    for model in args.models:
        files.reads_model("a model", model)
    files.writes("--json", args.json)
    files.check()
    with ProgressBar(args.quiet) as progress:
        results = measure_latency(
            args.models, runtime, threads=args.threads, rounds=args.rounds, size=args.image_size, progress=progress
        )
    files.require_unchanged()
    OUT.print(_latency_table(results))
    OUT.print(_operator_table(results))
    if args.json is not None:
        settings = {"runtime": args.runtime, "threads": args.threads, "rounds": args.rounds}
        write_json(args.json, {**settings, "models": [_as_json(r) for r in results]})
    if not args.quiet:
        threads, rounds = f"{args.threads} thread{plural(args.threads)}", f"{args.rounds} round{plural(args.rounds)}"
        say(f"{runtime.described()}, {threads}, {rounds} after {WARM_UP} warm-up runs", ERR)


def _as_json(result: Latency) -> dict[str, object]:
    return {**asdict(result), "path": str(result.path)}


def _latency_table(results: Sequence[Latency]) -> NumberTable:
    caption = "least, median, p90: ms per run; ratio: speedup over the first\nfile, peak: size of file and memory, MB"
    table = NumberTable("model", ["least", "ratio", "median", "ratio", "p90", "file", "peak"], caption)
    first = results[0]
    for result in results:
        table.add_row(
            Text(result.path.name),
            f"{result.least:.1f}",
            f"{first.least / result.least:.2f}",
            f"{result.median:.1f}",
            f"{first.median / result.median:.2f}",
            f"{result.p90:.1f}",
            f"{result.bytes / 1e6:.2f}",
            "" if result.peak_memory is None else f"{result.peak_memory / 1e6:.0f}",
        )
    return table


def _operator_table(results: Sequence[Latency]) -> NumberTable:
    """Return the time and number of each operator in each model; operators with little time share one row."""
    totals = [sum(o.seconds for o in result.operators.values()) for result in results]
    names = dict.fromkeys(name for result in results for name in result.operators)
    shares = {
        name: max(_seconds(result, name) / total for result, total in zip(results, totals, strict=True))
        for name in names
    }
    caption = "ms per operator (number of nodes)"
    table = NumberTable("operator", [], caption)
    for result in results:
        table.add_column(Text(result.path.name), justify="right", overflow="fold")
    for name in (name for name in names if shares[name] >= _SMALL_SHARE):
        table.add_row(name, *(_operator_cell(result.operators.get(name)) for result in results))
    small = [name for name in names if shares[name] < _SMALL_SHARE]
    if small:
        table.add_row("others", *(f"{1e3 * sum(_seconds(result, name) for name in small):.2f}" for result in results))
    table.add_row("all", *(f"{1e3 * total:.2f}" for total in totals))
    return table


def _seconds(result: Latency, operator: str) -> float:
    return result.operators[operator].seconds if operator in result.operators else 0.0


def _operator_cell(operator: OperatorTime | None) -> str:
    return "" if operator is None else f"{1e3 * operator.seconds:.2f} ({operator.count})"


if __name__ == "__main__":
    sys.exit(main())
