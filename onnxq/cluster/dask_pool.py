"""A pool whose tasks run on the workers of a Dask scheduler."""

import pickle
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
from distributed import Client, KilledWorker, as_completed

from onnxq.cluster.sent import Outcome, Sent, join, perform
from onnxq.errors import ConfigError, DataError
from onnxq.runtime.pool import Finished, Merge, Pool, Work
from onnxq.runtime.session import first_line

T = TypeVar("T")
R = TypeVar("R")

_LEAST = 8
"""Steps of a chunk at least: a task costs some 10 ms beside its steps, of which each takes 50 ms for a small model."""

_WORKERS_PER_STEP = 4
"""Workers for each step of a chunk, if they are many: the scheduler takes about 1 ms for a task. With chunks of W / 4
steps of 50 ms each, W workers keep it busy for less than a tenth of the time, and soon have all their first tasks."""

_MANY = 64
"""Workers from which on results are merged by workers: the client takes about 20 ms to receive and merge one."""

_TOGETHER = 16
"""Results that a worker then merges into one."""

_MOST = 64
"""Steps of a chunk at most, unless there are so many workers: a worker that is lost costs no more than these."""

_EACH = 8
"""Chunks for each worker, if they have enough steps: the last ones end at nearly the same time."""


def chunk_size(steps: int, workers: int, runs: int = 1) -> int:
    """Return the steps of a chunk, each of which runs a model so many times."""
    least = -(-max(_LEAST, workers // _WORKERS_PER_STEP) // runs)
    return max(least, min(-(-_MOST // runs), -(-steps // (_EACH * workers))))


class DaskPool(Pool):
    """Runs tasks on the workers of a scheduler.

    The work is sent to each worker once, by the scheduler or by another worker. A task is its arguments alone. Results
    go to the client as soon as they are there and are kept nowhere else, so a worker that is lost costs the tasks that
    it had, which others do again. With many workers, some merge the results of others first; then a worker that is lost
    also costs those that it has not passed on.

    Args:
        client: is connected to the scheduler, and belongs to the caller.
        where: the scheduler, for messages.
        kept: as in `Pool`.
    """

    is_remote = True
    cores = 1

    def __init__(self, client: Client, where: str, kept: Path | None = None) -> None:
        self.kept = kept
        self._client = client
        self._where = where

    @property
    def at_once(self) -> int:
        """Number of threads that the workers have now."""
        return self._workers()

    @property
    def is_lost(self) -> bool:
        """Whether the connection to the scheduler is lost."""
        return bool(self._client.status != "running")

    def chunks(self, steps: int, runs: int = 1) -> list[slice]:
        """Cut steps into chunks of equal size, by the number of threads that the workers have now."""
        size = chunk_size(steps, self._workers(), runs)
        return [slice(first, min(first + size, steps)) for first in range(0, steps, size)]

    def run(
        self, work: Work[T, R], tasks: Sequence[T], finished: Finished, merge: Merge[R] | None = None
    ) -> Iterator[tuple[int, R]]:
        """Yield the results in the order in which they end.

        Raises:
            OnnxqError: a task raised it.
            DataError: the work or a task cannot be pickled.
            ConfigError: the connection to the scheduler is lost, a task has ended several workers, or the workers have
                other versions.
        """
        name = uuid.uuid4().hex
        sent = _pickled(Sent.of(_pickled(work)))
        # What a task gives, unlike data that is scattered, is made again if the workers that had it are gone. Bytes are
        # what Dask does not look into.
        held = self._client.submit(pickle.loads, sent, key=f"onnxq-work-{name}", pure=False)
        # Tasks whose group depends on itself would all go to the worker that has the work.
        keys = [f"onnxq-task-{name}-{number}" for number in range(len(tasks))]
        futures = self._client.map(perform, [*map(_pickled, tasks)], sent=held, key=keys, pure=False)
        numbers = {key: number for number, key in enumerate(keys)}
        if merge is not None and self._workers() >= _MANY:
            futures, numbers = self._merged(futures, merge, name)
        steps = 0
        try:
            for future, found in as_completed(futures, loop=self._client.loop, with_results=True, raise_errors=False):
                outcome = self._outcome(future, found)
                future.release()
                for record in outcome.records:
                    record.log()
                steps += outcome.steps
                finished(steps)
                yield numbers[future.key], outcome.result
        finally:
            if self._client.status == "running":
                self._client.cancel(futures, force=True)
                held.release()

    def _merged(self, futures: Sequence[Any], merge: Merge[Any], name: str) -> tuple[list[Any], dict[str, int]]:
        """Return futures of the merged results of several each, and the number of the first of them by key."""
        numbers = {f"onnxq-merge-{name}-{first}": first for first in range(0, len(futures), _TOGETHER)}
        merged = [
            # Results that wait for each other take memory.
            self._client.submit(join, futures[k : k + _TOGETHER], merge, key=key, pure=False, priority=1)
            for key, k in numbers.items()
        ]
        return merged, numbers

    def _workers(self) -> int:
        threads: dict[str, int] = self._client.nthreads()
        return max(1, sum(threads.values()))

    def _outcome(self, future: Any, found: Any) -> Outcome:
        """Return the outcome of a task that has ended, or raise what is wrong with it.

        Args:
            future: of the task.
            found: its result; of a task that failed type, exception and traceback.
        """
        if isinstance(found, Outcome):
            return found
        if future.status != "error":
            raise ConfigError(
                f"--workers: the connection to the scheduler of {self._where} was lost; start it and this again"
            )
        _, error, trace = found
        if isinstance(error, KilledWorker):
            raise ConfigError(
                f"--workers: a task ended {error.allowed_failures + 1} workers of {self._where}, as too little memory "
                "does; give each worker more memory, or fewer threads"
            )
        if isinstance(error, ModuleNotFoundError):
            raise ConfigError(
                f"--workers: the workers of {self._where} lack the module {error.name}; install the same onnxq on each"
            ) from error
        raise error.with_traceback(trace)


def _pickled(what: object) -> bytes:
    """Pickle what is sent.

    Raises:
        DataError: it cannot be.
    """
    try:
        return bytes(cloudpickle.dumps(what))
    except Exception as error:  # whatever an object of the user, or protobuf beyond 2 GB, raises
        raise DataError(
            f"this model or data cannot be sent to workers ({first_line(error)}): models of 2 GB, and objects of "
            "Python that cannot be pickled, stay in one process; leave the workers out"
        ) from error
