"""What `--workers` costs: `python -m docs.tools.scale MODEL --calib DIR`, and `--simulate N` for clusters of N workers.

The first calibrates a model in this process and with workers, and compares the files. The second runs Dask's own
scheduler and onnxq's own client with tasks that sleep as long as a chunk of the model's images takes, and that return
the model's own statistics, which the client merges. Its N workers are threads of a few processes.
"""

import argparse
import heapq
import logging
import pickle
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import onnxq
from onnxq.calibration import demo
from onnxq.calibration.statistics_file import save_statistics
from onnxq.cluster import open_pool
from onnxq.cluster.dask_pool import _MANY, DaskPool, chunk_size
from onnxq.config import AUTO
from onnxq.facts import Statistics
from onnxq.hooks import time_passes
from onnxq.passes import calibrate, prepare_and_plan
from onnxq.passes.observe import COVARIANCES
from onnxq.runtime.cpu import this_cpu
from onnxq.runtime.pool import Finished, Merge, Pool, Work

_JITTER = 0.2
"""Sleeps differ by up to this share, as chunks of images do."""

_BYTES_PER_SECOND = 125e6
"""Of the network between simulated workers: 1 Gb/s."""

_RECORDED = 4
"""Chunks that are run to measure them."""

_THREADS = 100
"""Simulated workers of a process."""


@dataclass(frozen=True)
class Chunk:
    """What a chunk of images costs and gives.

    Attributes:
        seconds: of an image.
        payloads: its statistics, pickled: without covariances, and with them.
        merge_seconds: to merge each of them into others.
        sent: bytes of the pickled work.
    """

    seconds: float
    payloads: tuple[bytes, bytes]
    merge_seconds: tuple[float, float]
    sent: int


class _Recorder(Pool):
    """Runs the first chunks here, of which the first alone has covariances, and keeps what they cost."""

    is_remote = True
    cores = 1

    def __init__(self, size: int) -> None:
        self._size = size
        self.found: Chunk | None = None

    def chunks(self, steps: int, runs: int = 1) -> list[slice]:
        return [slice(first, first + self._size) for first in range(0, _RECORDED * self._size, self._size)]

    def run(
        self, work: Work[Any, Any], tasks: Sequence[Any], finished: Finished, merge: Merge[Any] | None = None
    ) -> Iterator[tuple[int, Any]]:
        seconds, pickled = [], []
        for number, task in enumerate(tasks):
            start = time.perf_counter()
            result = work(task, finished)
            seconds.append(time.perf_counter() - start)
            pickled.append(pickle.dumps(result))  # others are merged into it later
            yield number, result
        payloads, total = (pickled[-1], pickled[0]), pickle.loads(pickled[0])
        merging = tuple(median(_merge_seconds(total, payload) for _ in range(10)) for payload in payloads)
        # The first chunk opens the session.
        self.found = Chunk(min(seconds[1:]) / self._size, payloads, merging, len(pickle.dumps(work)))


def _merge_seconds(total: Any, payload: bytes) -> float:
    start = time.perf_counter()
    total.merge(pickle.loads(payload))
    return time.perf_counter() - start


class Simulated:
    """The statistics of a chunk, of which nothing is sent until they are merged: then they are real ones.

    Between simulated workers nothing is sent because they are on one machine, and have a network of their own.

    Attributes:
        payloads: real statistics, pickled, without and with covariances; the same ones for all.
        merge_seconds: what receiving and merging others of either kind takes.
        is_merged: whether others were merged into them.

    Args:
        covariances: whether they have covariances.
    """

    payloads = b"", b""
    merge_seconds = 0.0, 0.0

    def __init__(self, covariances: bool) -> None:
        self.covariances = covariances
        self.is_merged = False

    def __reduce__(self) -> tuple[Any, ...]:
        if self.is_merged:
            return pickle.loads, (self.payloads[self.covariances],)
        return Simulated, (self.covariances,)

    def merge(self, other: "Simulated") -> None:
        """Take the time that receiving and merging takes."""
        time.sleep(self.merge_seconds[other.covariances])
        self.covariances |= other.covariances
        self.is_merged = True


