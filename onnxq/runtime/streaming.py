"""Streaming: run many samples through onnxruntime in bounded memory and hand over each output."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxq.ir.checks.activations import check_activations
from onnxq.ir.storage import size
from onnxq.ir.weights.links import LARGE, embedded
from onnxq.runtime.session import Feed, cores, iter_outputs, open_session


def open_worker_session(model: onnx.ModelProto, at_once: int, share: int = 0) -> ort.InferenceSession:
    """Load a model into one of `at_once` sessions that run side by side; each gets its share of the cores.

    Args:
        model: the model.
        at_once: the number of sessions.
        share: cores of all of them together; 0: those of the machine.

    Runs are exact in the sense of `open_session`.

    Raises:
        ModelError: as from `open_session`.
    """
    return open_session(model, threads=_threads(at_once, share), exact=True, frugal=True, resting=True)


def _threads(at_once: int, share: int) -> int:
    """Return the threads of each of the sessions that run side by side."""
    return max(1, (share or cores()) // at_once)


Sink = Callable[[int, str, NDArray[np.generic]], None]
"""Called with the number of a job, and the name and the values of a tensor."""

_SINKS = 4
"""Outputs that are handed over at once, at most; more threads would wait for Python's lock."""

Job = Callable[[], tuple[Feed, int] | None]
"""Returns a feed and the number of valid samples in its batch, or None if it could not be read."""


def workers(model: onnx.ModelProto, share: int = 0) -> int:
    """Return how many samples run at once: at most 2 on any machine, because each holds its tensors in memory.

    Of a large model one runs at a time: each session copies the weights.

    Args:
        model: the model.
        share: cores to use; 0: those of the machine.
    """
    return 1 if size(model) > LARGE else min(2, share or cores())


class Sessions:
    """Sessions of a model, opened when they are needed and kept; each runs one sample at a time.

    A copy, pickled or not, has none yet.

    Attributes:
        model: the model.
        at_once: samples that run at once in one stream.
        threads: of each sample.

    Args:
        model: not changed.
        share: cores to use; 0: those of the machine.
    """

    def __init__(self, model: onnx.ModelProto, share: int = 0) -> None:
        self.model = model
        self.at_once = workers(model, share)
        self.threads = _threads(self.at_once, share)
        self._share = share
        self._free: list[ort.InferenceSession] = []
        self._fitting: set[tuple[tuple[str, tuple[int, ...]], ...]] = set()
        self._checking = threading.Lock()

    def __reduce__(self) -> tuple[type["Sessions"], tuple[onnx.ModelProto, int]]:
        return Sessions, (embedded(self.model), self._share)  # another machine lacks the files

    @contextmanager
    def one(self, feed: Feed) -> Iterator[ort.InferenceSession]:
        """Yield a session that nobody else uses, to run this feed.

        Raises:
            ModelError: onnxruntime cannot load the model, or its tensors do not fit into memory.
        """
        self._check_memory(feed)
        try:
            session = self._free.pop()  # of several threads, each pops another one
        except IndexError:
            session = open_worker_session(self.model, self.at_once, self._share)
        yield session
        self._free.append(session)

    def _check_memory(self, feed: Feed) -> None:
        shapes = {name: array.shape for name, array in feed.items()}
        with self._checking:
            if (key := tuple(sorted(shapes.items()))) not in self._fitting:
                # Its outputs are held together, and make up most of the memory.
                check_activations(self.model, shapes, overhead=1)
                self._fitting.add(key)


def stream(model: onnx.ModelProto | Sessions, jobs: Iterable[Job], sink: Sink, finished: Callable[[int], None]) -> int:
    """Run many samples and hand each output of the model to `sink`; nothing is stored.

    Each worker takes one sample through all steps, so one sample is decoded while another one runs. The outputs of one
    sample are handed over at a time, several of them if there are more cores than workers: two samples would mostly
    wait for each other, and for Python's lock. The order of the calls of `sink` is undefined. Matrix products of numpy
    take one thread: the workers use all cores.

    Args:
        model: its outputs are streamed. Sessions are kept for the next stream.
        jobs: iterated in the calling thread whenever a worker is free, and called in the worker.
        sink: called from several threads, for each output of each sample.
        finished: called in the calling thread with the number of jobs done.

    Returns:
        The number of samples that ran.

    Raises:
        ModelError: onnxruntime cannot load or run the model, or its tensors do not fit into memory.
    """
    sessions = model if isinstance(model, Sessions) else Sessions(model)
    names = [output.name for output in sessions.model.graph.output]
    at_once = sessions.at_once

    def work(number: int, job: Job) -> int:
        loaded = job()
        if loaded is None:
            return 0
        feed, valid = loaded
        padded = valid < next((array.shape[0] for array in feed.values() if array.ndim), valid)

        def hand_over(output: tuple[str, NDArray[np.generic]]) -> None:
            name, array = output
            sink(number, name, array[:valid] if padded else array)

        # Runs in one session share its memory, which grows with every new way in which they overlap.
        with sessions.one(feed) as session:
            outputs = iter_outputs(session, feed, names)
            with turn:
                deque(sinks.map(hand_over, outputs) if sessions.threads > 1 else map(hand_over, outputs), maxlen=0)
        return valid

    turn = threading.Lock()
    samples = done = 0
    with (
        threadpool_limits(1, "blas"),
        ThreadPoolExecutor(min(_SINKS, sessions.threads)) as sinks,
        ThreadPoolExecutor(at_once) as pool,
    ):
        pending: set[Future[int]] = set()
        for number, job in enumerate(jobs):
            pending.add(pool.submit(work, number, job))
            if len(pending) == at_once:
                ready, pending = wait(pending, return_when=FIRST_COMPLETED)
                samples += sum(future.result() for future in ready)
                done += len(ready)
                finished(done)
        for future in as_completed(pending):
            samples += future.result()
            done += 1
            finished(done)
    return samples
