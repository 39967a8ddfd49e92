"""What is sent to a worker, and what it does with it there."""

import importlib
import logging
import os
import pickle
import platform
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import numpy as np

from onnxq import memory
from onnxq._text import some
from onnxq.errors import ConfigError
from onnxq.runtime.cpu import this_cpu
from onnxq.runtime.session import VERSION as ONNXRUNTIME
from onnxq.version import VERSION

log = logging.getLogger(__name__)


class Place(NamedTuple):
    """What the numbers that a process computes depend on.

    Attributes:
        versions: package -> its version.
        cpu: kind of the CPU.
    """

    versions: Mapping[str, str]
    cpu: str

    @classmethod
    def here(cls) -> "Place":
        """Return that of this process."""
        python = ".".join(platform.python_version_tuple()[:2])
        versions = {"onnxq": VERSION, "onnxruntime": ONNXRUNTIME, "numpy": np.__version__, "Python": python}
        return cls(versions, this_cpu().kind)

    def require_like(self, other: "Place") -> None:
        """Refuse another place with other versions, and warn if its CPU is of another kind.

        Raises:
            ConfigError: a version differs.
        """
        differing = [
            f"{name} {other.versions.get(name)} and not {version}"
            for name, version in self.versions.items()
            if other.versions.get(name) != version
        ]
        if differing:
            raise ConfigError(
                f"--workers: a worker has {some(differing)}, so its numbers may differ; install the same versions "
                "on all workers and here"
            )
        if self.cpu != other.cpu:
            log.warning(
                "this machine and the workers have CPUs of the kinds %s, whose kernels round in other ways: results "
                "may differ a little from those of one machine",
                " and ".join(sorted({self.cpu, other.cpu})),
            )


class Record(NamedTuple):
    """A line of the log of a worker.

    Attributes:
        logger: its name.
        level: as in `logging`.
        message: the text.
    """

    logger: str
    level: int
    message: str

    def log(self) -> None:
        """Log it here."""
        logging.getLogger(self.logger).log(self.level, "%s", self.message)


class Outcome(NamedTuple):
    """What a worker returns.

    Attributes:
        result: of the task.
        steps: that were done.
        records: warnings that were logged meanwhile, each once.
    """

    result: Any
    steps: int
    records: tuple[Record, ...]


class Sent:
    """Work as it is sent: it is unpickled once in each process that has tasks, where it keeps what it made.

    Args:
        payload: the pickled work.
        place: where it comes from.
        max_memory: limit that the user gave, bytes; None: each worker has its own.
        folder: working directory in which relative paths are meant.
    """

    def __init__(self, payload: bytes, place: Place, max_memory: int | None, folder: str) -> None:
        self._payload = payload
        self._place = place
        self._max_memory = max_memory
        self._folder = folder
        self._work: Any = None
        self._lock = threading.Lock()

    @classmethod
    def of(cls, payload: bytes) -> "Sent":
        """Return pickled work as this process sends it."""
        return cls(payload, Place.here(), memory.given(), os.getcwd())

    def __reduce__(self) -> tuple[type["Sent"], tuple[bytes, Place, int | None, str]]:
        # A worker passes it on to others while its own copy is in use.
        return Sent, (self._payload, self._place, self._max_memory, self._folder)

    def perform(self, task: Any) -> Outcome:
        """Do a task.

        Raises:
            ConfigError: this process has other versions than the one that sent the work.
        """
        steps = 0

        def count(done: int) -> None:
            nonlocal steps
            steps = done

        with _warnings() as records:
            memory.use(self._max_memory)
            with self._lock:
                if self._work is None:
                    self._place.require_like(Place.here())
                    with suppress(OSError):  # another machine may lack the folder, and not need it
                        os.chdir(self._folder)
                    self._work = pickle.loads(self._payload)
            result = self._work(task, count)
        return Outcome(result, steps, tuple(records))


def perform(task: bytes, sent: Sent) -> Outcome:
    """Do a pickled task of the work that was sent, in the form in which Dask calls it."""
    return sent.perform(pickle.loads(task))


def join(outcomes: Sequence[Outcome], merge: Callable[[Any, Any], None]) -> Outcome:
    """Return the outcome of several tasks as one; those that are given stay as they are."""
    # Dask may need them again.
    result = pickle.loads(pickle.dumps(outcomes[0].result))
    for outcome in outcomes[1:]:
        merge(result, outcome.result)
    records = dict.fromkeys(record for outcome in outcomes for record in outcome.records)
    return Outcome(result, sum(outcome.steps for outcome in outcomes), tuple(records))


def import_passes() -> None:
    """Import what most work needs."""
    importlib.import_module("onnxq.passes")


@contextmanager
def _warnings() -> Iterator[dict[Record, None]]:
    """Collect what onnxq warns of in the block, in any thread."""
    found: dict[Record, None] = {}

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found[Record(record.name, record.levelno, record.getMessage())] = None

    handler = Collector(logging.WARNING)
    logger = logging.getLogger("onnxq")
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
