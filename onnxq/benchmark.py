"""Latency of models side by side: `python -m onnxq.benchmark FLOAT QUANTIZED ... [--runtime ort|openvino]`.

The models run in turn within one process, round after round, so that whatever else the machine does hits all alike:
trust the ratios, not the milliseconds.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from onnxq.detector import detect
from onnxq.errors import ConfigError
from onnxq.files import write_json
from onnxq.graph import load_proto
from onnxq.progress import Progress, silent
from onnxq.runtimes import RUNTIMES, OperatorTime, Runtime
from onnxq.session import Feed
from onnxq.sources import plural
from onnxq.storage import size_on_disk
from onnxq.terminal import ERR, OUT, Columns, ProgressBar, guarded, image_size, say

_WARM_UP = 3
_PROFILED = 15
_SMALL_SHARE = 0.01
"""Of the time of every model, below which an operator has no row of its own."""


@dataclass(frozen=True)
class Measured:
    """What one model takes.

    Attributes:
        path: its file.
        bytes: size of the file and of those beside it that hold its weights.
        peak_memory: bytes that a process of its own needs to load and run it; None where the system does not tell.
        least, median, p90: milliseconds of a run.
        operators: operator, as the runtime calls it -> what it takes.
    """

    path: Path
    bytes: int
    peak_memory: int | None
    least: float
    median: float
    p90: float
    operators: Mapping[str, OperatorTime]


def measure(
    models: Sequence[Path],
    runtime: type[Runtime],
    *,
    threads: int,
    rounds: int,
    size: tuple[int, int] | None = None,
    progress: Progress,
) -> list[Measured]:
    """Run models in turn on the same random image.

    Args:
        threads: within a run.
        rounds: counted runs of each.
        size: (height, width) in px, for models that take any.

    Raises:
        ModelError: a model cannot be read, loaded or run.
        ConfigError: the runtime is not installed.
    """
    progress("loading", 0, 0)
    feeds = [_random_feed(path, size) for path in models]
    peaks = [_peak_memory(runtime, path, feed, threads) for path, feed in zip(models, feeds, strict=True)]
    milliseconds = _latencies(models, feeds, runtime, threads, rounds, progress)
    progress("profiling", 0, 0)
    return [
        Measured(
            path=path,
            bytes=size_on_disk(path),
            peak_memory=peak,
            least=float(row.min()),
            median=float(np.median(row)),
            p90=float(np.percentile(row, 90)),
            operators=runtime.operator_times(path, feed, threads=threads, rounds=_PROFILED),
        )
        for path, feed, peak, row in zip(models, feeds, peaks, milliseconds, strict=True)
    ]


def latencies(
    models: Sequence[Path], runtime: type[Runtime], *, threads: int, rounds: int
) -> NDArray[np.float64]:
    """Milliseconds of each run, float64 (models, rounds), and nothing else; for arguments and errors see `measure`."""
    return _latencies(models, [_random_feed(path, None) for path in models], runtime, threads, rounds, silent)


def _latencies(
    models: Sequence[Path],
    feeds: Sequence[Feed],
    runtime: type[Runtime],
    threads: int,
    rounds: int,
    progress: Progress,
) -> NDArray[np.float64]:
    return 1e3 * _in_turn([runtime(path, threads=threads) for path in models], feeds, rounds, progress)


def _random_feed(path: Path, size: tuple[int, int] | None) -> Feed:
    """The model's batch of images, and what goes with them; the same values for all models of one size and batch."""
    model = load_proto(path)
    detector = detect(model, image_size=size)
    made = detector.preprocess
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.input}
    batch = shapes[detector.input_name].dim[0].dim_value or 1
    values = np.random.default_rng(0).random(made.shape(detector.size, batch), dtype=np.float32)
    return detector.feed((made.value_range[1] * values).astype(made.dtype, copy=False))