class Sleeping:
    """Sleeps as long as it is told, and returns statistics.

    Args:
        payloads: what it returns, as in `Chunk`; empty for nothing.
        merge_seconds: as in `Simulated`; None: the statistics are real.
    """

    def __init__(self, payloads: tuple[bytes, bytes], merge_seconds: tuple[float, float] | None) -> None:
        self._payloads = payloads
        self._merge_seconds = merge_seconds

    def __call__(self, task: tuple[float, bool], finished: Finished) -> Any:
        """Sleep, and return the statistics, with covariances or without."""
        seconds, covariances = task
        time.sleep(seconds)
        finished(1)
        if self._merge_seconds is None:
            payload = self._payloads[covariances]
            return pickle.loads(payload) if payload else None
        Simulated.payloads, Simulated.merge_seconds = self._payloads, self._merge_seconds
        return Simulated(covariances)


def chunk_of(model: Path, data: object, size: int = 16, rounding: str = AUTO) -> Chunk:
    """Return what a chunk of very many images costs on one core of this machine."""
    recorder = _Recorder(size)
    config = onnxq.Config(count=_RECORDED * size, rounding=rounding)
    original = onnxq.api.load(model)
    samples = onnxq.api.open_data(data, original, onnxq.api.detect(original), config)
    loaders = tuple(samples.loaders)
    many = _RECORDED * COVARIANCES * size
    repeated = replace(samples, loaders=loaders * -(-many // len(loaders)), sources=())
    onnxq.quantize(model, repeated, config, pool=recorder)
    assert recorder.found is not None
    return recorder.found


def sleeps(count: int, seconds: float) -> list[float]:
    """Return times to sleep whose mean is nearly the given one, the same ones each time."""
    golden = 0.6180339887
    return [seconds * (1 + _JITTER * (2 * (k * golden % 1) - 1)) for k in range(count)]


def with_covariances(chunks: int) -> list[bool]:
    """Return for each of some chunks whether a covariance is taken on a sample of it, if they have very many."""
    every = max(1, chunks // COVARIANCES)
    return [number % every == 0 for number in range(chunks)]


def never_waiting(tasks: Sequence[float], workers: int) -> float:
    """Return the seconds until all tasks have ended, if a worker that ends one begins the next at once."""
    free = [0.0] * workers
    for seconds in tasks:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


def simulate(workers: int, chunk: Chunk, seconds: float, rounds: int) -> dict[str, float]:
    """Run `rounds` tasks for each of some simulated workers.

    Args:
        workers: their number.
        chunk: what the tasks return.
        seconds: mean time that they sleep.
        rounds: tasks of each worker.

    Returns:
        The seconds that it took, those that workers which never wait would take, and those of a task that does nothing.
    """
    import distributed

    processes = -(-workers // _THREADS)
    with (
        tempfile.TemporaryDirectory() as folder,
        distributed.LocalCluster(
            n_workers=processes,
            threads_per_worker=workers // processes,
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=folder,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        pool = DaskPool(client, "the simulation")
        nothing = Sleeping((b"", b""), None)
        list(pool.run(nothing, [(0.0, False)] * (2 * workers), lambda _: None))  # imports
        start = time.perf_counter()
        list(pool.run(nothing, [(0.0, False)] * (rounds * workers), lambda _: None))
        each = (time.perf_counter() - start) / (rounds * workers)
        times, total = sleeps(rounds * workers, seconds), pickle.loads(chunk.payloads[True])
        tasks = list(zip(times, with_covariances(len(times)), strict=True))
        start = time.perf_counter()
        receiving = [len(payload) / _BYTES_PER_SECOND for payload in chunk.payloads]
        without, taken_with = (a + b for a, b in zip(chunk.merge_seconds, receiving, strict=True))
        work = Sleeping(chunk.payloads, (without, taken_with) if workers >= _MANY else None)
        for _, result in pool.run(work, tasks, lambda _: None, Simulated.merge):
            total.merge(result)
        taken = time.perf_counter() - start
    return {"seconds": taken, "ideal": never_waiting(times, workers), "each": each}


def calibrated(model: Path, data: object, count: int, pool: Pool, path: Path, rounding: str = AUTO) -> float:
    """Calibrate a model, write the calibration file, and return the seconds that observing takes."""
    seconds: dict[str, float] = {}
    config = onnxq.Config(count=count, rounding=rounding)
    original = onnxq.api.load(model)
    samples = onnxq.api.open_data(data, original, onnxq.api.detect(original), config)
    passes = [*prepare_and_plan(config), calibrate(config, samples, pool=pool)[0]]
    facts = onnxq.quantize(model, samples, config, passes=passes, hooks=[time_passes(seconds)], pool=pool).facts
    save_statistics(facts[Statistics], path)
    return seconds["observe"]


def main() -> None:
    """Print a row for each way to calibrate, or for each size of a cluster."""
    parser = argparse.ArgumentParser("python -m docs.tools.scale", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=demo.model_path())
    parser.add_argument("--calib", metavar="DIR", default=demo.CALIBRATION)
    parser.add_argument("--count", type=int, default=200, help="images (200)")
    parser.add_argument("--rounding", default=AUTO, help=f"as of onnxq, for what is counted ({AUTO})")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each way, one after the other (3)")
    parser.add_argument("--workers", type=int, nargs="+", metavar="N", default=[1, 2], help="workers to compare (1 2)")
    parser.add_argument("--simulate", type=int, nargs="+", metavar="N", help="simulate clusters of N workers instead")
    parser.add_argument("--rounds", type=int, default=8, help="chunks of each simulated worker (8)")
    arguments = parser.parse_args()
    print(this_cpu())
    if arguments.simulate:
        _print_simulated(arguments)
    else:
        _print_compared(arguments)


def _print_compared(arguments: argparse.Namespace) -> None:
    taken: dict[str, list[float]] = {}
    written = set()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "calibration.npz")
        for _ in range(arguments.pairs):
            for where in (None, *arguments.workers):
                name = f"--workers {where}" if where else "one process"
                start = time.perf_counter()
                with open_pool(where) as pool:
                    ready = time.perf_counter() - start
                    seconds = calibrated(
                        arguments.model, arguments.calib, arguments.count, pool, path, arguments.rounding
                    )
                taken.setdefault(name, []).append(seconds)
                taken.setdefault(f"{name}, start", []).append(ready)
                written.add(path.read_bytes())
    print(f"{arguments.count} images; {len(written)} different calibration file{'s' if len(written) > 1 else ''}")
    for name, times in taken.items():
        print(f"{name:24} least {min(times):7.2f} s, median {median(times):7.2f} s")


def _print_simulated(arguments: argparse.Namespace) -> None:
    chunk = chunk_of(arguments.model, arguments.calib, rounding=arguments.rounding)
    sizes = " and ".join(f"{len(payload) / 1e6:.2f} MB" for payload in chunk.payloads)
    merging = " and ".join(f"{1e3 * seconds:.1f} ms" for seconds in chunk.merge_seconds)
    print(
        f"image {1e3 * chunk.seconds:.1f} ms, statistics without and with covariances {sizes}, "
        f"merging {merging}, work {chunk.sent / 1e6:.1f} MB"
    )
    for workers in arguments.simulate:
        size = chunk_size(10**9, workers)
        found = simulate(workers, chunk, size * chunk.seconds, arguments.rounds)
        share = found["seconds"] / found["ideal"] - 1
        print(
            f"{workers} workers, chunks of {size} images: {found['seconds']:.1f} s, never waiting "
            f"{found['ideal']:.1f} s, overhead {100 * share:.1f} %; a task that does nothing takes "
            f"{1e3 * found['each']:.2f} ms"
        )


if __name__ == "__main__":
    from docs.tools import scale  # what is sent to workers must be of a module that they can import

    scale.main()
