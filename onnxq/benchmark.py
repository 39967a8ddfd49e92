"""Latency of models side by side: `python -m onnxq.benchmark FLOAT QUANTIZED ... [--runtime ort|openvino]`.

The models run in turn within one process, round after round, so that whatever else the machine does hits all alike:
trust the ratios, not the milliseconds.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.table import Table
from rich.text import Text

from onnxq.detector import detect
from onnxq.errors import ConfigError
from onnxq.graph import load_proto
from onnxq.session import open_session, run
from onnxq.terminal import ERR, OUT, ProgressBar, guarded, image_size

_WARM_UP = 3


@dataclass(frozen=True)
class Runner:
    """A model that is ready to run on a fixed input."""

    path: Path
    infer: Callable[[], object]


def on_onnxruntime(path: Path, threads: int, size: tuple[int, int] | None) -> Runner:
    """Open a model in onnxruntime's CPU provider.

    Raises:
        ModelError: it cannot be read or loaded.
    """
    name, feed = _random_input(path, size)
    session = open_session(path, threads=threads)
    return Runner(path, lambda: run(session, {name: feed}))


def on_openvino(path: Path, threads: int, size: tuple[int, int] | None) -> Runner:
    """Open a model in OpenVINO's CPU plugin, in float32 where it is not quantized.

    Raises:
        ConfigError: OpenVINO is not installed.
        ModelError: the model cannot be read.
    """
    try:
        import openvino
    except ImportError:
        raise ConfigError("--runtime openvino: it is not installed; pip install 'onnxq[openvino]'") from None
    name, feed = _random_input(path, size)
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()
    return Runner(path, lambda: request.infer({name: feed}))


RUNTIMES: dict[str, Callable[[Path, int, tuple[int, int] | None], Runner]] = {
    "ort": on_onnxruntime,
    "openvino": on_openvino,
}


def _random_input(path: Path, size: tuple[int, int] | None) -> tuple[str, NDArray[np.float32]]:
    """Name and values, float32 (1, 3, height, width), of the image input; the same values for all models."""
    detector = detect(load_proto(path), image_size=size)
    high = detector.preprocess.value_range[1]
    return detector.input_name, high * np.random.default_rng(0).random((1, 3, *detector.size), dtype=np.float32)


def measure(runners: Sequence[Runner], rounds: int, progress: Callable[[str, int, int], None]) -> NDArray[np.float64]:
    """Seconds of each run, float64 (models, rounds)."""
    for runner in runners:
        for _ in range(_WARM_UP):
            runner.infer()
    seconds = np.empty((len(runners), rounds))
    for turn in range(rounds):
        for row, runner in enumerate(runners):
            start = time.perf_counter()
            runner.infer()
            seconds[row, turn] = time.perf_counter() - start
        progress("measuring", turn + 1, rounds)
    return seconds


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    parser = argparse.ArgumentParser("python -m onnxq.benchmark", description="Latency of ONNX models, side by side.")
    parser.add_argument("models", metavar="MODEL", nargs="+", type=Path, help="others are compared to the first")
    parser.add_argument("--runtime", choices=tuple(RUNTIMES), default="ort", help="what runs them, on the CPU (ort)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="threads within a run (2)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="counted runs of each model (30)")
    parser.add_argument("--image-size", type=image_size, metavar="N|HxW", help="for models that take any size")
    parser.add_argument("-q", "--quiet", action="store_true", help="print the table and nothing else")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.threads < 1:
        parser.error("--rounds and --threads: give 1 or more")
    return guarded(lambda: _benchmark(args), args.debug)


def _benchmark(args: argparse.Namespace) -> None:
    runners = [RUNTIMES[args.runtime](path, args.threads, args.image_size) for path in args.models]
    with ProgressBar(args.quiet) as progress:
        seconds = measure(runners, args.rounds, progress)
    OUT.print(_table(runners, seconds))
    if not args.quiet:
        ERR.print(f"{args.runtime}, {args.threads} threads, {args.rounds} rounds after {_WARM_UP} to warm up")


def _table(runners: Sequence[Runner], seconds: NDArray[np.float64]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("model", overflow="fold")
    for title in ("least ms", "ratio", "median ms", "ratio", "MB"):
        table.add_column(title, justify="right", no_wrap=True)
    least, median = seconds.min(axis=1) * 1e3, np.median(seconds, axis=1) * 1e3
    for row, runner in enumerate(runners):
        table.add_row(
            Text(runner.path.name),
            f"{least[row]:.1f}",
            f"{least[0] / least[row]:.2f}",
            f"{median[row]:.1f}",
            f"{median[0] / median[row]:.2f}",
            f"{runner.path.stat().st_size / 1e6:.2f}",
        )
    return table


if __name__ == "__main__":
    raise SystemExit(main())