def _in_turn(
    loaded: Sequence[Runtime], feeds: Sequence[Feed], rounds: int, progress: Progress
) -> NDArray[np.float64]:
    """Seconds of each run, float64 (models, rounds)."""
    seconds = np.empty((len(loaded), _WARM_UP + rounds))
    for turn in range(_WARM_UP + rounds):
        for row, (model, feed) in enumerate(zip(loaded, feeds, strict=True)):
            start = time.perf_counter()
            model.run(feed)
            seconds[row, turn] = time.perf_counter() - start
        progress("measuring", max(0, turn + 1 - _WARM_UP), rounds)
    return seconds[:, _WARM_UP:]


def _peak_memory(runtime: type[Runtime], path: Path, feed: Feed, threads: int) -> int | None:
    """Peak of the resident memory, bytes, of a new process that loads the model and runs it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_alone, (runtime, path, feed, threads))


def _run_alone(runtime: type[Runtime], path: Path, feed: Feed, threads: int) -> int | None:
    model = runtime(path, threads=threads)
    for _ in range(_WARM_UP):
        model.run(feed)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), None)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser("python -m onnxq.benchmark", description="Latency of ONNX models, side by side.")
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="others are compared to the first")
    parser.add_argument("--runtime", choices=tuple(RUNTIMES), default="ort", help="what runs them, on the CPU (ort)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads within a run (2)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="counted runs of each model (30)")
    parser.add_argument("--image-size", type=image_size, metavar="N|HxW", help="for models that take any size")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a file too")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the tables and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads: give 1 or more")
    return guarded(lambda: _benchmark(args), args.debug)


def _benchmark(args: argparse.Namespace) -> None:
    runtime = RUNTIMES[args.runtime]
    if not runtime.is_installed():
        raise ConfigError(f"--runtime {args.runtime}: it is not installed; pip install 'onnxq[{args.runtime}]'")
    with ProgressBar(args.quiet) as progress:
        results = measure(
            args.models, runtime, threads=args.threads, rounds=args.rounds, size=args.image_size, progress=progress
        )
    OUT.print(_latency_table(results))
    OUT.print(_operator_table(results))
    if not args.quiet:
        threads, rounds = f"{args.threads} thread{plural(args.threads)}", f"{args.rounds} round{plural(args.rounds)}"
        say(f"{runtime.title}, {threads}, {rounds} after {_WARM_UP} to warm up", ERR)
    if args.json is not None:
        settings = {"runtime": args.runtime, "threads": args.threads, "rounds": args.rounds}
        write_json(args.json, {**settings, "models": [_as_json(r) for r in results]})


def _as_json(result: Measured) -> dict[str, object]:
    return {**asdict(result), "path": str(result.path)}


def _latency_table(results: Sequence[Measured]) -> Columns:
    caption = "least, median, p90: ms of a run; ratio: times as fast as the first\nfile, peak: MB of file and of memory"
    table = Columns("model", ["least", "ratio", "median", "ratio", "p90", "file", "peak"], caption)
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


def _operator_table(results: Sequence[Measured]) -> Columns:
    """Milliseconds of each operator in each model, and how many of it run; those of little time in one last row."""
    totals = [sum(o.seconds for o in result.operators.values()) for result in results]
    names = dict.fromkeys(name for result in results for name in result.operators)
    shares = {
        name: max(_seconds(result, name) / total for result, total in zip(results, totals, strict=True))
        for name in names
    }
    caption = "milliseconds by operator (and how many of it)"
    table = Columns("operator", [], caption)
    for result in results:
        table.add_column(Text(result.path.name), justify="right", overflow="fold")
    for name in (name for name in names if shares[name] >= _SMALL_SHARE):
        table.add_row(name, *(_operator_cell(result.operators.get(name)) for result in results))
    small = [name for name in names if shares[name] < _SMALL_SHARE]
    if small:
        table.add_row("others", *(f"{1e3 * sum(_seconds(result, name) for name in small):.2f}" for result in results))
    table.add_row("all", *(f"{1e3 * total:.2f}" for total in totals))
    return table


def _seconds(result: Measured, operator: str) -> float:
    return result.operators[operator].seconds if operator in result.operators else 0.0


def _operator_cell(operator: OperatorTime | None) -> str:
    return "" if operator is None else f"{1e3 * operator.seconds:.2f} ({operator.count})"


if __name__ == "__main__":
    sys.exit(main())
