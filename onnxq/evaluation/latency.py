"""Latency of models, measured side by side."""

import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxq.ir.storage import load_proto, size_on_disk
from onnxq.progress import Progress, silent
from onnxq.runtime import OperatorTime, Runtime
from onnxq.runtime.paired_times import WARM_UP, paired_times
from onnxq.runtime.session import Feed
from onnxq.yolo.detector import detect

_PROFILED = 15
"""Runs that the times of operators are averaged over."""


@dataclass(frozen=True)
class Latency:
    """Time and memory of one model.

    Attributes:
        path: file of the model.
        bytes: size of the file and its external data.
        peak_memory: peak resident memory of a process that loads and runs the model, bytes; None if the system does not
            report it.
        least, median, p90: time of a run, ms.
        operators: operator, as the runtime calls it -> time and number of nodes.
    """

    path: Path
    bytes: int
    peak_memory: int | None
    least: float
    median: float
    p90: float
    operators: Mapping[str, OperatorTime]


def measure_latency(
    models: Sequence[Path],
    runtime: type[Runtime],
    *,
    threads: int,
    rounds: int,
    size: tuple[int, int] | None = None,
    progress: Progress,
) -> list[Latency]:
    """Measure models in turn, round after round, on the same random image.

    Args:
        models: files of the models.
        runtime: what runs them.
        threads: threads within a run.
        rounds: measured runs of each model.
        size: (height, width) in px, for models with a dynamic input size.
        progress: called after each round.

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
        Latency(
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


def latencies(models: Sequence[Path], runtime: type[Runtime], *, threads: int, rounds: int) -> NDArray[np.float64]:
    """Return the time of each run only, ms, float64 (models, rounds); arguments and errors as for `measure_latency`."""
    return _latencies(models, [_random_feed(path, None) for path in models], runtime, threads, rounds, silent)


def _latencies(
    models: Sequence[Path],
    feeds: Sequence[Feed],
    runtime: type[Runtime],
    threads: int,
    rounds: int,
    progress: Progress,
) -> NDArray[np.float64]:
    loaded = [runtime(path, threads=threads) for path in models]
    return 1e3 * paired_times(loaded, feeds, rounds, progress=progress)


def _random_feed(path: Path, size: tuple[int, int] | None) -> Feed:
    """Return random inputs for a model; models of one input size and batch size get the same values."""
    model = load_proto(path)
    detector = detect(model, image_size=size)
    preprocess = detector.preprocess
    shapes = {value.name: value.type.tensor_type.shape for value in model.graph.input}
    batch = shapes[detector.input_name].dim[0].dim_value or 1
    values = np.random.default_rng(0).random(preprocess.shape(detector.size, batch), dtype=np.float32)
    return detector.feed((preprocess.value_range[1] * values).astype(preprocess.dtype, copy=False))


def _peak_memory(runtime: type[Runtime], path: Path, feed: Feed, threads: int) -> int | None:
    """Return the peak resident memory of a new process that loads and runs the model, bytes."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_run_alone, (runtime, path, feed, threads))


def _run_alone(runtime: type[Runtime], path: Path, feed: Feed, threads: int) -> int | None:
    model = runtime(path, threads=threads)
    for _ in range(WARM_UP):
        model.run(feed)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), None)
